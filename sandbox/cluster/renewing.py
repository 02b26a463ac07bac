"""A clean cluster under a name that is in use: reset and proven, or else made anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sandbox.cluster import bringup, clean, record, snapshots, teardown
from sandbox.cluster.record import Cluster
from sandbox.cluster.reset import Unclean, reset
from sandbox.errors import UsageError
from sandbox.progress import say, step
from sandbox.spec.cluster import ClusterSpec


@dataclass(frozen=True)
class Renewed:
    """What became of a cluster.

    Attributes:
        name: its own.
        way: `reset`, or `replaced` by a new one.
        found: what was not as it had been when the cluster was clean.
    """

    name: str
    way: Literal["reset", "replaced"]
    found: list[str]


def renew(name: str) -> Renewed:
    """Bring a cluster back to what it held as it came up. One that cannot be proven clean is replaced by a new one.

    Raises:
        UsageError: there is none of that name, or it is somebody else's.
        ClusterError: it is not known what it held, and nothing was changed; or no new one came up.
    """
    known = record.get(name)
    if known.provider != "kind":
        raise UsageError("is an existing cluster: it is reset by whoever runs it", where=name)
    before = clean.read(name)
    try:
        with record.locked(name), step(f"{name}: reset"):
            done = reset(known, before)
            clean.write(name, done.clean)
        return Renewed(name, "reset", done.found)
    except Unclean as error:
        say(f"{error.where}: {error.what}; it is made anew")
        _replace(known)
        return Renewed(name, "replaced", error.details)


def _replace(known: Cluster) -> None:
    """Make it anew, from a snapshot of what was in it where there is one."""
    teardown.down(known.name)
    kept = snapshots.find(known.origin.key) if known.origin.key else None
    if kept is not None:
        bringup.restore(kept.name, known.name)
    else:
        bringup.up(ClusterSpec.model_validate(known.spec), name=known.name)
