"""Start a copy of a snapshot: its own containers, volumes and network, with the addresses inside as they were."""

from __future__ import annotations

import copy
import re
import socket
import time
from typing import TYPE_CHECKING, Any

from docker.models.containers import Container

from sandbox.cluster import (
    config,
    containers,
    fleet,
    furnishing,
    inner,
    kubeconfigs,
    making,
    node_files,
    node_images,
    record,
    volumes,
)
from sandbox.cluster.ownership import KIND_LABEL, STATE_LABEL
from sandbox.cluster.reach import require_reach
from sandbox.cluster.snapshots import store
from sandbox.cluster.snapshots.ground import misfit
from sandbox.cluster.snapshots.saving import is_mirror
from sandbox.errors import ClusterError
from sandbox.kube import Kube, Object, Seen, wait_for
from sandbox.kube.conditions import Watching, is_ready, seconds
from sandbox.kube.resources import Selection
from sandbox.paths import state_dir
from sandbox.progress import step

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from sandbox.cluster.making import Making, Order
    from sandbox.cluster.record import Cluster
    from sandbox.cluster.snapshots.store import Snapshot, SnapshotNode

_API_SECONDS = 60.0
_READY_SECONDS = 120.0
_LED = "iptables-save -t nat | grep -q KUBE-SVC || nft list tables | grep -q kube-proxy || ipvsadm -Ln | grep -q :443"
_REFUSED = re.compile(r'"([^":]+)\S* has no endpoints"')  # kube-proxy's comment: namespace/name:port
_API = f"{inner.API_PORT}/tcp"
_METRICS = ("k8s-app", "metrics-server")  # nobody waits for it after a cold start either: it needs two scrapes first


def restore(order: Order, snapshot: Snapshot) -> Cluster:
    """Start a copy of the snapshot as the cluster that was ordered, and wait until what ran in it runs again.

    Raises:
        ClusterError: the snapshot does not fit this engine or machine, or was altered; or the copy did not come up.
            Nothing of it is left.
    """
    docker, name = order.docker, order.name
    if why := misfit(docker, snapshot):
        raise ClusterError(f"the snapshot does not fit: {why}", where=snapshot.name)
    with making.attempt(order) as started, step(f"{name}: restore snapshot {snapshot.name}"):
        containers.make_network(docker, name, started.run, ipv6=config.ipv6(order.spec))
        names = _volumes(order, started, snapshot)
        begun = time.time()
        for node, volume in zip(snapshot.nodes, names, strict=True):
            _start(order, started, node, volume)
        kubeconfig = _kubeconfig(order, snapshot)
        require_reach(name, containers.node(containers.nodes(docker, name)[0]).address, within=_API_SECONDS)
        kube = Kube.connect(kubeconfig, f"kind-{name}")
        wait_for(lambda: making.answers(kube), within=_API_SECONDS, what=f"the API server of {name}")
        made = making.describe(
            order, started, kubeconfig, origin=record.Origin("snapshot", snapshot.name, snapshot.key)
        )
        _settled(kube, made, snapshot, since=begun)
        served = _served(kube, made.node_names, snapshot.ready)
        wait_for(lambda: _led(order, served), within=_READY_SECONDS, what="the way to services on every node")
        node_images.load(containers.nodes(docker, name), [*order.load.values()])
        furnishing.furnish(kube, order.spec, len(made.nodes), order.load)
    record.save(made)
    store.touch(snapshot.name)
    return made


def _volumes(order: Order, started: Making, snapshot: Snapshot) -> list[str]:
    """Fill /var of every node from what was kept, which is looked at first."""
    labels = started.labels(order.name)
    names = making.volume_names(order.spec, order.name, started)
    for each in names:
        volumes.create(order.docker, each, labels)
    copies = [
        volumes.Copy(node.volume, target, expected=node.fingerprint)
        for node, target in zip(snapshot.nodes, names, strict=True)
    ]
    volumes.fill(order.docker, snapshot.image, copies, labels)
    return names


def _start(order: Order, started: Making, node: SnapshotNode, volume: str) -> Container:
    """Make a node's container as kind made the first one, and start it."""
    network = containers.network_name(order.name)
    made = copy.deepcopy(node.container)
    asked, host = made["Config"], made["HostConfig"]
    where = volumes.mountpoint(order.docker, volume)
    asked["Image"] = node.image
    asked["Labels"] = {KIND_LABEL: order.name, containers.ROLE_LABEL: node.role, **started.labels(order.name)}
    asked["Labels"][STATE_LABEL] = str(state_dir())
    host["NetworkMode"] = network
    host["Binds"] = [_moved(bind, where) for bind in host["Binds"]]
    host["PortBindings"] = _ports(order, host.get("PortBindings") or {})
    # the API server is known to the other nodes by the name of the first container
    known = {"EndpointsConfig": {network: {"Aliases": [asked["Hostname"]]}}}
    whole: dict[str, Any] = {**asked, "HostConfig": host, "NetworkingConfig": known}
    create: Callable[[dict[str, Any], str], dict[str, Any]] = order.docker.api.create_container_from_config
    answer = create(whole, f"{order.name}{node.suffix}")
    container = order.docker.containers.get(answer["Id"])
    container.start()
    return container


def _moved(bind: str, volume: str) -> str:
    """A bind of the first container's volume, as one of this container's."""
    source, _, rest = bind.partition(":")
    if rest.partition(":")[0] == "/var":
        return f"{volume}:{rest}"
    if "/_data/" in source and rest.startswith(node_files.DROP_IN):
        return f"{volume}/{source.partition('/_data/')[2]}:{rest}"
    return bind


