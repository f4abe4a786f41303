"""What a case says about what it saw."""

import math
import time


class Failed(Exception):
    """The product did not do what the case asks for."""


class Skipped(Exception):
    """The case cannot be shown here, and why."""


def check(condition, text):
    if not condition:
        raise Failed(text)


def eventually(ask, text, seconds=30, pause=0.5):
    """Asks until the answer is truthy and returns it."""
    end, last = time.monotonic() + seconds, None
    while time.monotonic() < end:
        try:
            last = ask()
            if last:
                return last
        except Exception as error:  # not there yet
            last = error
        time.sleep(pause)
    raise Failed(f"{text}: not within {seconds} s; last: {str(last)[:600]}")


def binomial_bounds(n, p, z=3.2905):
    """The two-sided 99.9 % bounds of a count of successes (normal approximation; n is in the thousands)."""
    spread = z * math.sqrt(n * p * (1 - p))
    return math.ceil(n * p - spread), math.floor(n * p + spread)


def no_failures(report, connections=None):
    """A report of the workload's /load in which nothing went wrong, and no connection had to be opened again."""
    bad = {status: n for status, n in report["statuses"].items() if status != "200"}
    check(not bad and not report["errors"], f"failed requests: statuses {bad}, errors {report['errors']} of {report['requests']}")
    check(report["requests"] > 0, "no request was answered")
    if connections is not None:
        check(report["connects"] == connections, f"{report['connects']} connections opened for {connections}: some were closed")
    return report
