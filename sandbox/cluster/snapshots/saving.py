"""Save a cluster: its nodes stand still for a second or two while their file systems are kept."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox import paths
from sandbox.cluster import containers, guard, inner, record, volumes
from sandbox.cluster.freezer import pause
from sandbox.cluster.owner import Owner
from sandbox.cluster.ownership import STATE_LABEL
from sandbox.cluster.snapshots import keeping, store
from sandbox.cluster.snapshots.ground import ground
from sandbox.cluster.snapshots.store import Snapshot, SnapshotNode
from sandbox.errors import ClusterError, UsageError
from sandbox.host.engine import client
from sandbox.kube import Kube
from sandbox.kube.conditions import is_ready
from sandbox.progress import step
from sandbox.spec.cluster import ClusterSpec

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

    from sandbox.cluster.record import Cluster

REPOSITORY = "ai-k8s-sandbox/snapshot"
MIRROR = "kubernetes.io/config.mirror"
_UPPERS = r"sed -n 's/.*upperdir=\([^, ]*\).*/\1/p' /proc/mounts | sort -u"


@dataclass(frozen=True)
class _Part:
    """One node on its way: its container, the volume it runs on, and the one that keeps it."""

    container: Container
    source: str
    target: str
    written: Sequence[str]


def save(cluster: Cluster, name: str, *, key: str = "", contents: str = "", held: bool = False) -> Snapshot:
    """Keep the cluster as it is now, under `name`. Its nodes are paused meanwhile, and go on as if nothing were.

    Args:
        cluster: one of ours that runs.
        name: of the snapshot.
        key: hash of its content, for one that nobody asked for.
        contents: what is in it, in words.
        held: the caller holds the cluster's lock.

    Raises:
        UsageError: the name is taken, or none; or no snapshot can be made of such a cluster.
        ClusterError: the cluster is not ours, a node does not run, or the engine refused. Nothing is kept.
    """
    spec = refuse(cluster, name)
    if stands_still(cluster.name):
        with nullcontext() if held else record.locked(cluster.name), containers.engine_errors(cluster.name):
            wake(client(), cluster.name)
    guard.prove_ours(cluster)
    kube = Kube.connect(cluster.kubeconfig, cluster.context)
    ready = [pod["metadata"]["uid"] for pod in kube.list("v1", "Pod") if is_ready(pod) and not is_mirror(pod)]
    with (
        store.locked(name),
        containers.engine_errors(cluster.name),
        nullcontext() if held else record.locked(cluster.name),
        step(f"{cluster.name}: save snapshot {name}"),
    ):
        if store.path(name).exists():
            raise UsageError("is taken", where=name, fix=f"another name, or sandbox snapshot remove {name}")
        docker = client()
        keeping.clear(docker, name)  # of a save that was killed
        try:
            kept = _keep(docker, cluster, name)
            snapshot = Snapshot(
                format=store.FORMAT,
                name=name,
                key=key,
                contents=contents or spec.metadata.name,
                created=time.time(),
                cluster=cluster.name,
                spec=spec.model_dump(mode="json", by_alias=True),
                image=cluster.image,
                images=list(cluster.images),
                uid=cluster.uid,
                ground=ground(docker),
                ready=ready,
                kubeconfig=cluster.kubeconfig.read_text(encoding="utf-8"),
                nodes=kept,
            )
        except BaseException:
            keeping.clear(docker, name)
            raise
        store.write(snapshot)
    return snapshot


def refuse(cluster: Cluster, name: str) -> ClusterSpec:
    """The cluster's file; where no snapshot can be made of it, why.

    Raises:
        UsageError: it says why.
    """
    record.check_name(name)
    if cluster.provider != "kind":
        raise UsageError("an existing cluster cannot be saved: its nodes are not in our hands", where=cluster.name)
    if not cluster.spec:
        fix = f"sandbox down {cluster.name}, then sandbox up"
        raise UsageError("was made by an older version, and cannot be saved", where=cluster.name, fix=fix)
    spec = ClusterSpec.model_validate(cluster.spec)
    if why := inner.why_not(spec):
        raise UsageError(f"a cluster of this shape cannot be saved: {why}", where=cluster.name)
    return spec


def is_mirror(pod: dict[str, Any]) -> bool:
    """Whether it only shows a pod that the kubelet runs from a file, such as the API server."""
    return MIRROR in (pod["metadata"].get("annotations") or {})


def _keep(docker: DockerClient, cluster: Cluster, name: str) -> list[SnapshotNode]:
    """Keep every node's image and volume."""
    labels = {store.LABEL: name}
    there = containers.nodes(docker, cluster.name)
    if idle := [f"{each.name} is {each.status}" for each in there if each.status != "running"]:
        fix = f"sandbox up {cluster.name}"
        raise ClusterError("only a cluster that runs can be saved", where=cluster.name, details=idle, fix=fix)
    parts = []
    for each in there:
        target = f"sandbox-snapshot-{uuid.uuid4().hex[:12]}"
        volumes.create(docker, target, labels)
        code, said = containers.run(each, ["sh", "-c", _UPPERS])
        if code:
            raise ClusterError("the node does not tell its mounts", where=str(each.name), details=[said])
        parts.append(_Part(each, _volume(each), target, said.split()))
    copies = [volumes.Copy(part.source, part.target, written=part.written) for part in parts]
    with _standing_still(cluster.name, there), ThreadPoolExecutor(max_workers=len(parts)) as pool:
        images = [pool.submit(_commit, part.container, name, index) for index, part in enumerate(parts)]
        volumes.fill(docker, cluster.image, copies, labels)
        kept = [each.result() for each in images]
    prints = volumes.fingerprints(docker, cluster.image, [part.target for part in parts], labels)
    named = {each.container: each.name for each in cluster.nodes}
    return [
        SnapshotNode(
            suffix=str(part.container.name).removeprefix(cluster.engine_name),
            role=part.container.labels[containers.ROLE_LABEL],
            name=named[str(part.container.id)],
            image=image,
            volume=part.target,
            serial=volumes.serial(docker.volumes.get(part.target)),
            fingerprint=number,
            container={key: part.container.attrs[key] for key in ("Config", "HostConfig")},
        )
        for part, image, number in zip(parts, kept, prints, strict=True)
    ]


