"""Snapshots: a prepared cluster kept, and any number of copies of it started side by side."""

from sandbox.cluster.snapshots.content import Content
from sandbox.cluster.snapshots.ground import elsewhere
from sandbox.cluster.snapshots.keeping import reap, remove, trim
from sandbox.cluster.snapshots.restoring import restore
from sandbox.cluster.snapshots.saving import save
from sandbox.cluster.snapshots.store import Snapshot, SnapshotNode, automatic_name, find, get, load, names

__all__ = [
    "Content",
    "Snapshot",
    "SnapshotNode",
    "automatic_name",
    "elsewhere",
    "find",
    "get",
    "load",
    "names",
    "reap",
    "remove",
    "restore",
    "save",
    "trim",
]
