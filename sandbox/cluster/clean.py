"""What a cluster held when it was clean: all objects of its API, and what its nodes carry. `clean.json` keeps it.

It stands beside the cluster's record. `sandbox up` and `sandbox pool fill` write it, a lease and a reset compare with
it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sandbox.cluster import record, traces
from sandbox.cluster.traces import Traces
from sandbox.errors import ClusterError
from sandbox.kube import Kube, Object, inventory
from sandbox.kube.inventory import Difference, Inventory

if TYPE_CHECKING:
    from docker.models.containers import Container

    from sandbox.kube.resources import Objects

_FILE = "clean.json"


@dataclass(frozen=True)
class Clean:
    """What a cluster held when it was clean.

    Attributes:
        contents: what was in it, in words.
        since: when it was looked at, in seconds since the epoch.
        inventory: of its API.
        traces: of its nodes.
        bodies: its objects themselves, by the names that they have in the inventory.
        endpoints: where its stacks answer, as port and path on the first node: `30080/v1/models`.
        source: what `sandbox pool fill` was asked for; empty for a cluster that was never in the pool.
    """

    contents: str
    since: float
    inventory: Inventory
    traces: Traces
    bodies: Mapping[str, Object] = field(default_factory=dict)
    endpoints: Sequence[str] = ()
    source: str = ""


def take(
    kube: Kube, nodes: Sequence[Container], contents: str, *, endpoints: Sequence[str] = (), source: str = ""
) -> Clean:
    """Look at API and nodes at once; about half a second.

    Raises:
        ClusterError: not all of it can be looked at: what is not seen cannot be called clean.
    """
    things, there = look(kube, nodes)
    bodies = {inventory.name_of(thing): thing for thing in things}
    return Clean(contents, time.time(), inventory.of(things), there, bodies, endpoints, source)


def look(kube: Kube, nodes: Sequence[Container]) -> tuple[Objects, Traces]:
    """All objects, and what the nodes carry.

    Raises:
        ClusterError: as `take`.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        there = pool.submit(traces.take, nodes)
        return inventory.everything(kube), there.result()


def difference(clean: Clean, things: Objects, there: Traces, *, made: Collection[str] = ()) -> list[str]:
    """What is not as it was, a line each; empty for a cluster that is clean.

    Args:
        clean: as it was.
        things: all objects that it holds now.
        there: what its nodes carry now.
        made: names of objects that were put back, and so have another UID.
    """
    found = compare(clean, things, made=made)
    bodies = {inventory.name_of(thing): thing for thing in things}
    changed = [f"{name}{_where(clean.bodies.get(name), bodies.get(name))}" for name in found.changed]
    return replace(found, changed=tuple(changed)).words + traces.difference(clean.traces, there)


def compare(clean: Clean, things: Objects, *, made: Collection[str] = ()) -> Difference:
    """Which objects are not as they were; see `difference`."""
    now = inventory.of(things)
    return inventory.difference(clean.inventory, _same_but_for_uid(clean.inventory, now, made))


def write(name: str, clean: Clean) -> None:
    """Keep it beside the record of that name."""
    data = {
        "contents": clean.contents,
        "since": clean.since,
        "inventory": {"objects": {**clean.inventory.objects}, "pods": {**clean.inventory.pods}},
        "traces": {node: [*lines] for node, lines in clean.traces.items()},
        "bodies": {**clean.bodies},
        "endpoints": [*clean.endpoints],
        "source": clean.source,
    }
    path = record.home(name) / _FILE
    path.touch(mode=0o600)  # Secrets are among the objects
    path.write_text(json.dumps(data), encoding="utf-8")


def read(name: str) -> Clean:
    """What the cluster of that name held when it was clean.

    Raises:
        ClusterError: it is not known.
    """
    try:
        data = json.loads((record.home(name) / _FILE).read_text(encoding="utf-8"))
        return Clean(**data | {"inventory": Inventory(**data["inventory"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClusterError(
            "it is not known what it held when it was clean",
            where=name,
            fix=f"sandbox down {name}, then sandbox up: that writes it down",
        ) from error


def _same_but_for_uid(before: Inventory, now: Inventory, made: Collection[str]) -> Inventory:
    """The inventory with the UIDs of before, for what was put back and is else as it was."""
    old = {name: before.objects.get(name, "") for name in made if name in now.objects}
    same = {name: told for name, told in old.items() if told.split()[1:] == now.objects[name].split()[1:]}
    return replace(now, objects={**now.objects, **same})


def _where(before: Object | None, now: Object | None) -> str:
    """Which fields of an object changed: `: spec.taints`; empty where it is not known."""
    if before is None or now is None:
        return ""
    found = inventory.paths_changed(inventory.asked(before), inventory.asked(now))
    return ": " + (", ".join(found) or "it is another one of that name")
