"""Requests as columns, so that figures of a hundred thousand of them take milliseconds."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from sandbox.metrics.tokens import Tokens
from sandbox.spec.loadtest import Load
from sandbox.spec.results import Window
from sandbox.spec.slo import OUTCOMES
from sandbox.timeline import EMPTY, Request

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
REQUEST_TAGS = ("tenant", "model", "profile")
_COUNTS = ("chunks", "usage", "content_bytes", "first_bytes")
_LATE = ("late connect", "late first", "late last", "late end")
_COLUMNS = ("t", "scheduled", "sent", "first", "last", *_LATE, *_COUNTS, "prompt_tokens", "outcome", "known", "silent")
GIVEN_UP = ("timeout", "connect_error", "dropped")  # by the client: whatever else might have come
DIGITS = 9  # clocks are read in nanoseconds


@dataclass(frozen=True)
class Rules:
    """By what the client ended requests. Seconds; unlimited where nobody said so.

    Attributes:
        timeout: a request that was not done by then ended as `timeout`.
        idle: so did a begun stream that was silent for so long.
        in_flight: an arrival beyond so many was `dropped`.
    """

    timeout: float = math.inf
    idle: float = math.inf
    in_flight: float = math.inf

    @classmethod
    def of(cls, load: Load | None) -> Rules:
        """Those of a scenario's load."""
        return cls(load.timeout, load.idle_timeout, load.arrivals.max_in_flight) if load else cls()


