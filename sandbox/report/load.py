"""`load.json`: the figures of a load for programs, under our names and those of other tools."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sandbox.report import aliases, series
from sandbox.report.aliases import Group
from sandbox.report.files import write_atomic
from sandbox.report.text import emulated
from sandbox.spec.results import Results, Summary
from sandbox.timeline import Event, LoadStarted, RunStarted

_ALIASES = {"vllm": aliases.vllm, "aiperf": aliases.aiperf, "inference_perf": aliases.inference_perf}


def write_load(results: Results, timeline: Sequence[Event], path: Path) -> Path:
    """Write `load.json` of a run that has a load."""
    return write_atomic(path, json.dumps(figures(results, timeline), indent=2, allow_nan=False) + "\n")


def figures(results: Results, timeline: Sequence[Event]) -> dict[str, Any]:
    """All of `load.json`; docs/reference/outputs.md describes it.

    The aliases of the whole load stand at the top, for tools that look for one file's worth of them; `groups` has
    them for the whole load, each phase, and what the summaries tell apart by tags.
    """
    found = series.load(timeline)
    begun = next((event for event in timeline if isinstance(event, LoadStarted)), None)
    asked = begun.asked if begun else {}
    limited = _limited(timeline)
    groups = []
    for summary in results.summaries:
        group = Group(
            summary=summary,
            requests=_of(found, results, summary),
            span=_span(results, summary.phase),
            limited=limited,
            asked={} if summary.tags else asked,  # of all tags together
            model=summary.tags.get("model") or (begun.model if begun else ""),
        )
        groups.append({**summary.model_dump(mode="json"), **{name: make(group) for name, make in _ALIASES.items()}})
    whole = next((group for group in groups if group["phase"] == "all" and not group.get("tags")), {})
    return {
        "apiVersion": "sandbox/v1",
        "kind": "Load",
        "run_id": results.run_id,
        "scenario": results.scenario,
        "verdict": results.verdict,
        "emulated": emulated(results.facts),
        "url": begun.url if begun else "",
        "model": begun.model if begun else "",
        "profile": begun.profile if begun else "",
        "asked": asked,
        "time_to_recover": results.time_to_recover,
        "groups": groups,
        **{name: whole.get(name) for name in _ALIASES},
    }


def _of(found: series.Load, results: Results, summary: Summary) -> list[Any]:
    tags = summary.tags
    return [
        request
        for request in found.requests
        if summary.phase in {"all", series.phase_of(request, results.windows)}
        and all(request.tags.get(key) == value for key, value in tags.items())
    ]


def _span(results: Results, phase: str) -> float:
    windows = [w for w in results.windows if w.kind == "phase" and phase in {"all", w.name}]
    return sum(window.end - window.start for window in windows)


def _limited(timeline: Sequence[Event]) -> bool:
    """Whether the scenario says what a good request has to meet."""
    begun = next((event for event in timeline if isinstance(event, RunStarted)), None)
    load = begun.scenario.get("load") if begun else None
    return bool(load and load.get("good"))
