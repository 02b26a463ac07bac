"""The probe `k8s.ready`: what counts as ready, and what proves nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sandbox import probes
from tests.unit.api_server import Answer, ApiServer, Json, serving

APPS = "/apis/apps/v1"
DEPLOYMENTS = f"{APPS}/namespaces/inference/deployments"


def deployment(name: str = "sim", *, generation: int = 1, replicas: int = 3, **status: int) -> Json:
    whole = {"observedGeneration": 1, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3}
    meta = {"name": name, "namespace": "inference", "generation": generation}
    return {"metadata": meta, "spec": {"replicas": replicas}, "status": whole | status}


def looked(folder: Path, *deployments: Json, **params: Any) -> tuple[probes.Seen, ApiServer]:
    kinds = [{"name": "deployments", "kind": "Deployment", "namespaced": True}]
    with serving(folder) as (server, kube):
        server.on("GET", APPS, Answer(200, {"resources": kinds}))
        server.on("GET", DEPLOYMENTS, Answer(200, {"items": deployments, "metadata": {"resourceVersion": "1"}}))
        return probes.look("k8s.ready", probes.Context(kube, "inference", "", ""), params), server


def test_every_deployment_with_all_its_replicas_is_ready(tmp_path: Path) -> None:
    seen, _ = looked(tmp_path, deployment("sim"), deployment("gateway"))
    assert seen.ok is True
    assert "sim, gateway" in seen.detail


def test_no_deployment_at_all_is_not_ready(tmp_path: Path) -> None:
    seen, _ = looked(tmp_path)
    assert seen.ok is False
    assert "no Deployment matches anything in inference" in seen.detail


@pytest.mark.parametrize(
    "wrong",
    [
        deployment(availableReplicas=2),
        deployment(updatedReplicas=2),
        deployment(replicas=4),
        deployment(generation=2),  # nobody has looked at the newest template yet
        {**deployment(), "status": {**deployment()["status"], "replicas": 4}},  # a pod of the old one is left
        {**deployment(), "status": {}},
    ],
)
def test_one_deployment_that_lacks_something_is_enough_not_to_be_ready(tmp_path: Path, wrong: Json) -> None:
    for there in ([wrong], [deployment("other"), wrong], [wrong, deployment("other")]):
        seen, _ = looked(tmp_path, *there)
        assert seen.ok is False
        assert "Deployment inference/sim" in seen.detail
        assert "sim" in seen.evidence
        assert "other" not in seen.evidence


def test_only_what_was_named_is_asked_for(tmp_path: Path) -> None:
    _, server = looked(tmp_path, deployment(), target={"app": "sim", "tier": "model"})
    (asked,) = server.seen("GET", DEPLOYMENTS)
    assert asked.query["labelSelector"] == ["app=sim,tier=model"]


def test_an_api_server_that_does_not_answer_says_nothing_about_the_system(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, kube):
        server.on("GET", APPS, Answer(503, {}))
        assert probes.look("k8s.ready", probes.Context(kube, "inference", "", ""), {}).ok is None
