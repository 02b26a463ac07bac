"""Requests as columns, so that figures of a hundred thousand of them take milliseconds."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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
_TIMES = ("t", "scheduled", "sent", "first", "last")
_LATE = ("connect", "first", "last", "end")
_COUNTS = ("chunks", "usage", "content_bytes", "first_bytes")
_DIGITS = 9  # clocks are read in nanoseconds
_NO_SUM = 0.01  # of the total limit: so much of it may have gone into a connection that was noticed late
_ROUNDED = 1e-4  # seconds: bounds are written rounded up
_STALL = 0.01


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


@dataclass(frozen=True)
class Between:
    """A figure of each row, or of each gap: its least and its greatest true value; NaN where there is none."""

    low: Floats
    high: Floats


@dataclass(frozen=True)
class Perhaps:
    """Rows of which something is true: surely, and possibly (the sure ones included)."""

    sure: Mask
    possible: Mask

    @property
    def certain(self) -> bool:
        """What is possible is sure."""
        return self.sure is self.possible or bool((self.sure == self.possible).all())

    def __and__(self, other: Perhaps) -> Perhaps:
        """Both."""
        return Perhaps(self.sure & other.sure, self.possible & other.possible)


class Table:
    """One row per request, in the order they came; grows as a run goes on.

    About 140 bytes a request and 24 a gap, where the events themselves take about 2 kB and 64. Arrays that it returns
    are kept: read them only.
    """

    def __init__(self, requests: Iterable[Request] = (), *, gaps: bool = True, rules: Rules | None = None) -> None:
        """Begin with these rows; `gaps` False: those between chunks are left out, and there is no `icl`."""
        self.rules = rules or Rules()
        self._with_gaps = gaps
        self._times = {name: array("d") for name in _TIMES}
        self._late = {name: array("d") for name in _LATE}
        self._counts = {name: array("q") for name in _COUNTS}
        self._prompts = array("q")
        self._outcomes = array("q")
        self._known = array("b")
        self._silent = array("b")
        self._codes = {outcome: code for code, outcome in enumerate(OUTCOMES)}
        self._tags = {key: array("q") for key in REQUEST_TAGS}
        self._values: dict[str, dict[str, int]] = {key: {} for key in REQUEST_TAGS}
        self._gaps = array("d")
        self._gap_counts = array("q")
        self._earlier = array("d")
        self._later = array("d")
        self._kept: dict[Any, Any] = {}
        for request in requests:
            self.append(request)

    def __len__(self) -> int:
        """How many requests."""
        return len(self._prompts)

    def append(self, request: Request) -> None:
        """One more row."""
        if self._kept:
            self._kept = {}
        for name, column in self._times.items():
            value = getattr(request, name)
            column.append(math.nan if value is None else value)
        for name, counts in self._counts.items():
            count = request.tokens if name == "usage" else getattr(request, name)
            counts.append(-1 if count is None else count)
        self._prompts.append(-1 if request.prompt_tokens is None else request.prompt_tokens)
        # an older client called an answer that says nothing `ok`
        outcome = "empty" if request.outcome == "ok" and request.detail == EMPTY else request.outcome
        self._outcomes.append(self._codes.setdefault(outcome, len(self._codes)))
        for key, codes in self._values.items():
            value = request.tags.get(key)
            self._tags[key].append(-1 if value is None else codes.setdefault(value, len(codes)))
        self._append_late(request)

    def _append_late(self, request: Request) -> None:
        """How late each reading may have been. Of a client that says so, what it does not say may be anything."""
        end, connect, chunks = request.end_uncertainty, request.connect_uncertainty, request.uncertainty
        known = end is not None
        whole = known and chunks is not None and len(chunks) == len(request.gaps) + 1
        unknown = math.inf if known else 0.0
        late = chunks if whole and chunks else (unknown, unknown)
        self._known.append(known)
        self._late["end"].append(unknown if end is None else end)
        self._late["connect"].append(unknown if connect is None or not known else connect)
        self._late["first"].append(late[0])
        self._late["last"].append(late[-1])
        self._silent.append(known and self._perhaps_silent(request, late, unknown if end is None else end))
        gaps = request.gaps if self._with_gaps else []
        self._gaps.extend(gaps)
        self._gap_counts.append(len(gaps))
        if gaps:
            late = late if whole else [unknown] * (len(gaps) + 1)
            self._earlier.extend(late[:-1])
            self._later.extend(late[1:])

    def _perhaps_silent(self, request: Request, late: Any, end: float) -> bool:
        """Whether an answer that came may in truth have been silent for as long as ends one, or just not."""
        idle, first, last = self.rules.idle, request.first, request.last
        if request.outcome != "ok" or first is None or last is None or request.t - first + max(late) < idle:
            return False
        gaps = [*request.gaps, request.t - last]
        told = [*late, end] if len(late) == len(gaps) else [math.inf] * (len(gaps) + 1)
        pairs = zip(gaps, told[:-1], told[1:], strict=True)
        return any(gap - later < idle <= gap + earlier for gap, earlier, later in pairs)

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What was made before, until there is a new row."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def time(self, name: str) -> Floats:
        """One of t, scheduled, sent, first, last: seconds since the run began, NaN where there is none."""
        found: Floats = self._once(name, lambda: np.array(self._times[name]))
        return found

    def late(self, name: str) -> Floats:
        """Seconds by which a reading may be late: of connect, first, last, end. 0 where the client does not say so."""
        found: Floats = self._once(("late", name), lambda: np.array(self._late[name]))
        return found

    @property
    def known(self) -> Mask:
        """Of which requests the client says how late its readings may be."""
        found: Mask = self._once("known", lambda: np.array(self._known, dtype=bool))
        return found

    @property
    def timed(self) -> bool:
        """Whether the client says it of every request that it began; False too where there is none."""
        begun = ~np.isnan(self.time("sent"))
        return bool(begun.any() and self.known[begun].all())

    @property
    def counted(self) -> Tokens:
        """Tokens of each answer, as far as the stream can have carried them."""
        found: Tokens = self._once(
            "counted", lambda: Tokens(*(np.array(self._counts[name], dtype=np.int64) for name in _COUNTS))
        )
        return found

    @property
    def tokens(self) -> Integers:
        """Tokens of each answer that are believed."""
        return self.counted.most

    @property
    def prompt_tokens(self) -> Integers:
        """Tokens of each prompt; -1 where the server did not say."""
        return np.array(self._prompts)

    def ended(self, outcome: str) -> Mask:
        """Which requests ended so, as the client saw it."""
        code = self._codes.get(outcome, -1)
        codes = self._once("outcomes", lambda: np.array(self._outcomes))
        found: Mask = self._once(("ended", code), lambda: codes == code)
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

    @property
    def soonest(self) -> Floats:
        """When each request would have ended at the soonest, had the client begun and read it at once."""

        def make() -> Floats:
            lag = np.nan_to_num(np.maximum(0.0, self.time("sent") - self.time("scheduled")))
            ended = self.time("t") - self.late("end") - self.late("connect") - lag * self.known
            return np.where(self.known, np.maximum(ended, self.time("scheduled")), self.time("t"))

        found: Floats = self._once("soonest", make)
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

    def perhaps_in_phase(self, name: str, windows: Iterable[Window], late: float = 0.0) -> Perhaps:
        """As `in_phase`; near an edge on either side of it. `late`: seconds by which the heal was seen too late."""
        struck = next((window for window in windows if window.kind == "phase" and window.name == "fault"), None)
        if struck is None:
            every = np.full(len(self), name == "baseline")
            return Perhaps(every, every)
        scheduled = self.time("scheduled")
        before = Perhaps(self.time("t") < struck.start, self.soonest < struck.start)
        later = Perhaps(scheduled >= struck.end, scheduled >= struck.end - late)
        return {
            "baseline": before,
            "fault": Perhaps(~before.possible & ~later.possible, ~before.sure & ~later.sure),
            "recovery": Perhaps(~before.possible & later.sure, ~before.sure & later.possible),
        }[name]

    @property
    def _answered(self) -> Mask:
        return self.ended("ok") & ~np.isnan(self.time("sent"))

    def latency(self, metric: str) -> Floats:
        """Each request's figure of a trend metric but `icl` as it was measured, seconds; NaN where it has none.

        Only answers have one: a failed request has no latency, it has an outcome. But `sched_lag` is the client's own,
        and belongs to everything that was sent.
        """
        found: Floats = self._once(("latency", metric), lambda: self._latency(metric))
        return found

    def _latency(self, metric: str) -> Floats:
        sent = self.time("sent")
        if metric == "sched_lag":
            return sent - self.time("scheduled")
        if metric == "e2e":
            found = self.time("t") - sent
        elif metric == "ntpot":
            found = _divided(self.time("t") - sent, self.tokens)
        elif metric == "tpot":
            found = _divided(self.time("last") - self.time("first"), np.where(self.counted.flowed, self.tokens - 1, 0))
        elif metric == "ttft":
            found = self.time("first") - sent
        else:
            found = self.time("first") - self.time("scheduled")
        return np.where(self._answered, found, np.nan)

    def between(self, metric: str) -> Between:
        """Each request's figure of a trend metric but `icl`: the least and the greatest that it can be in truth.

        A late reading makes a time too long, a connection noticed late all that follows; a late first token makes the
        time between tokens too short.
        """
        found: Between = self._once(("between", metric), lambda: self._between(metric))
        return found

    def _between(self, metric: str) -> Between:
        measured = self.latency(metric)
        if metric == "sched_lag":
            return Between(measured, measured)
        if metric == "tpot":
            return self._tpot()
        if metric in {"ttft", "ttft_intended"}:
            low = self.latency("ttft") - self.late("connect") - self.late("first")
            return Between(_least(low, measured), measured)
        low = self.latency("e2e") - self.late("connect") - self.late("end")
        if metric == "e2e":
            return Between(_least(low, measured), measured)
        high = _divided(self.latency("e2e"), self.counted.least, otherwise=np.inf)
        return Between(_least(_divided(low, self.counted.most), measured), np.where(np.isnan(measured), np.nan, high))

    def _tpot(self) -> Between:
        tokens, span = self.counted, self.time("last") - self.time("first")
        low = _divided(np.maximum(0.0, span - self.late("last")), tokens.most - 1)
        high = _divided(span + self.late("first"), tokens.after_first)
        there = self._answered & (tokens.most > 1) & ~np.isnan(span)
        shown = there & tokens.flowed
        return Between(
            np.where(there, np.where(shown, low, 0.0), np.nan), np.where(there, np.where(shown, high, np.inf), np.nan)
        )

    def samples(self, metric: str, chosen: Mask) -> Floats:
        """Samples of a trend metric over the chosen requests; of `icl` the gaps of all of them."""
        if metric != "icl":
            found = self.latency(metric)[chosen]
            return found[~np.isnan(found)]
        return np.array(self._gaps)[self.gaps_of(chosen & self._answered)]

    def gaps_of(self, chosen: Mask) -> Mask:
        """Which gaps are those of the chosen requests."""
        found: Mask = np.repeat(chosen, np.array(self._gap_counts))
        return found

    def gaps(self) -> Between:
        """Each gap of each request, the least and the greatest that it can have been."""

        def make() -> Between:
            measured = np.array(self._gaps)
            if not self.known.any():
                return Between(measured, measured)
            low = np.maximum(0.0, measured - np.array(self._later))
            return Between(low, measured + np.array(self._earlier))

        found: Between = self._once("gaps", make)
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
            found[there] = np.maximum.reduceat(np.array(self._gaps), starts)
        return np.where(self._answered, found, np.nan)

    @property
    def _waited(self) -> Floats:
        return self.time("t") - self.time("scheduled")

    @property
    def doubtful(self) -> Mask:
        """Whose outcome may have been another, had the client read in time; never of a client that does not say it.

        An answer that was silent for nearly as long as ends one, or that was read after its limit was over. A time-out
        whose request went out late, or before which nobody looked once more. An arrival that was dropped while so many
        requests were in flight only because they were read late.
        """
        found: Mask = self._once("doubtful", self._doubtful)
        return found

    def _doubtful(self) -> Mask:
        if not self.known.any():
            return np.zeros(len(self), dtype=bool)
        silent = np.array(self._silent, dtype=bool) & self.ended("ok")
        sent, end, connect = self.time("sent"), self.late("end"), self.late("connect")
        over = self.time("t") - sent - self.rules.timeout
        beyond = self.ended("ok") & (over > _ROUNDED)
        slow = ~np.isinf(connect) & (connect > _NO_SUM * self.rules.timeout)
        unseen = self.ended("timeout") & (slow | ((over > 0) & (end > over + _ROUNDED)))
        unseen |= self.ended("connect_error") & (end > _STALL) & (self._waited >= self.rules.timeout)
        return self.known & (silent | beyond | unseen) | (self.ended("dropped") & ~self._crowded())

    def _crowded(self) -> Mask:
        """At whose due time so many requests were surely in flight that one more was too many."""
        begun = ~self.ended("dropped")
        scheduled = self.time("scheduled")
        come = np.searchsorted(np.sort(scheduled[begun]), scheduled, side="right")
        gone = np.searchsorted(np.sort(self.soonest[begun]), scheduled, side="right")
        found: Mask = come - gone >= self.rules.in_flight
        return found

    def perhaps_ended(self, outcome: str) -> Perhaps:
        """Which requests ended so in truth."""

        def make() -> Perhaps:
            seen, doubtful = self.ended(outcome), self.doubtful
            other = doubtful if outcome == "timeout" else doubtful & ~self.ended("ok")
            return Perhaps(seen & ~doubtful, seen | other)

        found: Perhaps = self._once(("perhaps", outcome), make)
        return found

    def within(self, name: str, limit: float) -> Mask:
        """Which requests met one limit of `good`, as measured; one that has no such figure did not.

        But there is no time between the tokens of a one-token answer.
        """
        found = self.latency(name)
        met = np.asarray(np.round(found, _DIGITS) <= round(limit, _DIGITS), dtype=bool)
        return met | (np.isnan(found) & (self.tokens <= 1)) if name == "tpot" else met

    def good(self, limits: Mapping[str, float]) -> Mask:
        """Which requests ended `ok` and met every request-level limit, as measured."""
        found = self.ended("ok").copy()
        for name, limit in limits.items():
            found &= self.within(name, limit)
        return found

    def perhaps_good(self, limits: Mapping[str, float]) -> Perhaps:
        """Which requests were good in truth."""

        def make() -> Perhaps:
            ended = self.perhaps_ended("ok")
            sure, possible = ended.sure.copy(), ended.possible.copy()
            other = ended.possible & ~self.ended("ok")
            for name, limit in limits.items():
                bounds, most = self.between(name), round(limit, _DIGITS)
                short = (name == "tpot") & (self.tokens <= 1) & np.isnan(bounds.low)
                sure &= (np.round(bounds.high, _DIGITS) <= most) | short
                possible &= (np.round(bounds.low, _DIGITS) <= most) | short | (other & self._soon(name, most))
            return Perhaps(sure, possible)

        found: Perhaps = self._once(("good", tuple(limits.items())), make)
        return found

    def _soon(self, name: str, limit: float) -> Mask:
        """Of requests that the client gave up: whether what it did not see may have met a limit."""
        if name == "tpot":
            return np.ones(len(self), dtype=bool)
        of_first = (name != "e2e") & ~np.isnan(self.time("first"))
        seen = np.where(of_first, self.time("first") - self.late("first"), self.time("t") - self.late("end"))
        least = seen - self.late("connect") - self.time("sent")
        return np.isnan(least) | (np.round(least, _DIGITS) <= limit)


def _divided(seconds: Floats, by: Integers, otherwise: float = math.nan) -> Floats:
    found: Floats = np.divide(seconds, by, out=np.full(len(seconds), otherwise), where=by > 0)
    return found


def _least(low: Floats, measured: Floats) -> Floats:
    """Not below 0, and nowhere where nothing was measured."""
    return np.where(np.isnan(measured), np.nan, np.maximum(0.0, low))
