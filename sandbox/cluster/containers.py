"""A cluster as the engine sees it: containers with their volumes, on a labelled network of its own."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from docker.errors import APIError, DockerException, NotFound
from docker.types import IPAMConfig, IPAMPool
from requests.exceptions import RequestException

from sandbox import paths
from sandbox.cluster import record
from sandbox.cluster.freezer import thaw
from sandbox.cluster.ownership import (
    CLUSTER_LABEL,
    KIND_LABEL,
    RUN_LABEL,
    STATE_LABEL,
    refuse_guests,
    refuse_strangers,
    survey,
)
from sandbox.cluster.record import Cluster, Node
from sandbox.errors import ClusterError, DeadlineExceeded, EnvironmentMissing
from sandbox.host.engine import identity
from sandbox.kube.wait import Seen, wait_for
from sandbox.progress import say

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container
    from docker.models.networks import Network

ROLE_LABEL = "io.x-k8s.kind.role"
_MTU = "com.docker.network.driver.mtu"
_REMOVE_SECONDS = 60.0
_ANONYMOUS = re.compile(r"[0-9a-f]{64}")  # the name that an engine gives a volume nobody named
# what the engine, or the way to it, gives for an answer when it does not do what it was asked
ENGINE_ERRORS = (DockerException, RequestException, ConnectionError)


@contextmanager
def engine_errors(where: str = "") -> Iterator[None]:
    """Make of the engine's refusals and silences what a person can act on.

    Args:
        where: the cluster or node it is about.

    Raises:
        ClusterError: the engine refused; `details` are its words.
        EnvironmentMissing: it does not answer, or no longer.
    """
    try:
        yield
    except APIError as error:
        raise ClusterError(
            "the engine refused",
            where=where,
            fix="run the same command again; if it persists: sandbox doctor",
            details=[str(error.explanation or error)],
        ) from error
    except ENGINE_ERRORS as error:
        raise EnvironmentMissing(
            "the container engine does not answer", where=where, fix="sandbox doctor", details=[str(error)]
        ) from error


def network_name(cluster: str) -> str:
    """Name the cluster's own network."""
    return f"sandbox-{cluster}"


def make_network(client: DockerClient, cluster: str, run: str, *, ipv6: bool) -> Network:
    """Make the cluster's labelled network, with the MTU of the engine's default one, as kind would."""
    default = client.networks.list(names=["bridge"])
    mtu = default[0].attrs.get("Options", {}).get(_MTU, "") if default else ""
    # kind's way: an address range of its own per name, since engines of that age assign no IPv6 range themselves
    word = f"{zlib.crc32(cluster.encode()) & 0xFFFF:x}"
    pool = IPAMConfig(pool_configs=[IPAMPool(subnet=f"fd00:5a:{word}::/64")]) if ipv6 else None
    labels: dict[str, str | list[str] | bool] = {
        CLUSTER_LABEL: cluster,
        RUN_LABEL: run,
        STATE_LABEL: str(paths.state_dir()),
    }
    options: dict[str, str | None] = {"com.docker.network.bridge.enable_ip_masquerade": "true"}
    if mtu:
        options[_MTU] = mtu
    try:
        return client.networks.create(
            network_name(cluster),
            driver="bridge",
            options=options,
            labels=labels,
            check_duplicate=True,
            enable_ipv6=ipv6,
            ipam=pool,
        )
    except APIError as error:
        fix = "docker network prune" if "address pool" in str(error.explanation) else "docker network ls"
        raise ClusterError(
            "the engine made no network for it", where=cluster, fix=fix, details=[str(error.explanation)]
        ) from error


