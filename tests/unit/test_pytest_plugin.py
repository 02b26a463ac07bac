"""What pytest collects: our scenarios, whatever state they are in, and nobody else's YAML."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCENARIO = "apiVersion: sandbox/v1\nkind: Scenario\nmetadata: {name: mine}\n"


@pytest.mark.parametrize(
    ("text", "collected"),
    [
        (SCENARIO, "scenario.yaml::mine"),
        (SCENARIO.replace("apiVersion: sandbox/v1\n", ""), "scenario.yaml::mine"),
        (SCENARIO + "load: {{ templated }}\n", "scenario.yaml::scenario"),
        (SCENARIO.replace("sandbox/v1", "another.io/v1"), ""),
        (SCENARIO.replace("Scenario", "ScenarioTemplate"), ""),
        ("- a list", ""),
    ],
)
def test_scenarios_are_collected_and_strangers_are_not(text: str, collected: str, tmp_path: Path) -> None:
    (tmp_path / "scenario.yaml").write_text(text)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "error" not in said.stdout.lower(), said.stdout
    assert said.stdout.splitlines()[0] == (collected or ""), said.stdout
