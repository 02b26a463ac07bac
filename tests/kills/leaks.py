"""What is left that belongs to no recorded cluster, pool or snapshot; found without the product's own search."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil
from docker.errors import NotFound

from sandbox.cluster.ownership import CLUSTER_LABEL, RUN_LABEL, STATE_LABEL
from sandbox.cluster.snapshots.store import LABEL as SNAPSHOT_LABEL
from sandbox.cluster.volumes import BASE_LABEL
from tests.kills.ground import engine_name

if TYPE_CHECKING:
    from docker import DockerClient

    from tests.kills.events import Watcher
    from tests.kills.ground import Ground

_SHIM_SECONDS = 10.0
_BRIDGE = re.compile(r"\bbr-[0-9a-f]{12}\b")


def left(ground: Ground, docker: DockerClient, watcher: Watcher) -> list[str]:
    """Name everything of ours that nobody needs."""
    return [
        *_halves(ground, docker),
        *_in_engine(ground, docker),
        *_containers(ground, docker, watcher),
        *_volumes(docker, watcher),
        *_shims(docker, watcher),
        *([] if ground.engine else _rules(docker)),  # a second engine makes none
        *_files(ground),
    ]


def unclean(ground: Ground, docker: DockerClient, watcher: Watcher) -> list[str]:
    """Name what waits in the pool and does not stand still since it was put there: it must never be handed out."""
    found = []
    for name in sorted(ground.pool):
        since = ground.pooled_since(name)
        for ident in ground.records[name]["containers"]:
            status = docker.containers.get(ident).status
            if status != "paused" or watcher.awake.get(ident, 0.0) > since:
                found.append(f"{name} waits in the pool, and is {status} or went on meanwhile")
    return found


def _in_engine(ground: Ground, docker: DockerClient) -> Iterator[str]:
    """What carries our label, beside containers."""
    ours = {"label": f"{STATE_LABEL}={ground.state}"}
    runs = {(engine_name(each), each["run"]) for each in ground.records.values()}
    nodes = [node for each in ground.snapshots.values() for node in each["nodes"]]
    used = {docker.containers.get(ident).attrs["Image"] for ident in _recorded(ground) & _alive(docker)}
    things: list[Any] = [*docker.networks.list(filters=ours), *docker.volumes.list(filters=ours)]
    for each in things:
        labels = each.attrs.get("Labels") or {}
        needed = (labels.get(CLUSTER_LABEL), labels.get(RUN_LABEL)) in runs
        needed |= SNAPSHOT_LABEL in labels and each.name in {node["volume"] for node in nodes}
        needed |= BASE_LABEL in labels and (ground.state / "volumes" / f"{each.name}.filled").is_file()
        if not needed:
            yield f"{type(each).__name__.lower()} {each.name}"
    for image in docker.images.list(filters=ours):
        if image.id not in {*used, *(node["image"] for node in nodes)}:
            yield f"image {', '.join(image.tags) or image.id}"


def _halves(ground: Ground, docker: DockerClient) -> Iterator[str]:
    """Clusters of which some, or all, is gone, while their record says nothing of it."""
    alive = _alive(docker)
    for name, known in ground.records.items():
        if {*known["containers"]} - alive:
            yield f"record of {name}, whose containers are gone"


def _recorded(ground: Ground) -> set[str]:
    return {ident for each in ground.records.values() for ident in each["containers"]}


def _containers(ground: Ground, docker: DockerClient, watcher: Watcher) -> Iterator[str]:
    """Containers that were ours by label or by event, and that no record holds."""
    labelled = docker.containers.list(all=True, sparse=True, filters={"label": f"{STATE_LABEL}={ground.state}"})
    ours = watcher.containers | {str(each.id) for each in labelled}
    for ident in sorted(ours & _alive(docker) - _recorded(ground)):
        with suppress(NotFound):
            yield f"container {docker.containers.get(ident).name}"


def _alive(docker: DockerClient) -> set[str]:
    return {str(each.id) for each in docker.containers.list(all=True, sparse=True)}


def _volumes(docker: DockerClient, watcher: Watcher) -> Iterator[str]:
    """Volumes without a label that containers of ours ran on which are gone: those that the engine made for them."""
    there = {str(each.name) for each in docker.volumes.list() if not each.attrs.get("Labels")}
    for ident in watcher.containers - _alive(docker):
        yield from (f"volume {name}, without a name" for name in sorted(watcher.volumes[ident] & there))


def _shims(docker: DockerClient, watcher: Watcher) -> Iterator[str]:
    """Processes of the engine's that work for a container of ours which is gone, and do not end by themselves."""
    gone = watcher.containers - _alive(docker)
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if gone & {*process.cmdline()}:
                found.append(process)
    _, alive = psutil.wait_procs(found, timeout=_SHIM_SECONDS)
    yield from (f"process {each.pid} {each.name()}" for each in alive)


def _rules(docker: DockerClient) -> Iterator[str]:
    """Rules of this machine for a bridge that is no more."""
    bridges = {f"br-{str(each.id)[:12]}" for each in docker.networks.list()}
    saved = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
    for line in saved.splitlines():
        if {*_BRIDGE.findall(line)} - bridges:
            yield f"iptables rule {line}"


def _files(ground: Ground) -> Iterator[str]:
    """Half-written files, folders of clusters without a record, and temporary files."""
    yield from (f"file {each.relative_to(ground.state)}" for each in ground.state.rglob("*.new"))
    yield from (f"half-made {each.parent.name}" for each in (ground.state / "clusters").glob("*/creating.json"))
    folders = (ground.state / "clusters").iterdir() if (ground.state / "clusters").is_dir() else []
    yield from (f"folder {each.name}" for each in folders if each.is_dir() and each.name not in ground.records)
    yield from (f"temporary {each.name}" for each in ground.temporary.iterdir())
