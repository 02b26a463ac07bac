"""The load process: `python -m sandbox.load.worker PLAN.json [--join HOST:PORT | --listen HOST:PORT]`.

Its standard input is a pipe that the parent holds open: when that ends, the parent is gone and the load stops.
It prints `started <t>` once the first arrival is due, or `refused <JSON>` where a locustfile cannot be run. With more
than one process in the plan it is Locust's master and starts its workers, which are told where to `--join`; with
`--listen` it waits for as many that others start.
Exit codes: 0 ended or stopped as asked, 1 it broke, 2 refused.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from sandbox.errors import UsageError
from sandbox.load.plan import LoadPlan

_SLACK = 90.0
_PRIORITY = -10


def main() -> int:
    """Patch the interpreter first of all, then run the plan."""
    from gevent import monkey  # noqa: PLC0415 - patches this process, and only this process

    monkey.patch_all()
    asked = _arguments()
    say = _own_the_output()
    try:
        if asked.check:
            return _check(asked.plan)
        plan = LoadPlan.model_validate_json(asked.plan.read_bytes())
        _go_first()
        # The kernel's own last word, for the case that nothing in here gets to run any more.
        signal.alarm(math.ceil(plan.duration + plan.timeout + plan.grace + _SLACK))
        return _run(plan, asked, say)
    except UsageError as error:
        say("refused " + json.dumps([error.what, error.where, error.fix, error.details]))
        return error.exit_code


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sandbox.load.worker")
    parser.add_argument("plan", type=Path, help="a LoadPlan as JSON")
    parser.add_argument("--join", default="", metavar="HOST:PORT", help="be a worker of the master there")
    parser.add_argument("--listen", default="", metavar="HOST:PORT", help="be the master of workers that come there")
    parser.add_argument("--check", action="store_true", help="PLAN is a locustfile: only see whether it loads")
    return parser.parse_args()


def _run(plan: LoadPlan, asked: argparse.Namespace, say: Callable[[str], None]) -> int:
    from sandbox.load import distributed, local  # noqa: PLC0415 - they import Locust: only after the patch

    if asked.join:
        return distributed.join(plan, asked.join)
    if asked.listen:
        return distributed.receive(plan, asked.listen, say)
    return distributed.lead(plan, asked.plan, say) if plan.processes > 1 else local.run(plan, say)


def _check(path: Path) -> int:
    from sandbox.load import foreign  # noqa: PLC0415 - as above

    foreign.load(path)
    return 0


def _own_the_output() -> Callable[[str], None]:
    """Keep standard output for what the parent reads; a locustfile that prints prints into the log."""
    kept = os.dup(1)
    os.dup2(2, 1)

    def say(line: str) -> None:
        os.write(kept, line.encode() + b"\n")

    return say


def _go_first() -> None:
    """Ask for the processor before others: a client that waits for a core measures its own waiting. It needs little.

    Where the kernel groups processes by session (sched(7), autogroup), the process's own priority only counts
    inside its session: the session's has to be set too.
    """
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)
    with contextlib.suppress(OSError):  # no such file: no autogroups
        Path("/proc/self/autogroup").write_text(str(_PRIORITY), encoding="ascii")


if __name__ == "__main__":
    sys.exit(main())
