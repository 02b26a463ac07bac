"""How long a fault kept users from good answers."""

from __future__ import annotations

import math

from sandbox.metrics.history import FaultWindow, Record


def time_to_recover(rec: Record) -> float | None:
    """The longest time any fault kept users from good completions, in seconds.

    For each fault: from its start to the end of the first good completion sent after the last bad request it
    caused; 0 when it caused none. Infinite when no good completion followed. None without faults.
    """
    return max((seconds for _, seconds in _recoveries(rec)), default=None)


def recovery_cut_off(rec: Record, bound: float) -> str:
    """Say it where a recovery that never came was not watched for as long as `bound` seconds; else empty."""
    end = rec.load_finished or rec.end
    watched = [end - fault.started for fault, seconds in _recoveries(rec) if math.isinf(seconds)]
    if watched and min(watched) < bound:
        return f"the load ended {min(watched):.1f} s after the fault struck, before the {bound:g} s were over"
    return ""


def _recoveries(rec: Record) -> list[tuple[FaultWindow, float]]:
    faults = sorted((fault for fault in rec.faults if fault.injected is not None), key=lambda fault: fault.started)
    if not len(rec.table):
        return []
    ended, scheduled, good = rec.table.time("t"), rec.table.time("scheduled"), rec.table.good(rec.limits)
    found = []
    for position, fault in enumerate(faults):
        until = faults[position + 1].started if position + 1 < len(faults) else math.inf
        bad = scheduled[(fault.started <= ended) & (scheduled < until) & ~good]
        if not len(bad):
            found.append((fault, 0.0))
            continue
        after = ended[good & (scheduled > bad.max())]
        found.append((fault, float(after.min()) - fault.started if len(after) else math.inf))
    return found
