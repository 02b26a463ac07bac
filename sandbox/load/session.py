"""One load under way, inside a load process: arrivals, requests in flight, the pulse, the end.

Imported only after gevent has patched this interpreter.
"""

from __future__ import annotations

import os
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import count
from typing import Any, ClassVar

import gevent
from gevent.event import Event
from gevent.pool import Group
from locust import User, task
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import Runner

from sandbox.load.arrivals import schedule
from sandbox.load.canary import Canary
from sandbox.load.client import Client, resolve
from sandbox.load.green import GreenTransport
from sandbox.load.keys import filled
from sandbox.load.outcome import RequestFailed
from sandbox.load.plan import LoadPlan, PlannedShare
from sandbox.load.record import Known, Pulse, Recorder
from sandbox.load.traffic import Answer, Conversation, Traffic, Turn
from sandbox.load.transport import Limits

_AFTER_FAILURE = 0.1
_ANSWERED = ("ok", "guardrail_blocked")
_JOIN_STEP = 0.1
_SLACK = 1.0
_LOOK = 0.05


class Playing(ABC):
    """One process's part of a load, whoever decides what is sent: a plan, or a locustfile of the user's own.

    Attributes:
        stopping: set when the load is ended early.
        over: set when no further request may start.
        done: set when everything has ended.
        crashed: what broke this client itself, if something did.
        aborted: why the load was ended early; empty: it was not.
        left_out: requests in flight that an early stop cut; not counted as requests. Of a locustfile only its users
            know what they had in flight: each that had to be ended counts as one.
    """

    def __init__(self, plan: LoadPlan, recorder: Recorder) -> None:
        """Make ready."""
        self.plan = plan
        self.recorder = recorder
        self.stopping = Event()
        self.over = Event()
        self.done = Event()
        self.crashed: BaseException | None = None
        self.aborted = ""
        self.left_out = 0

    @property
    def attempted(self) -> int:
        """Requests written so far, dropped ones included."""
        return self.recorder.attempted

    @abstractmethod
    def start(self, t0: int, first_user: int = 0) -> None:
        """The load begins at clock reading `t0`; `first_user`: how many users other processes have before ours."""

    def stop(self, why: str) -> None:
        """Start no further request; `why` goes into the timeline."""
        if not self.stopping.is_set():
            self.aborted = why
            self.stopping.set()
            self.over.set()

    def broke(self, error: Exception, where: str = "") -> None:
        """End the load for a bug of ours: it must never look like a request that was not made."""
        self.crashed = error
        self.stop(f"the load client itself broke: {error!r}{where}")

    @abstractmethod
    def settle(self) -> None:
        """Return when everything has ended, or was ended."""

    @abstractmethod
    def pulse(self) -> None:
        """Beat until everything has ended."""


