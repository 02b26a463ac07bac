"""Figures of requests as intervals: the least and the greatest that each can be, given what was measured.

A client that reads late makes times too long, shares too low and rates too low. By how much at the most it says of
each reading, and here that is carried through the formulas. Of a client that says nothing both ends are the figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from sandbox.metrics import truth
from sandbox.metrics.history import Record
from sandbox.metrics.table import Floats, Mask, Table
from sandbox.metrics.truth import Between, Perhaps
from sandbox.spec.slo import Expression, Number

_NANO = 10**9
_VERY_LONG = 1e9  # seconds


@dataclass(frozen=True)
class Observed:
    """One figure.

    Attributes:
        value: as it was measured; None: there is nothing to say it of.
        samples: it rests on.
        low, high: what it can be in truth; both the value where nothing is uncertain.
        why: what makes it uncertain, where that is not how late the client may have read.
    """

    value: Number | None
    samples: int
    low: Number = math.nan
    high: Number = math.nan
    why: str = ""

    @classmethod
    def exactly(cls, value: Number | None, samples: int) -> Observed:
        """Nothing is uncertain about it."""
        return cls(value, samples) if value is None else cls(value, samples, value, value)


def aggregate(values: Sequence[float] | Floats, expression: Expression) -> float | None:
    """Put samples together as an expression's left side does; None of nothing."""
    if expression.aggregation == "count":
        return float(len(values))
    if not len(values):
        return None
    if expression.quantile is not None:
        return _percentile(values, expression.quantile)
    functions: dict[str, Any] = {"avg": np.mean, "min": np.min, "max": np.max, "med": np.median}
    return float(functions[expression.aggregation](values))


def _percentile(values: Sequence[float] | Floats, quantile: float) -> float:
    """Numpy's, by linear interpolation; but never between a figure and an unlimited one, which would be no number."""
    with np.errstate(invalid="ignore"):
        found = float(np.percentile(values, quantile))
    return math.inf if math.isnan(found) else found


def trend(rec: Record, metric: str, chosen: Mask, perhaps: Perhaps, expression: Expression) -> Observed:
    """Of a time: once over all lower bounds, once over all upper ones.

    A request of which it is not sure that it belongs here counts as the least of all in the one, as the greatest in
    the other: whatever is true of it, it moves the figure no further.
    """
    table = rec.table
    values = table.samples(metric, chosen)
    measured = aggregate(values, expression)
    each = truth.gaps(table) if metric == "icl" else truth.between(table, metric)
    if each.low is each.high and perhaps.certain:
        return Observed.exactly(measured, len(values))
    lower, upper, sure = _ends(table, metric, each, perhaps)
    low, high = (
        aggregate(lower[:sure] if expression.aggregation == "count" else lower, expression),
        aggregate(upper, expression),
    )
    why = ""
    if metric == "tpot" and (silent := int((perhaps.possible & table.ended("ok") & np.isinf(each.high)).sum())):
        why = f"{silent} answers came in one piece, which shows no time between their tokens"
    if measured is None or low is None or high is None:
        return Observed(measured, min(sure, len(values)), why=why)
    return Observed(measured, min(sure, len(values)), low, high, why)


def ends(table: Table, metric: str, perhaps: Perhaps) -> tuple[Floats, Floats]:
    """Of the requests that may be chosen the lower and the upper bounds of a time; what nothing limits is very long."""
    lower, upper, _ = _ends(
        table, metric, truth.gaps(table) if metric == "icl" else truth.between(table, metric), perhaps
    )
    return lower, np.minimum(upper, _VERY_LONG)


def ones(perhaps: Perhaps, perhaps_so: Perhaps) -> tuple[list[float], list[float]]:
    """A 1 or a 0 for each request of a share: where it is least, and where it is greatest."""
    other = perhaps.possible & ~perhaps.sure
    low = perhaps_so.sure[perhaps.sure | (other & ~perhaps_so.sure)]
    high = perhaps_so.possible[perhaps.sure | (other & perhaps_so.possible)]
    return np.where(low, 1.0, 0.0).tolist(), np.where(high, 1.0, 0.0).tolist()


