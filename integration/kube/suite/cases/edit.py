"""A VirtualService edit under load."""

import time

from check import no_failures, eventually
from split import split


def case_weights_change_under_load(cluster):
    """90/10 becomes 75/25 while 32 connections are busy: no failed request, no closed connection"""
    wait = cluster.load_in_background(connections=32, seconds=12)
    time.sleep(3)
    try:
        cluster.apply("virtualservice", STABLE=75, CANARY=25)
        report = no_failures(wait(), connections=32)
        return f"{report['requests']} requests, 0 failed, 32 connections stayed; then {split(cluster, 8_000, 0.25)}"
    finally:
        cluster.apply("virtualservice")


def case_every_edit_in_a_series(cluster):
    """twenty edits of routes and of the DestinationRule in a row under load: no failed request"""
    wait = cluster.load_in_background(connections=16, seconds=25)
    try:
        for step in range(10):
            cluster.apply("virtualservice", STABLE=90 - step, CANARY=10 + step)
            cluster.apply("outlier" if step % 2 else "routing")
            time.sleep(1.5)
        report = no_failures(wait(), connections=16)
    finally:
        cluster.apply("virtualservice", "routing")
    return f"{report['requests']} requests, 0 failed, 16 connections stayed"
