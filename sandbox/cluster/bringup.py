"""Bring a cluster up: take the one that runs, or clear what a crash left and make it anew."""

from __future__ import annotations

import re
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from docker.errors import DockerException
from requests.exceptions import RequestException

from sandbox import images
from sandbox.cluster import addons, config, containers, existing, failure, kind, leftovers, node_images, nodes, record
from sandbox.cluster.guard import prove_ours
from sandbox.cluster.record import Cluster, Owner
from sandbox.errors import ClusterError, SandboxError, UsageError
from sandbox.host.checks import require
from sandbox.host.engine import client
from sandbox.host.preparing import prepare
from sandbox.kube import Kube, Seen, wait_for
from sandbox.kube.conditions import nodes_ready, rollout
from sandbox.progress import say, step

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from docker import DockerClient

    from sandbox.spec.cluster import ClusterSpec

# the engine's host names are cut at 63 characters, and nodes are called <name>-control-plane2
_NAME = re.compile(r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")
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
    if not _NAME.match(chosen):
        raise UsageError(
            "is no name for a cluster", where=chosen, fix="up to 40 small letters, digits and hyphens, such as trio-2"
        )
    if spec.provider == "existing":
        with record.locked(chosen):
            return existing.adopt(spec, chosen, allow_changes=allow_changes)
    engine = prepare()
    leftovers.reap(besides=chosen)
    with record.locked(chosen):
        docker = client()
        wanted = [*dict.fromkeys([*spec.images, *app_images])]
        running = _running(docker, spec, chosen, owner)
        if running is None:
            require(engine)
            config.check_ports(spec)
            return _create(docker, spec, chosen, wanted, owner, cgroup=engine.cgroup)
        _ready(Kube.connect(running.kubeconfig, running.context), len(running.nodes))
        if wanted:
            node_images.load(docker, chosen, [image.ref for image in images.ensure(wanted).values()])
        say(f"{chosen}: runs already")
        return running


def _running(docker: DockerClient, spec: ClusterSpec, name: str, owner: Owner | None) -> Cluster | None:
    """Return the cluster of that name with its nodes started; None when there is none, its remains cleared away.

    An orphan goes over to `owner`; a cluster that is kept, or whose owner lives, stays what it is.
    """
    found = containers.survey(docker, name)
    known = record.find(name)
    if known is not None and known.provider != "kind":
        raise UsageError("is an existing cluster, taken by that name", where=name, fix=f"sandbox down {name}")
    containers.refuse_strangers(found, name)
    present = {str(each.id) for each in found.containers}
    if known is None or record.creating(name) or not all(node.container in present for node in known.nodes):
        if known is not None or not found.empty or record.home(name).exists():
            why = "an earlier create did not end" if known is None or record.creating(name) else "its nodes are gone"
            say(f"{name}: {why}; what is left of it is removed")
            record.end_creation(name)
            containers.remove(docker, name)
            record.forget(name)
        return None
    if known.shape != record.shape(spec):
        raise UsageError(
            "runs with another shape than its spec now says", where=name, fix=f"sandbox down {name}, or another --name"
        )
    image = images.ensure(["node"])["node"].ref
    if known.image != image:
        raise UsageError(
            f"runs on node image {known.image}; it would now be {image}", where=name, fix=f"sandbox down {name}"
        )
    nodes.start_all(docker, name)
    orphan = known.owner is not None and not known.owner.alive()
    current = replace(
        known,
        nodes=tuple(containers.node(each) for each in containers.nodes(docker, name)),
        owner=owner if orphan else known.owner,
    )
    kube = Kube.connect(current.kubeconfig, current.context)
    wait_for(lambda: _answers(kube), within=_READY_SECONDS, what=f"the API server of {name}")
    prove_ours(current)
    record.save(current)
    return current


def _create(
    docker: DockerClient, spec: ClusterSpec, name: str, wanted: Sequence[str], owner: Owner | None, *, cgroup: str
) -> Cluster:
    """Make the cluster; on failure keep the logs and remove it."""
    binary = images.tool("kind")
    image = images.ensure(["node"])["node"].ref
    run = uuid.uuid4().hex[:12]
    record.mark_creating(name, run)
    log = record.home(name) / "create.log"
    try:
        containers.make_network(docker, name, run, ipv6=config.ipv6(spec))
        kubeconfig = record.home(name) / "kubeconfig"
        with _loading(docker, spec, name, wanted), step(f"{name}: create {len(spec.nodes)} node(s) with kind"):
            kind.create(
                binary,
                name,
                config=config.render(spec, image=image, cgroup=cgroup),
                network=containers.network_name(name),
                kubeconfig=kubeconfig,
                log=log,
                started=lambda pid: record.mark_creating(name, run, kind=pid),
            )
        made = _describe(docker, name, kubeconfig, run=run, shape=record.shape(spec), image=image, owner=owner)
        kube = Kube.connect(made.kubeconfig, made.context)
        addons.apply(kube, spec)
        _ready(kube, len(made.nodes))
    except (SandboxError, DockerException, RequestException) as cause:
        error = failure.explain(docker, binary, name, log, cause)
        _remove(docker, name)
        raise error from cause
    except BaseException:
        say(f"{name}: interrupted; it is removed")
        _remove(docker, name)
        raise
    record.save(made)
    return made


@contextmanager
def _loading(docker: DockerClient, spec: ClusterSpec, name: str, wanted: Sequence[str]) -> Iterator[None]:
    """Load the images beside what happens inside; both must succeed."""
    if not wanted:
        yield
        return
    abandoned = threading.Event()

    def work() -> None:
        refs = [image.ref for image in images.ensure(wanted).values()]
        node_images.load_while_creating(docker, name, refs, count=len(spec.nodes), abandoned=abandoned)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="images") as pool:
        loading = pool.submit(work)
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
    )


def _ready(kube: Kube, count: int) -> None:
    """Wait for what every user of the cluster needs: its nodes and its DNS."""
    wait_for(nodes_ready(kube, count), within=_READY_SECONDS, what="all nodes Ready")
    wait_for(rollout(kube, "Deployment", "kube-system", "coredns"), within=_READY_SECONDS, what="cluster DNS")


def _answers(kube: Kube) -> Seen[None]:
    answer = kube.request("GET", "/readyz")
    return Seen(answer.ok, None, f"/readyz answers {answer.status}")


def _remove(docker: DockerClient, name: str) -> None:
    """Clear away a failed create. What cannot be removed is said; the next command tries again."""
    try:
        containers.remove(docker, name)
    except ClusterError as error:
        say(str(error))
        return
    record.forget(name)
