"""A cluster of three nodes: packets between nodes, and a worker that goes and comes back."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest
from docker.models.containers import Container

from sandbox import cluster, images, paths
from sandbox.cluster import Cluster, Owner, containers, node_images, nodes
from sandbox.host.engine import client
from sandbox.kube import Kube, wait_for
from sandbox.kube.conditions import nodes_ready, renewed
from sandbox.spec import load
from sandbox.spec.cluster import ClusterSpec

pytestmark = pytest.mark.live

NAME = f"live-trio-{os.getpid()}"


@pytest.fixture(scope="module")
def toolbox() -> str:
    return images.ensure(["toolbox"])["toolbox"].ref


@pytest.fixture(scope="module")
def trio() -> Iterator[Cluster]:
    spec = load(paths.catalogue("clusters")[0] / "trio.yaml", ClusterSpec).model
    yield cluster.up(spec, name=NAME, app_images=["toolbox"], owner=Owner.me())
    cluster.down(NAME)


def test_the_nodes_are_known_with_addresses_that_answer_from_here(trio: Cluster) -> None:
    assert [node.role for node in trio.nodes] == ["control-plane", "worker", "worker"]
    assert len(set(trio.node_addresses)) == 3
    assert cluster.status(NAME).state == "ready"


def test_images_were_loaded_into_every_node(trio: Cluster, toolbox: str) -> None:
    assert [node_images.missing(each, [toolbox]) for each in containers.nodes(client(), NAME)] == [[], [], []]


def all_ready_again(trio: Cluster, since: float) -> None:
    """Wait for what the kubelets say after `since`; what they said before a stop is still there."""
    kube = Kube.connect(trio.kubeconfig, trio.context)
    wait_for(renewed(kube, trio.node_names, since=since), within=90, what="word from every kubelet")
    wait_for(nodes_ready(kube, 3), within=90, what="all nodes Ready again")


def test_policy_holds_on_one_node_and_between_two(trio: Cluster, toolbox: str) -> None:
    proof = cluster.prove_network_policy(trio, toolbox)
    assert proof.ok, proof.detail
    where = proof.values["nodes"]
    assert where["near"] == where["server"] != where["far"]


def test_a_stopped_worker_is_seen_and_after_its_start_packets_pass_again(trio: Cluster, toolbox: str) -> None:
    worker = trio.nodes[1].name
    assert nodes.stop(trio, worker).after == "exited"
    stopped = time.time()
    found = cluster.status(NAME)
    assert found.state == "degraded"
    assert f"{worker} is exited" in found.problems
    assert nodes.start(trio, worker).after == "running"
    all_ready_again(trio, stopped)
    proof = cluster.prove_network_policy(cluster.current(NAME), toolbox)
    assert proof.ok, proof.detail


def addresses() -> dict[str, str]:
    return {node.name: node.address for node in cluster.current(NAME).nodes}


def given() -> set[str]:
    """The addresses of the cluster's network that somebody has now."""
    held = client().networks.get(containers.network_name(NAME)).attrs["Containers"].values()
    return {each["IPv4Address"].split("/")[0] for each in held}


@contextmanager
def taken(address: str, image: str) -> Iterator[None]:
    """Give the address to somebody else meanwhile, so that no node that starts can get it."""
    fillers: list[Container] = []
    try:
        while address not in given():
            assert len(fillers) < 16, f"the engine gives {address} to nobody"
            command, network = ["sh", "-c", "exec sleep 600"], containers.network_name(NAME)
            fillers.append(client().containers.run(image, command, network=network, detach=True))
        while len(fillers) > 1:  # the last one has it; the others stand in the nodes' way
            fillers.pop(0).remove(force=True)
        yield
    finally:
        for filler in fillers:
            filler.remove(force=True)


def test_when_workers_restart_together_and_change_addresses_packets_still_pass(trio: Cluster, toolbox: str) -> None:
    before = addresses()
    # an engine that gives the lowest free address lets them swap: each then has the one where the other was
    first, second = sorted((node.name for node in trio.nodes[1:]), key=lambda name: ip_address(before[name]))
    nodes.stop(trio, first)
    nodes.stop(trio, second)
    stopped = time.time()
    with taken(before[second], toolbox):
        nodes.start(trio, second)
    with taken(before[first], toolbox):
        nodes.start(trio, first)
    after = addresses()
    assert after[first] != before[first]
    assert after[second] != before[second]
    all_ready_again(trio, stopped)
    proof = cluster.prove_network_policy(cluster.current(NAME), toolbox)
    assert proof.ok, proof.detail
