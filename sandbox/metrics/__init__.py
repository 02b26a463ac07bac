"""Figures out of a timeline. Pure: events in, numbers out; times in seconds since the run began."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from sandbox.metrics import interval, placing, recovery, truth
from sandbox.metrics import pods as pods_
from sandbox.metrics.history import FaultWindow, Record, record
from sandbox.metrics.interval import Observed, Seconds, aggregate
from sandbox.metrics.pods import Pods
from sandbox.metrics.recovery import SLACK, time_to_recover
from sandbox.metrics.table import Floats, Mask, Rules, Table
from sandbox.metrics.truth import Perhaps
from sandbox.spec.slo import METRICS, OUTCOMES, WHOLE_RUN, Expression, Selector
from sandbox.timeline import ClientBeat

__all__ = [
    "SLACK",
    "FaultWindow",
    "Floats",
    "Mask",
    "Observed",
    "Record",
    "Rules",
    "Samples",
    "Table",
    "aggregate",
    "observe",
    "rate",
    "record",
    "samples",
    "select",
    "span",
    "time_to_recover",
]


def select(rec: Record, selector: Selector) -> Mask:
    """Which requests a selector's tags name, row by row of the table."""
    tags = {key: value for key, value in selector.tags.items() if key != "phase"}
    chosen = rec.table.tagged(tags)
    return chosen & rec.table.in_phase(selector.tags["phase"], rec.windows) if "phase" in selector.tags else chosen


def perhaps(rec: Record, selector: Selector) -> Perhaps:
    """Which requests they name surely and possibly: near an edge of a phase it may be the one or the other."""
    tags = {key: value for key, value in selector.tags.items() if key != "phase"}
    chosen = rec.table.tagged(tags)
    if "phase" not in selector.tags:
        return Perhaps(chosen, chosen)
    return Perhaps(chosen, chosen) & truth.perhaps_in_phase(
        rec.table, selector.tags["phase"], rec.windows, rec.heal_late
    )


@dataclass(frozen=True)
class Samples:
    """What two runs are compared by: the samples of a time, or a 1 or 0 for each request of a share.

    `measured`, and each as low and as high as it may be in truth.
    """

    measured: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]

    @classmethod
    def exactly(cls, measured: Sequence[float]) -> Samples:
        """Nothing is uncertain about them."""
        return cls(measured, measured, measured)

    @property
    def uncertain(self) -> bool:
        """They may be others in truth."""
        return self.low is not self.measured or self.high is not self.measured


def samples(rec: Record, selector: Selector, expression: Expression) -> Samples:
    """Return a selector's samples. Of a share the requests that may count or not do so where it is worst."""
    chosen, may = select(rec, selector), perhaps(rec, selector)
    table, of_outcome = rec.table, METRICS[selector.metric].kind == "count" and expression.aggregation == "rate"
    if selector.metric == "good_request_fraction" or of_outcome:
        is_so = table.good(rec.limits) if not of_outcome else table.ended(selector.metric)
        so = truth.perhaps_good(table, rec.limits) if not of_outcome else truth.perhaps_ended(table, selector.metric)
        low, high = interval.ones(may, so)
        return _samples(is_so[chosen].astype(float).tolist(), low, high)
    lower, upper = interval.ends(table, selector.metric, may)
    return _samples(table.samples(selector.metric, chosen).tolist(), lower.tolist(), upper.tolist())


def _samples(measured: list[float], low: list[float], high: list[float]) -> Samples:
    return Samples.exactly(measured) if measured == low == high else Samples(measured, low, high)


_FOR_EVER, _MANY = 1e15, 1e5  # seconds; more pods than there can be
_OF_BEATS: dict[str, Callable[[ClientBeat], tuple[Sequence[float], int]]] = {
    "client_lag": lambda beat: (beat.lag, beat.beats),
    "client_added": lambda beat: (beat.added, beat.calibrated),
}


def observe(rec: Record, selector: Selector, expression: Expression) -> Observed:
    """What a threshold's left side amounts to, over the whole record."""
    name = selector.metric
    if METRICS[name].of == "workloads":
        return _of_pods(rec.pods, selector, expression)
    if name in WHOLE_RUN:
        return _of_the_run(rec, name, expression)
    return _of_requests(rec, selector, expression)


def _of_the_run(rec: Record, name: str, expression: Expression) -> Observed:
    if name == "time_to_recover":
        return recovery.recovery(rec)
    if name == "client_cpu":  # of the busiest process, at its busiest second
        return Observed.exactly(max((beat.cpu for beat in rec.beats), default=None), len(rec.beats))
    return _worst_known(map(_OF_BEATS[name], rec.beats), expression)