def _ends(table: Table, metric: str, each: Between, perhaps: Perhaps) -> tuple[Floats, Floats, int]:
    """All lower and all upper bounds, those that are not sure to count at the ends; and how many are sure."""
    of_all = metric == "sched_lag"  # it is the client's own: whatever became of the request
    answered = (
        Perhaps(np.ones(len(table), dtype=bool), np.ones(len(table), dtype=bool))
        if of_all
        else (truth.perhaps_ended(table, "ok"))
    )
    inside = perhaps & answered
    unseen = 0 if of_all else int((inside.possible & ~table.ended("ok")).sum())
    rows = (inside.sure, inside.possible)
    sure, seen = map(table.gaps_of, rows) if metric == "icl" else rows
    there = ~np.isnan(each.low)  # of what was not seen to be answered there is no time
    sure, loose = sure & there, seen & ~sure & there
    lower, upper = each.low[sure], each.high[sure]
    many = int(loose.sum()) + unseen
    if many:
        least = min([0.0] if unseen else [], default=math.inf)
        most = table.rules.timeout if unseen else 0.0
        least = min(least, _end(np.min, lower, math.inf), _end(np.min, each.low[loose], math.inf))
        most = max(most, _end(np.max, upper, 0.0), _end(np.max, each.high[loose], 0.0))
        lower, upper = np.append(lower, np.full(many, least)), np.append(upper, np.full(many, most))
    if unseen and metric == "icl":  # nobody knows how many chunks would have come
        return np.array([0.0]), np.array([math.inf]), int(sure.sum())
    return lower, upper, int(sure.sum())


def _end(function: Any, values: Floats, otherwise: float) -> float:
    return float(function(values)) if len(values) else otherwise


def share(chosen: Mask, perhaps: Perhaps, is_so: Mask, perhaps_so: Perhaps) -> Observed:
    """Of the chosen requests those of which something is true, as exact fractions of counts."""
    many, sure = int(chosen.sum()), int(perhaps.sure.sum())
    if not many:
        return Observed(None, 0)
    value = Fraction(int((chosen & is_so).sum()), many)
    other = perhaps.possible & ~perhaps.sure
    low = _ratio(int((perhaps.sure & perhaps_so.sure).sum()), sure + int((other & ~perhaps_so.sure).sum()), 0)
    more = int((other & perhaps_so.possible).sum())
    high = _ratio(int((perhaps.sure & perhaps_so.possible).sum()) + more, sure + more, 1)
    return Observed(value, min(many, sure), low, high)


def _ratio(part: int, whole: int, otherwise: int) -> Fraction:
    return Fraction(part, whole) if whole else Fraction(otherwise)


def count(chosen: Mask, perhaps: Perhaps, is_so: Mask, perhaps_so: Perhaps) -> Observed:
    """How many of the chosen it is true of."""
    value = Fraction(int((chosen & is_so).sum()))
    low, high = (perhaps.sure & perhaps_so.sure).sum(), (perhaps.possible & perhaps_so.possible).sum()
    return Observed(value, int(chosen.sum()), Fraction(int(low)), Fraction(int(high)))


@dataclass(frozen=True)
class Seconds:
    """How long something took: as measured, at the least and at the most."""

    measured: float
    least: float
    most: float


def pace(rec: Record, metric: str, chosen: Mask, perhaps: Perhaps, seconds: Seconds) -> Observed:
    """Answers per second (`request_rate`) or their tokens (`token_rate`)."""
    table, many = rec.table, int(chosen.sum())
    measured, least, most = seconds.measured, seconds.least, seconds.most
    if not many or measured <= 0:
        return Observed(None, many)
    done, counted = table.ended("ok"), table.counted
    inside = perhaps & truth.perhaps_ended(table, "ok")
    if metric == "request_rate":
        value, low, high = (int(each.sum()) for each in (chosen & done, inside.sure, inside.possible))
    else:
        value = int(counted.most[chosen & done].sum())
        low, high = int(counted.least[inside.sure].sum()), int(counted.most[inside.possible].sum())
        if (inside.possible & ~done).any():  # nobody knows how much it would have said
            return Observed(_per(value, measured), many, _per(low, most), math.inf)
    why = ""
    if metric == "token_rate" and low < int(counted.most[inside.sure].sum()):
        why = "of some answers nothing but the server's word says how many tokens they had"
    top = _per(high, least) if least > 0 else math.inf
    return Observed(_per(value, measured), many, _per(low, most), top, why)


def _per(many: int, seconds: float) -> Fraction:
    return Fraction(many * _NANO, round(seconds * _NANO))
