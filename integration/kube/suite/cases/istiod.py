"""istiod gone for a minute."""

import time

from check import check, eventually, no_failures
from ready import synced
from split import split


def scale(cluster, replicas):
    cluster.k("-n", "istio-system", "scale", "deploy/istiod", f"--replicas={replicas}")


def case_a_minute_without_istiod(cluster):
    """traffic goes on; afterwards the stream resumes and an edit arrives"""
    wait = cluster.load_in_background(connections=8, seconds=75, pause_ms=5)
    try:
        scale(cluster, 0)
        gone = lambda: not cluster.k("-n", "istio-system", "get", "pods", "-l", "app=istiod", "-o", "name").strip()
        eventually(gone, "istiod ends", 45)
        time.sleep(60)
    finally:
        scale(cluster, 1)
        cluster.k("-n", "istio-system", "rollout", "status", "deploy/istiod", "--timeout=120s")
    report = no_failures(wait(), connections=8)
    eventually(lambda: synced(cluster), "all proxies SYNCED again", 90)
    try:
        cluster.apply("virtualservice", STABLE=50, CANARY=50)
        half = lambda: 400 < cluster.load(requests=1000, connections=8)["versions"].get("canary", 0) < 600
        eventually(half, "the edit arrives", 30)
        after = split(cluster, 4_000, 0.5)
    finally:
        cluster.apply("virtualservice")
    return f"{report['requests']} requests over {report['seconds']:.0f} s, 0 failed, 8 connections stayed; SYNCED again; {after}"
