"""A load of several processes: Locust's master and workers, with Locust's own protocol between them.

Every worker takes every n-th arrival and appends its whole requests to the one timeline: what is merged are all of
them, never averages. Imported only inside a load process, after gevent has patched it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from locust.env import Environment
from locust.rpc import Message
from locust.runners import MasterRunner

from sandbox.load import foreign
from sandbox.load.local import (
    PARENT_GONE,
    SPAWN_LIMIT,
    complain,
    farewell,
    ground,
    heed,
    player,
    remark,
    settle_memory,
    watch_parent,
)
from sandbox.load.plan import LoadPlan
from sandbox.load.record import Recorder
from sandbox.load.session import gather, keep_the_end
from sandbox.timeline import Lines

_LOOPBACK = "127.0.0.1"
_LEAD_NS = 300_000_000
_LEAD_FAR_NS = 1_500_000_000
_UP_WITHIN = 60.0
_EACH = 10.0
_LOOK = 0.1
_LOST = "Locust's master and workers lost each other"
_LEAVES_WITHIN = 5.0
_LINGER_MS = 1000  # for the last statistics; nothing that is judged goes that way
_READY, _START, _STOP, _FINISH, _FINISHED = (
    f"sandbox.{word}" for word in ("ready", "start", "stop", "finish", "finished")
)


def join(plan: LoadPlan, master: str) -> int:
    """Be a worker of the master at `master` until it says that all is over; returns the exit code.

    Raises:
        UsageError: the plan's locustfile cannot be run.
    """
    leaving = Event()
    ends: list[Callable[[str], None]] = []
    watch_parent(lambda: _orphaned(ends, leaving))
    host, _, port = master.rpartition(":")
    runner = ground(plan)[0].create_worker_runner(host, int(port))
    place = (runner.worker_index, plan.processes)
    recorder = Recorder(plan, f"{place[0] + 1}/{place[1]}")
    session = player(plan, runner, recorder, place)
    ends.append(session.stop)
    if plan.locustfile is None:
        keep_the_end(runner, lambda: session.stop(_LOST))
    begun = Event()

    def start(environment: Environment, msg: Message) -> None:  # noqa: ARG001 - Locust names them
        session.start(plan.epoch_ns + msg.data["at"], msg.data["first_user"])  # each knows the run's start on its clock
        begun.set()

    runner.register_message(_START, start)
    runner.register_message(_STOP, lambda environment, msg: session.stop(msg.data["why"]))  # noqa: ARG005 - the same
    runner.register_message(_FINISH, lambda environment, msg: session.over.set())  # noqa: ARG005 - the same
    heed(session.stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the master ends it in order
    settle_memory()
    runner.send_message(_READY, {"pid": os.getpid()})
    gevent.wait([begun, session.stopping], count=1)
    if not begun.is_set():
        session.start(time.monotonic_ns())  # nobody waits any more; nothing is sent, for it is stopped already
    pulse = gevent.spawn(session.pulse)
    session.settle()
    session.done.set()
    pulse.join()
    broke = "" if session.crashed is None else repr(session.crashed)
    told = {"attempted": session.attempted, "left_out": session.left_out, "aborted": session.aborted, "broke": broke}
    told |= {"users": recorder.users, "targets": dict(recorder.targets.counts), "lines": recorder.lines}
    runner.send_message(_FINISHED, told)
    quitting = gevent.spawn(runner.greenlet.join)  # ends when the master says quit; the last statistics are sent then
    gevent.wait([quitting, leaving], count=1)
    farewell(plan, runner.environment)
    runner.greenlet.kill()  # they would use the connection without end
    runner.client.close(linger=0 if leaving.is_set() else _LINGER_MS)  # type: ignore[no-untyped-call]  # Locust's
    return complain(f"load worker {recorder.worker} broke: {broke}") if broke else 0


def _orphaned(ends: list[Callable[[str], None]], leaving: Event) -> None:
    """The master's process is gone."""
    leaving.set()
    if not ends:  # not even begun
        os._exit(1)
    ends[0](PARENT_GONE)


