"""Tracing to a real OTLP receiver."""

import json

from check import check, eventually


def spans(cluster, trace):
    lines = cluster.k("-n", "observability", "logs", "deploy/otel", "--tail=2000").splitlines()
    return [span for line in lines if trace in line for span in [json.loads(line)]]


def case_one_trace_across_both_sidecars(cluster):
    """frontend's call: server span, client span, server span, each the parent of the next"""
    cluster.apply("telemetry")
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    parent = f"00-{trace}-00f067aa0ba902b7-01"
    try:
        def ask():
            # By its Service, not by localhost, so that the frontend's inbound side has a span, too.
            cluster.curl("-d", "ping", "-H", f"traceparent: {parent}", "http://frontend:9898/echo")
            found = spans(cluster, trace)
            # Not any four: the proxies of podinfo may come to know of the tracing later than the frontend's.
            return found if any(len(chain({s["span"]: s for s in found}, span)) >= 4 for span in found) else None

        found = eventually(ask, "four spans, each the parent of the next, at the receiver", 60, 2)
    finally:
        cluster.delete("telemetry")
    by_id = {s["span"]: s for s in found}
    longest = max((chain(by_id, s) for s in found), key=len)
    names = " → ".join(f"{s['resource'].get('service.name')} {('', 'internal', 'server', 'client')[min(s['kind'], 3)]}" for s in longest)
    check(len(longest) >= 4, f"longest chain of parents has {len(longest)}: {names}")
    services = {s["resource"].get("service.name") for s in longest}
    check(services == {"frontend.demo", "podinfo.demo"}, f"services {services}")
    tags = longest[-1]["attributes"]
    missing = {"http.method", "http.status_code", "http.url", "upstream_cluster", "response_flags", "istio.canonical_service"} - set(tags)
    check(not missing, f"attributes lack {missing}: {tags}")
    return f"{len(found)} spans, {names}"


def chain(by_id, span):
    """The span with its ancestors, root first."""
    line = [span]
    while line[0]["parent"] in by_id and len(line) < 20:
        line.insert(0, by_id[line[0]["parent"]])
    return line
