"""A pool of prepared clusters: leased with the stack answering, and never handed out unclean. About 100 s."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sandbox import cluster, images, paths
from sandbox.cluster import Cluster, Owner, containers, record, snapshots
from sandbox.cluster.pool import entries, filling, stillness
from sandbox.cluster.pool.entries import Entry
from sandbox.host.engine import client
from sandbox.kube import Kube, stacks
from sandbox.kube.preparation import Preparation
from sandbox.spec import load
from sandbox.spec.cluster import ClusterSpec

pytestmark = pytest.mark.live

NAME = f"live-leased-{os.getpid()}"
SOLO = load(paths.catalogue("clusters")[0] / "solo.yaml", ClusterSpec).model


@pytest.fixture(scope="module")
def prepared() -> Preparation:
    stack = stacks.load("vllm-sim")
    return Preparation(SOLO, stacks=[(stack, {})], images=stack.images)


@pytest.fixture(scope="module", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A pool and snapshots of its own: nobody else's are leased, and none of ours is left to others."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SANDBOX_STATE_DIR", str(folder))
        yield folder
        entries.drain()
        for name in snapshots.names():
            snapshots.remove(name)
        labelled = {"label": f"ai-k8s-sandbox.state={folder}"}
        docker = client()
        assert docker.containers.list(all=True, filters=labelled) == []
        assert docker.networks.list(filters=labelled) == []
        for base in docker.volumes.list(filters=labelled):  # of the node image, as long as this folder is used
            assert str(base.name).startswith("sandbox-base-")
            base.remove()


@pytest.fixture(scope="module")
def filled(prepared: Preparation) -> list[Entry]:
    return filling.fill(prepared, 2)


def leased(prepared: Preparation) -> Cluster:
    refs = {name: image.ref for name, image in images.ensure([*prepared.images]).items()}
    deployed: dict[str, Any] = prepared.objects(refs)
    return cluster.up(SOLO, name=NAME, app_images=prepared.images, owner=Owner.me(), deployed=deployed)


def answers(one: Cluster) -> bool:
    kube = Kube.connect(one.kubeconfig, one.context)
    (service,) = kube.list("v1", "Service", "inference")
    url = f"http://{one.node_addresses[0]}:{service['spec']['ports'][0]['nodePort']}/v1/models"
    return httpx.get(url, trust_env=False, timeout=5).is_success


def paused(name: str) -> bool:
    return all(node.status == "paused" for node in containers.nodes(client(), name))


def test_what_waits_stands_still_and_is_nobody_s(filled: list[Entry]) -> None:
    assert [each.contents for each in filled] == ["solo with vllm-sim"] * 2
    for each in filled:
        assert paused(each.name)
        assert record.get(each.name).owner is None
        assert cluster.status(each.name).state == "pooled"
    assert cluster.reap() == []


def test_a_lease_answers_at_once_and_no_pod_was_missed(prepared: Preparation, filled: list[Entry]) -> None:
    one = leased(prepared)
    try:
        assert one.origin.way == "pool"
        assert one.engine_name == filled[0].name
        assert answers(one)
        kube = Kube.connect(one.kubeconfig, one.context)
        changed = [
            pod["metadata"]["name"]
            for pod in kube.list("v1", "Pod", "inference")
            for state in pod["status"]["conditions"]
            if state["type"] == "Ready" and state["status"] != "True"
        ]
        assert changed == []
        cluster.prove_ours(one)
        assert cluster.status(NAME).state == "ready"
        assert [each.name for each in entries.entries()] == [filled[1].name]
    finally:
        cluster.down(NAME)
    assert record.find(NAME) is None


def test_one_that_somebody_used_is_not_handed_out(
    prepared: Preparation, filled: list[Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    name = filled[1].name
    known = record.get(name)
    nodes = containers.nodes(client(), name)
    since = time.time()
    stillness.awake(nodes)
    kube = Kube.connect(known.kubeconfig, known.context)
    stillness.complete(kube, nodes, known.node_names, since=since)
    kube.apply([{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "left", "namespace": "default"}}])
    containers.run(nodes[0], ["sh", "-c", "iptables -A INPUT -p tcp --dport 9 -j DROP; echo left > /etc/left"])
    stillness.still(nodes)
    one = leased(prepared)
    try:
        said = capsys.readouterr().err
        assert f"{name} is not handed out, and removed" in said
        rule = "iptables filter -A INPUT -p tcp -m tcp --dport 9 -j DROP"
        for left in ("v1/ConfigMap default/left", rule, "file 644 5 "):
            assert f"there since: {left}" in said, left
        assert " /etc/left" in said
        assert one.origin.way == "snapshot"
        assert answers(one)
    finally:
        cluster.down(NAME)
    assert containers.nodes(client(), name) == ()
