"""When requests start: it follows from the arrivals and their seed alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sandbox.spec.loadtest import Arrivals
from sandbox.spec.trace import Row


@dataclass(frozen=True)
class Due:
    """One arrival: `at` seconds after the load's start, with the line of a trace it follows, if it does."""

    at: float
    row: Row | None = None


def schedule(arrivals: Arrivals, duration: float, rows: Sequence[Row] = ()) -> Iterator[Due]:  # noqa: ARG001 - soon
    """Yield the open-loop arrivals in order, the first at 0; all below `duration`.

    Constant: every 1/rate. Poisson: independent exponential gaps of mean 1/rate.
    """
    if arrivals.rate is None:
        raise ValueError(f"{arrivals.process} arrivals have no schedule: users wait for their answers")
    dice = random.Random(arrivals.seed)  # noqa: S311 - reproducible on purpose, nothing secret
    number, at = 0, 0.0
    while at < duration:
        yield Due(at)
        number += 1
        at = number / arrivals.rate if arrivals.process == "constant" else at + dice.expovariate(arrivals.rate)
