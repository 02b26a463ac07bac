"""Requests as columns, so that figures of a hundred thousand of them take milliseconds."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from sandbox.spec.results import Window
from sandbox.spec.slo import OUTCOMES
from sandbox.timeline import Request

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
REQUEST_TAGS = ("tenant", "model", "profile")
_TIMES = ("t", "scheduled", "sent", "first", "last")


class Table:
    """One row per request, in the order they came; grows as a run goes on.

    About 70 bytes a request and 12 a gap, where the events themselves take about 2 kB and 32.
    """

    def __init__(self, requests: Iterable[Request] = (), *, gaps: bool = True) -> None:
        """Begin with these rows; `gaps` False: those between chunks are left out, and there is no `icl`."""
        self._with_gaps = gaps
        self._times = {name: array("d") for name in _TIMES}
        self._tokens = array("q")
        self._prompts = array("q")
        self._outcomes = array("q")
        self._codes = {outcome: code for code, outcome in enumerate(OUTCOMES)}
        self._tags = {key: array("q") for key in REQUEST_TAGS}
        self._values: dict[str, dict[str, int]] = {key: {} for key in REQUEST_TAGS}
        self._gaps = array("d")
        self._gap_counts = array("q")
        for request in requests:
            self.append(request)

    def __len__(self) -> int:
        """How many requests."""
        return len(self._tokens)

    def append(self, request: Request) -> None:
        """One more row."""
        for name, column in self._times.items():
            value = getattr(request, name)
            column.append(math.nan if value is None else value)
        # as the server counted them; content chunks where it did not say
        self._tokens.append(request.chunks if request.tokens is None else request.tokens)
        self._prompts.append(-1 if request.prompt_tokens is None else request.prompt_tokens)
        self._outcomes.append(self._codes.setdefault(request.outcome, len(self._codes)))
        for key, codes in self._values.items():
            value = request.tags.get(key)
            self._tags[key].append(-1 if value is None else codes.setdefault(value, len(codes)))
        gaps = request.gaps if self._with_gaps else []
        self._gaps.extend(gaps)
        self._gap_counts.append(len(gaps))

    def time(self, name: str) -> Floats:
        """One of t, scheduled, sent, first, last: seconds since the run began, NaN where there is none."""
        return np.array(self._times[name])

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        """Tokens of each answer."""
        return np.array(self._tokens)

    @property
    def prompt_tokens(self) -> npt.NDArray[np.int64]:
        """Tokens of each prompt; -1 where the server did not say."""
        return np.array(self._prompts)

    def ended(self, outcome: str) -> Mask:
        """Which requests ended so."""
        found: Mask = np.array(self._outcomes) == self._codes.get(outcome, -1)
        return found

    def outcomes(self, chosen: Mask) -> dict[str, int]:
        """How many of the chosen ended how; only what there is."""
        counts = np.bincount(np.array(self._outcomes)[chosen], minlength=len(self._codes))
        return {name: int(counts[code]) for name, code in self._codes.items() if counts[code]}

    def values(self, tag: str) -> list[str]:
        """The values that a tag has, those of most requests first."""
        codes = np.array(self._tags[tag])
        counts = np.bincount(codes[codes >= 0], minlength=len(self._values[tag]))
        return sorted(self._values[tag], key=lambda value: (-counts[self._values[tag][value]], value))

    def tagged(self, tags: Mapping[str, str]) -> Mask:
        """Which requests have all of these tags."""
        found = np.ones(len(self), dtype=bool)
        for key, value in tags.items():
            found &= np.array(self._tags[key]) == self._values[key].get(value, -2)
        return found

    def in_phase(self, name: str, windows: Iterable[Window]) -> Mask:
        """Which requests belong to a phase: to `fault` if any moment of it fell into the fault's window.

        A request that was in flight when the fault struck is the fault's victim, not the baseline's.
        """
        struck = next((window for window in windows if window.kind == "phase" and window.name == "fault"), None)
        if struck is None:
            return np.full(len(self), name == "baseline")
        before = self.time("t") < struck.start
        after = ~before & (self.time("scheduled") >= struck.end)
        return {"baseline": before, "fault": ~before & ~after, "recovery": after}[name]

    def latency(self, metric: str) -> Floats:
        """Each request's figure of a trend metric but `icl`, seconds; NaN where it has none.

        Only answers have one: a failed request has no latency, it has an outcome. But `sched_lag` is the client's own,
        and belongs to everything that was sent.
        """
        sent = self.time("sent")
        if metric == "sched_lag":
            return sent - self.time("scheduled")
        if metric == "e2e":
            found = self.time("t") - sent
        elif metric == "ntpot":
            found = _divided(self.time("t") - sent, self.tokens)
        elif metric == "tpot":
            found = _divided(self.time("last") - self.time("first"), self.tokens - 1)
        elif metric == "ttft":
            found = self.time("first") - sent
        else:
            found = self.time("first") - self.time("scheduled")
        return np.where(self.ended("ok") & ~np.isnan(sent), found, np.nan)

    def samples(self, metric: str, chosen: Mask) -> Floats:
        """Samples of a trend metric over the chosen requests; of `icl` the gaps of all of them."""
        if metric != "icl":
            found = self.latency(metric)[chosen]
            return found[~np.isnan(found)]
        answered = chosen & self.ended("ok") & ~np.isnan(self.time("sent"))
        return np.array(self._gaps)[np.repeat(answered, np.array(self._gap_counts))]

    def greatest(self, metric: str) -> Floats:
        """Each request's figure, for `icl` its longest gap; NaN where it has none."""
        if metric != "icl":
            return self.latency(metric)
        found = np.full(len(self), np.nan)
        counts = np.array(self._gap_counts)
        there = np.flatnonzero(counts)
        if len(there):
            starts = (np.cumsum(counts) - counts)[there]
            found[there] = np.maximum.reduceat(np.array(self._gaps), starts)
        return np.where(self.ended("ok") & ~np.isnan(self.time("sent")), found, np.nan)

    def within(self, name: str, limit: float) -> Mask:
        """Which requests met one limit of `good`; one that has no such figure did not.

        But there is no time between the tokens of a one-token answer.
        """
        found = self.latency(name)
        met = found <= limit
        return met | (np.isnan(found) & (self.tokens <= 1)) if name == "tpot" else met

    def good(self, limits: Mapping[str, float]) -> Mask:
        """Which requests ended `ok` and met every request-level limit."""
        found = self.ended("ok")
        for name, limit in limits.items():
            found &= self.within(name, limit)
        return found


def _divided(seconds: Floats, by: npt.NDArray[np.int64]) -> Floats:
    found: Floats = np.divide(seconds, by, out=np.full(len(seconds), np.nan), where=by > 0)
    return found
