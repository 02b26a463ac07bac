"""What can be done to a node from below: stop, start, pause, restart its container. Each tells what it saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from docker.errors import APIError, NotFound

from sandbox.cluster import containers, freezer, node_images, ownership, record
from sandbox.cluster.freezer import thaw
from sandbox.cluster.record import Cluster
from sandbox.errors import ClusterError, UsageError
from sandbox.host.engine import client
from sandbox.progress import say

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

_STOP_SECONDS = 10


@dataclass(frozen=True)
class NodeChange:
    """The engine's word on a node container before and after: `running`, `paused`, `exited`."""

    node: str
    before: str
    after: str
    address: str


def stop(cluster: Cluster, node: str) -> NodeChange:
    """Shut the node down in order, as systemd does; it is killed after 10 s."""
    return _change(cluster, node, lambda container: container.stop(timeout=_STOP_SECONDS), "exited")


def start(cluster: Cluster, node: str) -> NodeChange:
    """Start a stopped node. Its address may be another afterwards."""
    return _change(cluster, node, lambda container: container.start(), "running")


def pause(cluster: Cluster, node: str) -> NodeChange:
    """Freeze every process of the node; its connections stay open and silent."""
    return _change(cluster, node, freezer.pause, "paused")


def unpause(cluster: Cluster, node: str) -> NodeChange:
    """Let a frozen node go on."""
    return _change(cluster, node, lambda container: container.unpause(), "running")


def restart(cluster: Cluster, node: str) -> NodeChange:
    """Stop and start the node. Its address may be another afterwards."""
    return _change(cluster, node, lambda container: container.restart(timeout=_STOP_SECONDS), "running")


def states(cluster: Cluster) -> dict[str, str]:
    """Return node name -> the engine's word on its container; `gone` where there is none."""
    with containers.engine_errors(cluster.name):
        found = {str(each.id): str(each.status) for each in containers.nodes(client(), cluster.name)}
    return {node.name: found.get(node.container, "gone") for node in cluster.nodes}


def running_containers(cluster: Cluster, node: str) -> set[str]:
    """Return the ids of the containers that the node's own container runtime runs now, pods' sandboxes included.

    Raises:
        UsageError: the node's machine is not in our hands.
        ClusterError: its container runtime does not answer.
    """
    code, output = containers.run(machine(cluster, node), ["ctr", "--namespace", "k8s.io", "tasks", "list"])
    if code:
        raise ClusterError("the node's container runtime does not answer", where=node, details=[output])
    rows = (line.split() for line in output.splitlines()[1:])
    return {row[0] for row in rows if row[-1:] == ["RUNNING"]}


def kill_containers(cluster: Cluster, node: str, ids: Sequence[str]) -> list[str]:
    """Send SIGKILL to containers of the node, by id, below Kubernetes: nothing is told, nothing drains.

    Returns:
        Those that were running and got it.
    """
    container = machine(cluster, node)
    kill = ["ctr", "--namespace", "k8s.io", "tasks", "kill", "--signal", "SIGKILL"]
    return [each for each in ids if containers.run(container, [*kill, each])[0] == 0]


def load_images(cluster: Cluster, refs: Sequence[str]) -> dict[str, list[str]]:
    """Have images of the engine in every node; see sandbox/cluster/node_images.py.

    Raises:
        UsageError: there is something to load, and the nodes are somebody else's.
    """
    if not refs:
        return {}
    if cluster.provider != "kind":
        raise UsageError(
            f"nothing can be loaded into the nodes of an existing cluster: {', '.join(refs)}",
            where=cluster.name,
            fix="have its nodes pull it: sandbox images push <host:port>, then set SANDBOX_REGISTRY=<host:port>",
        )
    with containers.engine_errors(cluster.name):
        return node_images.load(containers.nodes(client(), cluster.name), refs)


def start_all(docker: DockerClient, name: str) -> list[str]:
    """Start or unpause every container of the cluster that does not run; return their names.

    What the API server says of these nodes is then older than their start; `conditions.renewed` tells when it is not.
    """
    started = []
    for container in sorted(ownership.survey(docker, name).containers, key=lambda each: str(each.name)):
        if container.status == "running":
            continue
        say(f"{container.name} is {container.status}: start it")
        if container.status == "paused":
            container.unpause()
        else:
            container.start()
        started.append(str(container.name))
    return started


def machine(cluster: Cluster, node: str) -> Container:
    recorded = {each.name: each.container for each in cluster.nodes}
    if cluster.provider != "kind" or not recorded.get(node):
        raise UsageError(
            "is no node whose machine is in our hands", where=node, fix=f"one of: {', '.join(recorded) or 'none'}"
        )
    with containers.engine_errors(node):
        try:
            return client().containers.get(recorded[node])
        except NotFound as error:
            if (problem := ownership.elsewhere(client(), cluster.name, record.claim(cluster.name))) is not None:
                raise problem from error
            raise ClusterError("the node's container is gone", where=node, fix=f"sandbox up {cluster.name}") from error


def _change(cluster: Cluster, node: str, act: Callable[[Container], None], wanted: str) -> NodeChange:
    """Do it to the recorded container and see that it happened."""
    container = machine(cluster, node)
    before = str(container.status)
    with containers.engine_errors(node):
        try:
            act(container)
        except APIError:
            if not thaw(container):
                raise
            act(container)  # what kept it from ending is thawed now
        container.reload()
    if container.status != wanted:
        raise ClusterError(f"the node is {container.status}, not {wanted}", where=node)
    return NodeChange(node, before, str(container.status), containers.node(container).address)
