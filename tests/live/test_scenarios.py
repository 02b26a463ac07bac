"""Every shipped scenario holds on a real cluster, and leaves what a reader needs behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from sandbox.spec.results import Results


def shape(path: Path) -> str:
    return str(yaml.safe_load(path.read_text()).get("cluster", "solo"))


# shape by shape: clusters are made and removed as others are asked for
SCENARIOS = sorted((Path(__file__).parents[2] / "scenarios").rglob("*.yaml"), key=lambda path: (shape(path), path))


@pytest.mark.live
@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_the_scenario_passes(path: Path, sandbox_run: Callable[[Path], Results]) -> None:
    results = sandbox_run(path)
    held = [f"{check.status}: {check.title}: {check.observed} {check.reason}" for check in results.checks]
    assert results.verdict == "pass", "\n".join(held)
