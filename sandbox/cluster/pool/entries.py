"""What is in the pool: clusters with a record of their own that belong to nobody and whose nodes are paused.

Such a record says what is in the cluster (`pooled`), and `clean.json` beside it what the cluster held as it was put
into the pool, see sandbox/cluster/clean.py. Whoever takes one holds the pool's lock while it changes hands.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from filelock import FileLock, Timeout

from sandbox.cluster import clean, record, teardown
from sandbox.cluster.owner import Owner
from sandbox.cluster.record import Cluster
from sandbox.errors import ClusterError

PREFIX = "pool-"
OLDEST_HOURS = 24.0
LOCK = "_pool"  # no cluster can have that name
_LOCK_SECONDS = 60.0
_FILL_SECONDS = 1800.0


@dataclass(frozen=True)
class Entry:
    """One prepared cluster.

    Attributes:
        name: of its cluster, for as long as it is in the pool.
        key: hash of what is in it.
        contents: what is in it, in words.
        since: when it was put there, in seconds since the epoch.
    """

    name: str
    key: str
    contents: str
    since: float

    @property
    def stale(self) -> bool:
        """Whether it is older than a day: its tokens and leases are."""
        return is_stale(self.since)


def is_stale(since: float) -> bool:
    """Whether a cluster that was prepared then is older than a day."""
    return time.time() - since > OLDEST_HOURS * 3600


@contextmanager
def locked() -> Iterator[None]:
    """Hold the pool while something is taken from it or put back. The lock goes with the process."""
    with FileLock(record.root() / f"{LOCK}.lock", timeout=_LOCK_SECONDS):
        yield


@contextmanager
def filling() -> Iterator[None]:
    """Fill the pool: one command at a time, so that together they do not make too many.

    Raises:
        ClusterError: another one has been at it for half an hour.
    """
    file = record.root() / f"{LOCK}-fill.lock"
    try:
        with FileLock(file, timeout=_FILL_SECONDS):
            yield
    except Timeout as error:
        raise ClusterError("another command fills the pool", where="pool", fix=f"look: fuser {file}") from error


def entries(key: str = "") -> list[Entry]:
    """What waits in the pool, the oldest first; with `key` what has that in it."""
    found = []
    for name in record.names():
        with suppress(ClusterError):
            known = record.find(name)
            if known is not None and known.pooled and known.owner is None and key in {"", known.pooled}:
                there = clean.read(name)
                found.append(Entry(name, known.pooled, there.contents, there.since))
    return sorted(found, key=lambda entry: entry.since)


def drain(*, stale: bool = False) -> list[str]:
    """Remove what waits in the pool, or only what is too old.

    Returns:
        The names of those removed.

    Raises:
        SandboxError: as `down`; what came before it is removed.
    """
    removed = []
    for entry in entries():
        if stale and not entry.stale:
            continue
        with locked():
            known = record.find(entry.name)
            if known is None or not known.pooled:  # leased meanwhile
                continue
            record.save(_taken(known))
        teardown.down(entry.name)
        removed.append(entry.name)
    return removed


def take(key: str, name: str) -> Cluster | None:
    """Take one that has `key` in it out of the pool: from now on it is this process's, and called `name`.

    If this process is killed, the next command removes the cluster: it is never handed out again.

    Returns:
        It, still standing still; None where there is none.
    """
    with locked():
        for entry in entries(key):
            known = record.find(entry.name)
            if known is None or entry.stale:
                continue
            record.save(_taken(known))
            record.hand_over(entry.name, name)
            return record.find(name)
    return None


def _taken(known: Cluster) -> Cluster:
    return replace(known, pooled="", owner=Owner.me())
