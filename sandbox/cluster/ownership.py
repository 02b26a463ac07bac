"""What of an engine is ours under a cluster's name: by the record, never by a network or a name alone.

kind labels containers with its cluster's name only, and anybody may connect a container to any network. So a container
is ours when the record holds its id. Of a create that never ended no ids are known: there it is kind's label, made
after the network of that create, and on that network alone.
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from docker.errors import NotFound

from sandbox import paths
from sandbox.cluster import record
from sandbox.errors import ClusterError, NotOurs
from sandbox.host.engine import Identity, identity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from docker import DockerClient
    from docker.models.containers import Container
    from docker.models.networks import Network
    from docker.models.volumes import Volume

    from sandbox.cluster.record import Claim

CLUSTER_LABEL = "ai-k8s-sandbox.cluster"
RUN_LABEL = "ai-k8s-sandbox.run"
STATE_LABEL = "ai-k8s-sandbox.state"
KIND_LABEL = "io.x-k8s.kind.cluster"


@dataclass(frozen=True)
class Guest:
    """A container on a network of ours that is not ours.

    Attributes:
        container: its name.
        network: the network's name.
        cluster: the kind cluster that it says it is of; empty for one of no cluster.
    """

    container: str
    network: str
    cluster: str


@dataclass(frozen=True)
class Found:
    """What the engine holds under one cluster name.

    Attributes:
        containers: ours, running or not.
        networks: ours, by our labels.
        volumes: ours, by our labels: /var of its nodes.
        guests: who else is on those networks. They are in the way of a removal, and of nothing else.
        strangers: what has the cluster's name and is neither ours nor on a network of ours.
    """

    containers: tuple[Container, ...]
    networks: tuple[Network, ...]
    guests: tuple[Guest, ...]
    strangers: tuple[str, ...]
    volumes: tuple[Volume, ...] = ()

    @property
    def empty(self) -> bool:
        return not self.containers and not self.networks and not self.volumes


def survey(client: DockerClient, cluster: str, *, removed: Sequence[Network] = ()) -> Found:
    """Find everything under that name, and tell what is ours from what is not.

    Args:
        client: of the engine.
        cluster: its name.
        removed: networks of ours that may be gone by now: what kind made in them at the last moment is ours still.

    Raises:
        ClusterError: the cluster was made on another engine.
    """
    claim = record.claim(cluster)
    if (problem := elsewhere(client, cluster, claim)) is not None:
        raise problem
    cluster = claim.label or cluster
    labelled = client.networks.list(filters={"label": f"{CLUSTER_LABEL}={cluster}"})
    state = str(paths.state_dir())
    networks = [network for network in labelled if _labels(network).get(STATE_LABEL) == state]
    strangers = [
        f"network {network.name} belongs to the sandbox state in {_labels(network).get(STATE_LABEL)}"
        for network in labelled
        if network not in networks
    ]
    kept = client.volumes.list(filters={"label": f"{CLUSTER_LABEL}={cluster}"})
    volumes = tuple(each for each in kept if _labels(each).get(STATE_LABEL) == state)
    filters: list[dict[str, str | list[str]]] = [
        {"label": f"{label}={cluster}"} for label in (KIND_LABEL, CLUSTER_LABEL)
    ]
    # by name too: one that never started has no id of its network yet
    filters += [{"network": [str(network.id), str(network.name)]} for network in networks]
    ours, guests = [], []
    for each in _containers(client, filters):
        if _is_ours(each, cluster, claim, [*networks, *removed]):
            ours.append(each)
        elif joined := [str(network.name) for network in networks if attached(each, network)]:
            guests.append(Guest(str(each.name), joined[0], each.labels.get(KIND_LABEL, "")))
        elif each.labels.get(KIND_LABEL) == cluster:
            on = ", ".join(each.attrs["NetworkSettings"]["Networks"]) or "no network"
            strangers.append(f"container {each.name} is on {on}, not on one of ours")
    return Found(tuple(ours), tuple(networks), tuple(guests), tuple(strangers), volumes)


def attached(container: Container, network: Network) -> bool:
    """Tell whether a container is on that very network, and not on another one of the same name."""
    there = container.attrs["NetworkSettings"]["Networks"].get(network.name)
    return there is not None and there.get("NetworkID") in {network.id, "", None}


def ours_in_engine(client: DockerClient) -> list[str]:
    """Name every cluster of which a network or a volume carries this state folder's label, recorded or not."""
    filters = {"label": f"{STATE_LABEL}={paths.state_dir()}"}
    things: list[Network | Volume] = [*client.networks.list(filters=filters)]
    things += client.volumes.list(filters=filters)
    return sorted({_labels(thing).get(CLUSTER_LABEL, "") for thing in things} - {""})


def refuse_strangers(found: Found, cluster: str) -> None:
    """Raise NotOurs when something has the cluster's name and is not ours."""
    if found.strangers:
        raise NotOurs(
            "there is a cluster of this name that is not this sandbox's; it is left alone",
            where=cluster,
            fix="choose another name with --name, or remove that one with the tool that made it",
            details=list(found.strangers),
        )


