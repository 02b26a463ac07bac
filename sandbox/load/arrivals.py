"""When requests start: it follows from the arrivals and their seed alone."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from sandbox.spec.loadtest import Arrivals, Stage
from sandbox.spec.trace import Row

# Requests. A step's area may come out a hair above the whole number it is: its last arrival is then the next one's.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Due:
    """One arrival: `at` seconds after the load's start, with the line of a trace it follows, if it does."""

    at: float
    row: Row | None = None


def schedule(arrivals: Arrivals, duration: float, rows: Sequence[Row] = ()) -> Iterator[Due]:
    """Return the open-loop arrivals in order, made one by one as they are asked for; all lie below `duration` seconds.

    The first is due at 0, or where the rate first rises above 0. The gaps at a rate r, in seconds: constant 1/r;
    Poisson independent and exponential of mean 1/r; gamma independent, of shape `burstiness` and mean 1/r (vLLM's
    convention: 1 is Poisson, the coefficient of variation is 1/sqrt(burstiness)).

    A rate that changes, by time-rescaling: gaps are drawn at rate 1, and their sums are laid at the times where the
    integral of the rate reaches them. That is exact for any rate, and sends nothing where the rate is 0.

    Args:
        arrivals: constant, poisson, gamma or trace.
        duration: seconds.
        rows: the trace that is replayed, in order; nothing else needs them.

    Raises:
        ValueError: closed arrivals have no schedule; or a trace has no rows.
    """
    if arrivals.process == "trace":
        if not rows:
            raise ValueError("a trace is replayed from its rows: sandbox.spec.trace.resolve reads them")
        return _replayed(rows, arrivals.speed, duration)
    if arrivals.rate is not None:
        return _flat(arrivals, arrivals.rate, duration)
    if not arrivals.stages:
        raise ValueError(f"{arrivals.process} arrivals have no schedule: users wait for their answers")
    return _staged(arrivals, duration)


def _gap(arrivals: Arrivals, rate: float) -> Callable[[], float]:
    """What draws the next gap at that rate, in seconds."""
    dice = random.Random(arrivals.seed)  # noqa: S311 - reproducible on purpose, nothing secret
    shape = arrivals.burstiness
    if arrivals.process == "gamma" and shape is not None:
        scale = 1 / (shape * rate)
        return lambda: dice.gammavariate(shape, scale)
    return lambda: dice.expovariate(rate)


def _flat(arrivals: Arrivals, rate: float, duration: float) -> Iterator[Due]:
    gap = _gap(arrivals, rate)
    even = arrivals.process == "constant"
    number, at = 0, 0.0
    while at < duration:
        yield Due(at)
        number += 1
        at = number / rate if even else at + gap()  # a quotient: sums of 1/rate would drift


def _staged(arrivals: Arrivals, duration: float) -> Iterator[Due]:
    places = _places(arrivals)
    place = next(places)
    for stretch in _stretches(arrivals.stages):
        end = stretch.before + stretch.area - _ROUNDING
        while place < end:
            at = stretch.when(place)
            if at >= duration:
                return
            yield Due(at)
            place = next(places)


def _places(arrivals: Arrivals) -> Iterator[float]:
    """Arrivals at rate 1."""
    if arrivals.process == "constant":
        yield from map(float, count())
    gap = _gap(arrivals, 1.0)
    place = 0.0
    while True:
        yield place
        place += gap()


@dataclass(frozen=True)
class _Stretch:
    """A time in which the rate is one straight line.

    Attributes:
        begin: seconds.
        during: seconds.
        before: the integral of the rate up to `begin`, in requests.
        rate: per second, at `begin`.
        slope: per second, each second.
    """

    begin: float
    during: float
    before: float
    rate: float
    slope: float

    @property
    def area(self) -> float:
        """Requests expected in it."""
        return (self.rate + self.slope * self.during / 2) * self.during

    def when(self, place: float) -> float:
        """The time at which the integral of the rate reaches `place`: the root of rate*t + slope*t*t/2 = wanted."""
        wanted = max(0.0, place - self.before)
        if self.slope == 0 or wanted == 0:
            return self.begin + (wanted / self.rate if wanted else 0.0)
        # This form of the root loses no digits where the rate rises; where it falls to 0, the last bits may go below 0.
        root = math.sqrt(max(0.0, self.rate**2 + 2 * self.slope * wanted))
        return self.begin + min(self.during, 2 * wanted / (self.rate + root))


def _stretches(stages: Sequence[Stage]) -> Iterator[_Stretch]:
    """The stages as straight lines; a ramp begins at the rate before it, which is 0 at the very start."""
    begin = before = rate = 0.0
    for stage in stages:
        first = rate if stage.rate is None else stage.rate
        rate = first if stage.ramp_to is None else stage.ramp_to
        stretch = _Stretch(begin, stage.during, before, first, (rate - first) / stage.during)
        yield stretch
        begin += stage.during
        before += stretch.area


def _replayed(rows: Sequence[Row], speed: float, duration: float) -> Iterator[Due]:
    for row in rows:
        at = row.at / speed
        if at >= duration:
            return
        yield Due(at, row)
