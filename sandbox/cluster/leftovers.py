"""Clear away what killed commands left: clusters half-made, and clusters whose owner is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.cluster import containers, record
from sandbox.errors import ClusterError, SandboxError
from sandbox.host.engine import client, look
from sandbox.progress import say

if TYPE_CHECKING:
    from docker import DockerClient


def reap(*, besides: str = "") -> list[str]:
    """Remove every leftover of this state folder; kept clusters and those another command works on stay.

    A leftover is a create that began and never ended, a cluster whose owner process is gone, or a labelled network
    (with whatever is on it) without a record.

    Args:
        besides: a cluster the caller deals with itself.

    Returns:
        The names of the clusters removed. One that cannot be removed is said, and does not stop the caller.
    """
    if look().state != "running":
        return []
    with containers.engine_errors():
        docker = client()
        found = {*record.names(), *containers.ours_in_engine(docker)}
    reaped = []
    for name in sorted(found - {besides}):
        try:
            if leftover(name) and _remove(docker, name):
                reaped.append(name)
        except SandboxError as error:
            say(f"leftover {name}: {error.what}")
    return reaped


def leftover(name: str) -> bool:
    known = record.find(name)
    if known is None or record.creating(name):
        return True
    return known.provider == "kind" and known.owner is not None and not known.owner.alive()


def _remove(docker: DockerClient, name: str) -> bool:
    """Remove it unless a command holds it, or it has changed since it was looked at."""
    try:
        with record.locked(name, wait=False), containers.engine_errors(name):
            if not leftover(name):
                return False
            say(f"{name}: left by a command that was killed; removed")
            record.end_creation(name)
            containers.remove(docker, name)
            record.forget(name)
            return True
    except ClusterError as error:
        if error.what.startswith("another command"):
            return False
        raise
