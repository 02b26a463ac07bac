"""tests/budget.yaml names every live test and scenario, once, and together they stay within what the suite may take."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from budget import SCENARIOS, TESTS, planned, told, what


def live() -> set[str]:
    """Every scenario that is run live, and every file of tests that need an engine."""
    twins = (TESTS / "negative").glob("*.yaml")
    scenarios = {path.stem for path in [*(TESTS.parent / "scenarios").rglob("*.yaml"), *twins]}
    files = {
        path.name
        for path in (TESTS / "live").glob("test_*.py")
        if re.search(r"mark\.live\b", path.read_text()) and path.name != SCENARIOS
    }
    return scenarios | files


def test_every_live_test_has_its_seconds_in_the_budget_and_nothing_else_has() -> None:
    listed = [name for entries in planned()[1].values() for name in entries]
    assert sorted(listed) == sorted(live())


def test_a_scenario_is_counted_for_the_cluster_it_runs_on() -> None:
    of = {name: cluster for cluster, entries in planned()[1].items() for name in entries}
    shipped = [*(TESTS.parent / "scenarios").rglob("*.yaml"), *(TESTS / "negative").glob("*.yaml")]
    assert {path.stem: of[path.stem] for path in shipped} == {
        path.stem: yaml.safe_load(path.read_text())["cluster"] for path in shipped
    }


def test_the_budget_is_kept() -> None:
    most, clusters = planned()
    assert sum(seconds for entries in clusters.values() for seconds in entries.values()) <= most


def test_the_time_is_told_by_cluster_and_what_took_much_more_than_planned_is_marked() -> None:
    seconds = {"steady-load": 61.0, "test_kube_live.py": 20.0}
    clusters = {"solo": {"steady-load": 30.0, "test_kube_live.py": 25.0, "first-answer": 9.0}, "fleet": {"f": 1.0}}
    lines = [" ".join(line.split()) for line in told(seconds, clusters)]
    assert lines == ["solo 81 55", "steady-load 61 30 more than planned", "test_kube_live.py 20 25"]


def test_a_test_is_counted_for_its_scenario_or_its_file() -> None:
    assert what("tests/live/test_scenarios.py::test_it[steady-load]") == "steady-load"
    assert what("tests/live/test_kube_live.py::test_it[a]") == "test_kube_live.py"
    assert Path(TESTS / "live" / "test_kube_live.py").is_file()
