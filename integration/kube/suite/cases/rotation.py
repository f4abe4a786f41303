"""Certificates of 60 seconds under load."""

import json
import time

from check import check, eventually, no_failures


def serials(cluster, pod):
    """Serial numbers of the workload certificate that the proxy has in use now."""
    certificates = json.loads(cluster.request(pod, "certs"))["certificates"]
    return {chain["serial_number"] for c in certificates for chain in c.get("cert_chain", []) if any("uri" in n for n in chain["subject_alt_names"])}


def case_sixty_second_certificates(cluster):
    """150 s of load over several renewals on both ends: no failed request, no closed connection"""
    cluster.apply("mesh", SECRET_TTL="60s")
    cluster.roll_out("frontend", "podinfo-stable", "podinfo-canary")
    try:
        cluster.settle()
        pods = [cluster.frontend, cluster.pod("app=podinfo,version=stable")]
        seen = {pod: set() for pod in pods}
        wait = cluster.load_in_background(connections=16, seconds=150, pause_ms=5)
        end = time.monotonic() + 145
        while time.monotonic() < end:
            for pod in pods:
                seen[pod] |= serials(cluster, pod)
            time.sleep(5)
        report = no_failures(wait(), connections=16)
        counts = [len(seen[pod]) for pod in pods]
        check(min(counts) >= 3, f"certificates seen: {counts}")
    finally:
        cluster.apply("mesh")
        cluster.roll_out("frontend", "podinfo-stable", "podinfo-canary")
        cluster.settle()
    return f"{report['requests']} requests, 0 failed; certificates in 145 s: frontend {counts[0]}, podinfo {counts[1]}"
