"""The timeline as series to draw, thinned so that a run of any size gives a small picture. Pure.

Times are seconds; x counts from the start of the load, as a scenario's `at: 20s` does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from sandbox.spec.results import Window
from sandbox.spec.slo import OUTCOMES
from sandbox.timeline import Event, LoadStarted, Request

_POINTS = 1200  # drawn per series; more only make the file bigger
_FAILURES = 600
_QUANTILES = 160
_BINS = 90
_WIDTHS = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
_PER_GROUP = 3  # slowest, fastest, median
_CALM = 40  # stretches of a rate: narrower ones would show the noise of a handful of arrivals


@dataclass(frozen=True)
class Point:
    """One figure at one time."""

    x: float
    y: float


@dataclass(frozen=True)
class Thinned:
    """Points to draw, of how many."""

    points: list[Point]
    total: int

    @property
    def complete(self) -> bool:
        """Whether every point is drawn."""
        return len(self.points) == self.total


@dataclass(frozen=True)
class Curve:
    """What share of `of` requests took at most so long: x a latency, y the share."""

    points: list[Point]
    of: int


@dataclass(frozen=True)
class Failure:
    """A request that did not end well, at its scheduled time."""

    x: float
    outcome: str


@dataclass(frozen=True)
class Bin:
    """What ended between `start` and `end`, per second."""

    start: float
    end: float
    requests: dict[str, float]
    tokens: float


@dataclass(frozen=True)
class Pace:
    """Requests per second between `start` and `end`. `asked` None: a closed loop asks for no rate."""

    start: float
    end: float
    asked: float | None
    sent: float
    answered: float
    dropped: float


@dataclass(frozen=True)
class Cause:
    """One way in which requests failed."""

    outcome: str
    status: int | None
    detail: str
    count: int
    first: float
    last: float


@dataclass(frozen=True)
class Load:
    """The requests of a run and when its load began, on the run's clock.

    Attributes:
        closed: users that wait for their answers; nothing says how many requests there have to be.
    """

    begun: float
    requests: list[Request]
    closed: bool = False

    @property
    def length(self) -> float:
        """Seconds from the start of the load to the end of its last request."""
        return max((request.t for request in self.requests), default=self.begun) - self.begun

    @cached_property
    def streamed(self) -> list[Request]:
        """Those of profiles that stream, failed ones too: only they can have a first token."""
        names = {_profile(request) for request in self.requests if request.first is not None}
        return [request for request in self.requests if _profile(request) in names]


def load(events: Iterable[Event]) -> Load:
    """Take the load out of a timeline, in order of schedule."""
    started: LoadStarted | None = None
    requests: list[Request] = []
    for event in events:
        if isinstance(event, Request):
            requests.append(event)
        elif isinstance(event, LoadStarted) and started is None:
            started = event
    requests.sort(key=lambda request: request.scheduled)
    if started is None:
        return Load(requests[0].scheduled if requests else 0.0, requests)
    return Load(started.t, requests, closed=started.asked.get("process") == "closed")


def samples(requests: Iterable[Request], metric: str) -> list[float]:
    """Of a trend metric, seconds, as the judge takes them: `icl` pools the gaps, `sched_lag` is of all ever sent."""
    if metric == "icl":
        return [gap for r in requests if r.outcome == "ok" and r.sent is not None for gap in r.gaps]
    if metric == "sched_lag":
        return [request.sent - request.scheduled for request in requests if request.sent is not None]
    return [value for request in requests if (value := latency(request, metric)) is not None]


def latency(request: Request, metric: str) -> float | None:
    """One answered request's `ttft`, `ttft_intended`, `tpot`, `ntpot` or `e2e`, as the judge measures it; else None."""
    if request.outcome != "ok" or request.sent is None:
        return None
    if metric == "e2e":
        return request.t - request.sent
    if metric == "ntpot":
        return (request.t - request.sent) / received(request) if received(request) else None
    if request.first is None:
        return None
    if metric == "tpot":
        tokens = received(request)
        return (request.last - request.first) / (tokens - 1) if request.last is not None and tokens > 1 else None
    return request.first - (request.scheduled if metric == "ttft_intended" else request.sent)


def received(request: Request) -> int:
    """Tokens as the server counted them; content chunks where it did not say."""
    return request.chunks if request.tokens is None else request.tokens


def over_time(found: Load, metric: str) -> Thinned:
    """A latency of every answered request that has it, at its scheduled send."""
    values = ((request.scheduled - found.begun, latency(request, metric)) for request in found.requests)
    return _thin([Point(x, y) for x, y in values if y is not None])


def failures(found: Load) -> tuple[list[Failure], int]:
    """Requests that did not end well, evenly thinned, and how many there were."""
    bad = [Failure(r.scheduled - found.begun, r.outcome) for r in found.requests if r.outcome != "ok"]
    step = math.ceil(len(bad) / _FAILURES) or 1
    return bad[::step], len(bad)


def edges(found: Load, most: int = _BINS) -> list[tuple[float, float]]:
    """The load cut into at most `most` stretches of a round width; the last one ends where the load does."""
    length = found.length
    if not found.requests or length <= 0:
        return []
    width = next((width for width in _WIDTHS if length / width <= most), length / most)
    count = max(1, math.ceil(length / width - 1e-9))
    return [(index * width, min((index + 1) * width, length)) for index in range(count)]


