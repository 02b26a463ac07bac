"""A load whose only process is this one, and what it has in common with one of several.

Imported only inside a load process, after gevent has patched it.
"""

from __future__ import annotations

import gc
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterable
from typing import Literal

import gevent
from gevent import os as green
from locust.env import Environment
from locust.runners import Runner

from sandbox.load import foreign
from sandbox.load.plan import LoadPlan
from sandbox.load.record import Recorder
from sandbox.load.session import PlannedUser, Playing, Session, gather

PARENT_GONE = "the process that started the load is gone"
SPAWN_LIMIT = 60.0
_LEAD_NS = 100_000_000


def run(plan: LoadPlan, say: Callable[[str], None]) -> int:
    """Run one load to its end under Locust's local runner; returns the exit code.

    Raises:
        UsageError: the plan's locustfile cannot be run.
    """
    environment, notes = ground(plan)
    runner = environment.create_local_runner()
    recorder = Recorder(plan)
    session = player(plan, runner, recorder, (0, 1))
    heed(session.stop)
    watch_parent(lambda: session.stop(PARENT_GONE))
    users = plan.arrivals.users or 1
    if plan.locustfile is None and not gather(environment, users, SPAWN_LIMIT):
        return complain(f"Locust did not start {users} users within {SPAWN_LIMIT:g} s")
    settle_memory()
    t0 = time.monotonic_ns() + _LEAD_NS
    session.start(t0)
    say(f"started {recorder.started(t0)}")
    remark(recorder, notes)
    pulse = gevent.spawn(session.pulse)
    wanted = plan.arrivals.users
    if plan.locustfile is not None:
        conductor = foreign.Conductor(plan, runner)
        remark(recorder, [conductor.conduct(t0, session.over)], "info")
        session.over.set()
        wanted = conductor.users
    session.settle()
    session.done.set()
    pulse.join()
    recorder.finished(session.aborted, session.left_out, users_asked=wanted)
    farewell(plan, environment)
    return 0 if session.crashed is None else complain(f"the load client broke: {session.crashed!r}")


def ground(plan: LoadPlan) -> tuple[Environment, list[str]]:
    """Locust's environment for a plan, and what a reader has to know about it.

    Raises:
        UsageError: the plan's locustfile cannot be run.
    """
    if plan.locustfile is None:
        return Environment(user_classes=[PlannedUser]), []
    loaded = foreign.load(plan.locustfile)
    return foreign.environment_for(plan, loaded), foreign.hosts_of_their_own(plan, loaded)


def player(plan: LoadPlan, runner: Runner, recorder: Recorder, place: tuple[int, int]) -> Playing:
    """This process's part of the load; `place`: which worker it is, counted from 0, and of how many."""
    if plan.locustfile is None:
        PlannedUser.session = Session(plan, runner.environment, recorder, place)
        return PlannedUser.session
    foreign.introduce(runner)
    foreign.ready(runner, place[0])
    return foreign.Foreign(plan, recorder, runner)


def heed(stop: Callable[[str], None]) -> None:
    """End the load in order at SIGTERM and at Ctrl-C."""
    gevent.signal_handler(signal.SIGTERM, stop, "asked to end (SIGTERM)")
    gevent.signal_handler(signal.SIGINT, stop, "stopped by SIGINT")


def watch_parent(gone: Callable[[], None]) -> None:
    """Call `gone` at the end of standard input, if that is a pipe. Run by hand, it may be anything else."""

    def watch() -> None:
        green.make_nonblocking(0)
        while green.nb_read(0, 1):
            pass
        gone()

    if stat.S_ISFIFO(os.fstat(0).st_mode):
        gevent.spawn(watch)


def settle_memory() -> None:
    """What start-up left behind is never garbage: no collection has to walk it again."""
    gc.collect()
    gc.freeze()


def remark(recorder: Recorder, notes: Iterable[str], level: Literal["info", "warning", "error"] = "warning") -> None:
    """Write notes into the timeline; empty ones are none."""
    for message in filter(None, notes):
        recorder.remark(message, level)


def farewell(plan: LoadPlan, environment: Environment) -> None:
    """Tell a locustfile's listeners that all is over; the exit code they may ask for is no verdict here."""
    if plan.locustfile is not None:
        fire: Callable[..., None] = environment.events.quitting.fire
        fire(environment=environment, reverse=True)


def complain(why: str) -> int:
    """Say in the log what broke; returns the exit code for it."""
    print(why, file=sys.stderr, flush=True)  # noqa: T201 - the log
    return 1
