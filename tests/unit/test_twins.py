"""Each shipped scenario has a sabotaged twin that must not pass; tests/live/test_scenarios.py runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sandbox.plan import load_all

ROOT = Path(__file__).parents[2]
TWINS = sorted((ROOT / "tests" / "negative").glob("*.yaml"))
SHIPPED = sorted((ROOT / "scenarios").rglob("*.yaml"))


def labels(path: Path) -> dict[str, str]:
    found: dict[str, str] = yaml.safe_load(path.read_text())["metadata"]["labels"]
    return found


@pytest.mark.parametrize("path", TWINS, ids=lambda path: path.stem)
def test_every_twin_names_its_scenario_and_what_it_must_come_to(path: Path) -> None:
    assert labels(path)["expect"] in {"fail", "invalid"}
    assert labels(path)["because"]
    assert labels(path)["twin-of"] in {shipped.stem for shipped in SHIPPED}
    assert load_all([str(path)])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_scenario_has_a_twin_that_must_fail(path: Path) -> None:
    assert "expect" not in labels(path)
    assert any(labels(twin)["twin-of"] == path.stem and labels(twin)["expect"] == "fail" for twin in TWINS)
