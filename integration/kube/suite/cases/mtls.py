"""PeerAuthentication STRICT: who may talk, what is on the wire, and what happens to the wrong server."""

import json
import time

from check import check, eventually, no_failures


def case_plaintext_is_refused(cluster):
    """a client without a sidecar gets no answer"""
    done = cluster.exec("client", "tools", "curl", "-sS", "-m", "5", "http://podinfo.demo:9898/", namespace="legacy", ok=False)
    check(done.returncode in (52, 56), f"curl exit {done.returncode}: {done.stdout} {done.stderr}")
    address = cluster.pods("app=podinfo,version=stable")[0]["status"]["podIP"]
    direct = cluster.exec("client", "tools", "curl", "-sS", "-m", "5", f"http://{address}:9898/", namespace="legacy", ok=False)
    check(direct.returncode in (52, 56), f"curl exit {direct.returncode}: {direct.stdout} {direct.stderr}")
    return f"curl: exit {done.returncode} by the service, {direct.returncode} by the pod's address"


def case_only_tls13_on_the_wire(cluster):
    """frames between frontend and podinfo, captured in the frontend's pod: TLS 1.3, no plaintext"""
    frontend = cluster.frontend
    # Fresh handshakes: the pools' connections are older than the capture.
    wait = cluster.load_in_background(connections=48, seconds=6)
    restart = [p["metadata"]["name"] for p in cluster.pods("app=podinfo,version=canary")]
    for pod in restart:
        cluster.k("-n", "demo", "delete", "pod", pod, "--wait=false")
    wire = json.loads(cluster.exec(frontend, "tools", "kube-tools", "wire", "--port", "9898", "--seconds", "12", timeout=60))
    wait()
    cluster.roll_out("podinfo-canary")
    cluster.settle()
    check(wire["tls13"] > 0, f"no handshake seen: {wire}")
    check(wire["plaintext"] == wire["tls_older"] == 0, f"{wire}")
    return f"{wire['tls13']} handshakes, all TLS 1.3; {wire['encrypted']} flows from before; no plaintext"


def case_each_end_sees_the_other(cluster):
    """podinfo sees the frontend's SPIFFE URI in x-forwarded-client-cert, by a certificate for its own"""
    headers = json.loads(cluster.curl("http://podinfo:9898/headers"))
    xfcc = " ".join(headers.get("X-Forwarded-Client-Cert", headers.get("x-forwarded-client-cert", [])))
    for part in ("By=spiffe://cluster.local/ns/demo/sa/podinfo", "URI=spiffe://cluster.local/ns/demo/sa/frontend"):
        check(part in xfcc, f"XFCC {xfcc!r} lacks {part}")
    return xfcc[:160]


def case_wrong_identity_fails(cluster):
    """a server whose certificate names another identity: 503, UF, CERTIFICATE_VERIFY_FAILED"""
    cluster.apply("imposter")
    try:
        # Until the Service and its rule have arrived, there is no such host, or the request succeeds.
        def refused():
            answer = cluster.curl("http://imposter:9898/", "-w", " %{http_code}", ok=False).stdout
            return answer if answer.endswith(" 503") else None

        answer = eventually(refused, "the wrong identity is refused", 30)
        entry = eventually(lambda: access_log(cluster, "outbound|9898||imposter"), "an access log entry", 15)
        # URX beside it: istiod's default retry policy tries a failed connection twice more.
        check("UF" in entry["response_flags"].split(",") and entry["response_code"] == 503, f"{entry}")
        check("remote connection failure" in answer, answer)
    finally:
        cluster.delete("imposter")
    return f"503 {entry['response_flags']} {entry['upstream_transport_failure_reason'][:110]}"


def access_log(cluster, upstream):
    """The last entry of the frontend's access log with this upstream cluster and its failure reason."""
    for line in reversed(cluster.k("-n", "demo", "logs", cluster.frontend, "-c", "istio-proxy", "--tail=400").splitlines()):
        if line.startswith("{") and upstream in line and "CERTIFICATE_VERIFY_FAILED" in line:
            return json.loads(line)
    return None
