"""The pytest side: stacks and clusters as fixtures, scenarios as items, and tests written for pytest-kubernetes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from sandbox.cluster import Cluster
from sandbox.kube import Kube
from sandbox.kube.stacks import Deployed

pytestmark = pytest.mark.live
ROOT = Path(__file__).parents[2]


def test_the_cluster_fixture_gives_a_cluster_that_answers(sandbox_cluster: Cluster) -> None:
    kube = Kube.connect(sandbox_cluster.kubeconfig, sandbox_cluster.context)
    assert {node["metadata"]["name"] for node in kube.list("v1", "Node")} == set(sandbox_cluster.node_names)


@pytest.mark.sandbox_stack("vllm-sim", replicas=2, model="from-a-marker")
def test_the_stack_fixture_deploys_with_the_markers_values(sandbox_stack: Deployed) -> None:
    served = httpx.get(f"{sandbox_stack.url}/v1/models", timeout=10).json()["data"]
    assert "from-a-marker" in {model["id"] for model in served}


def test_a_stack_is_gone_after_the_test_that_used_it(sandbox_cluster: Cluster) -> None:
    kube = Kube.connect(sandbox_cluster.kubeconfig, sandbox_cluster.context)
    assert kube.get("v1", "Namespace", "inference") is None


def test_a_test_written_for_pytest_kubernetes_runs_on_a_sandbox(k8s: Any) -> None:
    k8s.create()
    k8s.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "from-k8s"}, "data": {"a": "b"}})
    assert k8s.kubectl(["get", "configmap", "from-k8s"])["data"] == {"a": "b"}
    k8s.kubectl(["delete", "configmap", "from-k8s"], as_dict=False)
    assert k8s.version()[0] == 1


def test_a_scenario_with_a_mistake_is_a_failing_item_with_the_line_named(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("kind: Scenario\nmetadata: {name: bad}\nstak: {}\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml"), str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert "bad.yaml:3:1: stak: unknown key" in done.stdout
    assert "Traceback" not in done.stdout