def _ports(order: Order, bindings: dict[str, Any]) -> dict[str, Any]:
    """The ports of this machine: those that the cluster's file names, and free ones for the rest.

    The engine would choose free ones too, but others after each restart of the node.
    """
    fixed = {str(port) for _, port in config.host_ports(order.spec)}
    return {
        inside: [
            each if each["HostPort"] in fixed else {**each, "HostPort": str(_free_port(each.get("HostIp") or ""))}
            for each in outside
        ]
        for inside, outside in bindings.items()
    }


def _free_port(address: str) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _kubeconfig(order: Order, snapshot: Snapshot) -> Path:
    """Write the administrator's kubeconfig: the same certificates, at the port of this copy."""
    docker, name = order.docker, order.name
    plane = next(each for each in containers.nodes(docker, name) if _API in (each.attrs["HostConfig"]["PortBindings"]))
    published = plane.attrs["NetworkSettings"]["Ports"][_API][0]
    path = record.home(name) / "kubeconfig"
    server = f"https://{published['HostIp']}:{published['HostPort']}"
    kubeconfigs.write(path, snapshot.kubeconfig, cluster=name, server=server)
    return path


def _settled(kube: Kube, made: Cluster, snapshot: Snapshot, *, since: float) -> None:
    """Wait until what the API server tells is of now: at first it tells of the nodes and pods as they were saved."""
    if made.uid != snapshot.uid:
        raise ClusterError(f"kube-system has UID {made.uid}, saved was {snapshot.uid}", where=snapshot.name)
    names = made.node_names
    wait_for(_heard_of(kube, names, since=since), within=_READY_SECONDS, what="word from every kubelet")
    wait_for(_run_again(kube, names, snapshot.ready, since=since), within=_READY_SECONDS, what="all pods Ready again")


def _served(kube: Kube, names: Collection[str], uids: Collection[str]) -> set[str]:
    """The services, as `namespace/name`, that have one of these pods behind them."""
    pods = [pod for pod in kube.list("v1", "Pod") if pod["metadata"]["uid"] in uids and _counts(pod, names)]
    found = set()
    for service in kube.list("v1", "Service"):
        wanted, space = (service["spec"].get("selector") or {}).items(), service["metadata"]["namespace"]
        beside = [pod for pod in pods if pod["metadata"]["namespace"] == space]
        if wanted and any(wanted <= (pod["metadata"].get("labels") or {}).items() for pod in beside):
            found.add(f"{space}/{service['metadata']['name']}")
    return found


def _led(order: Order, served: Collection[str]) -> Seen[None]:
    """One look at whether kube-proxy has led every node's service addresses to pods, whichever way it does that.

    In between it refuses connections to services whose endpoints it has not heard of yet.
    """
    if str((order.spec.kind_config.get("networking") or {}).get("kubeProxyMode", "")).lower() == "none":
        return Seen(True, None, "")
    there = containers.nodes(order.docker, order.name)
    lost = [str(each.name) for each in there if containers.run(each, ["sh", "-c", _LED])[0]]
    for node in there:
        _, rules = containers.run(node, ["iptables-save", "-t", "filter"])
        lost += [f"{node.name} for {name}" for name in {*_REFUSED.findall(rules)} & {*served}]
    return Seen(not lost, None, f"not yet on {', '.join(lost)}")


def _heard_of(kube: Kube, names: Sequence[str], *, since: float) -> Watching[None]:
    """Each of these nodes told its state after `since`, and is Ready."""

    def judge(nodes: list[Object]) -> Seen[None]:
        fresh = {node["metadata"]["name"] for node in nodes if is_ready(node) and _told(node) >= int(since)}
        silent = [name for name in names if name not in fresh]
        return Seen(not silent, None, f"no word yet from {', '.join(silent)}")

    return Watching(kube, Selection("v1", "Node", None, fleet.REAL), judge)


def _told(node: Object) -> float:
    times = [each.get("lastHeartbeatTime") for each in node["status"].get("conditions", []) if each["type"] == "Ready"]
    return seconds(times[0]) if times else 0.0


def _run_again(kube: Kube, names: Collection[str], uids: Collection[str], *, since: float) -> Watching[None]:
    """Each of these pods that is still there is Ready, with containers that started after `since`."""

    def judge(pods: list[Object]) -> Seen[None]:
        waited = [pod for pod in pods if pod["metadata"]["uid"] in uids and _counts(pod, names)]
        late = [pod["metadata"]["name"] for pod in waited if not (is_ready(pod) and _started(pod) >= int(since))]
        return Seen(not late, None, f"{len(waited) - len(late)} of {len(waited)}; not yet {', '.join(late)}")

    return Watching(kube, Selection("v1", "Pod", None, ""), judge)


def _counts(pod: Object, names: Collection[str]) -> bool:
    """Whether anybody waits for it: on a real node, staying, and no look at what the kubelet runs from a file."""
    key, value = _METRICS
    metadata = pod["metadata"]
    here = pod["spec"].get("nodeName") in names and not metadata.get("deletionTimestamp")
    return here and not is_mirror(pod) and (metadata.get("labels") or {}).get(key) != value


def _started(pod: Object) -> float:
    """When the container that started first did, in seconds since the epoch; 0 where one does not run."""
    states = [each.get("state", {}).get("running") for each in pod["status"].get("containerStatuses", [])]
    return min((seconds(state["startedAt"]) if state else 0.0 for state in states), default=0.0)
