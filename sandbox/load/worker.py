"""The load process: `python -m sandbox.load.worker PLAN.json`.

Its standard input is a pipe that the parent holds open: when that ends, the parent is gone and the load stops.
It prints `started <t>` once the first arrival is due. Exit codes: 0 ended or stopped as asked, 1 it broke.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import signal
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sandbox.load.plan import LoadPlan

_LEAD_NS = 100_000_000
_SPAWN_LIMIT = 60.0
_SLACK = 90.0
_PRIORITY = -10


def main() -> int:
    """Patch the interpreter first of all, then run the plan."""
    from gevent import monkey  # noqa: PLC0415 - patches this process, and only this process

    monkey.patch_all()
    plan = LoadPlan.model_validate_json(Path(sys.argv[1]).read_bytes())
    _go_first()
    # The kernel's own last word, for the case that nothing in here gets to run any more.
    signal.alarm(math.ceil(plan.duration + plan.timeout + plan.grace + _SLACK))
    return run(plan)


def _go_first() -> None:
    """Ask for the processor before others: a client that waits for a core measures its own waiting. It needs little.

    Where the kernel groups processes by session (sched(7), autogroup), the process's own priority only counts
    inside its session: the session's has to be set too.
    """
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)
    with contextlib.suppress(OSError):  # no such file: no autogroups
        Path("/proc/self/autogroup").write_text(str(_PRIORITY), encoding="ascii")


def run(plan: LoadPlan) -> int:
    """Run one load to its end under Locust's local runner; returns the exit code."""
    import gevent.event  # noqa: PLC0415 - only after the patch
    from locust.env import Environment  # noqa: PLC0415 - only after the patch

    from sandbox.load.record import Recorder  # noqa: PLC0415 - the same
    from sandbox.load.session import Session  # noqa: PLC0415 - imports gevent and Locust
    from sandbox.load.user import PlannedUser  # noqa: PLC0415 - the same

    environment = Environment(user_classes=[PlannedUser])
    recorder = Recorder(plan)
    session = PlannedUser.session = Session(plan, environment, recorder, (0, 1))
    runner = environment.create_local_runner()
    gevent.signal_handler(signal.SIGTERM, session.stop, "stopped by SIGTERM")
    gevent.signal_handler(signal.SIGINT, session.stop, "stopped by SIGINT")
    gevent.spawn(_watch_parent, lambda: session.stop("the process that started the load is gone"))
    users = plan.arrivals.users or 1
    spawned = gevent.event.Event()
    environment.events.spawning_complete.add_listener(  # type: ignore[no-untyped-call]  # Locust's
        lambda **_: spawned.set()
    )
    runner.start(users, spawn_rate=users)
    if not spawned.wait(_SPAWN_LIMIT):
        print(f"Locust did not start {users} users within {_SPAWN_LIMIT:g} s", file=sys.stderr)  # noqa: T201 - the log
        return 1
    gc.collect()
    gc.freeze()  # what start-up left behind is never garbage: no collection has to walk it again
    t0 = time.monotonic_ns() + _LEAD_NS
    session.start(t0)
    print(f"started {recorder.started(t0)}", flush=True)  # noqa: T201 - the parent reads it
    pulse = gevent.spawn(session.pulse)
    gevent.joinall(list(runner.user_greenlets))
    session.settle()
    session.done.set()
    pulse.join()
    recorder.finished(session.aborted, session.left_out)
    runner.quit()
    if session.crashed is not None:
        print(f"the load client broke: {session.crashed!r}", file=sys.stderr)  # noqa: T201 - the log
        return 1
    return 0


def _watch_parent(gone: Callable[[], None]) -> None:
    """Call `gone` at the end of standard input, if that is a pipe. Run by hand, it may be anything else."""
    from gevent import os as green  # noqa: PLC0415 - only after the patch

    if stat.S_ISFIFO(os.fstat(0).st_mode):
        green.make_nonblocking(0)
        while green.nb_read(0, 1):
            pass
        gone()


if __name__ == "__main__":
    sys.exit(main())
