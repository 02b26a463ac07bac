"""What a pool may take of this machine: never the last 2 GiB of memory, never the last 5 GiB of the engine's disk."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import psutil

from sandbox.errors import EnvironmentMissing
from sandbox.host import checks
from sandbox.host.engine import look

if TYPE_CHECKING:
    from sandbox.kube.preparation import Preparation

_GIB = 1 << 30
_MEMORY_LEFT, _DISK_LEFT = 2.0, 5.0
# of a cluster that stands still, as measured: a control plane, each further node, each pod that serves
_PLANE_GIB, _NODE_GIB, _STACK_GIB = 0.6, 0.2, 0.3
_NODE_DISK_GIB = 0.3  # of each node: etcd, logs and what its containers write


def refuse_too_many(what: Preparation, count: int) -> None:
    """Check that this machine can carry so many more of them.

    Raises:
        EnvironmentMissing: it would be left with too little memory or disk; nothing was made.
    """
    if count < 1:
        return
    memory = _PLANE_GIB + _NODE_GIB * (len(what.spec.nodes) - 1) + _STACK_GIB * len(what.stacks)
    _refuse("memory", count, memory, psutil.virtual_memory().available / _GIB, _MEMORY_LEFT)
    free = disk_free()
    if free is not None:
        _refuse("disk", count, _NODE_DISK_GIB * len(what.spec.nodes), free, _DISK_LEFT)


def why_full() -> str:
    """Why nothing more may wait in the pool on this machine, in words; empty where it may."""
    memory, disk = psutil.virtual_memory().available / _GIB, disk_free()
    if memory < _MEMORY_LEFT:
        return f"{memory:.1f} GiB of memory are free, less than {_MEMORY_LEFT:.0f} GiB"
    if disk is not None and disk < _DISK_LEFT:
        return f"{disk:.1f} GiB of disk are free, less than {_DISK_LEFT:.0f} GiB"
    return ""


def disk_free() -> float | None:
    """GiB free where the engine keeps its data; None where that is not on this machine."""
    root = checks.engine_root(look())
    return shutil.disk_usage(root).free / _GIB if root else None


def _refuse(kind: str, count: int, each: float, free: float, rest: float) -> None:
    if free - count * each >= rest:
        return
    most = max(0, int((free - rest) / each))
    raise EnvironmentMissing(
        f"{count} more clusters take about {count * each:.1f} GiB of {kind}, and {free:.1f} GiB are free: "
        f"less than {rest:.0f} GiB would be left",
        where="pool",
        fix=f"make room, or prepare {most} more at most" if most else "make room: sandbox pool drain, sandbox down",
    )
