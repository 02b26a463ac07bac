"""A run that is interrupted is judged as far as it got, says so with its exit code, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from sandbox.cluster import Cluster
from sandbox.errors import EXIT_INTERRUPTED
from sandbox.kube import Kube, Seen, wait_for
from sandbox.plan import load_all
from sandbox.report.files import read_results
from sandbox.run import Options, execute
from sandbox.timeline import AttackEvent, FaultEvent, read

pytestmark = pytest.mark.live
ATTEMPTS_UNDER_WAY = 4  # the first attempt and its twin are made at once; a second pair may be, on a slow machine


SCENARIO = """
apiVersion: sandbox/v1
kind: Scenario
metadata: {name: interrupted, description: A fault and most attempts are still to come when the interrupt strikes.}
stack: {name: vllm-sim}
guardrails: [tenant]
attacks: [all]
steadyState: [k8s.ready]
load:
  profile: chat-short
  arrivals: {process: poisson, rate: 5}
  duration: 60s
faults:
  - pod.kill: {target: {app: vllm-sim}}
    at: 30s
slo:
  good_request_fraction: ["rate>=0.5"]
"""


@pytest.fixture
def command(sandbox_cluster: Cluster, tmp_path: Path) -> list[str]:
    (tmp_path / "scenario.yaml").write_text(SCENARIO)
    where = ("--runs", str(tmp_path), "--cluster-name", sandbox_cluster.name)
    return [sys.executable, "-m", "sandbox", "run", str(tmp_path / "scenario.yaml"), *where]


def under_load(runs: Path) -> Seen[Path]:
    found = [path for path in runs.glob("*/timeline.jsonl") if '"load.started"' in path.read_text()]
    return Seen(bool(found), found[0].parent if found else runs, "no load yet")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_judged_and_leaves_nothing(
    number: signal.Signals, sandbox_cluster: Cluster, command: list[str], tmp_path: Path
) -> None:
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as process:
        folder = wait_for(lambda: under_load(tmp_path), within=120, what="the load")
        os.kill(process.pid, number)
        assert process.wait(120) == EXIT_INTERRUPTED
    results = read_results(folder)
    assert results.verdict == "invalid"
    assert any("interrupted" in check.reason for check in results.checks)
    assert (folder / "report.html").is_file()
    events = list(read(folder / "timeline.jsonl"))
    assert not [event for event in events if isinstance(event, FaultEvent)]
    assert len([event for event in events if isinstance(event, AttackEvent)]) <= ATTEMPTS_UNDER_WAY
    kube = Kube.connect(sandbox_cluster.kubeconfig, sandbox_cluster.context)
    assert [space for space in ("inference", "tenant-a", "tenant-b") if kube.get("v1", "Namespace", space)] == []
    assert not [
        each for each in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(each.info["cmdline"] or [])
    ]


def test_what_a_killed_run_left_is_removed_by_the_next(
    sandbox_cluster: Cluster, command: list[str], tmp_path: Path
) -> None:
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: under_load(tmp_path), within=120, what="the load")
        process.kill()
    kube = Kube.connect(sandbox_cluster.kubeconfig, sandbox_cluster.context)
    assert kube.get("v1", "Namespace", "tenant-a") is not None
    (plan,) = load_all(["first-answer"])
    quick = plan.scenario.model_copy(update={"load": None, "slo": {}})
    options = Options(tmp_path / "next", keep_cluster=True, cluster_name=sandbox_cluster.name)
    outcome = execute(replace(plan, scenario=quick), options)
    assert outcome.results.verdict == "pass", outcome.results.headline
    assert [space for space in ("inference", "tenant-a", "tenant-b") if kube.get("v1", "Namespace", space)] == []
