"""Whether a run is worse than an earlier one: never by one figure against another, for both are noisy.

Times: a bootstrap of the ratio of the two figures. Shares: the score interval of a difference of two proportions.
The verdict is `fail` where the interval lies beyond what is allowed, `pass` where it lies within, and `invalid` where
it holds both: then these samples cannot tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from sandbox.metrics import Samples
from sandbox.spec.results import Status
from sandbox.spec.slo import METRICS, Expression

_RESAMPLES = 2000
_MOST = 5000  # samples of each run; of more, as many are drawn
_SEED = 20231  # the same timeline is judged the same
_DIGITS = 9  # a ratio of floats is not written down more exactly


@dataclass(frozen=True)
class Compared:
    """How a run stands to its baseline.

    Attributes:
        status: fail: proven worse than allowed; pass: proven not to be; invalid: these samples cannot tell.
        change: of a time (this run - baseline) / baseline; of a share this run - baseline.
        low, high: the interval of `change` at the confidence asked for.
        evidence: lines for a reader.
    """

    status: Status
    change: float
    low: float
    high: float
    evidence: list[str]


def compare(
    metric: str, expression: Expression, now: Sequence[float], before: Sequence[float], confidence: float
) -> Compared | None:
    """As `between`, of samples that are known exactly."""
    return between(metric, expression, Samples.exactly(now), Samples.exactly(before), confidence)


def between(metric: str, expression: Expression, now: Samples, before: Samples, confidence: float) -> Compared | None:
    """Hold this run's samples against an earlier run's; None where the earlier figure is 0 and nothing a share of it.

    The interval reaches from where this run's samples are as low as they may be and the earlier run's as high, to where
    it is the other way round. How many samples are enough is for the caller to ask: an interval of too few is too
    narrow.

    Args:
        metric: its name, which says whether it is a time or a share.
        expression: with `relative`; its bound is what is allowed.
        now: this run's samples, as `sandbox.metrics.samples` gives them; of a share ones and zeros.
        before: the earlier run's.
        confidence: of the interval, such as 0.95.
    """
    new, old = np.asarray(now.measured, dtype=float), np.asarray(before.measured, dtype=float)
    of_times = METRICS[metric].kind == "trend"
    if of_times and float(_figure(expression)(old, axis=-1)) <= 0:
        return None
    evidence = [_ranks(new, old) if of_times else _counts(new, old)]

    def change(now: Sequence[float], before: Sequence[float]) -> tuple[float, float, float]:
        new, old = np.asarray(now, dtype=float), np.asarray(before, dtype=float)
        if not of_times:
            return _of_shares(new, old, confidence)
        if float(_figure(expression)(old, axis=-1)) <= 0:
            return math.inf, math.inf, math.inf
        return _of_times(expression, new, old, confidence)

    figure, low, high = change(now.measured, before.measured)
    if now.uncertain or before.uncertain:
        low = min(low, change(now.low, before.high)[1])
        high = max(high, change(now.high, before.low)[2])
    return Compared(_status(expression, low, high), figure, low, high, evidence)


def _status(expression: Expression, low: float, high: float) -> Status:
    """What is allowed lies beyond the interval, below it or in it."""
    low, high, allowed = (
        round(each, _DIGITS) if math.isfinite(each) else each for each in (low, high, expression.bound)
    )
    if expression.operator == "<=":
        return "fail" if low > allowed else "pass" if high <= allowed else "invalid"
    return "fail" if high < allowed else "pass" if low >= allowed else "invalid"


def _of_times(expression: Expression, new: Any, old: Any, confidence: float) -> tuple[float, float, float]:
    dice = np.random.default_rng(_SEED)
    new, old = (each if len(each) <= _MOST else dice.choice(each, _MOST, replace=False) for each in (new, old))
    figure = _figure(expression)

    def change(new: Any, old: Any, axis: int = -1) -> Any:
        return figure(new, axis=axis) / figure(old, axis=axis) - 1

    found = stats.bootstrap(
        (new, old),
        change,
        n_resamples=_RESAMPLES,
        batch=100,
        vectorized=True,
        confidence_level=confidence,
        method="percentile",  # BCa's jack-knife breaks on quantiles
        rng=dice,
    ).confidence_interval
    return float(change(new, old)), float(found.low), float(found.high)


def _figure(expression: Expression) -> Callable[..., Any]:
    if expression.quantile is not None:
        share = expression.quantile / 100
        return lambda values, axis: np.quantile(values, share, axis=axis)
    figures: dict[str, Callable[..., Any]] = {"avg": np.mean, "med": np.median}  # extremes are no comparison
    return figures[expression.aggregation]


def _of_shares(new: Any, old: Any, confidence: float) -> tuple[float, float, float]:
    """Newcombe's interval: it does not shrink to nothing where every request was good, as Wald's does."""
    (p, p_low, p_high), (q, q_low, q_high) = (_wilson(each, confidence) for each in (new, old))
    change = p - q
    low = change - math.hypot(p - p_low, q_high - q)
    high = change + math.hypot(p_high - p, q - q_low)
    return change, low, high


def _wilson(values: Any, confidence: float) -> tuple[float, float, float]:
    good = int(values.sum())
    found = stats.binomtest(good, len(values)).proportion_ci(confidence, method="wilson")
    return good / len(values), float(found.low), float(found.high)


def _ranks(new: Any, old: Any) -> str:
    found = stats.mannwhitneyu(new, old)  # two-sided
    slower = found.statistic / (len(new) * len(old))
    return f"Mann-Whitney: a sample of this run is the greater one in {slower:.0%} of pairs, p = {found.pvalue:.2g}"


def _counts(new: Any, old: Any) -> str:
    """Shares of single requests as `sandbox.metrics.samples` gives them."""
    yes, before = int(new.sum()), int(old.sum())
    found = stats.fisher_exact([[yes, len(new) - yes], [before, len(old) - before]])
    return f"Fisher's exact test: {yes} of {len(new)} against {before} of {len(old)}, p = {found.pvalue:.2g}"
