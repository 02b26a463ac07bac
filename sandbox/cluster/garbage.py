"""What nobody needs any more: found by our labels, this state folder, and records; removed, or only told."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from docker.errors import ImageNotFound
from filelock import FileLock, Timeout

from sandbox import paths
from sandbox.cluster import containers, leftovers, ownership, record, volumes
from sandbox.cluster.owner import Owner
from sandbox.cluster.pool import entries
from sandbox.cluster.snapshots import keeping, saving, store
from sandbox.errors import SandboxError
from sandbox.host.engine import client, look
from sandbox.host.mark import MARK
from sandbox.progress import say

if TYPE_CHECKING:
    from docker import DockerClient

_END_SECONDS = 5.0


@dataclass(frozen=True)
class Garbage:
    """One thing that nobody needs any more.

    Attributes:
        kind: `cluster`, `snapshot`, `volume`, `container`, `process`, `file`, or `pause` of nodes that stand still.
        name: what it is called.
        why: nobody needs it.
    """

    kind: str
    name: str
    why: str


Found = tuple[Garbage, Callable[[], object]]


def collect(*, dry_run: bool = False) -> list[Garbage]:
    """Remove what nobody needs any more; with `dry_run` only look.

    What another command works on stays. So does what others made, and what lies on another engine.

    Returns:
        What was removed, or would be.

    Raises:
        SandboxError: something could not be removed; all else was.
    """
    done: list[Garbage] = []
    refused: list[SandboxError] = []
    for thing, remove in _all():
        try:
            with containers.engine_errors(thing.name):
                if dry_run or remove() is not False:  # else another command has taken it meanwhile
                    done.append(thing)
        except SandboxError as error:
            say(f"{thing.kind} {thing.name}: {error}")
            refused.append(error)
    if refused:
        raise refused[0]
    return done


def _all() -> Iterator[Found]:
    """Everything, in the order it can go: who makes things before the things."""
    yield from _processes()
    if look().state == "running":
        with containers.engine_errors():
            docker = client()
            yield from _clusters(docker)
            yield from _snapshots(docker)
            yield from _bases(docker)
    yield from _files()


def _processes() -> Iterator[Found]:
    """What a command started that was killed: load clients, kind, forwards."""
    state = str(paths.state_dir())
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(MARK, "")
            pid, started, where = mark.split(" ", 2)
            owner = Owner(int(pid), float(started))
        except (psutil.Error, ValueError, OSError):
            continue
        if where == state and process.pid not in {owner.pid, os.getpid()} and not owner.alive():
            with suppress(psutil.Error):
                named = f"{process.pid} {process.name()}"
                yield Garbage("process", named, f"the command {owner.pid} that started it is gone"), _ender(process)


def _ender(process: psutil.Process) -> Callable[[], object]:
    def end() -> None:
        with suppress(psutil.Error):  # psutil sees that the number has not gone to another process meanwhile
            process.kill()
            process.wait(timeout=_END_SECONDS)

    return end


def _clusters(docker: DockerClient) -> Iterator[Found]:
    for name in leftovers.names(docker):
        try:
            gone = leftovers.leftover(name) and not record.busy(name)
        except SandboxError as error:
            say(f"cluster {name}: {error}")
            continue
        if gone:
            yield Garbage("cluster", name, "left by a command that was killed"), partial(leftovers.remove, docker, name)
    for name in filter(saving.stands_still, record.names()):
        yield Garbage("pause", name, "its save was killed"), partial(_wake, docker, name)
    for entry in entries.entries():
        if entry.stale:
            yield (
                Garbage("cluster", entry.name, "waited in the pool for more than a day"),
                lambda: entries.drain(stale=True),
            )


def _wake(docker: DockerClient, name: str) -> bool:
    """Let it go on, unless another command works on it."""
    if record.busy(name):
        return False
    with record.locked(name):
        saving.wake(docker, name)
    return True


def _snapshots(docker: DockerClient) -> Iterator[Found]:
    for name in keeping.fileless(docker):
        yield Garbage("snapshot", name, "left by a command that was killed"), partial(keeping.reap, docker)
    for name in keeping.surplus():
        yield Garbage("snapshot", name, "automatic, and not used for long"), partial(keeping.remove, name)


def _bases(docker: DockerClient) -> Iterator[Found]:
    """Volumes with /var of node images that are gone, and containers that filled volumes and were not removed."""
    ours = f"{ownership.STATE_LABEL}={paths.state_dir()}"
    known = {*record.names(), *record.held()}
    for each in docker.containers.list(all=True, filters={"label": ours}):
        of = each.labels.get(ownership.CLUSTER_LABEL) or ""
        elsewhere = {ownership.KIND_LABEL, store.LABEL} & {*each.labels}  # goes with its cluster, or its snapshot
        if each.status != "running" and not elsewhere and of not in known:
            yield Garbage("container", str(each.name), "filled a volume"), partial(each.remove, force=True, v=True)
    for volume in docker.volumes.list(filters={"label": [ours, volumes.BASE_LABEL]}):
        image = (volume.attrs.get("Labels") or {}).get(volumes.BASE_LABEL, "")
        try:
            docker.images.get(image)
            why = "never filled" if volumes.abandoned(volume) else ""
        except ImageNotFound:
            why = "its node image is gone"
        if why:
            yield Garbage("volume", str(volume.name), why), partial(volume.remove, force=True)


def _files() -> Iterator[Found]:
    """Half-written files, and locks of clusters and snapshots that are no more."""
    folders = [record.root(), paths.state_dir() / "snapshots"]
    for folder in (each for each in folders if each.is_dir()):
        for file in sorted(folder.iterdir()):
            owner = file.name.partition(".")[0]
            there = owner.startswith(entries.LOCK) or (folder / owner).exists() or (folder / f"{owner}.json").exists()
            if file.suffix == ".new":
                yield Garbage("file", file.name, "half-written"), partial(file.unlink, missing_ok=True)
            elif file.suffix == ".lock" and not there and not record.taken(file):
                yield Garbage("file", file.name, "a lock of what is no more"), _unlocker(file)


def _unlocker(file: Path) -> Callable[[], object]:
    def unlink() -> None:
        with suppress(Timeout), FileLock(file, timeout=0):  # who waits for it sees that it is gone, and makes another
            file.unlink(missing_ok=True)

    return unlink
