"""A resource that the proxy refuses."""

from check import check, eventually, no_failures
from ready import synced


def case_refused_resource_is_named(cluster):
    """an unknown filter on one listener: NACK with the reason in istiod's log and proxy-status; the rest is applied"""
    cluster.apply("refused")
    try:
        status = lambda: next((l for l in cluster.istioctl("proxy-status", "-v", "1").splitlines() if l.startswith("frontend") and "ERROR" in l), None)
        line = eventually(status, "proxy-status shows ERROR", 30)
        log = cluster.k("-n", "istio-system", "logs", "deploy/istiod", "--since=60s")
        reason = [l for l in log.splitlines() if "ACK ERROR frontend" in l and "acme" in l]
        check(reason, "istiod's log does not name the refused filter")
        # The same push brought a listener on 9899: it works. The refused one keeps its last good version.
        extra = lambda: cluster.curl("http://extra:9899/version", "-w", " %{http_code}").endswith(" 200")
        eventually(extra, "the rest of the push is applied", 20)
        no_failures(cluster.load(requests=500, connections=8))
    finally:
        cluster.delete("refused")
    eventually(lambda: synced(cluster), "SYNCED after the removal", 30)
    kinds = [w for w in line.split() if w in ("ERROR", "SYNCED")]
    return f"proxy-status {' '.join(kinds)}; istiod: …{reason[-1].split('ACK ERROR', 1)[1][:230]}"
