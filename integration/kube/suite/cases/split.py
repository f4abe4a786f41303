"""The 90/10 split, and the header that overrides it."""

from check import binomial_bounds, check, no_failures


def case_ninety_ten(cluster):
    """20,000 requests: the canary's share is inside the 99.9 % binomial bounds"""
    return split(cluster, 20_000, 0.10)


def split(cluster, requests, share):
    report = no_failures(cluster.load(requests=requests, connections=32))
    low, high = binomial_bounds(requests, share)
    canary = report["versions"].get("canary", 0)
    check(report["requests"] == requests, f"{report['requests']} of {requests} answered")
    check(low <= canary <= high, f"canary {canary} of {requests}, outside {low}..{high}")
    return f"canary {canary} of {requests} (99.9 %: {low}..{high})"


def case_canary_by_header(cluster):
    """x-canary: true is always answered by the canary"""
    report = no_failures(cluster.load(requests=2_000, connections=16, header="x-canary:true"))
    check(report["versions"] == {"canary": 2_000}, f"versions {report['versions']}")
    return "2000 of 2000 by the canary"


def case_both_stable_pods_share(cluster):
    """least request spreads over the two stable pods"""
    report = no_failures(cluster.load(requests=4_000, connections=16))
    stable = {host: n for host, n in report["hosts"].items() if "stable" in host}
    check(len(stable) == 2 and min(stable.values()) > 0.3 * sum(stable.values()), f"hosts {report['hosts']}")
    return f"{stable}"


def case_frontend_calls_podinfo(cluster):
    """the frontend's own call (POST /echo) goes through both sidecars"""
    out = cluster.exec(cluster.frontend, "tools", "curl", "-sS", "-d", "ping", "http://127.0.0.1:9898/echo", "-w", " %{http_code}")
    check(out == '["ping"] 202', out)
    return out
