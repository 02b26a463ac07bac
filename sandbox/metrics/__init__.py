"""Figures out of a timeline. Pure: events in, numbers out; times in seconds since the run began."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from sandbox.metrics import placing
from sandbox.metrics import pods as pods_
from sandbox.metrics.history import FaultWindow, Record, record
from sandbox.metrics.pods import Pods
from sandbox.metrics.recovery import recovery_cut_off, time_to_recover
from sandbox.metrics.table import Floats, Mask, Table
from sandbox.spec.slo import METRICS, OUTCOMES, WHOLE_RUN, Expression, Selector
from sandbox.timeline import ClientBeat

__all__ = [
    "FaultWindow",
    "Floats",
    "Mask",
    "Observed",
    "Record",
    "Table",
    "aggregate",
    "observe",
    "rate",
    "record",
    "recovery_cut_off",
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


def samples(rec: Record, selector: Selector, expression: Expression) -> list[float]:
    """What two runs are compared by: the samples of a time, or a 1 or 0 for each request of a share."""
    chosen = select(rec, selector)
    if selector.metric == "good_request_fraction":
        found = rec.table.good(rec.limits)[chosen].astype(float)
    elif METRICS[selector.metric].kind == "count" and expression.aggregation == "rate":
        found = rec.table.ended(selector.metric)[chosen].astype(float)
    else:
        found = rec.table.samples(selector.metric, chosen)
    return [float(each) for each in found]


@dataclass(frozen=True)
class Observed:
    """One figure. `value` None: there is nothing to say it of."""

    value: float | None
    samples: int


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
        return Observed(time_to_recover(rec), len(rec.table))
    if name == "client_cpu":  # of the busiest process, at its busiest second
        return Observed(max((beat.cpu for beat in rec.beats), default=None), len(rec.beats))
    return _worst_known(map(_OF_BEATS[name], rec.beats), expression)


def _of_requests(rec: Record, selector: Selector, expression: Expression) -> Observed:
    name = selector.metric
    chosen = select(rec, selector)
    many = int(chosen.sum())
    if name == "requests" or name in OUTCOMES:
        return _count(rec.table, chosen, name, expression)
    if METRICS[name].kind == "trend":
        values = rec.table.samples(name, chosen)
        return Observed(aggregate(values, expression), len(values))
    if name == "good_request_fraction":
        return Observed(float(rec.table.good(rec.limits)[chosen].mean()) if many else None, many)
    return Observed(rate(rec.table, chosen, name, span(rec, selector.tags.get("phase"))), many)


def _of_pods(pods: Pods, selector: Selector, expression: Expression) -> Observed:
    """What became of pods. Of workloads that were not watched to their end there is nothing to say."""
    if selector.metric == "scheduling_seconds":
        return _waited(pods, selector, expression)
    seen = placing.figure(pods, selector, expression)
    return _between(seen.low, seen.high, seen.samples, expression)


def _waited(pods: Pods, selector: Selector, expression: Expression) -> Observed:
    """A pod that still waits has waited so long at the least, and may wait for ever."""
    found = pods.chosen(selector)
    timed, waiting = pods_.seconds(found), pods_.waiting(found)
    if expression.aggregation == "count":
        return Observed(float(len(timed)), len(timed))
    low = aggregate([*timed, *waiting], expression)
    high = aggregate([*timed, *(_FOR_EVER for _ in waiting)], expression)
    # not infinity itself, between which and a figure no percentile could be taken
    high = math.inf if high is not None and high > _FOR_EVER / _MANY else high
    return _between(low, high, len(timed), expression)


def _between(
    low: float | Fraction | None, high: float | Fraction | None, samples: int, expression: Expression
) -> Observed:
    """A figure of which every value that it may have says the same of the threshold; else it says nothing."""
    if low is None or high is None or expression.holds(float(low)) != expression.holds(float(high)):
        return Observed(None, samples)
    return Observed(float(low), samples)


def _count(table: Table, chosen: Mask, name: str, expression: Expression) -> Observed:
    """How many ended so. Of no requests there is nothing to say: `truncated<=2` must not pass on an empty run."""
    many = int(chosen.sum())
    if not many:
        return Observed(0.0 if name == "requests" else None, 0)
    count = many if name == "requests" else int((chosen & table.ended(name)).sum())
    return Observed(count / many if expression.aggregation == "rate" else float(count), many)


def aggregate(values: Sequence[float] | Floats, expression: Expression) -> float | None:
    """Put samples together as an expression's left side does; None of nothing."""
    if expression.aggregation == "count":
        return float(len(values))
    if not len(values):
        return None
    if expression.quantile is not None:
        return float(np.percentile(values, expression.quantile))
    functions: dict[str, Any] = {"avg": np.mean, "min": np.min, "max": np.max, "med": np.median}
    return float(functions[expression.aggregation](values))


def _worst_known(beats: Iterable[tuple[Sequence[float], int]], expression: Expression) -> Observed:
    """Each beat line carries its second's worst figures only; the others were below them, so count them as the least.

    `beats`: the worst of each second, and how many there were. Those of several processes are pooled.
    """
    seconds = [(worst, count) for worst, count in beats if len(worst)]
    known = [value for worst, _ in seconds for value in worst]
    hidden = np.repeat([min(worst) for worst, _ in seconds], [max(0, count - len(worst)) for worst, count in seconds])
    values = np.concatenate([np.asarray(known, dtype=float), hidden])
    return Observed(aggregate(values, expression), len(values))


def span(rec: Record, phase: str | None) -> float:
    """Seconds that a phase of the load took; None: all of them."""
    windows = [window for window in rec.windows if window.kind == "phase" and phase in {None, window.name}]
    return sum(window.end - window.start for window in windows)


def rate(table: Table, chosen: Mask, name: str, seconds: float) -> float | None:
    """Answers per second (`request_rate`) or their tokens (`token_rate`) over `seconds`; None of nothing."""
    if not chosen.any() or seconds <= 0:
        return None
    done = chosen & table.ended("ok")
    return float(done.sum() if name == "request_rate" else table.tokens[done].sum()) / seconds
