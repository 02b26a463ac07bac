"""Take a cluster down, and see that nothing of it is left."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from sandbox.cluster import containers, leftovers, ownership, record
from sandbox.cluster.owner import Owner
from sandbox.errors import ClusterError
from sandbox.host.engine import client, look
from sandbox.progress import say, step


def down(name: str) -> list[str]:
    """Remove the cluster's containers, volumes and network, and its record. An existing cluster is only forgotten.

    Returns:
        What was removed, as `kind name`; empty when there was nothing, which is no error.

    Raises:
        UsageError: that is no name of a cluster.
        NotOurs: something that others made is in the way. Nothing was touched.
        ClusterError: it was made on another engine, or something is left.
        EnvironmentMissing: the engine does not answer.
    """
    with record.locked(name), containers.engine_errors(name):
        known = _known(name)
        if known == "existing":
            record.forget(name)
            say(f"{name}: forgotten; the cluster itself is not touched")
            return [f"record {name}"]
        if known == "" and look().state == "absent":
            return []
        docker = client()
        found = ownership.survey(docker, name)
        removed: list[str] = []
        ownership.refuse_strangers(found, name)  # before anything is said of removing
        ownership.refuse_guests(found, name)
        if not found.empty or record.creating(name):
            _claim(name)
            with step(f"{name}: remove {len(found.containers)} container(s) and {len(found.networks)} network(s)"):
                removed = containers.remove(docker, name)
        if record.home(name).exists():
            record.forget(name)
            removed.append(f"record {name}")
        elif not removed:
            say(f"{name}: there is nothing to remove")
    leftovers.reap(besides=name)
    return removed


def _claim(name: str) -> None:
    """Have the cluster end with this command: should it be killed halfway, what is left is a leftover."""
    known = None
    with suppress(ClusterError):
        known = record.find(name)
    if known is not None and not record.creating(name):  # else it is a leftover already
        record.save(replace(known, owner=Owner.me()))


def _known(name: str) -> str:
    """Return the recorded provider; `broken` for a record that cannot be read, empty without one."""
    try:
        known = record.find(name)
    except ClusterError:
        return "broken"
    return known.provider if known else ""
