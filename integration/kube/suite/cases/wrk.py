"""Load by wrk through both sidecars."""

import re

from check import check


def case_no_failed_request(cluster):
    """64 connections, 10 s: not one failed request"""
    out = cluster.exec(cluster.frontend, "tools", "wrk", "-t", "2", "-c", "64", "-d", "10", "--latency", "http://podinfo:9898/")
    total = int(re.search(r"(\d+) requests in", out)[1])
    check(total > 0, out)
    check("Socket errors" not in out and "Non-2xx" not in out, out)
    rate = re.search(r"Requests/sec:\s*([\d.]+)", out)[1]
    p99 = re.search(r"99%\s*(\S+)", out)[1]
    return f"{total} requests, 0 failed, {rate}/s, p99 {p99}"
