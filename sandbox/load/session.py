"""One load under way, inside the load process: arrivals, requests in flight, the pulse, the end.

Imported only after gevent has patched this interpreter.
"""

from __future__ import annotations

import os
import time

import gevent
from gevent.event import Event
from gevent.pool import Group
from locust.env import Environment

from sandbox.load.arrivals import bodies, schedule
from sandbox.load.client import Client, Limits, resolve
from sandbox.load.green import read_green
from sandbox.load.plan import LoadPlan
from sandbox.load.record import Pulse, Recorder

_AFTER_FAILURE = 0.1
_JOIN_STEP = 0.1
_SLACK = 1.0


class RequestFailed(Exception):
    """What Locust is told of a request whose outcome was not `ok`."""


class Session:
    """The state that the users of one load share.

    Attributes:
        go: set when the first arrival may start; users wait for it.
        stopping: set when no further request may start.
        done: set when everything has ended.
        crashed: what broke this client itself, if something did.
    """

    def __init__(self, plan: LoadPlan, environment: Environment) -> None:
        self.plan = plan
        self.go = Event()
        self.stopping = Event()
        self.done = Event()
        self.crashed: BaseException | None = None
        self.aborted = ""
        self.recorder = Recorder(plan)
        self._environment = environment
        self._client = Client(
            resolve(plan.url, plan.ca_file),
            Limits(plan.timeout, plan.idle_timeout),
            path=plan.profile.path,
            stream=plan.profile.stream,
            api_key=os.environ.get(plan.api_key_env, "") if plan.api_key_env else "",
            headers=plan.headers,
            keep_alive=plan.keep_alive,
            reader=read_green,
        )
        self._bodies = bodies(plan.profile, plan.model, plan.arrivals.seed)
        self._flight = Group()
        self._number = 0
        self._left_out = 0
        self.t0 = 0

    def start(self, t0: int) -> float:
        """Let the users go; the first arrival lies at clock reading `t0`. Returns it in the run's seconds."""
        self.t0 = t0
        at = self.recorder.started(t0)
        self.go.set()
        return at

    def stop(self, why: str) -> None:
        """Start no further request; `why` goes into the timeline."""
        if not self.stopping.is_set():
            self.aborted = why
            self.stopping.set()

    def follow_the_plan(self) -> None:
        """What each user does from its first moment to its last."""
        self.go.wait()
        try:
            if self.plan.arrivals.users is None:
                self._open_loop()
            else:
                self._closed_loop()
        except Exception as error:  # noqa: BLE001 - Locust would log it and start over
            self._broke(error)

    def _open_loop(self) -> None:
        """Start each request at its time, whatever became of those before; at the cap drop, never delay."""
        cap = self.plan.arrivals.max_in_flight
        for offset in schedule(self.plan.arrivals, self.plan.duration):
            due = self.t0 + int(offset * 1e9)
            if not self._until(due):
                return
            body, number = self._next()
            if len(self._flight) >= cap:
                event = self.recorder.dropped(due, number, len(self._flight))
                self._tell_locust(event.outcome, 0.0, 0, event.detail)
            else:
                self._flight.spawn(self._guarded, due, body, number)
        self._until(self.t0 + int(self.plan.duration * 1e9))

    def _closed_loop(self) -> None:
        """Send, wait for the answer, send again, until the time is up."""
        end = self.t0 + int(self.plan.duration * 1e9)
        self._until(self.t0)
        while time.monotonic_ns() < end and not self.stopping.is_set():
            body, number = self._next()
            job = self._flight.spawn(self._guarded, time.monotonic_ns(), body, number)
            gevent.wait([job, self.stopping], count=1)
            if job.value == "connect_error":  # refused at once: a user would not try ten thousand times a second
                self.stopping.wait(_AFTER_FAILURE)

    def settle(self) -> None:
        """No request starts any more: wait for those in flight, within their own limits; write the end."""
        limit = time.monotonic() + self.plan.timeout + _SLACK
        while self._flight and time.monotonic() < limit and not self.stopping.is_set():
            self._flight.join(timeout=_JOIN_STEP)
        self._flight.join(timeout=self.plan.grace if self.aborted else 0)
        self._left_out = len(self._flight)
        if self._left_out and not self.aborted:  # each has a limit of its own: to outlive it is a bug of ours
            self.aborted = f"{self._left_out} requests outlived their own time limit"
        self._flight.kill()

    def pulse(self) -> None:
        """Beat until everything has ended."""
        pulse = Pulse(self.recorder, lambda: len(self._flight))
        while not self.done.is_set():
            gevent.sleep(max(0.0, (pulse.due - time.monotonic_ns()) / 1e9))
            pulse.beat(time.monotonic_ns())
        pulse.flush()

    def finish(self) -> None:
        """Write the last event."""
        self.recorder.finished(self.aborted, self._left_out)

    def _next(self) -> tuple[bytes, int]:
        self._number += 1
        return next(self._bodies), self._number

    def _until(self, due: int) -> bool:
        """Wait for clock reading `due`; False: stop instead. Lets others run even when it is already late."""
        while (left := due - time.monotonic_ns()) > 0:
            if self.stopping.wait(left / 1e9):
                return False
        gevent.sleep(0)
        return not self.stopping.is_set()

    def _guarded(self, scheduled: int, body: bytes, number: int) -> str:
        """One request. A bug of ours ends the load: it must never look like a request that was not made."""
        try:
            return self._one(scheduled, body, number)
        except Exception as error:  # noqa: BLE001 - kept, told and turned into exit code 1 by the worker
            self._broke(error)
            return ""

    def _broke(self, error: Exception) -> None:
        self.crashed = error
        self.stop(f"the load client itself broke: {error!r}")

    def _one(self, scheduled: int, body: bytes, number: int) -> str:
        exchange = self._client.exchange(body, f"{self.plan.arrivals.seed}-{number}")
        event = self.recorder.request(scheduled, exchange, number)
        self._tell_locust(event.outcome, (event.t - event.scheduled) * 1e3, exchange.reply.received, event.detail)
        return event.outcome

    def _tell_locust(self, outcome: str, milliseconds: float, length: int, detail: str) -> None:
        self._environment.events.request.fire(  # type: ignore[no-untyped-call]  # Locust's
            request_type="POST",
            name=self.plan.profile.metadata.name,
            response_time=milliseconds,
            response_length=length,
            exception=None if outcome == "ok" else RequestFailed(outcome),  # few kinds: Locust keeps each for ever
            context={"outcome": outcome, "detail": detail},
        )
