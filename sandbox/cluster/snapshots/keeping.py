"""Which snapshots are kept: removed by name, by age, by number; automatic ones only while they are used."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from docker.errors import APIError, ImageNotFound, NotFound

from sandbox import paths
from sandbox.cluster import containers
from sandbox.cluster.ownership import KIND_LABEL, STATE_LABEL
from sandbox.cluster.snapshots import store
from sandbox.errors import ClusterError
from sandbox.host.engine import client
from sandbox.progress import say

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container
    from docker.models.images import Image
    from docker.models.volumes import Volume

MOST_AUTOMATIC = 8
OLDEST_DAYS = 14.0


def remove(name: str) -> list[str]:
    """Remove a snapshot: its file, images and volumes. Clusters that were restored from it go on.

    Returns:
        What was removed, as `kind name`; empty when there was nothing.

    Raises:
        ClusterError: another command works on it, or the engine refused.
    """
    with store.locked(name), containers.engine_errors(name):
        known = store.path(name).exists()
        store.path(name).unlink(missing_ok=True)  # first: what is left then is a leftover, and never restored
        removed = clear(client(), name)
    return [*removed, *([f"snapshot {name}"] if known else [])]


@dataclass(frozen=True)
class Things:
    """What the engine holds of snapshots. A node that was restored carries its image's labels, and is none of it."""

    containers: Sequence[Container]
    volumes: Sequence[Volume]
    images: Sequence[Image]

    @property
    def names(self) -> set[str]:
        """The snapshots they are of."""
        labels = [*(each.labels for each in self.containers), *(each.labels for each in self.images)]
        labels += [each.attrs.get("Labels") or {} for each in self.volumes]
        return {each.get(store.LABEL, "") for each in labels} - {""}


def things(docker: DockerClient, name: str = "") -> Things:
    """What the engine holds of one snapshot of this state folder, or of all."""
    label = f"{store.LABEL}={name}" if name else store.LABEL
    ours: dict[str, str | list[str] | bool] = {"label": [label, f"{STATE_LABEL}={paths.state_dir()}"]}
    containers = docker.containers.list(all=True, filters=ours)
    return Things(
        [each for each in containers if KIND_LABEL not in each.labels],
        docker.volumes.list(filters=ours),
        docker.images.list(filters=ours),
    )


def strays(docker: DockerClient, name: str) -> Things:
    """What of a snapshot no file holds: of a save or a removal that was killed, or of one that a copy ran on."""
    there = things(docker, name)
    known = store.get(name)
    if known is None and store.path(name).exists():  # it cannot be read: nothing of it is known to be too much
        return Things([], [], [])
    held = {part for node in known.nodes for part in (node.image, node.volume)} if known else set[str]()
    return Things(
        there.containers,
        [each for each in there.volumes if each.name not in held],
        [each for each in there.images if each.id not in held and not _in_use(docker, each)],
    )


def _in_use(docker: DockerClient, image: Image) -> bool:
    return bool(docker.containers.list(all=True, sparse=True, filters={"ancestor": str(image.id)}))


def clear(docker: DockerClient, name: str) -> list[str]:
    """Remove what the engine holds of a snapshot of this state folder; what it refuses is said and stays."""
    return _remove(docker, name, things(docker, name))


def _remove(docker: DockerClient, name: str, what: Things) -> list[str]:
    removed = []
    for container in what.containers:
        container.remove(force=True, v=True)
        removed.append(f"container {container.name}")
    for volume in what.volumes:
        try:
            volume.remove(force=True)
            removed.append(f"volume {volume.name}")
        except APIError as error:
            say(f"snapshot {name}: {error.explanation}")
    for image in what.images:
        try:
            for tag in image.tags or [str(image.id)]:
                docker.images.remove(tag, force=bool(image.tags))
                removed.append(f"image {tag}")
        except (ImageNotFound, NotFound):
            continue
        except APIError as error:
            if error.status_code != HTTPStatus.CONFLICT:  # a copy runs on it; it goes once that one has gone
                say(f"snapshot {name}: {error.explanation}")
    return removed


def trim() -> list[str]:
    """Remove automatic snapshots that nobody used for two weeks, and the longest unused beyond eight.

    Returns:
        The names of those removed.
    """
    removed = []
    for name in surplus():
        try:
            remove(name)
            removed.append(name)
        except ClusterError as error:
            say(str(error))
    return removed


def surplus() -> list[str]:
    """Name the automatic snapshots that are too old, or too many."""
    found = {name: each for name in store.names() if (each := store.get(name)) is not None and each.automatic}
    by_use = sorted(found, key=store.used, reverse=True)
    oldest = time.time() - OLDEST_DAYS * 86400
    return [name for place, name in enumerate(by_use) if place >= MOST_AUTOMATIC or store.used(name) < oldest]


def fileless(docker: DockerClient) -> list[str]:
    """Name the snapshots of which the engine holds what no file does: a save or a removal was killed."""
    return [name for name in sorted(things(docker).names) if strays(docker, name).names]


def reap(docker: DockerClient) -> list[str]:
    """Remove what a killed command left of snapshots, and no file holds.

    Returns:
        Their names.
    """
    reaped = []
    for name in fileless(docker):
        try:
            with store.locked(name, wait=False):
                if _remove(docker, name, strays(docker, name)):
                    say(f"snapshot {name}: left by a command that was killed; removed")
                    reaped.append(name)
        except ClusterError:  # it is being made
            continue
    return reaped
