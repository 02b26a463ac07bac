"""Prepare clusters for the pool: brought up, furnished with what is asked for, looked at, and let stand still."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sandbox import images
from sandbox.cluster import bringup, clean, containers, fetching, record, teardown
from sandbox.cluster.owner import Owner
from sandbox.cluster.pool import entries, limits, stillness
from sandbox.cluster.pool.entries import Entry
from sandbox.errors import UsageError
from sandbox.host.engine import client
from sandbox.kube import Kube
from sandbox.progress import step

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandbox.kube.preparation import Preparation


def fill(what: Preparation, size: int, source: str = "") -> list[Entry]:
    """Put clusters into the pool until `size` of this kind are there.

    Args:
        what: is in them.
        size: how many there are to be.
        source: what was asked for, as a scenario's path or a shape's name: the pool is filled again with it.

    Returns:
        Those of this kind.

    Raises:
        UsageError: the size is no number of clusters.
        EnvironmentMissing: this machine would be left with too little memory or disk; nothing was made.
        ClusterError: one did not come up; those before it are in the pool.
    """
    if size < 1:
        raise UsageError(f"{size} is no size of a pool", where="--size", fix="1 or more; else: sandbox pool drain")
    entries.drain(stale=True)
    refs = {name: image.ref for name, image in images.ensure([*what.images]).items()}
    deployed = what.objects(refs)
    key = fetching.key(what.spec, deployed)
    with entries.filling():
        lacking = size - len(entries.entries(key))
        limits.refuse_too_many(what, lacking)
        for _ in range(lacking):
            _put(what, refs, deployed, key, source)
    return entries.entries(key)


def _put(what: Preparation, refs: Mapping[str, str], deployed: Mapping[str, Any], key: str, source: str) -> None:
    """Prepare one; until it stands still it is this process's, and goes with it."""
    name = f"{entries.PREFIX}{uuid.uuid4().hex[:8]}"
    try:
        with step(f"{name}: prepare {what.words} for the pool"):
            made = bringup.up(
                what.spec, name=name, app_images=what.images, owner=Owner.me(), deployed=deployed, pool=False
            )
            kube = Kube.connect(made.kubeconfig, made.context)
            urls = what.deploy(kube, refs, made.node_addresses)
            if deployed:
                fetching.keep(made, what.spec, deployed)
            nodes = containers.nodes(client(), name)
            endpoints = [url.partition("://")[2].partition(":")[2] for url in urls]
            clean.write(name, clean.take(kube, nodes, what.words, endpoints=endpoints, source=source))
            stillness.still(nodes)
            record.save(replace(made, owner=None, pooled=key))
    except BaseException:
        teardown.down(name)
        raise
