"""The reset of a whole cluster: its steps, turn by turn, until a look at all of it finds nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING

from sandbox.cluster import clean, containers
from sandbox.cluster.reset import api, machines
from sandbox.cluster.reset.turn import Memory, Turn
from sandbox.errors import ClusterError, DeadlineExceeded
from sandbox.host.engine import client
from sandbox.kube import Kube, Seen, inventory, wait_for

if TYPE_CHECKING:
    from sandbox.cluster.clean import Clean
    from sandbox.cluster.record import Cluster

_SECONDS = 60.0

Step = Callable[[Turn], None]
STEPS: tuple[Step, ...] = (
    machines.running,
    machines.packet_filter,  # from here on the API can be reached
    machines.traffic_control,
    machines.addresses,
    machines.processes,
    machines.stopped,
    api.gates,  # from here on it refuses nothing
    api.put_back,
    api.finalizers,
    api.spaces,
    api.volumes,
    api.objects,
    api.kinds,
    api.pods,
    api.events,
    machines.files,  # last: what used them has gone
)


class Unclean(ClusterError):
    """A cluster could not be proven clean; `details` holds all that is not as it was."""


@dataclass(frozen=True)
class Proven:
    """A cluster that was reset, and found clean.

    Attributes:
        found: what was not as it had been, as it was found first.
        clean: what it holds now: as before, where objects were put back with other UIDs.
    """

    found: list[str]
    clean: Clean


def reset(cluster: Cluster, before: Clean, *, within: float = _SECONDS) -> Proven:
    """Bring a cluster back to what it held when it was clean, and prove it by a look that finds no difference.

    Pods in namespaces of ours are ended, and made anew by their controllers: nothing that ran before runs on.

    Args:
        cluster: one of ours; the caller holds it, and nobody else works on it.
        before: what it held.
        within: seconds for all turns together.

    Raises:
        Unclean: something still is not, and what; or not all of it could be looked at. Throw the cluster away.
    """
    nodes = containers.nodes(client(), cluster.name)
    kube = Kube.connect(cluster.kubeconfig, cluster.context)
    memory, numbers, found = Memory(), count(1), list[list[str]]()

    def attempt() -> Seen[Clean]:
        turn = Turn(cluster, before, kube, nodes, next(numbers), memory)
        try:
            found.append(_turned(turn))
        except ClusterError as error:  # such as a kind that went between two questions
            return Seen(False, before, str(error))
        if found[-1]:
            return Seen(False, before, "\n".join(found[-1]))
        now = inventory.of(turn.objects.values())
        return Seen(True, replace(before, inventory=now, traces=turn.traces, bodies=turn.objects), "")

    try:
        clean_now = wait_for(attempt, within=within, what="a clean cluster")
    except DeadlineExceeded as error:
        raise Unclean(
            "it could not be reset: this is not as it was",
            where=cluster.name,
            details=error.details,
            fix=f"sandbox down {cluster.name}, then sandbox up {cluster.name}",
        ) from error
    return Proven(found[0], clean_now)


def _turned(turn: Turn) -> list[str]:
    """Go through the steps; what was not clean before them."""
    for step in STEPS:
        step(turn)
    there = [*turn.objects.values()]
    return clean.difference(turn.clean, there, turn.traces, made=turn.memory.made) + api.left(turn)
