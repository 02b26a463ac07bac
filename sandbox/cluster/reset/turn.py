"""One turn of a reset: a look at nodes and API, each taken once and only when a step needs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from sandbox.cluster import clean, traces
from sandbox.kube import Kube, Object, inventory

if TYPE_CHECKING:
    from docker.models.containers import Container

    from sandbox.cluster.clean import Clean
    from sandbox.cluster.record import Cluster
    from sandbox.cluster.traces import Traces
    from sandbox.kube.inventory import Difference
    from sandbox.kube.resources import Objects

SECOND = 2  # the turn from which on nobody is asked to end in order any more


@dataclass
class Memory:
    """What a reset knows from one turn to the next.

    Attributes:
        old: UIDs of the pods and events that were there when it began.
        made: names of the objects that it put back: they have another UID than before.
    """

    old: set[str] | None = None
    made: set[str] = field(default_factory=set)


@dataclass
class Turn:
    """One turn.

    Attributes:
        cluster: that is reset.
        clean: what it held when it was clean.
        kube: its API.
        nodes: its containers.
        number: of this turn, from 1.
        memory: of all turns.
    """

    cluster: Cluster
    clean: Clean
    kube: Kube
    nodes: Sequence[Container]
    number: int
    memory: Memory

    @cached_property
    def traces(self) -> Traces:
        """What the nodes carry, as it was before this turn changed anything of it."""
        return traces.take(self.nodes)

    @cached_property
    def objects(self) -> dict[str, Object]:
        """All objects by name, as they were before this turn changed any."""
        return {inventory.name_of(thing): thing for thing in inventory.everything(self.kube)}

    @cached_property
    def events(self) -> Objects:
        """All events."""
        return self.kube.list("v1", "Event")

    @cached_property
    def difference(self) -> Difference:
        """Which objects are not as they were."""
        return clean.compare(self.clean, [*self.objects.values()], made=self.memory.made)

    @property
    def came(self) -> list[Object]:
        """The objects that were not there."""
        return [self.objects[name] for name in self.difference.added]

    def lines(self, *prefixes: str) -> Iterator[tuple[Container, str]]:
        """Each node, and each line of its traces that was not there and begins like that."""
        for node in self.nodes:
            for line in traces.came(self.clean.traces, self.traces, str(node.name)):
                if line.startswith(prefixes):
                    yield node, line