@dataclass
class _Crew:
    """The workers, as their master sees them.

    Attributes:
        stopping: why the load is being ended early; empty: it is not.
        over: set when no further request is to start.
        lost: what broke, if a worker ended before its work did.
        ready: process ids of those that wait to be started, by Locust's name.
        finished: what each that ended its work said, by Locust's name.
    """

    runner: MasterRunner
    many: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    stopping: str = ""
    over: Event = field(default_factory=Event)
    lost: str = ""
    ready: dict[str, int] = field(default_factory=dict)
    finished: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.runner.register_message(_READY, self._is_ready)
        self.runner.register_message(_FINISHED, self._has_finished)

    def hire(self, plan_file: Path) -> None:
        """Start the processes; they hold a pipe of ours, and end when we do."""
        command = [sys.executable, "-P", "-m", "sandbox.load.worker", str(plan_file)]
        command += ["--join", f"{_LOOPBACK}:{self.runner.server.port}"]
        self.processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2) for _ in range(self.many)]

    def tell(self, what: str, data: dict[str, Any] | None = None) -> None:
        """Send a message to every worker that has not finished."""
        for name in self.ready:
            if name not in self.finished:
                self.runner.send_message(what, data or {}, client_id=name)

    def stop(self, why: str) -> None:
        """End the load early."""
        if not self.stopping:
            self.stopping = why
            self.tell(_STOP, {"why": why})
        self.over.set()

    def until(self, everybody: Callable[[], bool], within: float | None = None) -> bool:
        """Wait for `everybody`; False: a worker was lost, or `within` seconds are over."""
        deadline = None if within is None else time.monotonic() + within
        while not everybody():
            if self.missing() or (deadline is not None and time.monotonic() > deadline):
                return False
            gevent.sleep(_LOOK)
        return True

    def missing(self) -> bool:
        """Whether a worker ended that should not have; `lost` says which."""
        for number, process in enumerate(self.processes, start=1):
            code = process.poll()
            if code is not None and process.pid not in [self.ready[name] for name in self.finished]:
                self.lost = f"load worker {number} of {self.many} (process {process.pid}) {_ended(code)}"
        return bool(self.lost)

    def watch(self) -> None:
        """End the load when a worker is lost."""
        while not self.missing():
            gevent.sleep(_LOOK)
        self.stop(self.lost)

    def leave(self) -> None:
        """See them off; whoever stays is ended."""
        deadline = time.monotonic() + _LEAVES_WITHIN
        for process in self.processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _is_ready(self, environment: Environment, msg: Message) -> None:  # noqa: ARG002 - Locust names them
        self.ready[msg.node_id] = msg.data["pid"]

    def _has_finished(self, environment: Environment, msg: Message) -> None:  # noqa: ARG002 - the same
        self.finished[msg.node_id] = msg.data
        if why := msg.data["broke"] or msg.data["aborted"]:
            self.stop(why)


def _ended(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def lead(plan: LoadPlan, plan_file: Path, say: Callable[[str], None]) -> int:
    """Run one load to its end with workers of our own; returns the exit code.

    Raises:
        UsageError: the plan's locustfile cannot be run.
    """
    environment, notes = ground(plan)
    crew = _Crew(environment.create_master_runner(_LOOPBACK, 0), plan.processes)
    crew.hire(plan_file)
    try:
        return _lead(plan, crew, notes, say, _LEAD_NS)
    finally:
        crew.leave()


def receive(plan: LoadPlan, where: str, say: Callable[[str], None]) -> int:
    """Run one load to its end with workers that somebody else starts and watches; returns the exit code.

    Raises:
        UsageError: the plan's locustfile cannot be run.
    """
    host, _, port = where.rpartition(":")
    environment, notes = ground(plan)
    return _lead(
        plan, _Crew(environment.create_master_runner(host, int(port)), plan.processes), notes, say, _LEAD_FAR_NS
    )


def _lead(plan: LoadPlan, crew: _Crew, notes: list[str], say: Callable[[str], None], ahead: int) -> int:
    """`ahead`: nanoseconds from telling the workers to the load's start."""
    runner = crew.runner
    environment = runner.environment
    conductor = None
    ended = foreign.ENDED if plan.locustfile else _LOST
    give_back = keep_the_end(runner, lambda: crew.stop(ended))
    if plan.locustfile is not None:
        foreign.introduce(runner)
        conductor = foreign.Conductor(plan, runner)
    heed(crew.stop)
    watch_parent(lambda: crew.stop(PARENT_GONE))
    within = _UP_WITHIN + _EACH * crew.many
    if not crew.until(lambda: len(crew.ready) == crew.many or bool(crew.stopping), within) or crew.stopping:
        return complain(crew.lost or crew.stopping or f"{len(crew.ready)} of {crew.many} load workers came up")
    users = plan.arrivals.users or crew.many
    if conductor is None and not gather(environment, users, SPAWN_LIMIT):
        return complain(f"Locust's workers did not start {users} users within {SPAWN_LIMIT:g} s")
    settle_memory()
    recorder = Recorder(plan)
    t0 = time.monotonic_ns() + ahead
    _start(runner, crew, t0 - plan.epoch_ns)
    say(f"started {recorder.started(t0)}")
    remark(recorder, notes)
    watching = gevent.spawn(crew.watch)
    if conductor:
        remark(recorder, [conductor.conduct(t0, crew.over)], "info")
        crew.tell(_FINISH)
    whole = crew.until(lambda: len(crew.finished) == crew.many)
    watching.kill()
    give_back()
    runner.quit()
    farewell(plan, environment)
    if not whole:
        remark(recorder, [f"{crew.lost}: what it had not written is missing"], "error")
        return complain(crew.lost)
    recorder.attempted = sum(told["attempted"] for told in crew.finished.values())
    recorder.users = None if recorder.users is None else sum(told["users"] for told in crew.finished.values())
    for told in crew.finished.values():
        recorder.targets.counts.update(told["targets"])
    lines: Lines = {writer: count for told in crew.finished.values() for writer, count in told["lines"].items()}
    wanted = conductor.users if conductor else plan.arrivals.users
    recorder.finished(crew.stopping, sum(told["left_out"] for told in crew.finished.values()), lines, wanted)
    broke = [told["broke"] for told in crew.finished.values() if told["broke"]]
    return complain(f"the load client broke: {broke[0]}") if broke else 0


def _start(runner: MasterRunner, crew: _Crew, at: int) -> None:
    """Tell every worker when to begin, in nanoseconds of the run, and how many users there are before its own."""
    before = 0
    for name in crew.ready:
        runner.send_message(_START, {"at": at, "first_user": before}, client_id=name)
        before += runner.clients[name].user_count
