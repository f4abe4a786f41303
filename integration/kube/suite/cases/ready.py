"""Pods become ready with the injected containers, and istioctl sees the proxies as it sees Envoys."""

import json

from check import check, eventually


def case_injected_pods(cluster):
    """init container and sidecar are the image under test, and nothing restarted"""
    seen = []
    for pod in cluster.pods("app in (frontend, podinfo)"):
        name = pod["metadata"]["name"]
        injected = {c["name"]: c for c in pod["spec"]["initContainers"]}
        check({"istio-init", "istio-proxy"} <= set(injected), f"{name}: injected {sorted(injected)}")
        if not cluster.standin:
            images = {injected[c]["image"] for c in ("istio-init", "istio-proxy")}
            check(images == {cluster.image}, f"{name}: images {images}")
        status = pod["status"]
        restarts = sum(s["restartCount"] for s in status["containerStatuses"] + status["initContainerStatuses"])
        check(restarts == 0, f"{name}: {restarts} restarts")
        check(all(s["ready"] for s in status["containerStatuses"]), f"{name}: not ready")
        seen.append(name)
    check(len(seen) == 4, f"pods: {seen}")
    return f"{len(seen)} pods ready, no restarts"


def case_proxy_status_is_synced(cluster):
    """istioctl proxy-status: SYNCED for CDS, LDS, EDS, RDS"""
    lines = eventually(lambda: synced(cluster), "all proxies SYNCED", 30)
    return "; ".join(" ".join(line.split()[0:1] + [w for w in line.split() if w in ("SYNCED", "IGNORED")]) for line in lines)


def synced(cluster):
    """The lines of the demo's proxies, once each says SYNCED for the four kinds and nothing else."""
    lines = [line for line in cluster.istioctl("proxy-status", "-v", "1").splitlines() if ".demo" in line]
    good = all(line.count("SYNCED") >= 4 and "ERROR" not in line and "STALE" not in line for line in lines)
    return lines if len(lines) == 4 and good else None


def case_proxy_config_prints(cluster):
    """istioctl proxy-config cluster, listener, route, endpoint, secret of a proxy"""
    target = f"{cluster.frontend}.demo"
    expected = {
        "cluster": ["podinfo.demo.svc.cluster.local", "9898", "canary", "EDS", "BlackHoleCluster", "inbound"],
        "listener": ["0.0.0.0", "15001", "15006", "15021", "15090", "9898"],
        "route": ["podinfo.demo", "9898", "podinfo.demo", "InboundPassthroughCluster"],
        "endpoint": ["HEALTHY", "outbound|9898|canary|podinfo.demo.svc.cluster.local"],
        "secret": ["default", "Cert Chain", "ACTIVE", "ROOTCA", "true"],
    }
    lengths = []
    for kind, words in expected.items():
        text = cluster.istioctl("proxy-config", kind, target)
        missing = [word for word in words if word not in text]
        check(not missing, f"proxy-config {kind} lacks {missing}: {text[:600]}")
        lengths.append(f"{kind} {len(text.splitlines())} lines")
    json.loads(cluster.istioctl("proxy-config", "bootstrap", target, "-o", "json"))
    return ", ".join(lengths)


def case_probes_are_rewritten(cluster):
    """kubelet's probes reach the application through 15020, in both directions"""
    pod = cluster.pod("app=podinfo,version=canary")
    try:
        cluster.post(pod, "readyz/disable")
        condition = "{.status.conditions[?(@.type=='Ready')].status}"
        unready = lambda: cluster.k("-n", "demo", "get", "pod", pod, "-o", f"jsonpath={condition}") == "False"
        eventually(unready, "the pod turns unready", 30)
    finally:
        cluster.post(pod, "readyz/enable")
    cluster.k("-n", "demo", "wait", "--for=condition=Ready", f"pod/{pod}", "--timeout=30s")
    cluster.settle()
    return "unready after /readyz/disable, ready again after /readyz/enable"


def case_pilot_agent_answers(cluster):
    """pilot-agent version, wait, request: by that name, inside the sidecar"""
    pod = cluster.frontend
    version = cluster.exec(pod, "istio-proxy", "pilot-agent", "version")
    cluster.exec(pod, "istio-proxy", "pilot-agent", "wait", "--timeoutSeconds", "5")
    info = json.loads(cluster.request(pod, "server_info"))
    check(info["state"] == "LIVE", f"server_info: {info['state']}")
    late = cluster.exec(pod, "istio-proxy", "pilot-agent", "wait", "--url", "http://localhost:1/", "--timeoutSeconds", "1", ok=False)
    check(late.returncode != 0, "wait for a port where nobody listens succeeded")
    return f"{version.strip().splitlines()[-1][:80]}; LIVE"
