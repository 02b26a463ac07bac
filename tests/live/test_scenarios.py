"""Every shipped scenario holds on a real cluster, and its sabotaged twin does not: a pass of it would prove nothing.

They run shape by shape, a scenario beside its twins, so that each cluster comes up once. Those that send a load
measure, and have the machine to themselves. What each costs stands in tests/budget.yaml.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox.spec.results import Results

TESTS = Path(__file__).parents[1]
SCENARIOS = [*(TESTS.parent / "scenarios").rglob("*.yaml"), *(TESTS / "negative").glob("*.yaml")]


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


def turn(path: Path) -> tuple[str, bool, str]:
    """When it runs: by shape, those without a load first, then by stack, so that it is there already."""
    scenario = read(path)
    return scenario["cluster"], "load" in scenario, str(scenario.get("stack"))


CASES = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.alone] if "load" in read(path) else [])
    for path in sorted(SCENARIOS, key=turn)
]


@pytest.mark.live
@pytest.mark.parametrize("path", CASES)
def test_the_scenario_comes_to_what_it_must(path: Path, sandbox_run: Callable[[Path], Results]) -> None:
    results = sandbox_run(path)
    labels = read(path)["metadata"]["labels"]
    told = "\n".join(f"{check.status}: {check.title}: {check.observed} {check.reason}" for check in results.checks)
    wanted = labels.get("expect", "pass")
    assert results.verdict == wanted, told
    if wanted != "pass":  # for the reason it was sabotaged for, not for another one
        culprits = [check.id for check in results.checks if check.status == wanted]
        assert any(culprit.startswith(labels["because"]) for culprit in culprits), culprits
