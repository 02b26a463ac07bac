"""Before anything is changed: is this cluster provably the one that was recorded?"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sandbox.cluster import containers, ownership
from sandbox.cluster.inner import API_PORT
from sandbox.cluster.record import Cluster
from sandbox.errors import ClusterError
from sandbox.host.engine import client
from sandbox.kube import Kube

if TYPE_CHECKING:
    from docker.models.containers import Container


def prove_ours(cluster: Cluster) -> None:
    """Stop unless this cluster may be changed: it is ours, or an existing one taken with the flag for it.

    Ours means: its API server is on a loopback address, at a port of its recorded containers, its kube-system has the
    recorded UID, and those containers are on a network labelled as this sandbox's.

    Raises:
        ClusterError: names what does not fit.
    """
    kube = Kube.connect(cluster.kubeconfig, cluster.context)
    if cluster.provider == "existing":
        if not cluster.allow_changes:
            raise ClusterError(
                "this existing cluster was taken without leave to change it",
                where=cluster.name,
                fix=f"sandbox up {cluster.name} --allow-changes",
            )
        problems: list[str] = []
    else:
        problems = [*_address_problems(kube.server), *container_problems(cluster, kube.server)]
    uid = kube.uid()
    if uid != cluster.uid:
        problems.append(f"kube-system has UID {uid}, recorded is {cluster.uid}")
    if problems:
        raise ClusterError(
            "this is not provably the cluster that was recorded; nothing is changed",
            where=cluster.name,
            fix=f"sandbox down {cluster.name}, then bring it up again",
            details=problems,
        )


def _address_problems(server: str) -> list[str]:
    host = urlsplit(server).hostname or ""
    try:
        loopback = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        loopback = False
    return [] if loopback else [f"its API server {server} is not on a loopback address"]


def container_problems(cluster: Cluster, server: str = "") -> list[str]:
    """What of the recorded containers is not as recorded.

    Args:
        cluster: as recorded.
        server: of its kubeconfig: copies of one snapshot share the UID, and differ in their port.
    """
    with containers.engine_errors(cluster.name):
        found = ownership.survey(client(), cluster.name)
    present = {str(each.id): each for each in found.containers}
    gone = [node.name for node in cluster.nodes if node.container not in present]
    moved = [
        node.name
        for node in cluster.nodes
        if node.name not in gone
        and not any(ownership.attached(present[node.container], network) for network in found.networks)
    ]
    runs = {network.attrs["Labels"].get(ownership.RUN_LABEL) for network in found.networks}
    problems = [*found.strangers, *(f"node {name} is not the recorded container" for name in gone)]
    problems += [f"node {name} is not on the cluster's network" for name in moved]
    if runs != {cluster.run}:
        problems.append(f"its network carries run {', '.join(map(str, runs)) or 'none'}, recorded is {cluster.run}")
    ports = {each["HostPort"] for container in found.containers for each in _published(container)}
    if server and ports and str(urlsplit(server).port) not in ports:
        problems.append(f"its API server {server} is not at a port of its containers, which is {', '.join(ports)}")
    return problems


def _published(container: Container) -> list[dict[str, str]]:
    """Where a container's API server is reached from this machine."""
    ports = container.attrs["NetworkSettings"].get("Ports") or {}
    return ports.get(f"{API_PORT}/tcp") or []
