"""What nodes carry beside what Kubernetes put there: rules, processes, files, addresses; two looks are compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.cluster import containers
from sandbox.errors import ClusterError

if TYPE_CHECKING:
    from docker.models.containers import Container

_SCRIPT = Path(__file__).with_name("node-traces")
Traces = Mapping[str, Sequence[str]]  # node container -> lines


def take(nodes: Sequence[Container]) -> dict[str, list[str]]:
    """Look at each of these nodes, all at once; about half a second.

    Returns:
        Name of the container -> its lines, sorted: `iptables filter -A INPUT …`, `process kubelet`,
        `file 644 5 1795977644.25 /etc/hosts` (mode, size, last change).

    Raises:
        ClusterError: a node could not be looked at: what is not seen cannot be called clean.
    """
    with ThreadPoolExecutor(max_workers=max(1, len(nodes))) as pool:
        return dict(pool.map(_look, nodes))


def difference(before: Traces, now: Traces) -> list[str]:
    """What is on a node and was not, or was and is not: `solo-control-plane: there since: process stress`."""
    told = []
    for node in sorted({*before, *now}):
        told += [f"{node}: there since: {line}" for line in came(before, now, node)]
        told += [f"{node}: gone: {line}" for line in came(now, before, node)]
    return told


def came(before: Traces, now: Traces, node: str) -> list[str]:
    """The lines of a node that are there now and were not, or not as often."""
    return sorted((Counter(now.get(node, ())) - Counter(before.get(node, ()))).elements())


def processes(node: Container) -> list[tuple[str, int, int]]:
    """Name, start (in ticks since the boot) and number of each process of a node outside of pods, the oldest first."""
    code, said = containers.run(node, ["bash", "-c", _SCRIPT.read_text(encoding="utf-8"), "node-traces", "processes"])
    if code:
        raise ClusterError("the node does not tell its processes", where=str(node.name), details=[said])
    rows = [line.rsplit(" ", 2) for line in said.splitlines()]
    return sorted(((name, int(start), int(number)) for name, start, number in rows), key=lambda each: each[1])


def _look(node: Container) -> tuple[str, list[str]]:
    code, said = containers.run(node, ["bash", "-c", _SCRIPT.read_text(encoding="utf-8")])
    lines = sorted(filter(None, said.splitlines()))
    if code or not any(line.startswith("files of /usr ") for line in lines):
        raise ClusterError("the node does not tell what is on it", where=str(node.name), details=lines[-3:])
    return str(node.name), lines
