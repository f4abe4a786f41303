"""Retries from the VirtualService; outlier ejection and pool limits from a DestinationRule: in traffic and in the stats."""

from check import check, eventually, no_failures

STABLE = "outbound|9898|stable|podinfo.demo.svc.cluster.local"
CANARY = "outbound|9898|canary|podinfo.demo.svc.cluster.local"


def delta(cluster, pod, upstream, names, action):
    """What the stats of these names of an upstream grew by while the action ran; and what the action returned."""
    read = lambda: {name: cluster.cluster_stat(pod, upstream, name) for name in names}
    before, result = read(), action()
    after = eventually(read, "stats")
    return {name: after[name] - before[name] for name in names}, result


def case_retries_hide_a_failing_pod(cluster):
    """one of two stable pods answers 500: attempts 3 on 5xx reach the other, the caller sees 200 only"""
    bad = cluster.pod("app=podinfo,version=stable")
    cluster.faults(bad, status=500)
    try:
        grew, report = delta(cluster, cluster.frontend, STABLE, ["upstream_rq_retry", "upstream_rq_retry_success"],
                             lambda: cluster.load(requests=400, connections=4))
    finally:
        cluster.faults(bad)
    no_failures(report)
    check(report["hosts"].get(bad, 0) == 0, f"answers of the failing pod came through: {report['hosts']}")
    retries, successes = grew.values()
    check(retries > 20 and successes > 20, f"stats {grew}")
    return f"400 of 400 are 200; {retries} retries, {successes} successful"


def case_per_try_timeout(cluster):
    """one of two stable pods takes 5 s: after 2 s the next try goes to the other"""
    slow = cluster.pod("app=podinfo,version=stable")
    cluster.faults(slow, fail=0, delay_ms=5000)
    try:
        grew, report = delta(cluster, cluster.frontend, STABLE, ["upstream_rq_per_try_timeout"],
                             lambda: cluster.load(requests=32, connections=16))
    finally:
        cluster.faults(slow)
    no_failures(report)
    timeouts = sum(grew.values())
    check(timeouts > 0, f"no per-try timeout in the stats: {grew}")
    check(1900 < report["max_ms"] < 4900, f"slowest {report['max_ms']} ms: not one try of 2 s")
    return f"{timeouts} tries timed out, slowest request {report['max_ms']:.0f} ms"


def case_outlier_ejection(cluster):
    """consecutive5xxErrors 5, 30 s, 50 %: a pod that fails is ejected, and comes back"""
    cluster.apply("outlier")
    bad, frontend = cluster.pod("app=podinfo,version=stable"), cluster.frontend
    ejections = lambda: cluster.cluster_stat(frontend, STABLE, "outlier_detection.ejections_active")
    try:
        eventually(lambda: "::max_connections::" in cluster.request(frontend, "clusters"), "clusters page")
        eventually(lambda: "outlierDetection" in config(cluster, frontend), "the rule arrives")
        cluster.faults(bad, status=500)
        cluster.load(requests=200, connections=4)
        check(ejections() == 1, f"ejections_active is {ejections()}")
        during = no_failures(cluster.load(requests=400, connections=4))
        check(during["hosts"].get(bad, 0) == 0, f"the ejected pod answered: {during['hosts']}")
        flags = [line for line in cluster.request(frontend, "clusters").splitlines() if line.startswith(STABLE) and "failed_outlier_check" in line]
        check(len(flags) == 1, f"clusters page: {flags}")
        cluster.faults(bad)
        eventually(lambda: ejections() == 0, "the pod comes back", 75, 2)
        after = no_failures(cluster.load(requests=400, connections=4))
        check(after["hosts"].get(bad, 0) > 0, f"hosts after the ejection: {after['hosts']}")
    finally:
        cluster.faults(bad)
        cluster.apply("routing")
    return f"1 pod ejected ({flags[0].split('::')[1]}), 400 requests past it without failure, back within its time"


def config(cluster, pod):
    return cluster.istioctl("proxy-config", "cluster", f"{pod}.demo", "--fqdn", "podinfo.demo.svc.cluster.local", "-o", "json")


def case_pool_limits(cluster):
    """100 connections, 50 pending, 2 requests per connection"""
    cluster.apply("pool")
    frontend = cluster.frontend
    pod = cluster.pod("app=podinfo,version=canary")
    try:
        eventually(lambda: '"maxRequestsPerConnection": 2' in config(cluster, frontend), "the rule arrives")
        names = ["upstream_cx_total", "upstream_cx_max_requests"]
        grew, report = delta(cluster, frontend, CANARY, names, lambda: no_failures(cluster.load(requests=400, connections=4, header="x-canary:true")))
        opened, full = grew[names[0]], grew[names[1]]
        check(opened >= 200 and full >= 190, f"400 requests: {grew}")
        cluster.faults(pod, fail=0, delay_ms=1500)
        overflow, report = delta(cluster, frontend, CANARY, ["upstream_rq_pending_overflow"],
                                 lambda: cluster.load(requests=200, connections=200, header="x-canary:true"))
        rejected = sum(overflow.values())
        answered, refused = report["statuses"].get("200", 0), report["statuses"].get("503", 0)
        # A request also counts as pending while its connection is made, so how many of the burst get in depends on how fast
        # handshakes are: 150 if they take no time, 50 if they all overlap.
        check(50 <= answered <= 150 and answered + refused == 200, f"200 at once: {report['statuses']} {report['errors']}")
        check(rejected == refused, f"upstream_rq_pending_overflow grew by {rejected}, {refused} were answered with 503")
    finally:
        cluster.faults(pod)
        cluster.apply("routing")
    return f"400 requests on {opened} connections; of 200 at once {report['statuses']}, pending_overflow +{rejected}"
