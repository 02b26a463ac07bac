"""What the load process writes: one event per request, and one a second about itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import psutil

from sandbox.load.client import Exchange
from sandbox.load.plan import LoadPlan
from sandbox.load.reply import UNKNOWN
from sandbox.load.targets import Targets
from sandbox.timeline import ClientBeat, Lines, LoadFinished, LoadStarted, Note, Request, Timeline

BEAT_NS = 10_000_000
_BEATS = 100
_WORST = 20
_STALL_NS = 20_000_000
_STEPS = 100_000  # a second
_STEP = 10_000  # nanoseconds; a bound is written in full hundredths of a millisecond, never less than it was


class Recorder:
    """Appends the load's events to the run's timeline.

    Attributes:
        attempted: requests written so far, dropped ones included.
        users: how many users began what they were to do; None where no users were asked for.
        targets: requests of a locustfile, by server.
    """

    def __init__(self, plan: LoadPlan, worker: str = "") -> None:
        """Open the run's timeline; `worker`: which of several load processes this is."""
        self.attempted = 0
        self.users = None if plan.locustfile is None and plan.arrivals.users is None else 0
        self.targets = Targets(plan.url)
        self.worker = worker
        self._plan = plan
        self._timeline = Timeline(plan.timeline, plan.epoch_ns, f"load {worker}" if worker else "load")
        self._tags = [{**share.tags, **plan.tags} for share in plan.shares]

    def started(self, t0: int) -> float:
        """The first scheduled arrival lies at clock reading `t0`; returns it in the run's seconds."""
        asked = self._plan.arrivals.model_dump(mode="json", by_alias=True, exclude_none=True)
        asked |= {"duration": self._plan.duration, "timeout": self._plan.timeout}
        asked |= {"processes": self._plan.processes, "calibrated": bool(self._plan.golden)}
        own = self._plan.locustfile.stem if self._plan.locustfile else ""
        name = " + ".join(dict.fromkeys(share.tags["profile"] for share in self._plan.shares)) or own
        at = self.seconds(t0)
        self._timeline.append(LoadStarted(t=at, url=self._plan.url, model=self._plan.model, profile=name, asked=asked))
        return at

    def request(self, scheduled: int, exchange: Exchange, number: str, share: int) -> Request:
        """Write what became of one request of a share and return it."""
        return self.exchanged(scheduled, exchange, self._numbered(number, share))

    def exchanged(
        self,
        scheduled: int,
        exchange: Exchange,
        tags: dict[str, str],
        write: Callable[[Request], Request] | None = None,
    ) -> Request:
        """Write what became of one request, with every time our client knows, and return it; `write`: not ours."""
        reply = exchange.reply
        times = reply.arrivals
        unsure = None if exchange.opening is None else [-(-each // _STEP) / _STEPS for each in reply.uncertainty]
        return (write or self.write)(
            Request(
                t=self.seconds(time.monotonic_ns() if reply.end is None else reply.end),
                scheduled=self.seconds(scheduled),
                sent=self.seconds(exchange.began) if exchange.sent else None,
                first=self.seconds(times[0]) if times else None,
                last=self.seconds(times[-1]) if times else None,
                chunks=len(times),
                tokens=reply.tokens,
                prompt_tokens=reply.prompt_tokens,
                gaps=[(after - before) / 1e9 for before, after in pairwise(times)],
                connect_uncertainty=None if exchange.opening is None else _bound(exchange.opening),
                uncertainty=unsure,
                end_uncertainty=None if reply.end_uncertainty == UNKNOWN else _bound(reply.end_uncertainty),
                content_bytes=reply.content_bytes,
                first_bytes=reply.first_bytes,
                outcome=reply.outcome,
                status=reply.status,
                detail=reply.detail,
                server=reply.server,
                tags=tags,
            )
        )

    def dropped(self, scheduled: int, number: str, share: int, in_flight: int) -> Request:
        """Write an arrival that could not start: too many requests were in flight."""
        detail = f"{in_flight} requests were in flight, the most allowed (maxInFlight)"
        return self.write(
            Request(
                t=self._timeline.now(),
                scheduled=self.seconds(scheduled),
                sent=None,
                outcome="dropped",
                detail=detail,
                tags=self._numbered(number, share),
            )
        )

    def beat(self, event: ClientBeat) -> None:
        """Write a second of the client's own pulse."""
        self._timeline.append(event)

    def finished(self, aborted: str, left_out: int, lines: Lines | None = None, users_asked: int | None = None) -> None:
        """Write the end.

        Args:
            aborted: why it came early; empty: it did not.
            left_out: requests that were cut by our own stop: no failure of the server's, so not counted.
            lines: what other processes of this load have written.
            users_asked: of a load of users, how many there were to be.
        """
        now = self._timeline.now()
        if left_out:
            self.remark(f"{left_out} requests in flight were cut by the early stop and are not counted")
        self._timeline.append(
            LoadFinished(
                t=now,
                attempted=self.attempted,
                aborted=aborted,
                users_asked=users_asked,
                users=self.users,
                targets=dict(self.targets.counts),
                lines={**self.lines, **(lines or {})},
            )
        )

    @property
    def lines(self) -> Lines:
        """What was written here so far."""
        return self._timeline.lines

    def remark(self, message: str, level: Literal["info", "warning", "error"] = "warning") -> None:
        """Write a line for the reader."""
        self._timeline.append(Note(t=self._timeline.now(), level=level, message=message))

    def write(self, event: Request) -> Request:
        """Write and count a request, and return it."""
        self._timeline.append(event)
        self.attempted += 1
        return event

    def user_came(self) -> None:
        """Count a user that began what it was to do."""
        self.users = (self.users or 0) + 1

    def now(self) -> float:
        """Seconds since the run began."""
        return self._timeline.now()

    def seconds(self, clock: int) -> float:
        """A clock reading in the run's seconds."""
        return (clock - self._plan.epoch_ns) / 1e9

    def _numbered(self, number: str, share: int) -> dict[str, str]:
        tags = self._tags[share]
        return {**tags, "number": number} if self._plan.number_requests else tags


@dataclass
class Known:
    """Tokens of known send time, and what the client made of them.

    Attributes:
        late: how late each was read, in seconds: never later than that, for the server itself was late too.
        checked: how many have a bound of the client's and one of the server's to hold it against.
        uncovered: of those read later than their bound says, by how much, in seconds.
    """

    late: list[float] = field(default_factory=list)
    checked: int = 0
    uncovered: list[float] = field(default_factory=list)


class Pulse:
    """How late this process is with what it wanted to do every 10 ms.

    A stall of 50 ms is five late beats, not one: the beats that a stall swallowed are counted as late as they were.
    """

    def __init__(self, recorder: Recorder, in_flight: Callable[[], int], known: Callable[[], Known] = Known) -> None:
        """Begin to beat. `known`: what became of tokens of the golden server since it was last asked."""
        self._recorder = recorder
        self._in_flight = in_flight
        self._known = known
        self._lags: list[float] = []
        self._stalls: list[tuple[float, float]] = []
        self._wall = time.monotonic_ns()
        self._cpu = time.process_time_ns()
        self._machine = _machine()
        self.due = self._wall + BEAT_NS

    def beat(self, now: int) -> None:
        """Count every beat that was due by clock reading `now`; write a second when it is full."""
        if now - self.due >= _STALL_NS:
            self._stalls.append((self._recorder.seconds(self.due), (now - self.due) / 1e9))
        while self.due <= now:
            self._lags.append((now - self.due) / 1e9)
            self.due += BEAT_NS
            if len(self._lags) == _BEATS:
                self.flush()

    def flush(self) -> None:
        """Write what was counted so far."""
        if not self._lags:
            return
        wall, cpu = time.monotonic_ns(), time.process_time_ns()
        share = (cpu - self._cpu) / max(1, wall - self._wall)
        known = self._known()
        machine = _machine()
        self._recorder.beat(
            ClientBeat(
                t=self._recorder.now(),
                lag=_worst(self._lags),
                beats=len(self._lags),
                cpu=share,
                machine=_others(self._machine, machine, (cpu - self._cpu) / 1e9),
                in_flight=self._in_flight(),
                worker=self._recorder.worker,
                added=_worst(known.late),
                calibrated=len(known.late),
                checked=known.checked,
                uncovered=len(known.uncovered),
                uncovered_by=max(known.uncovered, default=0.0),
                stalls=self._stalls,
            )
        )
        self._lags.clear()
        self._stalls = []
        self._wall, self._cpu, self._machine = wall, cpu, machine


def _bound(nanoseconds: int) -> float:
    """Seconds, rounded up."""
    return -(-nanoseconds // _STEP) / _STEPS


def _worst(values: list[float]) -> list[float]:
    return sorted(values, reverse=True)[:_WORST]


def _machine() -> tuple[float, float]:
    """Seconds of all cores since the machine started: in all, and those that somebody used."""
    times = psutil.cpu_times()
    whole = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)  # counted as user's too
    return whole, whole - times.idle - getattr(times, "iowait", 0.0)


def _others(before: tuple[float, float], now: tuple[float, float], own: float) -> float | None:
    """Share of all cores that others used in between, `own` seconds of it were ours; None where no time went by."""
    whole, used = now[0] - before[0], now[1] - before[1]
    return min(1.0, max(0.0, (used - own) / whole)) if whole > 0 else None