class Session(Playing):
    """The state that the users of one load share. Of several workers, each has one, and takes every n-th arrival.

    Attributes:
        go: set when the first arrival may start; users wait for it.
    """

    def __init__(self, plan: LoadPlan, environment: Environment, recorder: Recorder, place: tuple[int, int]) -> None:
        """Make ready. `place`: which worker this is, counted from 0, and of how many."""
        super().__init__(plan, recorder)
        self.go = Event()
        self._environment = environment
        self._index, self._of = place
        self._cap = -(-plan.arrivals.max_in_flight // self._of)
        self._target = resolve(plan.url, plan.ca_file)
        self._clients = [self._client(share) for share in plan.shares]
        self._traffic = Traffic(plan.shares, plan.arrivals.seed)
        self._flight = Group()
        self._numbers = count(self._index + 1, self._of)
        self._users = count()
        self._active = 0
        self._first_user = 0
        self.t0 = 0

    def _client(self, share: PlannedShare) -> Client:
        return Client(
            self._target,
            Limits(self.plan.timeout, self.plan.idle_timeout),
            path=share.profile.path,
            stream=share.profile.stream,
            api_key=os.environ.get(share.api_key_env, "") if share.api_key_env else "",
            headers=filled(share.headers),
            keep_alive=self.plan.keep_alive,
            allow_empty=share.profile.allow_empty,
            transport=GreenTransport(),
        )

    def start(self, t0: int, first_user: int = 0) -> None:
        """Let the users go; the first arrival lies at clock reading `t0`. `first_user`: users before ours elsewhere."""
        self.t0 = t0
        self._first_user = first_user
        gevent.spawn_later(max(0.0, (t0 - time.monotonic_ns()) / 1e9 + self.plan.duration), self.over.set)
        self.go.set()

    def follow_the_plan(self) -> None:
        """What each user does from its first moment to its last."""
        self.go.wait()
        try:
            if self.plan.arrivals.users is None:
                self._open_loop()
            else:
                self._closed_loop(self._first_user + next(self._users))
        except Exception as error:  # noqa: BLE001 - Locust would log it and start over
            self.broke(error)

    def _open_loop(self) -> None:
        """Begin each conversation at its time, whatever became of those before; at the cap drop, never delay."""
        for position, due in enumerate(schedule(self.plan.arrivals, self.plan.duration, self.plan.rows)):
            if position % self._of != self._index:
                continue
            at = self.t0 + int(due.at * 1e9)
            if not self._until(at):
                return
            number = next(self._numbers)
            share, conversation = self._traffic.begin(number, due.row)
            if self._active >= self._cap:
                self._drop(at, str(number), share)
            else:
                self._flight.spawn(self._guarded, at, number, share, conversation)

    def _closed_loop(self, user: int) -> None:
        """Send, wait for the answer, think, send again, until the time is up."""
        arrivals = self.plan.arrivals
        end = self.t0 + int(self.plan.duration * 1e9)
        dice = random.Random(f"think/{arrivals.seed}/{user}")  # noqa: S311 - reproducible, nothing secret
        self._until(min(end, self.t0 + (int(user / arrivals.spawn_rate * 1e9) if arrivals.spawn_rate else 0)))
        if time.monotonic_ns() < end and not self.over.is_set():
            self.recorder.user_came()
        while time.monotonic_ns() < end and not self.over.is_set():
            number = next(self._numbers)
            share, conversation = self._traffic.begin(number)
            job = self._flight.spawn(self._guarded, time.monotonic_ns(), number, share, conversation)
            gevent.wait([job, self.stopping], count=1)
            if job.value not in _ANSWERED:  # refused at once: a user would not try ten thousand times a second
                self.over.wait(_AFTER_FAILURE)
            if arrivals.think is not None:
                self.over.wait(arrivals.think.draw(dice))

    def settle(self) -> None:
        """Wait for the users, then for what is in flight, within its own limits."""
        if self._environment.runner is not None:
            gevent.joinall(list(self._environment.runner.user_greenlets))
        self.over.wait()
        limit = time.monotonic() + self.plan.timeout + _SLACK
        while self._flight and time.monotonic() < limit and not self.stopping.is_set():
            self._flight.join(timeout=_JOIN_STEP)
        self._flight.join(timeout=self.plan.grace if self.aborted else 0)
        self.left_out = self._active
        if self.left_out and not self.aborted:  # each has a limit of its own: to outlive it is a bug of ours
            self.aborted = f"{self.left_out} requests outlived their own time limit"
        self._flight.kill()

    def pulse(self) -> None:
        """Beat until everything has ended."""
        beat(self.plan, self.recorder, lambda: self._active, self.done)

    def _until(self, due: int) -> bool:
        """Wait for clock reading `due`; False: stop instead. Lets others run even when it is already late."""
        while (left := due - time.monotonic_ns()) > 0:
            if self.stopping.wait(left / 1e9):
                return False
        gevent.sleep(0)
        return not self.stopping.is_set()

    def _guarded(self, scheduled: int, number: int, share: int, conversation: Conversation) -> str:
        """One conversation. A bug of ours ends the load."""
        try:
            return self._converse(scheduled, number, share, conversation)
        except Exception as error:  # noqa: BLE001 - kept, told and turned into exit code 1 by the worker
            self.broke(error)
            return ""

    def _converse(self, scheduled: int, number: int, share: int, conversation: Conversation) -> str:
        """Send turn after turn; returns the outcome of the last. After the load's end no further turn starts."""
        turn = next(conversation)
        for position in count():
            name = f"{number}.{position}" if position else str(number)
            if position and self._active >= self._cap:
                self._drop(scheduled, name, share)
                return "dropped"
            answer, ended = self._one(scheduled, name, share, turn)
            try:
                turn = conversation.send(answer)
            except StopIteration:
                break
            scheduled = ended + int(turn.wait * 1e9)
            if self.over.wait(max(0.0, (scheduled - time.monotonic_ns()) / 1e9)):
                break
        return answer.outcome

    def _one(self, scheduled: int, name: str, share: int, turn: Turn) -> tuple[Answer, int]:
        self._active += 1
        try:
            exchange = self._clients[share].exchange(turn.body, f"{self.plan.arrivals.seed}-{name}", keep=turn.keep)
        finally:
            self._active -= 1
        reply = exchange.reply
        event = self.recorder.request(scheduled, exchange, name, share)
        self._tell_locust(share, event.outcome, (event.t - event.scheduled) * 1e3, reply.received, event.detail)
        return Answer(reply.outcome, reply.text, reply.tool_calls), reply.end or time.monotonic_ns()

    def _drop(self, scheduled: int, name: str, share: int) -> None:
        event = self.recorder.dropped(scheduled, name, share, self._active)
        self._tell_locust(share, event.outcome, 0.0, 0, event.detail)

    def _tell_locust(self, share: int, outcome: str, milliseconds: float, length: int, detail: str) -> None:
        self._environment.events.request.fire(  # type: ignore[no-untyped-call]  # Locust's
            request_type="POST",
            name=self.plan.shares[share].tags["profile"],
            response_time=milliseconds,
            response_length=length,
            exception=None if outcome == "ok" else RequestFailed(outcome),
            context={"outcome": outcome, "detail": detail},
        )


class PlannedUser(User):
    """Locust spawns, counts and stops it; what it sends is the session's.

    Open loop: the only one of its process, which starts every request at its time. Closed loop: one of several that
    wait for their answers.
    """

    session: ClassVar[Session]

    @task
    def follow_the_plan(self) -> None:
        """Do all of it, once."""
        self.session.follow_the_plan()
        raise StopUser


def gather(environment: Environment, users: int, within: float) -> bool:
    """Have Locust spawn `users` of a planned load, here or on its workers; False: not in `within` seconds."""
    runner = environment.runner
    if runner is None:
        return False
    deadline = time.monotonic() + within
    starting = gevent.spawn(runner.start, users, spawn_rate=users)  # a master's start returns only when all are there
    while runner.user_count != users or not starting.ready():
        if time.monotonic() > deadline:
            return False
        gevent.sleep(_LOOK)
    return True


def keep_the_end(runner: Runner, ask: Callable[[], None]) -> Callable[[], None]:
    """Have whoever stops Locust's runner `ask` for the end of the load instead; returns what undoes that.

    A locustfile does so on its own conditions, Locust for `StopTest` and where master and workers lose each other.
    Done at once and by itself it would end users in the middle of what they do, and nobody would be told.
    """

    def asked(*_: Any, **__: Any) -> None:
        ask()

    runner.stop = runner.quit = asked  # type: ignore[method-assign]  # of this instance

    def give_back() -> None:
        del runner.stop, runner.quit  # the class's show again

    return give_back


def beat(plan: LoadPlan, recorder: Recorder, in_flight: Callable[[], int], done: Event) -> None:
    """Write this process's pulse until `done`; streams of the golden server fly along where the plan names one."""
    canary = Canary(plan.golden) if plan.golden else None
    flight = gevent.spawn(canary.fly, done) if canary else None
    pulse = Pulse(recorder, in_flight, canary.take if canary else Known)
    while not done.is_set():
        gevent.sleep(max(0.0, (pulse.due - time.monotonic_ns()) / 1e9))
        pulse.beat(time.monotonic_ns())
    if flight is not None:
        flight.join()
    pulse.flush()
