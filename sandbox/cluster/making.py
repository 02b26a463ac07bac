"""Make a cluster with kind: network and volumes of ours, nodes of kind's, images beside; whole, or nothing is left."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbox.cluster import (
    config,
    containers,
    failure,
    furnishing,
    inner,
    kind,
    node_files,
    node_images,
    record,
    volumes,
)
from sandbox.cluster.owner import Owner
from sandbox.cluster.ownership import CLUSTER_LABEL, RUN_LABEL, survey
from sandbox.cluster.reach import OutOfReach, require_reach
from sandbox.cluster.record import Cluster, Origin
from sandbox.errors import EnvironmentMissing, SandboxError
from sandbox.host.engine import Identity, identity
from sandbox.kube import Kube, Seen
from sandbox.progress import say, step

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from docker import DockerClient

    from sandbox.spec.cluster import ClusterSpec


COLD = Origin()


@dataclass(frozen=True)
class Order:
    """A cluster that is to be made.

    Attributes:
        docker: the engine.
        spec: its shape.
        name: its own.
        owner: the process it ends with; None for one that is kept.
        binary: of kind.
        image: of its nodes.
        load: name of clusters/images/ -> reference, of the images its nodes are to have.
        cgroup: the engine's cgroup version, `1` or `2`.
    """

    docker: DockerClient
    spec: ClusterSpec
    name: str
    owner: Owner | None
    binary: Path
    image: str
    load: Mapping[str, str]
    cgroup: str


@dataclass(frozen=True)
class Making:
    """A cluster under way: its run id, what its things are labelled with, and the engine it is made on."""

    run: str
    engine: Identity

    def labels(self, name: str) -> dict[str, str]:
        """Of everything that belongs to it."""
        return {CLUSTER_LABEL: name, RUN_LABEL: self.run}


def cold(order: Order) -> Cluster:
    """Make the cluster anew; on failure keep the logs and remove it.

    Raises:
        ClusterError: it did not come up.
    """
    docker, spec, name = order.docker, order.spec, order.name
    with attempt(order) as making:
        containers.make_network(docker, name, making.run, ipv6=config.ipv6(spec))
        mounted = _volumes(order, making)
        kubeconfig = record.home(name) / "kubeconfig"
        with (
            _loading(docker, spec, name, [*order.load.values()]),
            step(f"{name}: create {len(spec.nodes)} node(s) with kind"),
        ):
            kind.create(
                order.binary,
                name,
                config=config.render(spec, image=order.image, cgroup=order.cgroup, volumes=mounted),
                network=containers.network_name(name),
                kubeconfig=kubeconfig,
                log=_log(name),
                started=lambda pid: record.mark_creating(name, making.run, engine=making.engine, kind=pid),
            )
            require_reach(name, containers.node(containers.nodes(docker, name)[0]).address)
        made = describe(order, making, kubeconfig)
        furnishing.furnish(Kube.connect(made.kubeconfig, made.context), spec, len(made.nodes), order.load)
    record.save(made)
    return made


@contextmanager
def attempt(order: Order) -> Iterator[Making]:
    """Mark the cluster as being made; when what happens inside fails, keep its logs and remove it.

    Raises:
        ClusterError: what went wrong, with the logs' digest.
    """
    docker, name = order.docker, order.name
    making = Making(uuid.uuid4().hex[:12], identity(docker))
    record.mark_creating(name, making.run, engine=making.engine)
    try:
        yield making
    except OutOfReach:  # nothing is wrong with the cluster: its logs would say nothing
        _remove(docker, name)
        raise
    except Exception as cause:
        error = failure.explain(docker, order.binary, name, _log(name), cause)
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


def describe(order: Order, making: Making, kubeconfig: Path, *, origin: Origin = COLD) -> Cluster:
    """Return the value of a cluster whose API server answers."""
    docker, name = order.docker, order.name
    kubeconfig.chmod(0o600)
    context = f"kind-{name}"
    return Cluster(
        name=name,
        provider="kind",
        kubeconfig=kubeconfig,
        context=context,
        run=making.run,
        uid=Kube.connect(kubeconfig, context).uid(),
        shape=record.shape(order.spec),
        image=order.image,
        created=time.time(),
        nodes=tuple(
            containers.node(each, inner.node_name(order.spec, name, str(each.name)))
            for each in containers.nodes(docker, name)
        ),
        owner=order.owner,
        engine=making.engine,
        containers=tuple(str(each.id) for each in survey(docker, name).containers),
        spec=order.spec.model_dump(mode="json", by_alias=True),
        images=tuple(order.load.values()),
        origin=origin,
    )


def answers(kube: Kube) -> Seen[None]:
    """One look at whether the API server says it is ready."""
    answer = kube.request("GET", "/readyz")
    return Seen(answer.ok, None, f"/readyz answers {answer.status}")


def volume_names(spec: ClusterSpec, name: str, making: Making) -> list[str]:
    """Name the volume of each node, in the order of kindConfig.nodes."""
    return [f"sandbox-{name}-{making.run}-{position}" for position in range(len(spec.nodes))]


def _volumes(order: Order, making: Making) -> list[str]:
    """Make /var of every node from its image, with our files in it; where the engine keeps each."""
    labels = making.labels(order.name)
    names = volume_names(order.spec, order.name, making)
    with step(f"{order.name}: {len(names)} volume(s)"):
        bases = [volumes.of_image(order.docker, str(node.get("image") or order.image)) for node in order.spec.nodes]
        for each in names:
            volumes.create(order.docker, each, labels)
        copies = [
            volumes.Copy(base, target, files=node_files.of_node(order.spec, position))
            for position, (base, target) in enumerate(zip(bases, names, strict=True))
        ]
        volumes.fill(order.docker, order.image, copies, labels)
    return [volumes.mountpoint(order.docker, each) for each in names]


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


def _log(name: str) -> Path:
    return record.home(name) / "create.log"


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
