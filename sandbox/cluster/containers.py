"""A cluster as the engine sees it: containers and their volumes on one labelled network, all provably ours.

kind labels node containers with its cluster name only, so ownership hangs on the network: every sandbox has one of
its own, labelled with the run and with the state folder it belongs to.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from docker.errors import APIError, DockerException, NotFound
from docker.types import IPAMConfig, IPAMPool
from requests.exceptions import RequestException

from sandbox import paths
from sandbox.cluster.freezer import thaw
from sandbox.cluster.record import Node
from sandbox.errors import ClusterError, DeadlineExceeded, EnvironmentMissing
from sandbox.kube.wait import Seen, wait_for
from sandbox.progress import say

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container
    from docker.models.networks import Network

CLUSTER_LABEL = "ai-k8s-sandbox.cluster"
RUN_LABEL = "ai-k8s-sandbox.run"
STATE_LABEL = "ai-k8s-sandbox.state"
KIND_LABEL = "io.x-k8s.kind.cluster"
ROLE_LABEL = "io.x-k8s.kind.role"
_MTU = "com.docker.network.driver.mtu"
_REMOVE_SECONDS = 60.0
# what the engine, or the way to it, gives for an answer when it does not do what it was asked
ENGINE_ERRORS = (DockerException, RequestException, ConnectionError)


@dataclass(frozen=True)
class Found:
    """What the engine holds under one cluster name.

    Attributes:
        containers: running or not, by kind's label or on our network.
        networks: labelled with this cluster's name.
        strangers: why this is not ours; empty when it is, or when there is nothing.
    """

    containers: tuple[Container, ...]
    networks: tuple[Network, ...]
    strangers: tuple[str, ...]

    @property
    def empty(self) -> bool:
        return not self.containers and not self.networks


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


def survey(client: DockerClient, cluster: str) -> Found:
    """Find everything under that name, and say whether it is provably ours."""
    networks = client.networks.list(filters={"label": f"{CLUSTER_LABEL}={cluster}"})
    by_kind = client.containers.list(all=True, ignore_removed=True, filters={"label": f"{KIND_LABEL}={cluster}"})
    containers = {each.id: each for each in by_kind}
    for network in networks:
        for each in client.containers.list(all=True, ignore_removed=True, filters={"network": str(network.id)}):
            containers[each.id] = each
    state = str(paths.state_dir())
    strangers = [
        f"network {network.name} belongs to the sandbox state in {network.attrs['Labels'].get(STATE_LABEL)}"
        for network in networks
        if network.attrs["Labels"].get(STATE_LABEL) != state
    ]
    ours = {network.name for network in networks}
    strangers += [
        f"container {each.name} is on {', '.join(_networks(each)) or 'no network'}, not on one of ours"
        for each in by_kind
        if not ours & _networks(each)
    ]
    return Found(tuple(containers.values()), tuple(networks), tuple(strangers))


def ours_in_engine(client: DockerClient) -> list[str]:
    """Name every cluster whose network carries this state folder's label, recorded or not."""
    networks = client.networks.list(filters={"label": f"{STATE_LABEL}={paths.state_dir()}"})
    return sorted({network.attrs["Labels"].get(CLUSTER_LABEL, "") for network in networks} - {""})


def refuse_strangers(found: Found, cluster: str) -> None:
    """Raise ClusterError unless all that was found is ours."""
    if found.strangers:
        raise ClusterError(
            "there is a cluster of this name that is not this sandbox's; it is left alone",
            where=cluster,
            fix="choose another name with --name, or remove that one with the tool that made it",
            details=list(found.strangers),
        )


def remove(client: DockerClient, cluster: str) -> list[str]:
    """Remove containers with their volumes, then networks; look again until nothing is left.

    Returns:
        What was removed, as `kind name`.

    Raises:
        ClusterError: it is not ours, or something is left after a minute.
    """
    found = survey(client, cluster)
    refuse_strangers(found, cluster)
    volumes = [name for each in found.containers for name in _volumes(each)]
    removed = [f"container {each.name}" for each in found.containers]
    removed += [f"network {network.name}" for network in found.networks]
    troubles: list[str] = []

    def attempt() -> Seen[None]:
        troubles.clear()
        now = survey(client, cluster)
        with ThreadPoolExecutor(max_workers=max(1, len(now.containers))) as pool:
            troubles.extend(filter(None, pool.map(_remove_container, now.containers)))
        left = survey(client, cluster)
        if not left.containers:  # one that outlived its network would be taken for somebody else's
            troubles.extend(filter(None, (_remove_network(network) for network in left.networks)))
            left = survey(client, cluster)
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


def node(container: Container) -> Node:
    """Describe a node container. Its address is the one on our network; empty while it is stopped."""
    networks: dict[str, Any] = container.attrs["NetworkSettings"]["Networks"]
    first: dict[str, Any] = next(iter(networks.values()), {})
    address = first.get("IPAddress") or first.get("GlobalIPv6Address") or ""
    role = container.labels.get(ROLE_LABEL, "worker")
    return Node(str(container.name), role, address, str(container.id))


def nodes(client: DockerClient, cluster: str) -> tuple[Container, ...]:
    """Return the node containers, control planes first; without kind's load balancer."""
    found = client.containers.list(all=True, ignore_removed=True, filters={"label": f"{KIND_LABEL}={cluster}"})
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


def _networks(container: Container) -> set[str]:
    return set(container.attrs["NetworkSettings"]["Networks"])


def _volumes(container: Container) -> list[str]:
    return [mount["Name"] for mount in container.attrs.get("Mounts", []) if mount.get("Type") == "volume"]


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