def _of_requests(rec: Record, selector: Selector, expression: Expression) -> Observed:
    name, table = selector.metric, rec.table
    chosen, may = select(rec, selector), perhaps(rec, selector)
    if METRICS[name].kind == "trend":
        return interval.trend(rec, name, chosen, may, expression)
    if METRICS[name].kind == "value":
        return interval.pace(rec, name, chosen, may, _seconds(rec, selector.tags.get("phase")))
    every = np.ones(len(table), dtype=bool)
    is_so, so = every, Perhaps(every, every)
    if name == "good_request_fraction":
        is_so, so = table.good(rec.limits), truth.perhaps_good(table, rec.limits)
    elif name in OUTCOMES:
        is_so, so = table.ended(name), truth.perhaps_ended(table, name)
    if name == "good_request_fraction" or expression.aggregation == "rate":
        return interval.share(chosen, may, is_so, so)
    if name in OUTCOMES and not chosen.any():  # `truncated<=2` must not pass on an empty run
        return Observed(None, 0)
    return interval.count(chosen, may, is_so, so)


def _of_pods(pods: Pods, selector: Selector, expression: Expression) -> Observed:
    """What became of pods. Of workloads that were not watched to their end there is nothing to say."""
    if selector.metric == "scheduling_seconds":
        return _waited(pods, selector, expression)
    seen = placing.figure(pods, selector, expression)
    if seen.low is None or seen.high is None:
        return Observed(None, seen.samples, why=seen.why)
    return Observed(seen.low, seen.samples, seen.low, seen.high, seen.why)


def _waited(pods: Pods, selector: Selector, expression: Expression) -> Observed:
    """A pod that still waits has waited so long at the least, and may wait for ever."""
    found = pods.chosen(selector)
    timed, waiting = pods_.seconds(found), pods_.waiting(found)
    if expression.aggregation == "count":
        return Observed.exactly(Fraction(len(timed)), len(timed)) if found else Observed(None, 0)
    low = aggregate([*timed, *waiting], expression)
    high = aggregate([*timed, *(_FOR_EVER for _ in waiting)], expression)
    if low is None or high is None:
        return Observed(None, 0)
    # not infinity itself, between which and a figure no percentile could be taken
    high = math.inf if high > _FOR_EVER / _MANY else high
    why = f"{len(waiting)} pods still waited at the end, and may wait for ever" if waiting else ""
    return Observed(low, len(timed) + len(waiting), low, high, why)


def _worst_known(beats: Iterable[tuple[Sequence[float], int]], expression: Expression) -> Observed:
    """Each beat line carries its second's worst figures only; the others were below them, so count them as the least.

    `beats`: the worst of each second, and how many there were. Those of several processes are pooled.
    """
    seconds = [(worst, count) for worst, count in beats if len(worst)]
    known = [value for worst, _ in seconds for value in worst]
    hidden = np.repeat([min(worst) for worst, _ in seconds], [max(0, count - len(worst)) for worst, count in seconds])
    values = np.concatenate([np.asarray(known, dtype=float), hidden])
    return Observed.exactly(aggregate(values, expression), len(values))


def span(rec: Record, phase: str | None) -> float:
    """Seconds that a phase of the load took; None: all of them."""
    windows = [window for window in rec.windows if window.kind == "phase" and phase in {None, window.name}]
    return sum(window.end - window.start for window in windows)


def _seconds(rec: Record, phase: str | None) -> Seconds:
    """The same with its bounds: the last request may have ended sooner, the last fault may have been healed sooner."""
    measured = span(rec, phase)
    windows = [window for window in rec.windows if window.kind == "phase"]
    named = [window for window in windows if phase in {None, window.name}]
    if not named or not rec.table.known.any():
        return Seconds(measured, measured, measured)
    end = named[-1].end
    soonest = max(float(truth.soonest(rec.table).max()), (rec.load_started or 0.0) + rec.load_asked)
    late = max(0.0, end - soonest) if end == windows[-1].end else 0.0
    moved = rec.heal_late if phase in {"fault", "recovery"} else 0.0
    least = measured - late - (moved if phase == "fault" else 0.0)
    return Seconds(measured, max(0.0, least), measured + (moved if phase == "recovery" else 0.0))


def rate(table: Table, chosen: Mask, name: str, seconds: float) -> float | None:
    """Answers per second (`request_rate`) or their tokens (`token_rate`) over `seconds`; None of nothing."""
    if not chosen.any() or seconds <= 0:
        return None
    done = chosen & table.ended("ok")
    return float(done.sum() if name == "request_rate" else table.tokens[done].sum()) / seconds
