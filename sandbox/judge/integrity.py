"""Is the timeline whole? No line missing, none there twice or out of place, closed by its writers, and possible.

What it proves nothing of is not judged better for it: a timeline that is not whole is `invalid`, and what fails in it
still fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from operator import attrgetter

from sandbox.judge.consistency import contradictions
from sandbox.spec.results import Check
from sandbox.spec.scenario import Scenario
from sandbox.timeline import Event, LoadFinished, Note, RunFinished, RunStarted

_SHOWN = 12
_CLOSING = (RunFinished, LoadFinished)
_OLDER = (
    "it was written by an older version, which did not number its lines, so a line that is lost could not be noticed: "
    "what fails in it failed, and nothing in it is proven to have passed; run the scenario again"
)


def in_order(timeline: Sequence[Event]) -> list[Event]:
    """The lines as they were written, each once, wherever they stand: an altered order changes no other check."""
    if any(event.written is None for event in timeline) or len(_beginnings(timeline)) > 1:
        return list(timeline)
    lines = sorted(timeline, key=attrgetter("written", "writer", "seq"))
    again = {
        place
        for place, (before, event) in enumerate(pairwise(lines), start=1)
        if event.seq == before.seq and event == before
    }
    return [event for place, event in enumerate(lines) if place not in again] if again else lines


def timeline_check(scenario: Scenario, timeline: Sequence[Event], ordered: Sequence[Event]) -> Check:
    """Hold a timeline, as it stands in its file, against what its writers say of it and what can have been.

    Args:
        scenario: that was run.
        timeline: the lines of the file.
        ordered: the same, as `in_order` gives them.
    """
    older = all(event.grammar == 1 for event in timeline if isinstance(event, RunStarted))
    problems = list(_beginning(timeline))
    if not older:
        problems += [*_numbers(timeline), *_end(timeline), *_tallies(timeline)]
    problems += contradictions(scenario, ordered)
    reason = "; ".join(problems[:2]) if problems else ""
    if len(problems) > 2:  # noqa: PLR2004 - as many as a sentence bears
        reason += f" ({len(problems) - 2} more)"
    told = [*([_OLDER] if older else []), *([reason] if reason else [])]
    more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    writers = sorted({event.writer for event in timeline if event.writer}) or ["nobody"]
    return Check(
        id="validity/timeline",
        group="validity",
        title="the timeline is whole",
        status="invalid" if told else "pass",
        observed=f"{len(problems)} problems" if problems else f"no problems in the lines of {', '.join(writers)}",
        expected="each line once and in its place, closing tallies that fit, nothing that cannot have been",
        reason="; ".join(told),
        evidence=[*([_OLDER] if older else []), *problems[:_SHOWN], *more],
    )


def _beginnings(timeline: Iterable[Event]) -> list[RunStarted]:
    return [event for event in timeline if isinstance(event, RunStarted)]


def _beginning(timeline: Sequence[Event]) -> Iterable[str]:
    found = _beginnings(timeline)
    if len(found) > 1:
        yield f"it holds {len(found)} run.started lines: those of several runs, or one of them twice"
    if not isinstance(timeline[0], RunStarted):
        yield f"its first line is {timeline[0].type}, not run.started"


def _numbers(timeline: Sequence[Event]) -> Iterable[str]:
    """Each writer's lines are numbered 0, 1, 2 … in the order of the file, and were written in that order."""
    due: dict[str, int] = {}
    last: dict[str, float] = {}
    for number, event in enumerate(timeline, start=1):
        writer, wanted = event.writer, due.get(event.writer, 0)
        if event.seq == wanted and writer and event.written is not None and event.written >= last.get(writer, 0.0):
            due[writer], last[writer] = wanted + 1, event.written
            continue
        if event.seq is None or event.written is None or not event.writer:
            cut = isinstance(event, Note) and event.message.startswith(f"line {number} ")
            yield event.message if cut and isinstance(event, Note) else f"line {number} ({event.type}) has no number"
            continue
        if event.seq > wanted:
            lost = f"{wanted}" if event.seq == wanted + 1 else f"{wanted} to {event.seq - 1}"
            yield f"line {number}: {writer}'s {event.seq} comes where its {wanted} is due: {lost} missing or moved"
        elif event.seq < wanted:
            yield f"line {number}: {writer}'s {event.seq} ({event.type}) comes late, or for the second time"
        if event.written < last.get(writer, 0.0):
            yield f"line {number}: written at {event.written:.3f} s, and {writer}'s line before at {last[writer]:.3f} s"
        due[writer] = max(wanted, event.seq + 1)
        last[writer] = max(last.get(writer, 0.0), event.written)


def _end(timeline: Sequence[Event]) -> Iterable[str]:
    """The run's last line is there, once, and nothing was written after it."""
    ends = [number for number, event in enumerate(timeline, start=1) if isinstance(event, RunFinished)]
    if not ends:
        yield "its last line, run.finished, is missing: the run was killed or goes on, or lines are lost"
    elif len(ends) > 1 or ends[0] != len(timeline):
        yield f"run.finished is line {', '.join(map(str, ends))} of {len(timeline)}, and has to be the last"


def _tallies(timeline: Sequence[Event]) -> Iterable[str]:
    """What the writers say they wrote is there."""
    there: dict[str, Counter[str]] = {}
    for (name, kind), count in Counter(map(attrgetter("writer", "type"), timeline)).items():
        there.setdefault(name, Counter())[kind] = count
    closed: dict[str, Counter[str]] = {}
    for event in timeline:
        if isinstance(event, _CLOSING):
            for writer, lines in event.lines.items():
                closed[writer] = Counter(lines)
            closed.setdefault(event.writer, Counter())[event.type] += 1
    for writer in [*there, *(writer for writer in closed if writer not in there)]:
        if writer not in closed:
            yield f"{writer or 'nobody'} wrote {there[writer].total()} lines, and no closing line tells how many"
            continue
        found = there.get(writer, Counter())
        for kind in sorted({*found, *closed[writer]}):
            if found[kind] != closed[writer][kind]:
                yield f"{writer} wrote {closed[writer][kind]} lines {kind}, and the timeline holds {found[kind]}"
