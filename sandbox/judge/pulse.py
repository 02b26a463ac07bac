"""The load client's pulse covers the load: it beats a hundred times a second, late at times, but each beat is counted.

So the beats say how much time they cover, and no second of it can be lost without the sum falling behind the clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sandbox.timeline import ClientBeat, Event, LoadFinished, LoadStarted, Request

PERIOD = 0.01
_FULL = 100
_SLACK = 0.5  # half a second that is not covered is one that is lost
_BEFORE, _AFTER = 3.0, 0.8  # the load's start: a pulse begins with the order to start, which comes ahead of it
_ENDS_WITHIN = 1.0


def pulse_problems(
    timeline: Sequence[Event], requests: Sequence[Request], started: LoadStarted, finished: LoadFinished | None
) -> Iterator[str]:
    """Yield what is missing of the pulse of each load process."""
    processes: dict[str, list[ClientBeat]] = {}
    for event in timeline:
        if isinstance(event, ClientBeat):
            processes.setdefault(event.worker, []).append(event)
    last: dict[str, float] = {}
    for request in requests:
        last[request.writer] = max(last.get(request.writer, 0.0), request.t)
    many = started.asked.get("processes")
    if many and not _all_there(set(processes), int(many)):
        yield f"{many} load processes were asked for, and the pulse is that of {', '.join(processes) or 'none'}"
    for worker, beats in processes.items():
        name = f"load process {worker}" if worker else "the load client"
        yield from (f"{name} {words}" for words in _holes(beats, started.t))
        until = last.get(f"load {worker}" if worker else "load", 0.0)
        if finished is not None and not worker:
            until = max(until, finished.t)
        if finished is not None and beats[-1].t < until - _ENDS_WITHIN:
            yield f"{name} has no pulse from {beats[-1].t:.2f} to {until:.2f} s"


def _all_there(found: set[str], many: int) -> bool:
    return found == {f"{number}/{many}" for number in range(1, many + 1)} or (many == 1 and found == {""})


def _holes(beats: Sequence[ClientBeat], started: float) -> Iterator[str]:
    """When the pulse would have begun, by each beat's own time: always the same, but for how late the beat was."""
    counted, begins = 0, []
    for beat in beats:
        counted += beat.beats
        begins.append(beat.t - counted * PERIOD)
    whole = beats[-1].beats == _FULL or len(beats) == 1
    judged = begins if whole else begins[:-1]  # the last waits for its process to end
    begin = min(judged)
    if not -_BEFORE <= begin - started <= _AFTER + max(beats[0].lag, default=0.0):
        yield f"has a pulse from {begin:.2f} s on, and the load started at {started:.2f} s"
    for beat, each in zip(beats, judged, strict=False):
        if each - begin > max(beat.lag, default=0.0) + _SLACK:
            yield f"lost {each - begin:.1f} s of its pulse until t={beat.t:.2f}s, or beat too often"
            return
