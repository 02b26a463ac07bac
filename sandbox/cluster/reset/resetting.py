"""The reset of a whole cluster: its steps, turn by turn, until a look at all of it finds nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count, takewhile
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
_SAME_LOOKS, _SAME_SECONDS = 3, 12.0

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
class _Look:
    """What one turn found: what is not as it was, and pods and events that are on their way."""

    at: float
    changed: list[str]
    pending: list[str]


@dataclass(frozen=True)
class Proven:
    """A cluster that was reset, and found clean.

    Attributes:
        found: what was not as it had been, as it was found first; without pods and events, which come and go.
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
    memory, numbers, looks = Memory(), count(1), list[_Look]()

    def attempt() -> Seen[Clean]:
        turn = Turn(cluster, before, kube, nodes, next(numbers), memory)
        try:
            looks.append(_turned(turn))
        except ClusterError as error:  # such as a kind that went between two questions
            return Seen(False, before, str(error))
        if left := [*looks[-1].changed, *looks[-1].pending]:
            if api.lost(turn) or _hopeless(looks):
                raise DeadlineExceeded("nothing will change any more", details=left)
            return Seen(False, before, "\n".join(left))
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
    return Proven(looks[0].changed, clean_now)


def _turned(turn: Turn) -> _Look:
    """Go through the steps; what was not clean before them."""
    for step in STEPS:
        step(turn)
    there = [*turn.objects.values()]
    changed = clean.difference(turn.clean, there, turn.traces, made=turn.memory.made)
    return _Look(time.monotonic(), changed, api.left(turn))


def _hopeless(looks: Sequence[_Look]) -> bool:
    """Whether nothing is on its way, and all that is left has been so for a while: no step can help it."""
    last = looks[-1]
    same = [*takewhile(lambda look: not look.pending and look.changed == last.changed, reversed(looks))]
    return len(same) > _SAME_LOOKS and last.at - same[-1].at > _SAME_SECONDS
