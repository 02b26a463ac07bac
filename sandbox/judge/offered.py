"""Was the load offered as it was asked for, and does the client know how late it read? Else nothing was measured.

Only of a client that says how late each of its readings may be; an older or a foreign one is held to its figures
(`client_lag`, `client_added`, `sched_lag`, `client_cpu`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sandbox.metrics import SLACK, Floats, Mask, Record
from sandbox.spec.results import Check
from sandbox.spec.scenario import Scenario
from sandbox.timeline import Event, LoadStarted

_EACH = 5.0  # seconds
_MISSING = 20  # of so many due requests one may be missing
_OWN = 0.02  # of the users' time
_UNHURRIED = 0.01  # seconds: an idle client looks so often, and is not late for that
_MOST = 8
_REMEDY = "lower the rate, share the load among more `workers.processes`, or give the client more of the machine"


def offered_checks(scenario: Scenario, timeline: Sequence[Event], rec: Record) -> list[Check]:
    """Whether the load was offered, and whether the client's bounds were borne out."""
    if scenario.load is None or not rec.table.known.any():
        return []
    closed = scenario.load.arrivals.process == "closed"
    return [_users(rec) if closed else _arrivals(rec), _bounds(timeline, rec)]


def _stretches(rec: Record, moments: Floats, amounts: Sequence[Floats | Mask]) -> Iterator[tuple[str, list[float]]]:
    """Yield each phase and each five seconds of the load, with the sums of some amounts of its requests.

    `moments`: when a request counts.
    """
    for window in rec.windows:
        if window.kind == "phase":
            chosen = rec.table.in_phase(window.name, rec.windows)
            yield f"the phase {window.name}", [float(each[chosen].sum()) for each in amounts]
    begin = rec.load_started or 0.0
    numbers, places = np.unique(np.floor((moments - begin) / _EACH), return_inverse=True)
    sums = [np.bincount(places, weights=each) for each in amounts]
    for place, number in enumerate(numbers):
        start = begin + float(number) * _EACH
        yield f"{start:.1f} s to {start + _EACH:.1f} s", [float(each[place]) for each in sums]


def _arrivals(rec: Record) -> Check:
    """Open loop: of the requests that were due nearly all began in time. What was dropped is an outcome."""
    table = rec.table
    scheduled = table.time("scheduled")
    due = ~table.ended("dropped")
    late = due & (np.nan_to_num(table.time("sent") - scheduled) > SLACK)
    broken = []
    for name, (many, missing) in _stretches(rec, scheduled, [due, late]):
        if missing > 1 and missing * _MISSING > many:
            broken.append(f"{name}: {missing:.0f} of {many:.0f} due requests did not begin within {SLACK:g} s")
    return _check(
        "the load was offered as it was asked for",
        f"{int(due.sum()) - int(late.sum())} of {int(due.sum())} due requests began in time",
        f"in each phase and each {_EACH:g} s at least 95% of the due requests begin within {SLACK:g} s",
        broken,
        int(due.sum()),
    )


def _users(rec: Record) -> Check:
    """Closed loop: of the time that users waited, next to nothing was the client's own."""
    table = rec.table
    lag = np.nan_to_num(np.maximum(0.0, table.time("sent") - table.time("scheduled")))
    late = [np.maximum(0.0, table.late(name) - _UNHURRIED) for name in ("connect", "end")]
    waited = np.maximum(0.0, table.time("t") - table.time("scheduled"))
    own = np.minimum(waited, lag + np.where(table.known, late[0] + late[1], 0.0))
    broken = []
    # by when each began: while the last users are ended no load is due any more
    for name, (ours, theirs) in _stretches(rec, table.time("scheduled"), [own, waited]):
        if ours > max(_OWN * theirs, SLACK):  # one request may always be late, as in an open loop
            broken.append(f"{name}: {ours:.2f} s of the {theirs:.2f} s that users waited were the client's own")
    total = float(waited.sum())
    return _check(
        "the users were not kept waiting by the client",
        f"{float(own.sum()) / total:.2%} of the users' time was the client's own" if total else "nobody waited",
        f"in each phase and each {_EACH:g} s at most {_OWN:.0%}, or {SLACK:g} s in all",
        broken,
        len(table),
    )


def _check(title: str, observed: str, expected: str, broken: list[str], samples: int) -> Check:
    return Check(
        id="validity/offered",
        group="validity",
        title=title,
        status="invalid" if broken else "pass",
        observed=observed,
        expected=expected,
        samples=samples,
        reason=f"{broken[0]}: the load was not offered; {_REMEDY}" if broken else "",
        evidence=broken[:_MOST],
    )


def _bounds(timeline: Sequence[Event], rec: Record) -> Check:
    """Tokens of known send time, beside the load: none came later than the client says of itself."""
    asked = next((event.asked for event in timeline if isinstance(event, LoadStarted)), {})
    calibrated = sum(beat.calibrated for beat in rec.beats)
    uncovered = sum(beat.uncovered for beat in rec.beats)
    reason = ""
    if asked.get("calibrated") and not calibrated:
        reason = "the client was to be calibrated, and wrote nothing of it; see load.log beside the timeline"
    elif uncovered:
        most = max(beat.uncovered_by for beat in rec.beats) * 1000
        reason = (
            f"{uncovered} tokens of known send time were read up to {most:.1f} ms later than the client says: "
            "its bounds are not to be believed"
        )
    elif not rec.beats:
        reason = "the load client wrote nothing of itself; see load.log beside the timeline"
    return Check(
        id="validity/bounds",
        group="validity",
        title="no reading was later than the client says",
        status="invalid" if reason else "pass",
        observed=f"{uncovered} of {calibrated} tokens of known send time were" if calibrated else "never calibrated",
        expected="none",
        samples=calibrated,
        reason=reason,
    )
