"""A cluster of three nodes: packets between nodes, and a worker that goes and comes back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address

import pytest

from sandbox import cluster, images, paths
from sandbox.cluster import Cluster, Owner, containers, node_images, nodes
from sandbox.host.engine import client
from sandbox.kube import Kube, wait_for
from sandbox.kube.conditions import nodes_ready
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
    with closing(client()) as docker:
        assert [node_images.missing(each, [toolbox]) for each in containers.nodes(docker, NAME)] == [[], [], []]


def test_policy_holds_on_one_node_and_between_two(trio: Cluster, toolbox: str) -> None:
    proof = cluster.prove_network_policy(trio, toolbox)
    assert proof.ok, proof.detail
    where = proof.values["nodes"]
    assert where["near"] == where["server"] != where["far"]


def test_a_stopped_worker_is_seen_and_after_its_start_packets_pass_again(trio: Cluster, toolbox: str) -> None:
    worker = trio.nodes[1].name
    assert nodes.stop(trio, worker).after == "exited"
    found = cluster.status(NAME)
    assert found.state == "degraded"
    assert f"{worker} is exited" in found.problems
    assert nodes.start(trio, worker).after == "running"
    kube = Kube.connect(trio.kubeconfig, trio.context)
    wait_for(nodes_ready(kube, 3), within=90, what="all nodes Ready again")
    proof = cluster.prove_network_policy(cluster.current(NAME), toolbox)
    assert proof.ok, proof.detail


def test_when_workers_restart_together_and_swap_addresses_packets_still_pass(trio: Cluster, toolbox: str) -> None:
    before = {node.name: node.address for node in cluster.current(NAME).nodes}
    # the engine gives the lowest free address: whoever had the higher one comes first and gets the other's
    first, second = sorted((node.name for node in trio.nodes[1:]), key=lambda name: ip_address(before[name]))
    nodes.stop(trio, first)
    nodes.stop(trio, second)
    nodes.start(trio, second)
    nodes.start(trio, first)
    after = {node.name: node.address for node in cluster.current(NAME).nodes}
    assert (after[first], after[second]) == (before[second], before[first]), "the engine gave no other addresses"
    kube = Kube.connect(trio.kubeconfig, trio.context)
    wait_for(nodes_ready(kube, 3), within=90, what="all nodes Ready again")
    proof = cluster.prove_network_policy(cluster.current(NAME), toolbox)
    assert proof.ok, proof.detail
