"""What a run left behind, looked for once it has cleared up: processes, and objects on a cluster that stays.

What belongs to a cluster that goes away with the run, `down` itself looks for. A run that left something is no pass.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress

import psutil

from sandbox.errors import ClusterError, DeadlineExceeded, Unproven
from sandbox.host.mark import MARK
from sandbox.kube import Kube, Seen, inventory, wait_for

_END_SECONDS = 5.0
_GONE_SECONDS = 20.0  # the volume of a claim goes after its namespace
_ENGINE = "dockerd"  # started where none runs; it belongs to the machine


def processes() -> set[psutil.Process]:
    """Every process that belongs to this one: by its mark, and where it has none, every one that it started."""
    if mark := os.environ.get(MARK):
        return {each for each in psutil.process_iter() if each.pid != os.getpid() and _mark(each) == mark}
    own = [each for each in psutil.Process().children() if _name(each) != _ENGINE]
    return {*own, *(child for each in own for child in _children(each))}


def refuse_processes(before: Collection[psutil.Process]) -> None:
    """End what runs now and did not run before.

    Raises:
        Unproven: there was something; names it.
    """
    _, left = psutil.wait_procs(processes() - {*before}, timeout=_END_SECONDS)
    if not left:
        return
    names = [f"{each.pid} {_name(each)}" for each in left]
    for each in left:
        with suppress(psutil.Error):
            each.kill()
    psutil.wait_procs(left, timeout=_END_SECONDS)
    raise Unproven("the run left processes behind, which are ended now", details=names)


def refuse_objects(kube: Kube, before: inventory.Inventory) -> None:
    """Stop where the cluster holds an object that it did not hold before; the last of them go by themselves.

    Raises:
        ClusterError: names the objects; nothing of them is removed.
    """

    def look() -> Seen[None]:
        added = inventory.difference(before, inventory.take(kube)).added
        return Seen(not added, None, "\n".join(added))

    try:
        wait_for(look, within=_GONE_SECONDS, what="the end of all that the run made")
    except DeadlineExceeded as error:
        raise ClusterError(
            "the run left objects on the cluster",
            where=kube.server,
            fix="sandbox status, then sandbox down with the name of that cluster",
            details=error.details,
        ) from error


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _mark(process: psutil.Process) -> str:
    try:
        return process.environ().get(MARK, "")
    except (psutil.Error, OSError):
        return ""
