"""A real Prometheus scrapes the proxies."""

import json
import time
import urllib.parse

from check import Skipped, check, eventually, no_failures

LABELS = """reporter source_workload source_canonical_service source_canonical_revision source_workload_namespace source_principal
source_app source_version source_cluster destination_workload destination_workload_namespace destination_principal destination_app
destination_version destination_service destination_canonical_service destination_canonical_revision destination_service_name
destination_service_namespace destination_cluster request_protocol response_code grpc_response_status response_flags
connection_security_policy""".split()


def start(cluster):
    """A Prometheus over all injected pods, on 15020 and on 15090."""
    targets = [
        {"targets": [f"{p['status']['podIP']}:{port}"], "labels": {"pod": p["metadata"]["name"], "port": str(port)}}
        for p in cluster.pods("app in (frontend, podinfo)") for port in (15020, 15090)
    ]
    cluster.apply("prometheus", TARGETS=json.dumps(targets))
    cluster.k("-n", "observability", "rollout", "restart", "deploy/prometheus")
    cluster.roll_out("prometheus", namespace="observability")


def query(cluster, expression):
    pod = cluster.pod("app=prometheus", "observability")
    url = f"http://127.0.0.1:9090/api/v1/query?query={urllib.parse.quote(expression)}"
    answer = json.loads(cluster.exec(pod, "prometheus", "curl", "-sS", "-m", "10", url, namespace="observability"))
    check(answer["status"] == "success", f"{expression}: {answer}")
    return answer["data"]["result"]


def total(cluster, expression):
    return sum(float(r["value"][1]) for r in query(cluster, expression))


def case_prometheus_scrapes(cluster):
    """15020 and 15090 of every pod are up; the application's metrics are merged in; Envoy's names are there"""
    start(cluster)
    eventually(lambda: total(cluster, "sum(up)") == 8 and query(cluster, "http_requests_total"), "8 targets up", 60, 2)
    no_failures(cluster.load(requests=200, connections=4))
    names = {
        "http_requests_total{port='15020'}": "the application's",
        "istio_agent_cert_expiry_seconds": "the agent's",
        "envoy_cluster_upstream_cx_active{cluster_name=~'outbound.9898.*podinfo.*'}": "Envoy's",
        "envoy_cluster_upstream_rq_pending_overflow{cluster_name=~'outbound.9898.*podinfo.*'}": "Envoy's",
    }
    for expression, whose in names.items():
        eventually(lambda e=expression: query(cluster, e), f"{whose} {expression}", 20, 2)
    check(not query(cluster, "http_requests_total{port='15090'}"), "15090 has the application's metrics")
    return "8 targets up; application, agent and Envoy metrics there"


def case_istio_metrics(cluster):
    """istio_requests_total and the duration: full label set, both reporters, counts equal to what was sent"""
    if cluster.standin:
        raise Skipped("stock Envoy has no istio_* metrics")
    eventually(lambda: total(cluster, "sum(up)") == 8, "8 targets up", 60, 2)
    # The proxies of pods that other cases called are counted, too: only what this case sends differs between two readings.
    where = "destination_service_name='podinfo',source_workload='frontend',port='15020',response_code='200'"
    read = lambda name: {side: total(cluster, f"sum({name}{{reporter='{side}',{where}}})") for side in ("source", "destination")}
    settle(cluster, lambda: read("istio_requests_total"))
    before = read("istio_requests_total")
    durations = read("istio_request_duration_milliseconds_count")
    no_failures(cluster.load(requests=3000, connections=16))
    grown = lambda: {side: n - before[side] for side, n in read("istio_requests_total").items()}
    eventually(lambda: grown() == {"source": 3000, "destination": 3000}, "3000 on both reporters", 30, 2)
    after = read("istio_request_duration_milliseconds_count")
    check({s: after[s] - durations[s] for s in after} == {"source": 3000, "destination": 3000}, f"durations {durations} → {after}")
    for side, expected in {
        "source": {"source_principal": "spiffe://cluster.local/ns/demo/sa/frontend", "connection_security_policy": "unknown"},
        "destination": {"source_principal": "spiffe://cluster.local/ns/demo/sa/frontend", "connection_security_policy": "mutual_tls"},
    }.items():
        series = query(cluster, f"istio_requests_total{{reporter='{side}',{where},destination_version='canary'}}")
        check(len(series) == 1, f"{side}: {len(series)} series, which differ in {differences(series)}")
        metric = series[0]["metric"]
        # Prometheus leaves out labels without a value: HTTP has no gRPC status.
        missing = [label for label in LABELS if label not in metric and label != "grpc_response_status"]
        check(not missing, f"{side}: labels lack {missing}")
        expected |= {
            "source_workload": "frontend", "source_app": "frontend", "source_version": "v1", "source_canonical_service": "frontend",
            "source_workload_namespace": "demo", "source_cluster": "Kubernetes", "destination_workload": "podinfo-canary",
            "destination_workload_namespace": "demo", "destination_app": "podinfo", "destination_version": "canary",
            "destination_principal": "spiffe://cluster.local/ns/demo/sa/podinfo", "destination_canonical_service": "podinfo",
            "destination_canonical_revision": "canary", "destination_service": "podinfo.demo.svc.cluster.local",
            "destination_service_namespace": "demo", "destination_cluster": "Kubernetes", "request_protocol": "http", "response_flags": "-",
        }
        wrong = {k: (metric.get(k), v) for k, v in expected.items() if metric.get(k) != v}
        check(not wrong, f"{side}: (is, should be): {wrong}")
    return "3000 requests: 3000 on both reporters, in counts and durations; the full label set"


def settle(cluster, read):
    """Until two readings agree: the last scrape of what ran before has come in."""
    last = None
    for _ in range(20):
        now = read()
        if now == last:
            return
        last = now
        time.sleep(3)


def differences(series):
    labels = {label for s in series for label in s["metric"]}
    return {label: {s["metric"].get(label) for s in series} for label in labels if len({s["metric"].get(label) for s in series}) > 1}
