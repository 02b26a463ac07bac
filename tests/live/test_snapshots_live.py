"""A snapshot of a cluster with a stack: copies of it side by side, each a cluster of its own. About 50 s."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from sandbox import cluster, images, paths
from sandbox.cluster import Cluster, Owner, containers, nodes, snapshots, volumes
from sandbox.cluster.snapshots import Snapshot, store
from sandbox.errors import ClusterError, UsageError
from sandbox.host.engine import client
from sandbox.kube import Kube, stacks, wait_for
from sandbox.kube.conditions import finished
from sandbox.kube.stacks import Deployed
from sandbox.spec import load
from sandbox.spec.cluster import ClusterSpec

pytestmark = pytest.mark.live

NAME = f"live-snap-{os.getpid()}"
COPIES = [f"{NAME}-{letter}" for letter in "ab"]
SOLO = load(paths.catalogue("clusters")[0] / "solo.yaml", ClusterSpec).model


def connect(one: Cluster) -> Kube:
    return Kube.connect(one.kubeconfig, one.context)


def mark(kube: Kube, text: str) -> None:
    metadata = {"name": "mark", "namespace": "default"}
    kube.apply([{"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"text": text}}])


def marked(kube: Kube) -> str:
    found: dict[str, Any] = kube.get("v1", "ConfigMap", "mark", "default") or {}
    return str(found["data"]["text"])


@pytest.fixture(scope="module")
def original() -> Iterator[Cluster]:
    yield cluster.up(SOLO, name=NAME, app_images=["toolbox"], owner=Owner.me())
    cluster.down(NAME)


@pytest.fixture(scope="module")
def deployed(original: Cluster) -> Deployed:
    stack = stacks.load("vllm-sim")
    refs = {name: image.ref for name, image in images.ensure(stack.images).items()}
    nodes.load_images(original, [*refs.values()])
    return stacks.deploy(connect(original), stack, {}, images=refs, addresses=original.node_addresses)


@pytest.fixture(scope="module")
def saved(original: Cluster, deployed: Deployed) -> Iterator[Snapshot]:
    mark(connect(original), "as saved")
    yield snapshots.save(original, NAME)
    snapshots.remove(NAME)
    labelled = {"label": f"{store.LABEL}={NAME}"}
    docker = client()
    assert docker.volumes.list(filters=labelled) == []
    assert docker.images.list(all=True, filters=labelled) == []
    assert docker.containers.list(all=True, filters=labelled) == []


@pytest.fixture(scope="module")
def copies(saved: Snapshot) -> Iterator[list[Cluster]]:
    with ExitStack() as undo, ThreadPoolExecutor(max_workers=2) as pool:
        for name in COPIES:
            undo.callback(cluster.down, name)
        yield [*pool.map(lambda name: cluster.restore(saved.name, name), COPIES)]


def test_the_original_goes_on_as_if_nothing_were(original: Cluster, saved: Snapshot, deployed: Deployed) -> None:
    assert cluster.status(NAME).state == "ready"
    assert httpx.get(f"{deployed.url}/v1/models", trust_env=False, timeout=5).is_success
    (pod,) = connect(original).list("v1", "Pod", deployed.namespace)
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0


def test_copies_run_side_by_side_each_with_its_own_state(
    original: Cluster, saved: Snapshot, copies: list[Cluster]
) -> None:
    assert [marked(connect(one)) for one in copies] == ["as saved"] * 2
    for one in (original, *copies):
        mark(connect(one), f"of {one.name}")
    assert [marked(connect(one)) for one in (original, *copies)] == [f"of {name}" for name in (NAME, *COPIES)]
    assert {one.uid for one in copies} == {original.uid}
    assert [cluster.status(one.name).state for one in copies] == ["ready"] * 2
    assert len({one.run for one in (original, *copies)}) == 3
    for one in copies:
        cluster.prove_ours(one)
        assert one.origin.words == f"from snapshot {NAME}"
        assert one.node_names == original.node_names


def test_the_record_of_one_copy_does_not_prove_another(copies: list[Cluster]) -> None:
    one, other = copies
    with pytest.raises(ClusterError, match="not provably the cluster") as told:
        cluster.prove_ours(replace(one, kubeconfig=other.kubeconfig, context=other.context))
    assert "is not at a port of its containers" in str(told.value)


def test_in_a_copy_endpoint_names_and_stack_are_right_at_once(copies: list[Cluster], deployed: Deployed) -> None:
    toolbox = images.ensure(["toolbox"])["toolbox"].ref
    asks = {"name": "asks", "image": toolbox, "command": ["nslookup", "vllm-sim.inference.svc.cluster.local"]}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "asks", "namespace": "default"},
        "spec": {"restartPolicy": "Never", "containers": [asks]},
    }
    for one in copies:
        kube, port = connect(one), deployed.url.rpartition(":")[2]
        of = "kubernetes.io/service-name=kubernetes"
        (found,) = kube.list("discovery.k8s.io/v1", "EndpointSlice", "default", label_selector=of)
        assert [each["addresses"] for each in found["endpoints"]] == [["198.18.77.1"]]
        assert httpx.get(f"http://{one.node_addresses[0]}:{port}/v1/models", trust_env=False, timeout=5).is_success
        kube.apply([pod])
        ended = wait_for(finished(kube, "default", "asks"), within=60, what="a pod's question to DNS")
        assert ended["status"]["phase"] == "Succeeded", kube.logs("default", "asks")


def test_what_a_copy_writes_no_later_copy_sees(saved: Snapshot, copies: list[Cluster]) -> None:
    for one in copies:
        machine = nodes.machine(one, one.node_names[0])
        assert containers.run(machine, ["sh", "-c", "echo written > /var/lib/written && sync"])[0] == 0
    (number,) = volumes.fingerprints(client(), saved.image, [saved.nodes[0].volume], {store.LABEL: NAME})
    assert number == saved.nodes[0].fingerprint


def test_a_name_that_is_taken_is_refused(original: Cluster, saved: Snapshot, copies: list[Cluster]) -> None:
    with pytest.raises(UsageError, match="is taken"):
        snapshots.save(original, NAME)
    with pytest.raises(UsageError, match="is a cluster already"):
        cluster.restore(NAME, COPIES[0])


def test_a_snapshot_whose_volume_was_altered_is_refused_and_nothing_is_left(
    saved: Snapshot, copies: list[Cluster]
) -> None:
    name, docker = f"{NAME}-x", client()
    (volume,) = (node.volume for node in saved.nodes)
    folder = Path(volumes.mountpoint(docker, volume)).parent.parent
    spoil = ["docker", "run", "--rm", "-v", f"{folder}:/volumes", "--entrypoint", "sh", saved.image, "-c"]
    subprocess.run([*spoil, f"echo more >> /volumes/{volume}/_data/lib/dpkg/status"], check=True)
    with pytest.raises(ClusterError) as told:
        cluster.restore(NAME, name)
    assert "is not what was saved" in str(told.value)
    assert docker.containers.list(all=True, filters={"name": name}) == []
    assert docker.volumes.list(filters={"name": name}) == []
    assert docker.networks.list(names=[containers.network_name(name)]) == []
