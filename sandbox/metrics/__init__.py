"""Figures out of a timeline. Pure: events in, numbers out; times in seconds since the run began."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sandbox.metrics import pods as pods_
from sandbox.metrics.pods import Pods
from sandbox.spec.results import Window
from sandbox.spec.slo import METRICS, OF_ALL_NODES, OUTCOMES, Expression, Selector
from sandbox.timeline import ClientBeat, Event, FaultEvent, LoadFinished, LoadStarted, PhaseChanged, Request

# Written while and after a run is judged: to judge it again must give the same.
_AFTERWARDS = ("judge", "report", "clean up")


@dataclass(frozen=True)
class FaultWindow:
    """When one fault acted. `injected`/`proven`/`healed` are None where that never happened."""

    index: int
    name: str
    started: float
    injected: float | None
    proven: float | None
    healed: float | None


@dataclass(frozen=True)
class Record:
    """A timeline taken apart once, for everything that is asked of it later."""

    requests: list[Request]
    beats: list[ClientBeat]
    faults: list[FaultWindow]
    load_started: float | None
    load_finished: float | None
    end: float
    limits: dict[str, float] = field(default_factory=dict)
    pods: Pods = field(default_factory=Pods)

    @property
    def windows(self) -> list[Window]:
        """Phases of the load that tile it - baseline, fault, recovery - and one window per fault."""
        if self.load_started is None:
            return []
        begin, end = self.load_started, max(self.load_finished or self.end, self.load_started)
        acted = [fault for fault in self.faults if fault.injected is not None]
        faults = [
            Window(
                name=fault.name, kind="fault", start=fault.started, end=end if fault.healed is None else fault.healed
            )
            for fault in acted
        ]
        if not faults:
            return [Window(name="baseline", kind="phase", start=begin, end=end)]
        first = min(window.start for window in faults)
        last = min(max(window.end for window in faults), end)
        phases = [("baseline", begin, first), ("fault", first, last), ("recovery", last, end)]
        return [Window(name=name, kind="phase", start=start, end=stop) for name, start, stop in phases] + faults


def record(
    events: Iterable[Event], limits: dict[str, float] | None = None, workloads: dict[str, str] | None = None
) -> Record:
    """Sort a timeline's events.

    Args:
        events: of one run.
        limits: request-level limits in seconds (see `Load.good`).
        workloads: those of the scenario, each with the `because` it has, if any.
    """
    pods = Pods(workloads or {})
    requests: list[Request] = []
    beats: list[ClientBeat] = []
    lives: dict[int, list[FaultEvent]] = {}
    started = finished = None
    end = 0.0
    for event in events:
        if not (isinstance(event, PhaseChanged) and event.name in _AFTERWARDS):
            end = max(end, event.t)
        match event:
            case Request():
                requests.append(event)
            case ClientBeat():
                beats.append(event)
            case FaultEvent():
                lives.setdefault(event.index, []).append(event)
            case LoadStarted():
                started = event.t
            case LoadFinished():
                finished = event.t
            case _:
                pods.take(event)
    windows = [_life(life) for life in lives.values()]
    return Record(requests, beats, windows, started, finished, end, limits or {}, pods)


def _life(life: Sequence[FaultEvent]) -> FaultWindow:
    first: dict[str, float] = {}
    for event in life:
        first.setdefault(event.state, event.t)
    return FaultWindow(
        index=life[0].index,
        name=life[0].fault,
        started=first.get("started", life[0].t),
        injected=first.get("injected"),
        proven=first.get("proven"),
        healed=first.get("healed"),
    )


def phase_of(request: Request, windows: Sequence[Window]) -> str:
    """The phase a request belongs to: `fault` if any moment of it fell into the fault's window.

    A request that was in flight when the fault struck is the fault's victim, not the baseline's.
    """
    phases = {window.name: window for window in windows if window.kind == "phase"}
    struck = phases.get("fault")
    if struck is None or request.t < struck.start:
        return "baseline"
    return "recovery" if request.scheduled >= struck.end else "fault"


def select(rec: Record, selector: Selector) -> list[Request]:
    """The requests a selector's tags name."""
    tags = dict(selector.tags)
    phase = tags.pop("phase", None)
    windows = rec.windows
    return [
        request
        for request in rec.requests
        if (phase is None or phase_of(request, windows) == phase)
        and all(request.tags.get(key) == value for key, value in tags.items())
    ]


