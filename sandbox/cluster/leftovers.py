"""Clear away what killed commands left: clusters half-made, and clusters whose owner is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.cluster import containers, ownership, record
from sandbox.cluster.snapshots import keeping
from sandbox.errors import ClusterError, SandboxError
from sandbox.host.engine import client, look
from sandbox.progress import say

if TYPE_CHECKING:
    from docker import DockerClient


def reap(*, besides: str = "", strict: bool = False) -> list[str]:
    """Remove every leftover of this state folder; kept clusters and those another command works on stay.

    A leftover is a create that began and never ended, a cluster whose owner process is gone, a network or a volume with
    this state folder's label and without a record, or what there is of a snapshot without a file. What others made
    stays, and so does a cluster made on another engine.

    Args:
        besides: a cluster the caller deals with itself.
        strict: one that cannot be removed is an error of the caller's, too.

    Returns:
        What was removed: names of clusters, and `snapshot <name>`. One that cannot be removed is said, and does not
        stop the others.

    Raises:
        SandboxError: with `strict`, why the first that could not be removed stays.
    """
    if look().state != "running":
        return []
    with containers.engine_errors():
        docker = client()
        found = names(docker)
    reaped, kept = [], list[SandboxError]()
    for name in (each for each in found if each != besides):
        try:
            if leftover(name) and remove(docker, name):
                reaped.append(name)
        except SandboxError as error:
            say(f"leftover {error}")
            kept.append(error)
    with containers.engine_errors():
        reaped += [f"snapshot {name}" for name in keeping.reap(docker)]
    if strict and kept:
        raise kept[0]
    return reaped


def names(docker: DockerClient) -> list[str]:
    """Name every cluster of this state folder that has a record, or something in the engine."""
    return sorted({*record.names(), *(set(ownership.ours_in_engine(docker)) - record.held())})


def leftover(name: str) -> bool:
    known = record.find(name)
    if known is None or record.creating(name):
        return True
    return known.provider == "kind" and known.owner is not None and not known.owner.alive()


def remove(docker: DockerClient, name: str) -> bool:
    """Remove it unless a command holds it, or it has changed since it was looked at."""
    try:
        with record.locked(name, wait=False), containers.engine_errors(name):
            if not leftover(name):
                return False
            containers.remove(docker, name)
            record.forget(name)
            say(f"{name}: left by a command that was killed; removed")
            return True
    except ClusterError as error:
        if error.what.startswith("another command"):
            return False
        raise