def remove(client: DockerClient, cluster: str) -> list[str]:
    """Remove our containers, then our volumes and networks; look again until nothing is left.

    A create under way is ended first. Everything is refused, and nothing touched, while something of others is in the
    way; should it come later, our containers are gone and the network stays.

    Returns:
        What was removed, as `kind name`.

    Raises:
        NotOurs: names what is in the way, and what to type.
        ClusterError: it was made on another engine, or something is left after a minute.
    """
    found = survey(client, cluster)
    refuse_strangers(found, cluster)
    refuse_guests(found, cluster)
    record.stamp(cluster, identity(client))
    if record.creating(cluster):
        record.end_creation(cluster)
        found = survey(client, cluster)
    volumes = [name for each in found.containers for name in anonymous_volumes(each)]
    volumes += [str(volume.name) for volume in found.volumes]
    removed = [f"container {each.name}" for each in found.containers]
    removed += [f"network {network.name}" for network in found.networks]
    removed += [f"volume {volume.name}" for volume in found.volumes]
    troubles: list[str] = []

    def attempt() -> Seen[None]:
        troubles.clear()
        now = survey(client, cluster, removed=found.networks)
        with ThreadPoolExecutor(max_workers=max(1, len(now.containers))) as pool:
            troubles.extend(filter(None, pool.map(_remove_container, now.containers)))
        left = survey(client, cluster)
        if not left.containers:  # of a create that never ended, one that outlived its network would be a stranger
            refuse_guests(left, cluster)
            troubles.extend(filter(None, (_remove_network(network) for network in left.networks)))
            left = survey(client, cluster, removed=found.networks)
        names = [str(each.name) for each in left.containers] + [str(each.name) for each in left.networks]
        names += [f"volume {name}" for name in volumes if _volume_left(client, name)]
        return Seen(not names, None, "\n".join([f"left: {', '.join(names)}", *troubles]))

    try:
        wait_for(attempt, within=_REMOVE_SECONDS, what=f"the end of cluster {cluster}")
    except DeadlineExceeded as error:
        raise ClusterError(
            "the cluster could not be removed completely",
            where=cluster,
            fix=f"sandbox down {cluster}   (again; if it persists restart the engine)",
            details=error.details,
        ) from error
    return removed


def node(container: Container, name: str = "") -> Node:
    """Describe a node container. Its address is the one on our network; empty while it is stopped, or not on it.

    Args:
        container: the node's.
        name: what Kubernetes calls the node; as its container when not given.
    """
    networks: dict[str, Any] = container.attrs["NetworkSettings"]["Networks"]
    own: dict[str, Any] = networks.get(network_name(container.labels[KIND_LABEL])) or {}
    address = own.get("IPAddress") or own.get("GlobalIPv6Address") or ""
    role = container.labels.get(ROLE_LABEL, "worker")
    return Node(name or str(container.name), role, address, str(container.id))


def refreshed(client: DockerClient, cluster: Cluster) -> tuple[Node, ...]:
    """The cluster's nodes, with their addresses as they are now."""
    named = {each.container: each.name for each in cluster.nodes}
    return tuple(node(each, named.get(str(each.id), "")) for each in nodes(client, cluster.name))


def nodes(client: DockerClient, cluster: str) -> tuple[Container, ...]:
    """Return our node containers, control planes first; without kind's load balancer."""
    found = survey(client, cluster).containers
    kubernetes = [each for each in found if each.labels.get(ROLE_LABEL) in {"control-plane", "worker"}]
    return tuple(sorted(kubernetes, key=lambda each: (each.labels[ROLE_LABEL], len(str(each.name)), each.name)))


def run(container: Container, command: list[str]) -> tuple[int, str]:
    """Run a command in a node container; its exit code (-1: the engine refused) and its output, both streams."""
    with engine_errors(str(container.name)):
        try:
            code, output = container.exec_run(command)
        except APIError as error:  # stopped or gone meanwhile
            return -1, str(error.explanation)
    text = output if isinstance(output, bytes) else b"".join(output)
    return int(code or 0), text.decode(errors="replace")


def anonymous_volumes(container: Container) -> list[str]:
    """Name the volumes that the engine made for this container alone. A volume that somebody named is never one."""
    host = container.attrs.get("HostConfig") or {}
    named = {bind.partition(":")[0] for bind in host.get("Binds") or []}
    named |= {mount.get("Source", "") for mount in host.get("Mounts") or []}
    names = [mount["Name"] for mount in container.attrs.get("Mounts", []) if mount.get("Type") == "volume"]
    return [name for name in names if _ANONYMOUS.fullmatch(name) and name not in named and not host.get("VolumesFrom")]


def _remove_container(container: Container) -> str:
    """Remove one; return the trouble. "did not receive an exit event" recurs, and the next attempt works."""
    try:
        container.reload()
        if container.status == "paused":  # a paused container cannot be killed on cgroup v1
            container.unpause()
        if freed := thaw(container):
            say(f"{container.name}: thawed {freed} frozen cgroup(s) in it")
        container.remove(force=True, v=True)
    except NotFound:
        return ""
    except APIError as error:
        say(f"{container.name}: {error.explanation}; trying again")
        return f"{container.name}: {error.explanation}"
    return ""


def _remove_network(network: Network) -> str:
    try:
        network.remove()
    except NotFound:
        return ""
    except APIError as error:
        return f"{network.name}: {error.explanation}"
    return ""


def _volume_left(client: DockerClient, name: str) -> bool:
    """Tell whether a volume is still there, after trying to remove it: a killed engine forgets `-v`."""
    try:
        client.volumes.get(name).remove(force=True)
    except NotFound:
        return False
    except APIError:
        return True
    return False