def is_good(request: Request, limits: dict[str, float]) -> bool:
    """Ended `ok` and met every request-level limit."""
    if request.outcome != "ok":
        return False
    return not broken_limits(request, limits)


def broken_limits(request: Request, limits: dict[str, float]) -> list[str]:
    """The request-level limits that an answered request did not meet."""
    return [name for name, limit in limits.items() if not _meets(request, name, limit)]


def _meets(request: Request, name: str, limit: float) -> bool:
    values = trend([request], name)
    if not values:
        return name == "tpot" and received(request) <= 1  # there is no time between the tokens of a one-token answer
    return max(values) <= limit


def trend(requests: Iterable[Request], metric: str) -> list[float]:
    """Samples of a trend metric, seconds. Only answers count: a failed request has no latency, it has an outcome."""
    requests = list(requests)
    if metric == "sched_lag":
        return [request.sent - request.scheduled for request in requests if request.sent is not None]
    answered = [request for request in requests if request.outcome == "ok" and request.sent is not None]
    if metric == "icl":
        return [gap for request in answered for gap in request.gaps]
    return [value for request in answered if (value := _latency(request, metric)) is not None]


def _latency(request: Request, metric: str) -> float | None:
    """One answered request's figure, as load.md of the field defines it; None where it has none."""
    sent, first, last = request.sent or 0.0, request.first, request.last
    tokens = received(request)
    if metric == "e2e":
        return request.t - sent
    if metric == "ntpot":
        return (request.t - sent) / tokens if tokens else None
    if first is None:
        return None
    if metric == "tpot":
        return (last - first) / (tokens - 1) if last is not None and tokens > 1 else None
    return first - (request.scheduled if metric == "ttft_intended" else sent)


def received(request: Request) -> int:
    """Tokens as the server counted them; content chunks where it did not say."""
    return request.chunks if request.tokens is None else request.tokens


def samples(rec: Record, selector: Selector, expression: Expression) -> list[float]:
    """What two runs are compared by: the samples of a time, or a 1 or 0 for each request of a share."""
    requests = select(rec, selector)
    if selector.metric == "good_request_fraction":
        return [float(is_good(request, rec.limits)) for request in requests]
    if METRICS[selector.metric].kind == "count" and expression.aggregation == "rate":
        return [float(request.outcome == selector.metric) for request in requests]
    return trend(requests, selector.metric)


@dataclass(frozen=True)
class Observed:
    """One figure. `value` None: there is nothing to say it of."""

    value: float | None
    samples: int


def observe(rec: Record, selector: Selector, expression: Expression) -> Observed:
    """What a threshold's left side amounts to, over the whole record."""
    name = selector.metric
    if METRICS[name].of == "workloads":
        return _of_pods(rec.pods, selector, expression)
    whole_run = {
        "time_to_recover": lambda: Observed(time_to_recover(rec), len(rec.requests)),
        "client_lag": lambda: _worst_known([(beat.lag, beat.beats) for beat in rec.beats], expression),
        "client_added": lambda: _worst_known([(beat.added, beat.calibrated) for beat in rec.beats], expression),
        "client_cpu": lambda: Observed(max((beat.cpu for beat in rec.beats), default=None), len(rec.beats)),
    }
    if name in whole_run:
        return whole_run[name]()
    requests = select(rec, selector)
    if name == "requests" or name in OUTCOMES:
        return _count(requests, name, expression)
    if METRICS[name].kind == "trend":
        values = trend(requests, name)
        return Observed(aggregate(values, expression), len(values))
    if name == "good_request_fraction":
        return Observed(good_fraction(requests, rec.limits), len(requests))
    return Observed(rate(requests, name, span(rec, selector.tags.get("phase"))), len(requests))


def _of_pods(pods: Pods, selector: Selector, expression: Expression) -> Observed:
    """What became of pods. Of workloads that were not watched to their end there is nothing to say."""
    name, found = selector.metric, pods.chosen(selector)
    asked = sum(each.asked for each in found)
    if name in OF_ALL_NODES:
        free = {"gpu_nodes_free": pods_.nodes_free, "gpu_fragmentation": pods_.fragmentation}[name]
        return Observed(free(pods.nodes), 1) if pods.nodes and pods.nodes.groups else Observed(None, 0)
    if not found:
        return Observed(None, 0)
    if METRICS[name].kind == "count":
        count = len(pods_.matching(pods, selector, name))
        return Observed(count / asked if expression.aggregation == "rate" else float(count), asked)
    if name == "scheduling_seconds":
        values = pods_.seconds(found)
        return Observed(aggregate(values, expression), len(values))
    figures: dict[str, float | None] = {
        "scheduling_rate": pods_.scheduling_rate(found),
        "nodes_used": float(len(pods_.nodes_used(found))),
        "gpus_allocated": float(pods_.gpus_allocated(found)),
    }
    return Observed(figures[name], asked)


