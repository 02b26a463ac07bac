"""The highest rate that holds: double it until it breaks, then halve the gap. Pure; a step is someone else's load.

The client's own limit is never taken for the server's: a step that proves nothing bounds the search, but the answer
then says only that the limit is at least the last rate that held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from sandbox.errors import UsageError
from sandbox.spec.results import Check, Results

Verdict = Literal["pass", "fail", "invalid"]
_GROWTH = 2.0
_FINEST = 0.01
_DIGITS = 4  # of a rate: it is shown, and typed again


@dataclass(frozen=True)
class Step:
    """One load at one rate, judged.

    Attributes:
        rate: asked, requests per second.
        verdict: pass; fail: the SLO did not hold; invalid: nothing was proven, such as by a client that was slow.
        why: which threshold, and what was observed.
        achieved: answered, requests per second; None where nothing was.
    """

    rate: float
    verdict: Verdict
    why: str
    achieved: float | None = None


@dataclass(frozen=True)
class Found:
    """What the search came to.

    Attributes:
        rate: the highest that held, in requests per second; None if none did.
        steps: every load that was made, in order.
        why: why the search went no higher, in a sentence.
        broken: the lowest rate shown not to hold, twice; None where the limit is only known to be at least `rate`.
    """

    rate: float | None
    steps: list[Step] = field(default_factory=list)
    why: str = ""
    broken: float | None = None


def search(step: Callable[[float], Step], start: float, most: float, precision: float = 0.05) -> Found:
    """Find the highest rate between `start` and `most` at which `step` passes.

    A step that does not pass is made once more, for machines are noisy: it fails only if it fails twice, and passes
    if it passes then. The search ends when the lowest rate that does not hold lies within `precision` (relative) of
    the highest that does, at `most`, or at `start` if that does not hold.

    Args:
        step: loads at a rate, in requests per second, and judges.
        start: the lowest rate, tried first.
        most: the highest rate tried.
        precision: 0.05 ends within five per cent.

    Raises:
        UsageError: the range is empty, or the precision lies outside 0.01 to 1.
    """
    _check(start, most, precision)
    steps: list[Step] = []
    holds: float | None = None
    rate = start
    while (above := _surely(step, rate, steps)).verdict == "pass":
        if rate >= most:
            return Found(rate, steps, f"the top of the range holds too, {rate:g} requests/s: the limit lies above it")
        holds, rate = rate, min(most, rate * _GROWTH)
    if holds is None:
        return Found(None, steps, _lowest(above), above.rate if above.verdict == "fail" else None)
    while above.rate > holds * (1 + precision):
        rate = _between(holds, above.rate)
        seen = _surely(step, rate, steps)
        if seen.verdict == "pass":
            holds = rate
        else:
            above = seen
    if above.verdict == "fail":
        return Found(holds, steps, f"at {above.rate:g} requests/s the SLO did not hold: {above.why}", above.rate)
    return Found(
        holds, steps, f"at {above.rate:g} requests/s nothing was proven: {above.why}; the limit is at least {holds:g}"
    )


def most_steps(start: float, most: float, precision: float = 0.05) -> int:
    """Return how many steps a search makes at most, every repetition counted."""
    _check(start, most, precision)
    rising = math.ceil(math.log(most / start, _GROWTH)) + 1
    halving = math.ceil(math.log2(math.log(_GROWTH) / math.log1p(precision))) + 1
    return 2 * (rising + halving)


def judged(rate: float, results: Results) -> Step:
    """Return what a run shows about its rate.

    A run's own verdict puts fail before invalid. Not so here: where the client was not fit to measure, or did not
    send all that was asked, a broken SLO says nothing about the server.
    """
    overall = next((each for each in results.summaries if each.phase == "all"), None)
    achieved = overall.request_rate if overall else None
    unfit = [check for check in results.checks if check.group == "validity" and check.status != "pass"]
    if unfit:
        return Step(rate, "invalid", _told(unfit), achieved)
    dropped = overall.outcomes.get("dropped", 0) if overall else 0
    if dropped:
        why = f"{dropped} requests were dropped at maxInFlight, so the rate was not sent in full; raise maxInFlight"
        return Step(rate, "invalid", why, achieved)
    decisive = [check for check in results.checks if check.status == results.verdict]
    return Step(rate, results.verdict, _told(decisive) or results.headline, achieved)


def _told(checks: Iterable[Check]) -> str:
    return "; ".join(f"{check.title}: {check.reason or check.observed}" for check in checks)


def _check(start: float, most: float, precision: float) -> None:
    problems = []
    if not 0 < start <= most < math.inf:
        problems.append(f"{start:g} to {most:g} requests/s is not a range: write a lower and a higher rate above 0")
    if not _FINEST <= precision <= 1:
        problems.append(f"precision {precision:g} lies outside {_FINEST:g} to 1; 0.05 ends within five per cent")
    if problems:
        raise UsageError(problems[0], details=problems[1:], fix="for example 1 to 200, with precision 0.05")


def _surely(step: Callable[[float], Step], rate: float, steps: list[Step]) -> Step:
    """The step at that rate; made once more if it does not pass. One failure and one unproven step prove nothing."""
    first = step(rate)
    steps.append(first)
    if first.verdict == "pass":
        return first
    again = step(rate)
    steps.append(again)
    if again.verdict in {"pass", first.verdict}:
        return again
    unproven = first if first.verdict == "invalid" else again
    return replace(unproven, why=f"{unproven.why} (the SLO failed once, which nothing confirmed)")


def _between(low: float, high: float) -> float:
    """The geometric middle: precision is relative."""
    return float(f"{math.sqrt(low * high):.{_DIGITS}g}")


def _lowest(step: Step) -> str:
    if step.verdict == "fail":
        return f"not even the lowest rate holds, {step.rate:g} requests/s: {step.why}"
    return f"at the lowest rate, {step.rate:g} requests/s, nothing was proven: {step.why}"
