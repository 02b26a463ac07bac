"""What pytest collects: our scenarios, whatever state they are in, and nobody else's YAML."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.cluster import Owner, record
from sandbox.pytest_plugin import Clusters
from tests.unit.container_engine import installed, put

SCENARIO = "apiVersion: sandbox/v1\nkind: Scenario\nmetadata: {name: mine}\n"


@pytest.mark.parametrize(
    ("text", "collected"),
    [
        (SCENARIO, "scenario.yaml::mine"),
        (SCENARIO.replace("apiVersion: sandbox/v1\n", ""), "scenario.yaml::mine"),
        (SCENARIO + "load: {{ templated }}\n", "scenario.yaml::scenario"),
        (SCENARIO.replace("sandbox/v1", "another.io/v1"), ""),
        (SCENARIO.replace("Scenario", "ScenarioTemplate"), "scenario.yaml::mine"),
        (SCENARIO.replace("Scenario", "Cluster"), ""),
        ("- a list", ""),
    ],
)
def test_scenarios_are_collected_and_strangers_are_not(text: str, collected: str, tmp_path: Path) -> None:
    (tmp_path / "scenario.yaml").write_text(text)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "error" not in said.stdout.lower(), said.stdout
    assert said.stdout.splitlines()[0] == (collected or ""), said.stdout


CONFTEST = """
from pathlib import Path
import pytest

from sandbox.pytest_plugin import Clusters
from test_judge import history
from sandbox import pytest_plugin, run
from sandbox.judge import weigh as judge


def fake(plan, options):
    error = KeyboardInterrupt() if "interrupted" in plan.scenario.metadata.name else None
    return run.Outcome(judge(history(after="held" in plan.scenario.metadata.name)), Path("runs/x"), error)


run.execute = fake
pytest_plugin.Clusters.up = lambda self, shape, name=None: None
"""
WHOLE = """apiVersion: sandbox/v1
kind: Scenario
metadata: {name: NAME, description: A question.}
stack: {name: vllm-sim}
steadyState: [k8s.ready]
"""


def ran(tmp_path: Path, *names: str, more: str = "") -> subprocess.CompletedProcess[str]:
    (tmp_path / "conftest.py").write_text(CONFTEST + more)
    for name in names:
        (tmp_path / f"{name}.yaml").write_text(WHOLE.replace("NAME", name))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=here)


def test_a_scenario_passes_only_with_the_verdict_pass_and_else_shows_its_checks(tmp_path: Path) -> None:
    assert ran(tmp_path, "it-held").returncode == 0
    done = ran(tmp_path, "it-did-not")
    assert done.returncode == 1
    assert "1 failed, 1 passed" in done.stdout
    assert "fail: openai.chat after the load" in done.stdout
    assert "Traceback" not in done.stdout


OTHERS = """
from sandbox.errors import NotOurs


def refuse(name):
    raise NotOurs("what this sandbox did not make is on its network", where=name, fix="docker network disconnect")


pytest_plugin.Clusters.up = lambda self, shape, name=None: self._names.append("solo")
import sandbox.suite
sandbox.suite.release = refuse
"""


def test_a_cluster_that_stays_fails_the_session_and_is_told_of_without_a_traceback(tmp_path: Path) -> None:
    done = ran(tmp_path, "it-held", more=OTHERS)
    assert done.returncode == 1
    assert "1 passed" in done.stdout
    assert "solo: what this sandbox did not make is on its network\n  fix: docker network disconnect" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_an_interrupted_scenario_ends_the_session(tmp_path: Path) -> None:
    done = ran(tmp_path, "a-interrupted", "b-held")
    assert done.returncode == 2
    assert "KeyboardInterrupt" in done.stdout
    assert "passed" not in done.stdout


def test_a_session_keeps_the_two_clusters_it_used_last(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[str] = []
    monkeypatch.setattr("sandbox.cluster.up", lambda spec, **options: options["name"])
    monkeypatch.setattr("sandbox.suite.release", released.append)
    session = Clusters(keep=False)
    for shape in ("solo", "trio", "solo", "solo-gpu"):
        session.up(shape)
    assert released == ["trio"]
    session.close()
    assert sorted(released) == ["solo", "solo-gpu", "trio"]


def test_processes_of_xdist_have_clusters_of_their_own_and_keep_one(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[str] = []
    monkeypatch.setattr("sandbox.cluster.up", lambda spec, **options: options["name"])
    monkeypatch.setattr("sandbox.suite.release", released.append)
    session = Clusters(keep=False, worker="gw1")
    assert [session.up(shape) for shape in ("solo", "trio")] == ["solo-gw1", "trio-gw1"]
    assert released == ["solo-gw1"]
    assert Clusters(keep=False, worker="gw1", name="mine").up("solo") == "mine"


def test_a_session_that_keeps_its_clusters_gives_them_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = put(installed(tmp_path, monkeypatch), owner=Owner.me())
    session = Clusters(keep=True)
    session.take("solo")
    session.close()
    assert record.get("solo") == replace(known, owner=None)
