"""Bring a cluster up: take the one that runs, or clear what a crash left and make it anew."""

from __future__ import annotations

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from sandbox import images
from sandbox.cluster import (
    addons,
    config,
    containers,
    existing,
    failure,
    fleet,
    gpus,
    kind,
    leftovers,
    node_images,
    nodes,
    ownership,
    record,
)
from sandbox.cluster.guard import prove_ours
from sandbox.cluster.reach import OutOfReach, require_reach
from sandbox.cluster.record import Cluster, Owner
from sandbox.errors import EnvironmentMissing, SandboxError, UsageError
from sandbox.host.checks import require
from sandbox.host.engine import client, identity
from sandbox.host.preparing import prepare
from sandbox.kube import Kube, Seen, wait_for
from sandbox.kube.conditions import nodes_ready, renewed, rollout
from sandbox.progress import say, step

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from docker import DockerClient

    from sandbox.spec.cluster import ClusterSpec

_READY_SECONDS = 180.0


def up(
    spec: ClusterSpec,
    *,
    name: str | None = None,
    app_images: Sequence[str] = (),
    owner: Owner | None = None,
    allow_changes: bool = False,
) -> Cluster:
    """Bring up a cluster of this shape, or return the one that runs. Ready means: all nodes Ready, DNS rolled out.

    Args:
        spec: the shape.
        name: of the cluster; the shape's own when not given.
        app_images: names of clusters/images/ to have in the nodes, beside the spec's own.
        owner: a process the cluster ends with; it is kept until `down` without.
        allow_changes: for `provider: existing`: leave to change that cluster.

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
                return _create(
                    docker, spec, chosen, owner, binary=binary, image=refs["node"], load=ours, cgroup=engine.cgroup
                )
            kube = Kube.connect(running.kubeconfig, running.context)
            node_images.load(containers.nodes(docker, chosen), [*ours.values()])
            _furnish(kube, spec, len(running.nodes), ours)
            say(f"{chosen}: runs already")
            return running


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
    begun = time.time()
    woken = nodes.start_all(docker, name)
    current = replace(
        known,
        nodes=tuple(containers.node(each) for each in containers.nodes(docker, name)),
        owner=owner if orphan else known.owner,
        engine=identity(docker),
    )
    kube = Kube.connect(current.kubeconfig, current.context)
    wait_for(lambda: _answers(kube), within=_READY_SECONDS, what=f"the API server of {name}")
    prove_ours(current)
    record.save(current)
    if woken:  # until then the API server tells of the nodes as they were before they stopped
        wait_for(renewed(kube, current.node_names, since=begun), within=_READY_SECONDS, what="word from every kubelet")
    return current


def _create(
    docker: DockerClient,
    spec: ClusterSpec,
    name: str,
    owner: Owner | None,
    *,
    binary: Path,
    image: str,
    load: Mapping[str, str],
    cgroup: str,
) -> Cluster:
    """Make the cluster; on failure keep the logs and remove it."""
    run, engine = uuid.uuid4().hex[:12], identity(docker)
    record.mark_creating(name, run, engine=engine)
    log = record.home(name) / "create.log"
    try:
        containers.make_network(docker, name, run, ipv6=config.ipv6(spec))
        kubeconfig = record.home(name) / "kubeconfig"
        with (
            _loading(docker, spec, name, [*load.values()]),
            step(f"{name}: create {len(spec.nodes)} node(s) with kind"),
        ):
            kind.create(
                binary,
                name,
                config=config.render(spec, image=image, cgroup=cgroup, scheduler=config.scheduler_file(spec, name)),
                network=containers.network_name(name),
                kubeconfig=kubeconfig,
                log=log,
                started=lambda pid: record.mark_creating(name, run, engine=engine, kind=pid),
            )
            require_reach(name, containers.node(containers.nodes(docker, name)[0]).address)
        made = _describe(docker, name, kubeconfig, run=run, shape=record.shape(spec), image=image, owner=owner)
        kube = Kube.connect(made.kubeconfig, made.context)
        _furnish(kube, spec, len(made.nodes), load)
    except OutOfReach:  # nothing is wrong with the cluster: its logs would say nothing
        _remove(docker, name)
        raise
    except Exception as cause:
        error = failure.explain(docker, binary, name, log, cause)
        if not _remove(docker, name):
            error.what = "the cluster did not come up; its logs are kept, and what is left of it stays"
        if not isinstance(cause, (SandboxError, *containers.ENGINE_ERRORS)):  # a mistake of ours, to be seen as one
            say(str(error))
            raise
        raise error from cause
    except BaseException:
        say(f"{name}: interrupted; it is removed")
        _remove(docker, name)
        raise
    record.save(made)
    return made


@contextmanager
def _loading(docker: DockerClient, spec: ClusterSpec, name: str, refs: Sequence[str]) -> Iterator[None]:
    """Load the images beside what happens inside; both must succeed."""
    if not refs:
        yield
        return
    abandoned = threading.Event()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="images") as pool:
        loading = pool.submit(
            node_images.load_while_creating, docker, name, refs, count=len(spec.nodes), abandoned=abandoned
        )
        try:
            yield
        except BaseException:
            abandoned.set()
            raise
        loading.result()


def _describe(
    docker: DockerClient, name: str, kubeconfig: Path, *, run: str, shape: str, image: str, owner: Owner | None
) -> Cluster:
    """Return the value of a cluster that kind just made."""
    kubeconfig.chmod(0o600)
    context = f"kind-{name}"
    return Cluster(
        name=name,
        provider="kind",
        kubeconfig=kubeconfig,
        context=context,
        run=run,
        uid=Kube.connect(kubeconfig, context).uid(),
        shape=shape,
        image=image,
        created=time.time(),
        nodes=tuple(containers.node(each) for each in containers.nodes(docker, name)),
        owner=owner,
        engine=identity(docker),
        containers=tuple(str(each.id) for each in ownership.survey(docker, name).containers),
    )


def _furnish(kube: Kube, spec: ClusterSpec, count: int, refs: Mapping[str, str]) -> None:
    """Apply the addons, and wait for what every user of the cluster needs: its nodes, its DNS, its GPUs, its fleet.

    Args:
        kube: the cluster, as its administrator.
        spec: the shape.
        count: nodes that are machines.
        refs: of the images that are in the nodes.
    """
    addons.apply(kube, spec, refs)
    wait_for(nodes_ready(kube, count, selector=fleet.REAL), within=_READY_SECONDS, what="all nodes Ready")
    machines = gpus.in_order(kube, spec) if spec.gpu else []
    has_gpus = gpus.apply(kube, spec, machines, refs.get(gpus.IMAGE, ""))
    wait_for(rollout(kube, "Deployment", "kube-system", "coredns"), within=_READY_SECONDS, what="cluster DNS")
    if has_gpus:
        gpus.wait(kube, spec, machines)
    if spec.fleet is not None:
        fleet.wait(kube, spec.fleet)


def _answers(kube: Kube) -> Seen[None]:
    answer = kube.request("GET", "/readyz")
    return Seen(answer.ok, None, f"/readyz answers {answer.status}")


def _remove(docker: DockerClient, name: str) -> bool:
    """Clear away a failed create. What cannot be removed is said; the next command tries again."""
    try:
        with containers.engine_errors(name):
            containers.remove(docker, name)
    except EnvironmentMissing as error:
        say(str(error))
        return False
    record.forget(name)
    return True
