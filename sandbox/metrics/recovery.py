"""How long a fault kept users from good answers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sandbox.metrics import truth
from sandbox.metrics.history import FaultWindow, Record
from sandbox.metrics.interval import Observed
from sandbox.metrics.table import Floats, Mask

SLACK = 0.25  # seconds by which a request may begin late and still stand for the moment at which it was due


def time_to_recover(rec: Record) -> float | None:
    """The longest time any fault kept users from good completions, in seconds, as it was measured.

    For each fault: from its start to the end of the first good completion sent after the last bad request it
    caused; 0 when it caused none. Infinite when no good completion followed. None without faults, and where a fault
    had no chance to hurt: no request was due while it lasted, and none went wrong.
    """
    value = recovery(rec).value
    return None if value is None else float(value)


def recovery(rec: Record) -> Observed:
    """The same as an interval.

    Late reading makes it too long. Late sending makes it too short: a request that began more than 0.25 s late after
    the fault struck may have missed an outage, and counts as possibly bad.
    """
    found = _recoveries(rec)
    if not found:
        return Observed(None, 0)
    many = len(rec.table)
    idle = [each.idle for each in found if each.idle]
    why = f"no request was due while {_told(idle[0])} lasted, so nobody could be hurt" if idle else ""
    value = None if idle else max(each.measured for each in found)
    return Observed(value, many, max(each.low for each in found), max(each.high for each in found), why)


@dataclass(frozen=True)
class _Recovery:
    """Of one fault: as measured, at the least and at the most. `idle`: it, where it had no chance to hurt."""

    measured: float
    low: float
    high: float
    idle: FaultWindow | None = None


def _recoveries(rec: Record) -> list[_Recovery]:
    faults = sorted((fault for fault in rec.faults if fault.injected is not None), key=lambda fault: fault.started)
    if not len(rec.table):
        return [_Recovery(0.0, 0.0, math.inf, idle=fault) for fault in faults]
    ends = [fault.started for fault in faults[1:]] + [math.inf]
    return [_of(rec, fault, until) for fault, until in zip(faults, ends, strict=False)]


def _of(rec: Record, fault: FaultWindow, until: float) -> _Recovery:
    table = rec.table
    ended, scheduled, soonest = table.time("t"), table.time("scheduled"), truth.soonest(table)
    good, perhaps = table.good(rec.limits), truth.perhaps_good(table, rec.limits)
    due = scheduled < until
    late = table.known & (np.nan_to_num(table.time("sent") - scheduled) > SLACK) & (scheduled >= fault.started)
    bad = (fault.started <= ended) & due & ~good
    measured = _until_good(fault, scheduled, ended, bad, good)
    surely = (fault.started <= soonest) & due & ~perhaps.possible
    low = _until_good(fault, scheduled, soonest, surely, perhaps.possible)
    if math.isinf(low):  # the load ended; so far it is known
        low = float(scheduled[surely].max()) - fault.started
    possibly = (fault.started <= ended) & due & (~perhaps.sure | late)
    high = _until_good(fault, scheduled, ended, possibly, perhaps.sure)
    if not bad.any() and not _exposed(fault, scheduled):
        return _Recovery(measured, low, math.inf, idle=fault)
    return _Recovery(measured, max(0.0, low), high)


def _until_good(fault: FaultWindow, scheduled: Floats, ended: Floats, bad: Mask, good: Mask) -> float:
    if not bad.any():
        return 0.0
    after = ended[good & (scheduled > scheduled[bad].max())]
    return float(after.min()) - fault.started if len(after) else math.inf


def _exposed(fault: FaultWindow, scheduled: Floats) -> bool:
    """Whether a request was due while the fault lasted."""
    begun = fault.injected or fault.started
    over = math.inf if fault.healed is None else fault.healed - fault.late
    return bool(((scheduled >= begun) & (scheduled <= max(begun, over))).any())


def _told(fault: FaultWindow) -> str:
    end = "the end" if fault.healed is None else f"{fault.healed:.2f} s"
    return f"{fault.name} (from {fault.injected or fault.started:.2f} s to {end})"
