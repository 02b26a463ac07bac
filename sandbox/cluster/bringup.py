"""Bring a cluster up: take the one that runs, or clear what a crash left and make it anew."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sandbox import images
from sandbox.cluster import (
    addons,
    clean,
    config,
    containers,
    existing,
    fetching,
    furnishing,
    leftovers,
    making,
    node_images,
    nodes,
    ownership,
    record,
    snapshots,
)
from sandbox.cluster.guard import prove_ours
from sandbox.cluster.owner import Owner
from sandbox.cluster.record import Cluster
from sandbox.errors import ClusterError, UsageError
from sandbox.host.checks import require
from sandbox.host.engine import client, identity
from sandbox.host.preparing import prepare
from sandbox.kube import Kube, wait_for
from sandbox.kube.conditions import renewed
from sandbox.progress import say
from sandbox.spec.cluster import ClusterSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from docker import DockerClient


def up(
    spec: ClusterSpec,
    *,
    name: str | None = None,
    app_images: Sequence[str] = (),
    owner: Owner | None = None,
    allow_changes: bool = False,
    deployed: Mapping[str, Any] | None = None,
    cold: bool = False,
    pool: bool = True,
) -> Cluster:
    """Bring up a cluster of this shape, or return the one that runs. Ready means: all nodes Ready, DNS rolled out.

    A new one comes from a snapshot where there is one: of what is to be deployed on it, else of the bare cluster.

    Args:
        spec: the shape.
        name: of the cluster; the shape's own when not given.
        app_images: names of clusters/images/ to have in the nodes, beside the spec's own.
        owner: a process the cluster ends with; it is kept until `down` without.
        allow_changes: for `provider: existing`: leave to change that cluster.
        deployed: what is going to be deployed on it: name -> its objects.
        cold: make it anew, and keep no snapshot.
        pool: whether one that waits in the pool may be taken.

    Raises:
        UsageError: a bad name, or a cluster of that name and another shape runs.
        EnvironmentMissing: the machine lacks something; nothing was made.
        ClusterError: it did not come up; its logs are kept, and it is removed.
    """
    chosen = name or spec.metadata.name
    record.check_name(chosen)
    if spec.provider == "existing":
        with record.locked(chosen):
            return existing.adopt(spec, chosen, allow_changes=allow_changes)
    engine = prepare()
    with containers.engine_errors(chosen):  # before images are built on an engine that is not the cluster's
        ownership.survey(client(), chosen)
    leftovers.reap(besides=chosen)
    if not record.home(chosen).exists():  # else it may run already, or its remains fill the memory
        require(engine)  # before minutes go into images
    with containers.engine_errors(chosen):
        # not under the lock: building them anew takes minutes, and others may want only to look or to take it down
        wanted = [*dict.fromkeys([*addons.images(spec), *spec.images, *app_images])]
        refs = {name: image.ref for name, image in images.ensure(["node", *wanted]).items()}
        binary = images.tool("kind")
        ours = {name: refs[name] for name in wanted}
        with record.locked(chosen):
            docker = client()
            running = _running(docker, spec, chosen, owner, image=refs["node"])
            if running is None:
                require(engine)
                config.check_ports(spec)
                order = making.Order(docker, spec, chosen, owner, binary, refs["node"], ours, engine.cgroup)
                return _written_down(fetching.fetch(order, deployed or {}, cold=cold, pool=pool))
            kube = Kube.connect(running.kubeconfig, running.context)
            node_images.load(containers.nodes(docker, chosen), [*ours.values()])
            furnishing.furnish(kube, spec, len(running.nodes), ours)
            say(f"{chosen}: runs already")
            return running


def restore(name: str, cluster: str | None = None) -> Cluster:
    """Start a copy of a snapshot, which is kept until `down`.

    Args:
        name: of the snapshot.
        cluster: what the copy is called; as the one that was saved when not given.

    Raises:
        UsageError: there is no such snapshot, or a cluster of that name.
        ClusterError: it does not fit, was altered, or did not come up. Nothing is left.
    """
    saved = snapshots.load(name)
    chosen = cluster or saved.cluster
    record.check_name(chosen)
    spec = ClusterSpec.model_validate(saved.spec)
    engine = prepare()
    leftovers.reap(besides=chosen)
    with containers.engine_errors(chosen), record.locked(chosen):
        docker = client()
        ownership.refuse_strangers(ownership.survey(docker, chosen), chosen)
        if record.find(chosen) is not None and not leftovers.leftover(chosen):
            raise UsageError("is a cluster already", where=chosen, fix=f"another --cluster, or sandbox down {chosen}")
        if record.home(chosen).exists():
            containers.remove(docker, chosen)
            record.forget(chosen)
        require(engine)
        config.check_ports(spec)
        order = making.Order(docker, spec, chosen, None, images.tool("kind"), saved.image, {}, engine.cgroup)
        return _written_down(snapshots.restore(order, saved))


def _written_down(made: Cluster) -> Cluster:
    """The cluster; what it holds is written down where it stays, to be reset to. The pool has done so already."""
    if made.owner is None and made.origin.way != "pool":
        kube = Kube.connect(made.kubeconfig, made.context)
        try:
            clean.write(made.name, clean.take(kube, containers.nodes(client(), made.name), made.name))
        except ClusterError as error:
            say(f"{made.name}: cannot be reset later: {error}")
    return made


def _running(docker: DockerClient, spec: ClusterSpec, name: str, owner: Owner | None, *, image: str) -> Cluster | None:
    """Return the cluster of that name with its nodes started; None when there is none, its remains cleared away.

    An orphan goes over to `owner` if it is what the spec asks for, else it is remains; a cluster that is kept, or whose
    owner lives, stays what it is.
    """
    found = ownership.survey(docker, name)
    known = record.find(name)
    if known is not None and known.provider != "kind":
        raise UsageError("is an existing cluster, taken by that name", where=name, fix=f"sandbox down {name}")
    ownership.refuse_strangers(found, name)
    orphan = known is not None and known.owner is not None and not known.owner.alive()
    why = ""
    if known is None or record.creating(name):
        why = "an earlier create did not end"
    elif not record.claim(name).containers <= {str(each.id) for each in found.containers}:
        why = "its nodes are gone"
    elif orphan and (known.shape, known.image) != (record.shape(spec), image):
        why = "the process it belonged to is gone, and it is not what is asked for now"
    if known is None or why:
        if known is not None or not found.empty or record.home(name).exists():
            say(f"{name}: {why}; what is left of it is removed")
            containers.remove(docker, name)
            record.forget(name)
        return None
    if known.shape != record.shape(spec):
        raise UsageError(
            "runs with another shape than its spec now says", where=name, fix=f"sandbox down {name}, or another --name"
        )
    if known.image != image:
        raise UsageError(
            f"runs on node image {known.image}; it would now be {image}", where=name, fix=f"sandbox down {name}"
        )
    ownership.refuse_cut_off(found, name)
    begun = time.time()
    woken = nodes.start_all(docker, name)
    current = replace(
        known,
        nodes=containers.refreshed(docker, known),
        owner=owner if orphan else known.owner,
        engine=identity(docker),
    )
    kube = Kube.connect(current.kubeconfig, current.context)
    wait_for(lambda: making.answers(kube), within=furnishing.READY_SECONDS, what=f"the API server of {name}")
    prove_ours(current)
    record.save(current)
    if woken:  # until then the API server tells of the nodes as they were before they stopped
        wait_for(
            renewed(kube, current.node_names, since=begun),
            within=furnishing.READY_SECONDS,
            what="word from every kubelet",
        )
    return current
