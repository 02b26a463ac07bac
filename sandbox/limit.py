"""The highest rate that an endpoint bears: one short judged run for each rate that is tried."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sandbox import errors, search
from sandbox.plan import Plan
from sandbox.progress import say
from sandbox.report.files import write_atomic
from sandbox.run import Options, execute

COLUMNS = ("asked, req/s", "answered, req/s", "verdict", "why")


def find(plan: Plan, between: tuple[float, float], runs: Path) -> tuple[Path, search.Found]:
    """Try rates between two bounds; the folder with a run for each and `search.json`, and what was found."""
    folder = runs / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-search"
    made: list[search.Step] = []

    def step(rate: float) -> search.Step:
        say(f"search: {rate:g} requests/s")
        outcome = execute(_at(plan, rate), Options(runs=folder))
        told = isinstance(outcome.error, errors.SandboxError) and outcome.results.verdict != "pass"
        if outcome.error is not None and not told:
            raise outcome.error
        made.append(search.judged(rate, outcome.results))
        say(f"search: {rate:g} requests/s: {made[-1].verdict}")
        _keep(folder, search.Found(None, made, "the search did not come to its end"))
        return made[-1]

    found = search.search(step, *between)
    _keep(folder, found)
    return folder, found


def _keep(folder: Path, found: search.Found) -> None:
    try:
        write_atomic(folder / "search.json", json.dumps(as_json(found), indent=2) + "\n")
    except OSError as error:
        words = f"could not be written: {error.strerror}"
        fix = "make room, or name another folder: --runs DIR"
        raise errors.EnvironmentMissing(words, where=str(folder / "search.json"), fix=fix) from error


def _at(plan: Plan, rate: float) -> Plan:
    load = plan.scenario.load
    if load is None:
        raise ValueError("a scenario without a load has no rate")
    arrivals = load.arrivals.model_copy(update={"rate": rate})
    scenario = plan.scenario.model_copy(update={"load": load.model_copy(update={"arrivals": arrivals})})
    return replace(plan, scenario=scenario)


def as_json(found: search.Found) -> dict[str, Any]:
    """For programs: the rate, why the search stopped there, and every step."""
    return asdict(found)


def rows(found: search.Found) -> list[tuple[str, ...]]:
    """One row for each rate tried, in the order they were."""
    return [
        (
            f"{step.rate:.4g}",
            "-" if step.achieved is None else f"{step.achieved:.4g}",
            step.verdict,
            "" if step.verdict == "pass" else step.why,
        )
        for step in found.steps
    ]


def in_words(found: search.Found) -> str:
    """The answer in a sentence."""
    head = f"holds up to {found.rate:.4g} requests/s" if found.rate is not None else "no rate was found that holds"
    return f"{head}: {found.why}"


def exit_code(found: search.Found) -> int:
    """0: a limit was found, or the upper bound holds; 1: not even the lowest rate holds; 3: nothing could be proven."""
    if found.rate is not None:
        return errors.EXIT_PASS
    return errors.EXIT_FAIL if found.broken is not None else errors.EXIT_INVALID