def _count(requests: Sequence[Request], name: str, expression: Expression) -> Observed:
    """How many ended so. Of no requests there is nothing to say: `truncated<=2` must not pass on an empty run."""
    if not requests:
        return Observed(0.0 if name == "requests" else None, 0)
    count = len(requests) if name == "requests" else sum(request.outcome == name for request in requests)
    return Observed(count / len(requests) if expression.aggregation == "rate" else float(count), len(requests))


def aggregate(values: Sequence[float], expression: Expression) -> float | None:
    """Put samples together as an expression's left side does; None of nothing."""
    if expression.aggregation == "count":
        return float(len(values))
    if not values:
        return None
    if expression.quantile is not None:
        return float(np.percentile(values, expression.quantile))
    functions: dict[str, Any] = {"avg": np.mean, "min": np.min, "max": np.max, "med": np.median}
    return float(functions[expression.aggregation](values))


def _worst_known(beats: Iterable[tuple[Sequence[float], int]], expression: Expression) -> Observed:
    """Each beat line carries its second's worst figures only; the others were below them, so count them as the least.

    `beats`: the worst of each second, and how many there were.
    """
    beats = list(beats)
    values = [value for worst, _ in beats for value in worst]
    hidden = [min(worst) for worst, count in beats if worst for _ in range(count - len(worst))]
    return Observed(aggregate(values + hidden, expression), len(values) + len(hidden))


def good_fraction(requests: Sequence[Request], limits: dict[str, float]) -> float | None:
    """Good requests / attempted, drops and failures in the denominator; None of nothing."""
    return sum(is_good(request, limits) for request in requests) / len(requests) if requests else None


def time_to_recover(rec: Record) -> float | None:
    """The longest time any fault kept users from good completions, in seconds.

    For each fault: from its start to the end of the first good completion sent after the last bad request it
    caused; 0 when it caused none. Infinite when no good completion followed. None without faults.
    """
    return max((seconds for _, seconds in _recoveries(rec)), default=None)


def recovery_cut_off(rec: Record, bound: float) -> str:
    """Say it where a recovery that never came was not watched for as long as `bound` seconds; else empty."""
    end = rec.load_finished or rec.end
    watched = [end - fault.started for fault, seconds in _recoveries(rec) if math.isinf(seconds)]
    if watched and min(watched) < bound:
        return f"the load ended {min(watched):.1f} s after the fault struck, before the {bound:g} s were over"
    return ""


def _recoveries(rec: Record) -> list[tuple[FaultWindow, float]]:
    faults = sorted((fault for fault in rec.faults if fault.injected is not None), key=lambda fault: fault.started)
    if not rec.requests:
        return []
    found = []
    for position, fault in enumerate(faults):
        until = faults[position + 1].started if position + 1 < len(faults) else math.inf
        struck = [request for request in rec.requests if fault.started <= request.t and request.scheduled < until]
        bad = [request.scheduled for request in struck if not is_good(request, rec.limits)]
        good = [r.t for r in rec.requests if r.scheduled > max(bad) and is_good(r, rec.limits)] if bad else []
        found.append((fault, min(good, default=math.inf) - fault.started if bad else 0.0))
    return found


def span(rec: Record, phase: str | None) -> float:
    """Seconds that a phase of the load took; None: all of it."""
    windows = [window for window in rec.windows if window.kind == "phase" and phase in {None, window.name}]
    return sum(window.end - window.start for window in windows)


def rate(requests: Sequence[Request], name: str, seconds: float) -> float | None:
    """`request_rate` or `token_rate` of those that were answered, per second; None of nothing."""
    done = [request for request in requests if request.outcome == "ok"]
    if not requests or seconds <= 0:
        return None
    if name == "request_rate":
        return len(done) / seconds
    return sum(map(received, done)) / seconds
