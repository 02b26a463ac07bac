"""What hand-written events lack to be the timeline of a whole run: phases, numbers, closing tallies."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from sandbox import grammar
from sandbox.errors import UsageError
from sandbox.judge.consistency import PHASES
from sandbox.spec.inputs import Inputs, inputs_of
from sandbox.spec.scenario import Scenario
from sandbox.timeline import (
    ClientBeat,
    Event,
    LoadFinished,
    LoadStarted,
    PhaseChanged,
    Probed,
    Request,
    RunFinished,
    RunStarted,
)

_OF_THE_LOAD = (LoadStarted, LoadFinished, Request, ClientBeat)
_AFTER = (RunStarted, RunFinished, PhaseChanged, Probed)


def keep(folder: Path, events: list[Event]) -> Path:
    """Write events as the timeline of a whole run into a folder."""
    lines = [event.model_dump_json() for event in whole(events)]
    (folder / "timeline.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _inputs(begun: RunStarted) -> Inputs:
    """What the files of its load hold today; of made-up ones nothing."""
    try:
        return inputs_of(Scenario.model_validate(begun.scenario).load)
    except (ValueError, UsageError):
        return {}


def whole(events: list[Event]) -> list[Event]:
    """The same events in the order of their times, numbered and closed, with the phases that they lack."""
    begun = next(event for event in events if isinstance(event, RunStarted))
    held = _inputs(begun) if begun.inputs is None else begun.inputs
    begun = begun.model_copy(update={"grammar": grammar.KNOWN, "inputs": held})
    rest: list[Event] = [event for event in events if not isinstance(event, RunStarted | RunFinished)]
    if {event.name for event in rest if isinstance(event, PhaseChanged)} < set(PHASES[:6]):
        ended = any(isinstance(event, PhaseChanged) and event.name == "recover" for event in rest)
        rest = [event for event in rest if not isinstance(event, PhaseChanged)]
        rest += _phases(rest, ended=ended)
    rest.sort(key=lambda event: (event.t, isinstance(event, LoadFinished)))
    return numbered([begun, *rest])


def _phases(events: list[Event], *, ended: bool) -> list[Event]:
    exercised = [event.t for event in events if not isinstance(event, _AFTER)]
    begin, end = (min(exercised), max(exercised)) if exercised else (8.0, 9.0)
    last = max([end, *(event.t for event in events)])
    edges = [0.0, 0.0, 0.0, 0.0, begin, end, last]
    found: list[Event] = []
    for name, start, stop in zip(PHASES, edges, edges[1:], strict=False):
        found.append(PhaseChanged(t=start, name=name, status="started"))
        if ended or name != "recover":
            found.append(PhaseChanged(t=stop, name=name, status="ok"))
    return found


def numbered(events: list[Event]) -> list[Event]:
    """Events as their writers would have numbered and closed them, in this order."""
    lines: dict[str, Counter[str]] = {}
    now: dict[str, float] = {}
    found: list[Event] = []
    for event in [*events, RunFinished(t=max(event.t for event in events), lines={})]:
        writer = "run"
        if isinstance(event, _OF_THE_LOAD):
            writer = f"load {event.worker}" if isinstance(event, ClientBeat) and event.worker else "load"
        count = lines.setdefault(writer, Counter())
        now[writer] = max(now.get(writer, 0.0), event.t)
        place: dict[str, Any] = {"writer": writer, "seq": count.total(), "written": now[writer]}
        if isinstance(event, LoadFinished):
            place["lines"] = {each: dict(told) for each, told in lines.items() if each.startswith("load")}
        elif isinstance(event, RunFinished):
            place["lines"] = {"run": dict(count)}
        found.append(event.model_copy(update=place))
        count[event.type] += 1
    return found
