"""What a fault of a device does to the server on it, below Kubernetes: it crashes, hangs, or becomes slow."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from sandbox.cluster import Cluster, nodes, signals
from sandbox.errors import ClusterError, UsageError
from sandbox.gpu import control
from sandbox.gpu.blows import Process
from sandbox.gpu.control import Device
from sandbox.kube import Kube, Object


@dataclass(frozen=True)
class Server:
    """A running container that holds a device.

    Attributes:
        uid: of its pod.
        id: of this run of the container, as the node's container runtime calls it.
        port: where it answers HTTP; 0 where it declares none.
    """

    node: str
    namespace: str
    pod: str
    uid: str
    container: str
    id: str
    port: int

    @property
    def label(self) -> str:
        """How a person calls it."""
        return f"{self.namespace}/{self.pod}"


def servers(kube: Kube, devices: Iterable[Device]) -> list[Server]:
    """The containers that hold one of these devices, or a part of one, and run now."""
    found: dict[tuple[str, str, str], Server] = {}
    for device in devices:
        for holder in device.holders:
            key = (holder.namespace, holder.pod, holder.container)
            pod = kube.get("v1", "Pod", holder.pod, holder.namespace) if key not in found else None
            if pod and (server := _server(pod, holder.container, device.node)):
                found[key] = server
    return list(found.values())


def status_of(pod: Object, container: str) -> Object:
    """What the kubelet says of one container of a pod; empty as long as it says nothing."""
    status = pod.get("status", {})
    every = [*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())]
    return next((each for each in every if each["name"] == container), {})


def refuse(cluster: Cluster, process: Process, struck: Collection[Server], *, instead: str) -> None:
    """Stop before anything is done where the processes of these servers are out of reach.

    Args:
        cluster: where they run.
        process: what is to become of them.
        struck: the servers.
        instead: what to write to strike the device alone.

    Raises:
        UsageError: the nodes are somebody else's.
    """
    if process == "none" or not struck or cluster.provider == "kind":
        return
    raise UsageError(
        f"the nodes are somebody else's: what runs there can get no signal, and {process} is one",
        where=cluster.name,
        fix=instead,
        details=[f"{each.label} holds the device" for each in struck],
    )


def strike(
    cluster: Cluster,
    process: Process,
    struck: Sequence[Server],
    *,
    tag: str,
    seconds: float,
    clock: float = 1.0,
) -> str:
    """Let it happen to these servers; what lasts ends in the node by itself after `seconds`.

    Args:
        cluster: where they run.
        process: what becomes of them.
        struck: the servers.
        tag: `release` takes it.
        seconds: how long a server hangs or is slow, if nobody ends it before.
        clock: the share of its time that a slow one is left.

    Returns:
        What was done, in words.

    Raises:
        UsageError: the nodes are somebody else's.
        ClusterError: a node did not take the order.
    """
    names = ", ".join(each.label for each in struck)
    if not struck or process == "none":
        return "no process was touched"
    for node in {each.node for each in struck}:
        ids = [each.id for each in struck if each.node == node]
        if process == "crash":
            missed = set(ids) - set(nodes.kill_containers(cluster, node, ids))
            # one that a taint has evicted meanwhile has ended, and how is for the proof to say
            if alive := missed and missed & nodes.running_containers(cluster, node):
                whose = ", ".join(each.label for each in struck if each.id in alive)
                raise ClusterError(f"SIGKILL did not reach {whose}", where=node, fix="try again")
        else:
            running = clock if process == "slow" else 0.0
            signals.hold(cluster, node, ids, tag=tag, seconds=seconds, running=running)
    words = {"crash": "SIGKILL to", "hang": "SIGSTOP to", "slow": f"left {clock:.0%} of its time:"}
    return f"{words[process]} {names}"


def clear(cluster: Cluster, kube: Kube) -> tuple[list[str], list[str]]:
    """End every fault of a cluster's emulated GPUs, and let go every process that one of them holds up.

    Returns:
        The ids of the faults that acted until now, and the nodes where something was held.

    Raises:
        UsageError: this cluster has no emulated GPUs.
    """
    healed = control.heal(kube)
    names = [each.node for each in control.states(kube)] if cluster.provider == "kind" else []
    return healed, release(cluster, names)


def release(cluster: Cluster, names: Iterable[str], tag: str = "") -> list[str]:
    """Let go what hangs or is slow on these nodes, by that tag or all of it.

    Returns:
        The nodes where something was held.
    """
    return [node for node in names if signals.release(cluster, node, tag)]


def _server(pod: Object, container: str, node: str) -> Server | None:
    status = status_of(pod, container)
    if "running" not in status.get("state", {}):
        return None
    meta = pod["metadata"]
    return Server(
        node=node,
        namespace=meta["namespace"],
        pod=meta["name"],
        uid=meta["uid"],
        container=container,
        id=str(status.get("containerID", "")).rpartition("/")[2],
        port=_port(pod, container),
    )


def _port(pod: Object, container: str) -> int:
    """The one called metrics or http, else the first."""
    spec = pod["spec"]
    every = [*spec["containers"], *(spec.get("initContainers") or ())]
    ports = next((each.get("ports") or [] for each in every if each["name"] == container), [])
    named = {str(each.get("name", "")): int(each["containerPort"]) for each in reversed(ports)}
    return named.get("metrics") or named.get("http") or (int(ports[0]["containerPort"]) if ports else 0)