class Table:
    """One row per request, in the order they came; grows as a run goes on.

    About 180 bytes a request and 8 a gap, where the events themselves take about 2 kB and 64; where gaps are kept, so
    are the lists that say how late each chunk may have been read. Arrays that it returns are kept: read them only.
    """

    def __init__(self, requests: Iterable[Request] = (), *, gaps: bool = True, rules: Rules | None = None) -> None:
        """Begin with these rows; `gaps` False: those between chunks are left out, and there is no `icl`."""
        self.rules = rules or Rules()
        self._with_gaps = gaps
        self._rows = array("d")
        self._codes = {outcome: code for code, outcome in enumerate(OUTCOMES)}
        self._tags = {key: array("q") for key in REQUEST_TAGS}
        self._values: dict[str, dict[str, int]] = {key: {} for key in REQUEST_TAGS}
        self._gaps = array("d")
        self._gap_counts = array("q")
        self._chunks_late: list[Sequence[float]] = []
        self._kept: dict[Any, Any] = {}
        for request in requests:
            self.append(request)

    def __len__(self) -> int:
        """How many requests."""
        return len(self._gap_counts)

    def append(self, request: Request) -> None:
        """One more row."""
        if self._kept:
            self._kept = {}
        gaps, chunks, end = request.gaps, request.uncertainty, request.end_uncertainty
        # of a client that says how late it may have been, what it does not say may be anything
        unknown = 0.0 if end is None else math.inf
        if end is None or not chunks or len(chunks) != len(gaps) + 1:
            chunks = [unknown] * (len(gaps) + 1)
        connect = request.connect_uncertainty
        # an older client called an answer that says nothing `ok`
        outcome = "empty" if request.outcome == "ok" and request.detail == EMPTY else request.outcome
        self._rows.extend(
            (
                request.t,
                request.scheduled,
                math.nan if request.sent is None else request.sent,
                math.nan if request.first is None else request.first,
                math.nan if request.last is None else request.last,
                unknown if connect is None or end is None else connect,
                chunks[0],
                chunks[-1],
                unknown if end is None else end,
                request.chunks,
                -1 if request.tokens is None else request.tokens,
                -1 if request.content_bytes is None else request.content_bytes,
                -1 if request.first_bytes is None else request.first_bytes,
                -1 if request.prompt_tokens is None else request.prompt_tokens,
                self._codes.setdefault(outcome, len(self._codes)),
                end is not None,
                end is not None and self._perhaps_silent(request, chunks, end),
            )
        )
        for key, codes in self._values.items():
            value = request.tags.get(key)
            self._tags[key].append(-1 if value is None else codes.setdefault(value, len(codes)))
        if not self._with_gaps:
            gaps = []
        self._gaps.extend(gaps)
        self._gap_counts.append(len(gaps))
        if gaps:
            self._chunks_late.append(chunks)

    def _perhaps_silent(self, request: Request, late: Sequence[float], end: float) -> bool:
        """Whether what came may in truth have been silent for as long as ends a request, or just not."""
        idle, first, last = self.rules.idle, request.first, request.last
        if first is None or last is None or request.outcome in GIVEN_UP:
            return False
        begun = first if request.sent is None else request.sent
        if 2 * (request.t - begun) < idle and not math.isinf(late[0]):  # nothing can be late by more than it took
            return False
        gaps, told = [*request.gaps, request.t - last], [*late, end]
        pairs = zip(gaps, told[:-1], told[1:], strict=True)
        return any(gap - later <= idle <= gap + earlier for gap, earlier, later in pairs)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What was made before, until there is a new row."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def _column(self, name: str) -> Floats:
        def make() -> Floats:
            rows = self.once("rows", lambda: np.array(self._rows).reshape(-1, len(_COLUMNS)))
            return np.ascontiguousarray(rows[:, _COLUMNS.index(name)])

        found: Floats = self.once(("column", name), make)
        return found

    def _integers(self, name: str) -> Integers:
        found: Integers = self.once(("integers", name), lambda: self._column(name).astype(np.int64))
        return found

    def time(self, name: str) -> Floats:
        """One of t, scheduled, sent, first, last: seconds since the run began, NaN where there is none."""
        return self._column(name)

    def late(self, name: str) -> Floats:
        """Seconds by which a reading may be late: of connect, first, last, end. 0 where the client does not say so."""
        return self._column(f"late {name}")

    @property
    def known(self) -> Mask:
        """Of which requests the client says how late its readings may be."""
        found: Mask = self.once("known", lambda: self._column("known") > 0)
        return found

    @property
    def timed(self) -> bool:
        """Whether the client says it of every request that it began; False too where there is none."""
        begun = ~np.isnan(self.time("sent"))
        return bool(begun.any() and self.known[begun].all())

    @property
    def counted(self) -> Tokens:
        """Tokens of each answer, as far as the stream can have carried them."""
        found: Tokens = self.once("counted", lambda: Tokens(*map(self._integers, _COUNTS)))
        return found

    @property
    def tokens(self) -> Integers:
        """Tokens of each answer that are believed."""
        return self.counted.most

    @property
    def prompt_tokens(self) -> Integers:
        """Tokens of each prompt; -1 where the server did not say."""
        return self._integers("prompt_tokens")

    def ended(self, outcome: str) -> Mask:
        """Which requests ended so, as the client saw it."""
        code = self._codes.get(outcome, -1)
        found: Mask = self.once(("ended", code), lambda: self._integers("outcome") == code)
        return found

    def outcomes(self, chosen: Mask) -> dict[str, int]:
        """How many of the chosen ended how; only what there is."""
        counts = np.bincount(self._integers("outcome")[chosen], minlength=len(self._codes))
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

    @property
    def answered(self) -> Mask:
        """Which requests have times that count."""
        return self.ended("ok") & ~np.isnan(self.time("sent"))

    def latency(self, metric: str) -> Floats:
        """Each request's figure of a trend metric but `icl` as it was measured, seconds; NaN where it has none.

        Only answers have one: a failed request has no latency, it has an outcome. But `sched_lag` is the client's own,
        and belongs to everything that was sent.
        """
        found: Floats = self.once(("latency", metric), lambda: self._latency(metric))
        return found

    def _latency(self, metric: str) -> Floats:
        sent = self.time("sent")
        if metric == "sched_lag":
            return sent - self.time("scheduled")
        if metric == "e2e":
            found = self.time("t") - sent
        elif metric == "ntpot":
            found = divided(self.time("t") - sent, self.tokens)
        elif metric == "tpot":
            found = divided(self.time("last") - self.time("first"), np.where(self.counted.flowed, self.tokens - 1, 0))
        elif metric == "ttft":
            found = self.time("first") - sent
        else:
            found = self.time("first") - self.time("scheduled")
        return np.where(self.answered, found, np.nan)

    def samples(self, metric: str, chosen: Mask) -> Floats:
        """Samples of a trend metric over the chosen requests; of `icl` the gaps of all of them."""
        if metric != "icl":
            found = self.latency(metric)[chosen]
            return found[~np.isnan(found)]
        return self.gaps[self.gaps_of(chosen & self.answered)]

    @property
    def gaps(self) -> Floats:
        """Every gap between content chunks, request by request."""
        found: Floats = self.once("gaps", lambda: np.array(self._gaps))
        return found

    @property
    def gaps_late(self) -> tuple[Floats, Floats]:
        """Of each gap, by how much the chunks before and after it may have come before they were read."""
        late = np.fromiter(chain.from_iterable(self._chunks_late), dtype=float)
        counts = np.array(self._gap_counts)
        ends = np.cumsum(counts[counts > 0] + 1)
        return np.delete(late, ends - 1), np.delete(late, np.concatenate([[0], ends[:-1]]) if len(ends) else ends)

    @property
    def silent(self) -> Mask:
        """What may in truth have been silent for as long as ends a request, or just not."""
        return self._column("silent") > 0

    def gaps_of(self, chosen: Mask) -> Mask:
        """Which gaps are those of the chosen requests."""
        found: Mask = np.repeat(chosen, np.array(self._gap_counts))
        return found

    def greatest(self, metric: str) -> Floats:
        """Each request's figure, for `icl` its longest gap; NaN where it has none."""
        if metric != "icl":
            return self.latency(metric)
        found = np.full(len(self), np.nan)
        counts = np.array(self._gap_counts)
        there = np.flatnonzero(counts)
        if len(there):
            starts = (np.cumsum(counts) - counts)[there]
            found[there] = np.maximum.reduceat(self.gaps, starts)
        return np.where(self.answered, found, np.nan)

    def within(self, name: str, limit: float) -> Mask:
        """Which requests met one limit of `good`, as measured; one that has no such figure did not.

        But there is no time between the tokens of a one-token answer.
        """
        found = self.latency(name)
        met = np.asarray(np.round(found, DIGITS) <= round(limit, DIGITS), dtype=bool)
        return met | (np.isnan(found) & (self.tokens <= 1)) if name == "tpot" else met

    def good(self, limits: Mapping[str, float]) -> Mask:
        """Which requests ended `ok` and met every request-level limit, as measured."""
        found = self.ended("ok").copy()
        for name, limit in limits.items():
            found &= self.within(name, limit)
        return found


def divided(seconds: Floats, by: Integers, otherwise: float = math.nan) -> Floats:
    """The quotients; `otherwise` where there is nothing to divide by."""
    found: Floats = np.divide(seconds, by, out=np.full(len(seconds), otherwise), where=by > 0)
    return found
