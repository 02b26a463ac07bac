"""What is true of each request, given what was measured and how late the client may have read: surely, and possibly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from sandbox.metrics.table import DIGITS, GIVEN_UP, Floats, Mask, Table, divided
from sandbox.spec.results import Window

_NO_SUM = 0.01  # of the total limit: so much of it may have gone into a connection that was noticed late
_ROUNDED = 1e-4  # seconds: bounds are written rounded up
_STALL = 0.01


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


def soonest(table: Table) -> Floats:
    """When each request would have ended at the soonest, had the client begun and read it at once."""

    def make() -> Floats:
        lag = np.nan_to_num(np.maximum(0.0, table.time("sent") - table.time("scheduled")))
        ended = table.time("t") - table.late("end") - table.late("connect") - lag * table.known
        return np.where(table.known, np.maximum(ended, table.time("scheduled")), table.time("t"))

    found: Floats = table.once("soonest", make)
    return found


def perhaps_in_phase(table: Table, name: str, windows: Iterable[Window], late: float) -> Perhaps:
    """As `in_phase`; near an edge on either side of it. `late`: seconds by which the heal was seen too late."""
    struck = next((window for window in windows if window.kind == "phase" and window.name == "fault"), None)
    if struck is None:
        every = np.full(len(table), name == "baseline")
        return Perhaps(every, every)
    scheduled = table.time("scheduled")
    before = Perhaps(table.time("t") < struck.start, soonest(table) < struck.start)
    later = Perhaps(scheduled >= struck.end, scheduled >= struck.end - late)
    return {
        "baseline": before,
        "fault": Perhaps(~before.possible & ~later.possible, ~before.sure & ~later.sure),
        "recovery": Perhaps(~before.possible & later.sure, ~before.sure & later.possible),
    }[name]


def between(table: Table, metric: str) -> Between:
    """Each request's figure of a trend metric but `icl`: the least and the greatest that it can be in truth.

    A late reading makes a time too long, a connection noticed late all that follows; a late first token makes the
    time between tokens too short.
    """
    found: Between = table.once(("between", metric), lambda: _between(table, metric))
    return found


def _between(table: Table, metric: str) -> Between:
    measured = table.latency(metric)
    if metric == "sched_lag":
        return Between(measured, measured)
    if metric == "tpot":
        return _tpot(table)
    if metric in {"ttft", "ttft_intended"}:
        low = table.latency("ttft") - table.late("connect") - table.late("first")
        return Between(np.maximum(0.0, low), measured)
    low = table.latency("e2e") - table.late("connect") - table.late("end")
    if metric == "e2e":
        return Between(np.maximum(0.0, low), measured)
    high = divided(table.latency("e2e"), table.counted.least, otherwise=np.inf)
    return Between(np.maximum(0.0, divided(low, table.counted.most)), np.where(np.isnan(measured), np.nan, high))


def _tpot(table: Table) -> Between:
    tokens, span = table.counted, table.time("last") - table.time("first")
    low = divided(np.maximum(0.0, span - table.late("last")), tokens.most - 1)
    high = divided(span + table.late("first"), tokens.after_first)
    there = table.answered & (tokens.most > 1) & ~np.isnan(span)
    shown = there & tokens.flowed
    return Between(
        np.where(there, np.where(shown, low, 0.0), np.nan), np.where(there, np.where(shown, high, np.inf), np.nan)
    )


def gaps(table: Table) -> Between:
    """Each gap of each request, the least and the greatest that it can have been."""

    def make() -> Between:
        measured = table.gaps
        if not table.known.any():
            return Between(measured, measured)
        earlier, later = table.gaps_late
        low = np.maximum(0.0, measured - later)
        return Between(low, measured + earlier)

    found: Between = table.once("true gaps", make)
    return found


def _waited(table: Table) -> Floats:
    return table.time("t") - table.time("scheduled")


def doubtful(table: Table) -> Mask:
    """Whose outcome may have been another, had the client read in time; never of a client that does not say it.

    One that was silent for nearly as long as ends a request, or that was read after its limit was over. A time-out
    whose request went out late, or before which nobody looked once more. An arrival that was dropped while so many
    requests were in flight only because they were read late.
    """
    found: Mask = table.once("doubtful", lambda: _doubtful(table))
    return found


def _doubtful(table: Table) -> Mask:
    if not table.known.any():
        return np.zeros(len(table), dtype=bool)
    sent, end, connect = table.time("sent"), table.late("end"), table.late("connect")
    over = table.time("t") - sent - table.rules.timeout
    beyond = ~_given_up(table) & (np.round(over, DIGITS) > 0)
    slow = connect > _NO_SUM * table.rules.timeout
    unseen = table.ended("timeout") & (slow | ((over > 0) & (end > over + _ROUNDED)))
    unseen |= table.ended("connect_error") & (end > _STALL) & (_waited(table) >= table.rules.timeout)
    return table.known & (table.silent | beyond | unseen) | (table.ended("dropped") & ~_crowded(table))


def _given_up(table: Table) -> Mask:
    found: Mask = np.logical_or.reduce([table.ended(outcome) for outcome in GIVEN_UP])
    return found


def _crowded(table: Table) -> Mask:
    """At whose due time so many requests were surely in flight that one more was too many."""
    begun = ~table.ended("dropped")
    scheduled = table.time("scheduled")
    come = np.searchsorted(np.sort(scheduled[begun]), scheduled, side="right")
    gone = np.searchsorted(np.sort(soonest(table)[begun]), scheduled, side="right")
    found: Mask = come - gone >= table.rules.in_flight
    return found


def perhaps_ended(table: Table, outcome: str) -> Perhaps:
    """Which requests ended so in truth."""

    def make() -> Perhaps:
        seen, unsure = table.ended(outcome), doubtful(table)
        other = unsure if outcome == "timeout" else unsure & _given_up(table)
        return Perhaps(seen & ~unsure, seen | other)

    found: Perhaps = table.once(("perhaps", outcome), make)
    return found


def perhaps_good(table: Table, limits: Mapping[str, float]) -> Perhaps:
    """Which requests were good in truth."""

    def make() -> Perhaps:
        ended = perhaps_ended(table, "ok")
        sure, possible = ended.sure.copy(), ended.possible.copy()
        other = ended.possible & ~table.ended("ok")
        for name, limit in limits.items():
            bounds, most = between(table, name), round(limit, DIGITS)
            short = (name == "tpot") & (table.tokens <= 1) & np.isnan(bounds.low)
            sure &= (np.round(bounds.high, DIGITS) <= most) | short
            possible &= (np.round(bounds.low, DIGITS) <= most) | short | (other & _soon(table, name, most))
        return Perhaps(sure, possible)

    found: Perhaps = table.once(("good", tuple(limits.items())), make)
    return found


def _soon(table: Table, name: str, limit: float) -> Mask:
    """Of requests that the client gave up: whether what it did not see may have met a limit."""
    if name == "tpot":
        return np.ones(len(table), dtype=bool)
    of_first = (name != "e2e") & ~np.isnan(table.time("first"))
    seen = np.where(of_first, table.time("first") - table.late("first"), table.time("t") - table.late("end"))
    least = seen - table.late("connect") - table.time("sent")
    return np.isnan(least) | (np.round(least, DIGITS) <= limit)
