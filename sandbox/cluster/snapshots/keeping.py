"""Which snapshots are kept: removed by name, by age, by number; automatic ones only while they are used."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING

from docker.errors import APIError, ImageNotFound, NotFound

from sandbox import paths
from sandbox.cluster import containers
from sandbox.cluster.ownership import STATE_LABEL
from sandbox.cluster.snapshots import store
from sandbox.errors import ClusterError
from sandbox.host.engine import client
from sandbox.progress import say

if TYPE_CHECKING:
    from docker import DockerClient

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


def clear(docker: DockerClient, name: str) -> list[str]:
    """Remove what the engine holds of a snapshot of this state folder; what it refuses is said and stays."""
    removed = []
    ours: dict[str, str | list[str] | bool] = {"label": [f"{store.LABEL}={name}", f"{STATE_LABEL}={paths.state_dir()}"]}
    for container in docker.containers.list(all=True, filters=ours):
        container.remove(force=True, v=True)
        removed.append(f"container {container.name}")
    for volume in docker.volumes.list(filters=ours):
        try:
            volume.remove(force=True)
            removed.append(f"volume {volume.name}")
        except APIError as error:
            say(f"snapshot {name}: {error.explanation}")
    for image in docker.images.list(filters=ours):
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
    """Name what the engine holds of snapshots that have no file: of a save or a removal that was killed."""
    ours: dict[str, str | list[str] | bool] = {"label": [store.LABEL, f"{STATE_LABEL}={paths.state_dir()}"]}
    things = [
        *(each.labels for each in docker.containers.list(all=True, filters=ours)),
        *(each.attrs.get("Labels") or {} for each in docker.volumes.list(filters=ours)),
        *(each.labels for each in docker.images.list(filters=ours)),
    ]
    names = sorted({labels.get(store.LABEL, "") for labels in things} - {""})
    return [name for name in names if not store.path(name).exists()]


def reap(docker: DockerClient) -> list[str]:
    """Remove what a killed command left of snapshots that have no file.

    Returns:
        Their names.
    """
    reaped = []
    for name in fileless(docker):
        try:
            with store.locked(name, wait=False):
                if not store.path(name).exists() and clear(docker, name):
                    say(f"snapshot {name}: left by a command that was killed; removed")
                    reaped.append(name)
        except ClusterError:  # it is being made
            continue
    return reaped