def bins(found: Load) -> list[Bin]:
    """Requests that ended and tokens that came, per second, in each stretch of `edges`."""
    stretches = edges(found)
    if not stretches:
        return []
    # A lone or last stretch may be a sliver: below half the width a handful of requests would look like a burst.
    width = stretches[0][1]
    ended: list[Counter[str]] = [Counter() for _ in stretches]
    tokens = [0.0] * len(stretches)
    for request in found.requests:
        ended[_slot(request.t - found.begun, width, len(stretches))][request.outcome] += 1
        _spread(request, found.begun, width, tokens)
    made = []
    for (start, end), outcomes, received in zip(stretches, ended, tokens, strict=True):
        span = max(end - start, width / 2)
        rates = {outcome: outcomes[outcome] / span for outcome in ordered(outcomes)}
        made.append(Bin(start, end, rates, received / span))
    return made


def paces(found: Load) -> list[Pace]:
    """Requests scheduled, sent, answered and dropped, per second, each counted at its own moment."""
    stretches = edges(found, _CALM)
    if not stretches:
        return []
    width, count = stretches[0][1], len(stretches)
    asked, sent, answered, dropped = ([0] * count for _ in range(4))
    for request in found.requests:
        due = _slot(request.scheduled - found.begun, width, count)
        asked[due] += 1
        dropped[due] += request.outcome == "dropped"
        if request.sent is not None:
            sent[_slot(request.sent - found.begun, width, count)] += 1
        if request.outcome == "ok":
            answered[_slot(request.t - found.begun, width, count)] += 1
    made = []
    for (start, end), *counts in zip(stretches, asked, sent, answered, dropped, strict=True):
        planned, *rest = (each / max(end - start, width / 2) for each in counts)
        made.append(Pace(start, end, None if found.closed else planned, *rest))
    return made


def phase_of(request: Request, windows: Sequence[Window]) -> str:
    """As the judge counts: in flight while a fault acted means `fault`. Empty where the run has no phases."""
    phases = {window.name: window for window in windows if window.kind == "phase"}
    struck = phases.get("fault")
    if struck is None:
        return next(iter(phases), "")
    if request.t < struck.start:
        return "baseline"
    return "recovery" if request.scheduled >= struck.end else "fault"


def distribution(found: Load, windows: Sequence[Window], metric: str = "ttft_intended") -> dict[str, Curve]:
    """Per phase the share of *attempted* requests answered within a time.

    Failed requests stay in the denominator, so the curve of a phase in which 5 % failed ends at 95 %. For `tpot`
    the denominator is the answers that have one: those of two tokens or more. Requests of a profile that does not
    stream have no first token and are left out of `ttft_intended`.
    """
    groups: dict[str, list[Request]] = {}
    for request in found.requests if metric == "e2e" else found.streamed:
        groups.setdefault(phase_of(request, windows), []).append(request)
    order = [window.name for window in windows if window.kind == "phase"]
    curves: dict[str, Curve] = {}
    for phase in sorted(groups, key=lambda name: order.index(name) if name in order else len(order)):
        values = sorted(max(value, 1e-6) for value in samples(groups[phase], metric))
        of = len(values) if metric == "tpot" else len(groups[phase])
        step = max(1, len(values) // _QUANTILES)
        kept = sorted({*range(0, len(values), step), len(values) - 1} - {-1})
        if kept:
            curves[phase or "load"] = Curve([Point(values[index], (index + 1) / of) for index in kept], of)
    return curves


def causes(found: Load, most: int = 12) -> tuple[list[Cause], int]:
    """How requests failed, the commonest first, and how many further ways were left out."""
    groups: dict[tuple[str, int | None, str], list[float]] = {}
    for request in found.requests:
        if request.outcome != "ok":
            key = (request.outcome, request.status, request.detail)
            groups.setdefault(key, []).append(request.t - found.begun)
    every = [Cause(*key, len(times), min(times), max(times)) for key, times in groups.items()]
    every.sort(key=lambda cause: (-cause.count, cause.first))
    return every[:most], max(0, len(every) - most)


def ordered(outcomes: Iterable[str]) -> list[str]:
    """Outcomes in the order they are always listed and stacked; unknown ones last."""
    return sorted(outcomes, key=lambda name: (OUTCOMES.index(name) if name in OUTCOMES else len(OUTCOMES), name))


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Nearest rank; None of nothing."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def _thin(points: list[Point]) -> Thinned:
    """Of each few neighbours keep the slowest, the fastest and the median: no peak is lost."""
    if len(points) <= _POINTS:
        return Thinned(points, len(points))
    size = math.ceil(len(points) / (_POINTS // _PER_GROUP))
    kept: list[Point] = []
    for start in range(0, len(points), size):
        group = sorted(points[start : start + size], key=lambda point: point.y)
        kept += list(dict.fromkeys([group[0], group[len(group) // 2], group[-1]]))
    return Thinned(kept, len(points))


def _profile(request: Request) -> str:
    return request.tags.get("profile", "")


def _slot(x: float, width: float, count: int) -> int:
    return min(max(int(x / width), 0), count - 1)


def _spread(request: Request, begun: float, width: float, tokens: list[float]) -> None:
    """Lay a request's tokens where its chunks came, in equal parts: a stall shows as a stall."""
    total = received(request)
    if request.first is None or not total:
        return
    each = total / (len(request.gaps) + 1)
    final = len(tokens) - 1
    at = max(request.first - begun, 0.0)
    for gap in (0.0, *request.gaps):  # millions of chunks in a long run: no call per chunk
        at += gap
        slot = int(at / width)
        tokens[min(slot, final)] += each
