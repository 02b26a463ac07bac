"""A whole run by the real code of the run: a real load, and a cluster that is stood in for.

Load client, faults, attempts and workloads write at the same time, as in a run on a cluster; what they write is whole.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_run import looked, phases
from test_workloads import Cluster as Pods

from sandbox import attacks, run
from sandbox.attacks.run import AttackResult
from sandbox.cluster import Cluster, Node
from sandbox.exercise import exercise
from sandbox.faults.base import FAULTS, Evidence, Injection
from sandbox.judge import judge
from sandbox.kube.guardrails import Tenant
from sandbox.kube.stacks import Deployed
from sandbox.load.golden import MODEL, GoldenSettings, golden
from sandbox.plan import load_all
from sandbox.run import Options, Run, execute
from sandbox.timeline import AttackEvent, ClientBeat, FaultEvent, PodEvent, Request, read

ASKED: dict[str, Any] = {
    "apiVersion": "sandbox/v1",
    "kind": "Scenario",
    "metadata": {"name": "everything", "description": "Load, fault, attempts and pods at once."},
    "cluster": "solo",
    "stack": {"name": "vllm-sim"},
    "guardrails": ["tenant"],
    "attacks": ["1-privileged-pod", "33-foreign-secrets"],
    "steadyState": ["k8s.ready"],
    "load": {
        "profile": "chat-short",
        "arrivals": {"process": "constant", "rate": 10},
        "duration": "8s",
        "timeout": "5s",
    },
    "workloads": [{"name": "trainers", "pods": 3, "resources": {"cpu": "100m"}, "at": "1s", "within": "10s"}],
    "faults": [{"pod.kill": {"target": {"app": "vllm-sim"}, "count": 1}, "at": "2s"}],
    "recover": {"within": "10s"},
    "slo": {"good_request_fraction": ["rate>=0.99"], "pods_running": ["value==3"]},
}
SOLO = Cluster(
    name="solo", provider="kind", kubeconfig=Path("/state/solo/kubeconfig"), context="kind-solo", run="r1", uid="u1",
    shape="s1", image="node:1", created=1.0, nodes=(Node("solo-control-plane", "control-plane", "172.18.0.2"),),
)  # fmt: skip


def struck(*_: object) -> Injection:
    yield Evidence("deleted vllm-sim-x2x7q", {"uid": "0b7a"})
    time.sleep(0.3)
    yield Evidence("its process is gone on solo-control-plane", {"pid": 41233})
    time.sleep(1.5)
    return Evidence("1 of 1 pods ready", {"ready": 1})


def tried(*told: Any, **_: object) -> Iterator[AttackResult]:
    attempt = told[2]
    for variant, outcome, by in (("attempt", "denied", attempt.expected_by), ("allowed", "succeeded", "")):
        time.sleep(0.05)
        yield AttackResult(
            attempt=attempt.id, title=attempt.title, variant=variant, outcome=outcome,  # type: ignore[arg-type]
            expected_by=attempt.expected_by, by=by, message="as it has to be", seconds=0.05,
        )  # fmt: skip


def test_a_run_whose_writers_all_write_at_once_leaves_a_whole_timeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kube = Pods(lambda _: [{"phase": "Pending", "node": "n1"}, {"phase": "Running", "node": "n1"}])
    monkeypatch.setattr(FAULTS, "call", struck)
    monkeypatch.setattr(attacks, "make", tried)
    (tmp_path / "everything.yaml").write_text(yaml.safe_dump(ASKED))
    (plan,) = load_all([str(tmp_path / "everything.yaml")])
    with golden(GoldenSettings(first=0.05, gap=0.01, tokens=6, log=tmp_path / "golden.jsonl")) as server:

        def deploy(run: Run) -> None:
            run.cluster, run.kube, run.images = SOLO, kube, {"toolbox": "ref"}
            run.deployed = Deployed("vllm-sim", "vllm-sim", MODEL, server.url, (server.url,))
            run.tenant = Tenant("red", "agent", "shell", "vllm-sim", None, "toolbox")

        steps = phases(deploy=deploy, exercise=exercise, verify=lambda run: looked(run, "before"))
        monkeypatch.setattr(run, "PHASES", (*steps, run.judge, run.report))
        monkeypatch.setattr(run, "_collect", lambda _: None)
        outcome = execute(plan, Options(runs=tmp_path / "runs", cluster_name=f"unit-{os.getpid()}"))
    timeline = list(read(outcome.folder / "timeline.jsonl"))
    for kind in (Request, ClientBeat, FaultEvent, AttackEvent, PodEvent):
        assert any(isinstance(event, kind) for event in timeline), kind
    assert {event.writer for event in timeline} == {"run", "load"}
    for results in (outcome.results, judge(timeline)):
        found = {each.id: each for each in results.checks}
        assert found["validity/timeline"].status == "pass", found["validity/timeline"].evidence
        assert {each.status for name, each in found.items() if not name.startswith(("validity", "slo"))} == {"pass"}
