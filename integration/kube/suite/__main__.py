"""The Kubernetes suite: sets the demo up, runs the cases in order, prints PASS or FAIL with what was measured."""

import importlib
import sys
import time
import traceback
from pathlib import Path

from cluster import Cluster
from check import Failed, Skipped

CASES = ["ready", "wrk", "split", "mtls", "rotation", "resilience", "edit", "istiod", "nack", "tracing", "metrics"]


def cases(wanted):
    """(name, function) of each case: the functions of cases/*.py whose name begins with `case_`."""
    sys.path.insert(0, str(Path(__file__).parent / "cases"))
    for module in CASES:
        for name, function in vars(importlib.import_module(module)).items():
            if name.startswith("case_") and (not wanted or any(w in (module, name[5:]) for w in wanted)):
                yield f"{module}: {name[5:].replace('_', ' ')}", function


def main(arguments):
    flags = {a for a in arguments if a.startswith("-")}
    unknown = flags - {"--list", "--keep", "--standin"}
    if unknown:
        sys.exit(f"{', '.join(unknown)}: not known (see the head of run.sh)")
    chosen = list(cases([a for a in arguments if not a.startswith("-")]))
    if "--list" in flags:
        for name, function in chosen:
            print(f"{name:44} {(function.__doc__ or '').strip()}")
        return 0
    if not chosen:
        sys.exit("no such case (--list shows them)")
    cluster = Cluster(standin="--standin" in flags)
    cluster.set_up()
    passed = failed = skipped = 0
    for name, function in chosen:
        begin = time.monotonic()
        try:
            word, text, passed = "PASS", function(cluster), passed + 1
        except Skipped as reason:
            word, text, skipped = "SKIP", reason, skipped + 1
        except Failed as reason:
            word, text, failed = "FAIL", reason, failed + 1
        except Exception:  # a case that breaks is a failed one; the others still run
            word, text, failed = "FAIL", traceback.format_exc(), failed + 1
        print(f"{word} {name} ({time.monotonic() - begin:.0f} s): {text}", flush=True)
    if "--keep" not in flags:
        cluster.tear_down()
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed else 0


sys.exit(main(sys.argv[1:]))
