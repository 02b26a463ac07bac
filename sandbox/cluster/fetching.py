"""Which way a new cluster comes: from a snapshot of what is asked for, else from one of the bare cluster, else cold."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sandbox import images
from sandbox.cluster import addons, containers, fleet, gpus, inner, making, node_images, snapshots
from sandbox.cluster.pool import leasing
from sandbox.errors import ClusterError, SandboxError, UsageError
from sandbox.host.engine import look
from sandbox.progress import say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandbox.cluster.making import Order
    from sandbox.cluster.record import Cluster
    from sandbox.cluster.snapshots import Content
    from sandbox.spec.cluster import ClusterSpec

SWITCH = "SANDBOX_SNAPSHOTS"
_REMOVE = "sandbox snapshot remove"


def enabled() -> bool:
    """Whether snapshots are made and used without being asked for; `SANDBOX_SNAPSHOTS=off` says no.

    Raises:
        UsageError: it says something else.
    """
    said = os.environ.get(SWITCH) or "on"
    if said not in {"on", "off"}:
        raise UsageError(f"is {said!r}", where=SWITCH, fix=f"export {SWITCH}=off, or on, which is what it is without")
    return said == "on"


def fetch(order: Order, deployed: Mapping[str, Any], *, cold: bool = False, pool: bool = True) -> Cluster:
    """Bring the cluster that was ordered into being, the quickest way there is.

    Args:
        order: what is to be made.
        deployed: what is going to be deployed on it: name -> its objects.
        cold: make it anew, and keep no snapshot of it.
        pool: whether one that waits in the pool may be taken.

    Raises:
        ClusterError: it did not come up. Nothing is left.
    """
    if cold or inner.why_not(order.spec):
        return making.cold(order)
    bare = content(order.spec, order.image, order.load, {})
    wanted = replace(bare, deployed=deployed)
    if pool and (leased := leasing.lease(order, wanted.key)) is not None:
        node_images.load(containers.nodes(order.docker, order.name), [*order.load.values()])
        return leased
    if not enabled():
        return making.cold(order)
    for key in dict.fromkeys([wanted.key, bare.key]):
        found = snapshots.find(key)
        if found is None:
            continue
        if why := snapshots.elsewhere(order.docker, found):  # where it was made it is as good as ever
            say(f"{order.name}: not from snapshot {found.name}: {why}; for one of here: {_REMOVE} {found.name}")
            continue
        try:
            return snapshots.restore(order, found)
        except ClusterError as error:
            if look().state != "running":  # the snapshot is as good as ever
                raise
            # it would fail the next time, too
            say(f"{order.name}: not from snapshot {found.name}, which is removed: {error}")
            snapshots.remove(found.name)
    made = making.cold(order)
    _keep(made, bare, held=True)
    return made


def keep(cluster: Cluster, spec: ClusterSpec, deployed: Mapping[str, Any]) -> None:
    """Keep a cluster that was just prepared, for the next time. That it could not be kept is said, and no error.

    Args:
        cluster: that nobody works on yet.
        spec: its file.
        deployed: what was deployed on it: name -> its objects.
    """
    if enabled() and cluster.spec and not inner.why_not(spec):
        refs = {name: image.ref for name, image in images.ensure([*addons.images(spec), *spec.images]).items()}
        _keep(cluster, content(spec, cluster.image, refs, deployed), held=False)


def _keep(cluster: Cluster, what: Content, *, held: bool) -> None:
    if cluster.origin.key == what.key or snapshots.find(what.key) is not None:
        return
    try:
        snapshots.save(cluster, snapshots.automatic_name(what.key), key=what.key, contents=what.words, held=held)
        snapshots.trim()
    except SandboxError as error:
        say(f"{cluster.name}: no snapshot is kept of it: {error}")


def key(spec: ClusterSpec, deployed: Mapping[str, Any]) -> str:
    """The hash of what a prepared cluster of this shape holds, with that deployed on it; its images are had first."""
    refs = {name: image.ref for name, image in images.ensure(["node", *addons.images(spec), *spec.images]).items()}
    return content(spec, refs["node"], refs, deployed).key


def content(spec: ClusterSpec, image: str, refs: Mapping[str, str], deployed: Mapping[str, Any]) -> Content:
    """What a cluster of this shape is asked to hold.

    Args:
        spec: the shape.
        image: reference of its node image.
        refs: name of clusters/images/ -> reference; those that the shape does not name are left out: they are loaded
            into any copy.
        deployed: name -> objects.
    """
    own = [*addons.images(spec), *spec.images]
    applied = [
        *(addons.manifests("metrics-server") if spec.addons.metrics_server else []),
        *(addons.manifests(fleet.IMAGE) if spec.fleet is not None else []),
        *([*addons.manifests(gpus.IMAGE), *addons.manifests(gpus.CLASSES)] if spec.gpu else []),
    ]
    return snapshots.Content(spec, image, [refs[name] for name in own if name in refs], applied, deployed)