def _volume(container: Container) -> str:
    """The volume that holds its /var."""
    source = next(mount["Source"] for mount in container.attrs["Mounts"] if mount["Destination"] == "/var")
    return str(source).split("/")[-2]


def stands_still(name: str) -> bool:
    """Whether a save that was killed left the cluster's nodes paused."""
    try:
        return not Owner(**json.loads(_note(name).read_text(encoding="utf-8"))).alive()
    except FileNotFoundError:
        return False
    except (ValueError, TypeError):  # killed while it wrote the note
        return True


def wake(docker: DockerClient, name: str) -> None:
    """Let the nodes go on that a killed save left paused. The caller holds the cluster's lock."""
    for each in containers.nodes(docker, name):
        if each.status == "paused":
            each.unpause()
    _note(name).unlink(missing_ok=True)


def _note(name: str) -> Path:
    return record.home(name) / "still.json"


@contextmanager
def _standing_still(name: str, nodes: Sequence[Container]) -> Iterator[None]:
    """Pause all nodes at once; they go on whatever happens. A note says whose they are, should this be killed."""
    _note(name).write_text(json.dumps(asdict(Owner.me())), encoding="utf-8")
    try:
        for each in nodes:
            pause(each)
        yield
    finally:
        for each in nodes:
            each.reload()
            if each.status == "paused":
                each.unpause()
        _note(name).unlink(missing_ok=True)


def _commit(container: Container, name: str, index: int) -> str:
    """Keep a node's file system as an image; the engine's id of it."""
    labels = {STATE_LABEL: str(paths.state_dir()), store.LABEL: name}
    kept = container.commit(REPOSITORY, f"{name}-{index}-{uuid.uuid4().hex[:8]}", pause=False, conf={"Labels": labels})
    return str(kept.id)
