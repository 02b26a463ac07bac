"""Each shipped scenario has a sabotaged twin; a harness that passed one of them would prove nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from sandbox.plan import load_all
from sandbox.spec.results import Results

HERE = Path(__file__).parent
# shape by shape: clusters are made and removed as others are asked for
TWINS = sorted(HERE.glob("*.yaml"), key=lambda path: (yaml.safe_load(path.read_text())["cluster"], path))
SHIPPED = sorted((HERE.parents[1] / "scenarios").rglob("*.yaml"))


def labels(path: Path) -> dict[str, str]:
    found: dict[str, str] = yaml.safe_load(path.read_text())["metadata"]["labels"]
    return found


@pytest.mark.parametrize("path", TWINS, ids=lambda path: path.stem)
def test_every_twin_names_its_scenario_and_what_it_must_come_to(path: Path) -> None:
    assert labels(path)["expect"] in {"fail", "invalid"}
    assert labels(path)["twin-of"] in {shipped.stem for shipped in SHIPPED}
    assert load_all([str(path)])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_scenario_has_a_twin_that_must_fail(path: Path) -> None:
    assert any(labels(twin)["twin-of"] == path.stem and labels(twin)["expect"] == "fail" for twin in TWINS)


@pytest.mark.live
@pytest.mark.parametrize("path", TWINS, ids=lambda path: path.stem)
def test_the_twin_does_not_pass(path: Path, sandbox_run: Callable[[Path], Results]) -> None:
    results = sandbox_run(path)
    wanted = labels(path)
    assert results.verdict == wanted["expect"], results.headline
    # For the reason it was sabotaged for, not for another one.
    culprits = [check.id for check in results.checks if check.status == wanted["expect"]]
    assert any(culprit.startswith(wanted["because"]) for culprit in culprits), culprits