def refuse_guests(found: Found, cluster: str) -> None:
    """Raise NotOurs when somebody else's containers are on the cluster's network, which is to be removed."""
    if not found.guests:
        return
    kept = "nothing of it is removed" if found.containers else "its own containers are gone, the network stays"
    details, todo = [], []
    for guest in found.guests:
        if guest.cluster == cluster:
            details.append(f"container {guest.container}: labelled as of this cluster, and not in its record")
            todo.append(f"docker rm --force --volumes {guest.container}   (if it is yours to remove)")
        else:
            of = f", of kind cluster {guest.cluster}" if guest.cluster else ""
            details.append(f"container {guest.container}{of}")
            todo.append(f"docker network disconnect {guest.network} {guest.container}")
    raise NotOurs(
        f"on its network is what this sandbox did not make; that is left alone, and {kept}",
        where=cluster,
        fix="\n       ".join([*todo, "then the same command again"]),
        details=details,
    )


def cut_off(found: Found) -> list[str]:
    """Name our containers that are on no network of ours: nothing in them answers."""
    networks = found.networks
    return [str(each.name) for each in found.containers if not any(attached(each, network) for network in networks)]


def refuse_cut_off(found: Found, cluster: str) -> None:
    """Raise ClusterError when a node of the cluster was taken off its network."""
    if names := cut_off(found):
        raise ClusterError(
            "it was taken off its network, and cannot be reached",
            where=cluster,
            fix=f"sandbox down {cluster}, then sandbox up",
            details=[f"{name} is not on the cluster's network" for name in names],
        )


def elsewhere(client: DockerClient, cluster: str, claim: Claim) -> ClusterError | None:
    """Return the error that tells that the engine which answers is not the one that the cluster was made on."""
    if not claim.known:
        return None
    where = f"if that engine is gone for good: rm -r {record.home(cluster)}"
    if claim.engine is None:
        if _holds(client, cluster, claim):
            return None
        return ClusterError(
            "its record does not say on which engine it was made, and the one that answers holds nothing of it",
            where=cluster,
            fix=f"set DOCKER_HOST or DOCKER_CONTEXT to that engine, then the same command again; {where}",
            details=["an older version wrote the record, or it cannot be read", "nothing is touched"],
        )
    here = identity(client)
    # the built-in network could be made anew; what we made is told by its own ids
    if claim.engine.same(here) or (claim.engine.id == here.id and _holds(client, cluster, claim)):
        return None
    return ClusterError(
        "made on another engine than the one that answers",
        where=cluster,
        fix=f"{_way_back(claim.engine, here)}, then the same command again; {where}",
        details=[f"made on {_told(claim.engine)}", f"now answers {_told(here)}", "nothing is touched"],
    )


def _way_back(made_on: Identity, here: Identity) -> str:
    if made_on.url == here.url:
        return f"start the engine that was at {made_on.url}, or set DOCKER_HOST or DOCKER_CONTEXT to where it is now"
    return f"export DOCKER_HOST={made_on.url}   (or DOCKER_CONTEXT)"


def _told(engine: Identity) -> str:
    return f"{engine.id} (data {engine.data[:12]}) at {engine.url}"


def _holds(client: DockerClient, cluster: str, claim: Claim) -> bool:
    """Tell whether the engine has anything that can be of this record only."""
    cluster = claim.label or cluster
    networks = client.networks.list(filters={"label": f"{CLUSTER_LABEL}={cluster}"})
    if any(_carries_ours(_labels(network), cluster, claim.runs) for network in networks):
        return True
    for identifier in claim.containers:
        try:
            client.containers.get(identifier)
        except NotFound:
            continue
        return True
    return False


def _is_ours(container: Container, cluster: str, claim: Claim, networks: Sequence[Network]) -> bool:
    labels = container.labels
    if labels.get(KIND_LABEL) != cluster:
        return _carries_ours(labels, cluster, claim.runs)
    if container.id in claim.containers:
        return True
    made_in = [network for network in networks if claim.making and _labels(network).get(RUN_LABEL) == claim.making]
    return any(_made_by_kind(container, network) for network in made_in)


def _made_by_kind(container: Container, network: Network) -> bool:
    """Tell whether kind made it for the create that made this network: later, and on this network alone."""
    alone = attached(container, network) and len(container.attrs["NetworkSettings"]["Networks"]) == 1
    return alone and _time(container.attrs["Created"]) >= _time(network.attrs["Created"])


def _carries_ours(labels: dict[str, str], cluster: str, runs: frozenset[str]) -> bool:
    """Tell whether these are the labels that we give: cluster, state folder, and a run that the record knows."""
    ours = (labels.get(CLUSTER_LABEL), labels.get(STATE_LABEL)) == (cluster, str(paths.state_dir()))
    return ours and labels.get(RUN_LABEL) in runs


def _containers(client: DockerClient, filters: Sequence[Mapping[str, str | list[str]]]) -> list[Container]:
    """Look at every container that passes one of the filters, each once."""
    lists = [client.containers.list(all=True, sparse=True, filters={**each}) for each in filters]
    found = []
    for identifier in dict.fromkeys(str(each.id) for each in itertools.chain(*lists)):
        with suppress(NotFound):  # gone meanwhile
            found.append(client.containers.get(identifier))
    return found


def _labels(thing: Network | Volume) -> dict[str, str]:
    return thing.attrs.get("Labels") or {}


def _time(text: str) -> datetime:
    """The engine's time, of nanoseconds; both that are compared are of one clock."""
    return datetime.fromisoformat(text)
