"""Snapshots on disk: `<state>/snapshots/<name>.json` (0600) tells what is kept, the engine holds it.

A snapshot of one node is an image (its file system) and a volume (its /var). The file is written last: without it there
is no snapshot, and what lies in the engine is a leftover.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import Field, ValidationError

from sandbox import paths
from sandbox.cluster import record
from sandbox.errors import ClusterError, UsageError
from sandbox.spec.base import Strict

FORMAT = 1
LABEL = "ai-k8s-sandbox.snapshot"  # of everything in an engine that belongs to one: its name
_LOCK_SECONDS = 300.0


class SnapshotNode(Strict):
    """One node of a snapshot.

    Attributes:
        suffix: what follows the cluster's name in the name of its container: `-worker2`.
        role: `control-plane` or `worker`.
        name: what Kubernetes calls it.
        image: the engine's id of its file system.
        volume: name of the engine's volume with its /var.
        serial: tells that volume from a later one of its name.
        fingerprint: of all that the volume holds.
        container: how its container was made, as the engine told.
    """

    suffix: str
    role: str
    name: str
    image: str
    volume: str
    serial: str
    fingerprint: str
    container: dict[str, Any]


class Snapshot(Strict):
    """What is known of a snapshot.

    Attributes:
        format: of this file.
        name: unique in this state folder.
        key: hash of what is in it, for one that was made automatically; else empty.
        contents: what is in it, in words.
        created: seconds since the epoch.
        cluster: the name of the cluster it was made of.
        spec: that cluster's file, as JSON.
        image: reference of the node image.
        images: references of the images that were loaded into its nodes.
        uid: of its kube-system namespace.
        ground: what of engine, kernel and machine it needs to find again.
        ready: UIDs of the pods that were Ready.
        kubeconfig: of its administrator.
        nodes: in the order of their containers' names.
    """

    format: int
    name: str
    key: str
    contents: str
    created: float
    cluster: str
    spec: dict[str, Any]
    image: str
    images: list[str]
    uid: str
    ground: dict[str, str]
    ready: list[str]
    kubeconfig: str = Field(repr=False)
    nodes: list[SnapshotNode]

    @property
    def automatic(self) -> bool:
        """Whether it was made without being asked for."""
        return bool(self.key)


def names() -> list[str]:
    """Name every snapshot there is, in order."""
    return sorted(file.stem for file in _root().glob("*.json"))


def load(name: str) -> Snapshot:
    """Read a snapshot's file.

    Raises:
        UsageError: there is none of that name; names those there are.
        ClusterError: the file is truncated, was altered, or comes from another version.
    """
    fix = f"sandbox snapshot remove {name}"
    try:
        text = path(name).read_text(encoding="utf-8")
    except FileNotFoundError:
        known = ", ".join(names()) or "none"
        raise UsageError("there is no such snapshot", where=name, fix=f"use one of: {known}") from None
    try:
        seal, body = text.split("\n", 1)
        data = json.loads(body)
        version = data["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterError("the snapshot's file is truncated", where=str(path(name)), fix=fix) from error
    if version != FORMAT:
        what = f"the snapshot's file has format {version}; this version reads {FORMAT}"
        raise ClusterError(what, where=str(path(name)), fix=fix)
    if seal != _seal(body):
        raise ClusterError("the snapshot's file was altered", where=str(path(name)), fix=fix)
    try:
        return Snapshot(**data)
    except ValidationError as error:
        what = f"the snapshot's file cannot be read: {error.errors()[0]['msg']}"
        raise ClusterError(what, where=str(path(name)), fix=fix) from error


def get(name: str) -> Snapshot | None:
    """Read a snapshot's file; None where there is none that can be read."""
    try:
        return load(name)
    except (UsageError, ClusterError):
        return None


def find(key: str) -> Snapshot | None:
    """The automatic snapshot of that content."""
    return get(automatic_name(key))


def automatic_name(key: str) -> str:
    """What an automatic snapshot is called."""
    return f"auto-{key}"


def write(snapshot: Snapshot) -> None:
    """Write its file; whole or not at all."""
    body = json.dumps(snapshot.model_dump(mode="json"), indent=1)
    fresh = path(snapshot.name).with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_text(f"{_seal(body)}\n{body}", encoding="utf-8")
    fresh.replace(path(snapshot.name))


def path(name: str) -> Path:
    """Where a snapshot's file lies. Raises UsageError when that is no name."""
    record.check_name(name)
    return _root() / f"{name}.json"


@contextmanager
def locked(name: str, *, wait: bool = True) -> Iterator[None]:
    """Hold the snapshot for one command at a time. The lock goes with the process.

    Raises:
        ClusterError: another command holds it.
    """
    lock = FileLock(path(name).with_suffix(".lock"))
    try:
        lock.acquire(timeout=_LOCK_SECONDS if wait else 0)
    except Timeout as error:
        raise ClusterError("another command works on this snapshot", where=name, fix="wait for it") from error
    try:
        yield
    finally:
        lock.release()


def touch(name: str) -> None:
    """Note that it was used now: the longest unused goes first."""
    path(name).touch()


def used(name: str) -> float:
    """When it was used last, in seconds since the epoch; 0 where it is gone."""
    try:
        return path(name).stat().st_mtime
    except OSError:
        return 0.0


def _seal(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


def _root() -> Path:
    folder = paths.state_dir() / "snapshots"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
