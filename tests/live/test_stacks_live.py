"""Stacks on a real cluster: ready means answered, an update cuts nobody off, removed means gone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sandbox import images
from sandbox.cluster import Cluster, nodes
from sandbox.errors import ClusterError
from sandbox.kube import Kube, namespaces, stacks, wait_for
from sandbox.kube.conditions import rollout
from sandbox.pytest_plugin import Clusters

pytestmark = [pytest.mark.live, pytest.mark.alone]  # no answer may be missed, however busy the machine
Ground = tuple[Cluster, Kube, dict[str, str]]


@pytest.fixture(scope="module")
def ground(sandbox_clusters: Clusters) -> Ground:
    cluster = sandbox_clusters.up("solo")
    refs = {name: image.ref for name, image in images.ensure(["vllm-sim", "llama-cpp"]).items()}
    nodes.load_images(cluster, list(refs.values()))
    return cluster, Kube.connect(cluster.kubeconfig, cluster.context), refs


@pytest.fixture(params=["vllm-sim", "llama-cpp"])
def deployed(ground: Ground, request: pytest.FixtureRequest) -> Iterator[stacks.Deployed]:
    cluster, kube, refs = ground
    stack = stacks.load(request.param)
    try:
        yield stacks.deploy(kube, stack, {"replicas": 2}, images=refs, addresses=cluster.node_addresses)
    finally:
        stacks.undeploy(kube, stack)
    assert kube.get("v1", "Namespace", stack.namespace) is None


def ask(deployed: stacks.Deployed) -> httpx.Response:
    body = {"model": deployed.model, "max_tokens": 4, "messages": [{"role": "user", "content": "Say hello."}]}
    return httpx.post(f"{deployed.url}/v1/chat/completions", json=body, timeout=30, trust_env=False)


def test_a_stack_answers_on_every_node_and_goes_on_answering_through_an_update(
    ground: Ground, deployed: stacks.Deployed
) -> None:
    _, kube, _ = ground
    for url in deployed.urls:
        served = httpx.get(f"{url}/v1/models", timeout=30, trust_env=False).json()["data"]
        assert served[0]["id"] == deployed.model
    answers: list[int | str] = []
    stop = threading.Event()

    def user() -> None:
        while not stop.is_set():
            try:
                answers.append(ask(deployed).status_code)
            except httpx.HTTPError as error:
                answers.append(repr(error))

    users = [threading.Thread(target=user) for _ in range(2)]
    for each in users:
        each.start()
    try:
        before = {pod["metadata"]["uid"] for pod in kube.list("v1", "Pod", deployed.namespace)}
        found = kube.get("apps/v1", "Deployment", deployed.stack, deployed.namespace)
        assert found
        path = kube.path(found)
        stamp = {"spec": {"template": {"metadata": {"annotations": {"test/restarted": "1"}}}}}
        headers = {"Content-Type": "application/merge-patch+json"}
        assert kube.request("PATCH", path, stamp, headers).ok
        wait_for(rollout(kube, "Deployment", deployed.namespace, deployed.stack), within=120, what="the update")
    finally:
        stop.set()
        for each in users:
            each.join()
    running = [
        pod for pod in kube.list("v1", "Pod", deployed.namespace) if not pod["metadata"].get("deletionTimestamp")
    ]
    assert not before & {pod["metadata"]["uid"] for pod in running}
    assert len(answers) >= 4
    assert set(answers) == {200}


def test_a_stack_that_does_not_come_up_says_what_its_pods_say_and_leaves_nothing_once_removed(ground: Ground) -> None:
    cluster, kube, _ = ground
    stack = stacks.load("vllm-sim")
    ready = stack.ready.model_copy(update={"within": 20.0})
    hasty = stack.model_copy(update={"ready": ready})
    refs = {"vllm-sim": "registry.invalid/NONE:1"}  # no valid name: refused on the node, without asking any network
    with pytest.raises(ClusterError) as caught:
        stacks.deploy(kube, hasty, {}, images=refs, addresses=cluster.node_addresses)
    stacks.undeploy(kube, hasty)
    assert "registry.invalid/NONE:1" in str(caught.value)
    assert kube.get("v1", "Namespace", "inference") is None


def test_what_a_killed_run_left_is_cleared_and_nothing_else(ground: Ground) -> None:
    _, kube, _ = ground
    rbac: dict[str, Any] = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "rules": []}
    ours = {**rbac, "metadata": {"name": "left-behind", "labels": dict(namespaces.MANAGED_BY)}}
    theirs = {**rbac, "metadata": {"name": "somebody-elses"}}
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}
    volume = {"metadata": {"name": "data", "namespace": "left-behind"}, "spec": claim}
    volume |= {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
    kube.apply([namespaces.make("left-behind"), volume, ours, theirs])
    try:
        assert {"ClusterRole left-behind", "Namespace left-behind"} <= set(namespaces.clear(kube))
        assert kube.get("v1", "Namespace", "left-behind") is None
        assert kube.get(ours["apiVersion"], "ClusterRole", "left-behind") is None
        assert kube.get(ours["apiVersion"], "ClusterRole", "somebody-elses")
        assert namespaces.clear(kube) == []
    finally:
        kube.delete([theirs])
