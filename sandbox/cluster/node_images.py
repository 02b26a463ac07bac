"""Bring images of the engine into the nodes: one streamed archive, all nodes at once, only what is missing."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING

from sandbox.cluster import containers
from sandbox.errors import ClusterError, EnvironmentMissing
from sandbox.host.engine import engine_url
from sandbox.kube.wait import Seen, wait_for
from sandbox.progress import say

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

_CTR = ("ctr", "--namespace", "k8s.io", "images")
_CHUNK = 1 << 20
_CONTAINERD_SECONDS = 180.0
_STREAM_SECONDS = 600.0


def load(nodes: Sequence[Container], refs: Sequence[str]) -> dict[str, list[str]]:
    """Have `refs` in each of these node containers, unpacked.

    Returns:
        node name -> the references that were missing there and are loaded now.

    Raises:
        EnvironmentMissing: the engine has not got one of them.
        ClusterError: a node refused the archive.
    """
    lacking = {each: missing(each, refs) for each in nodes}
    wanted = [ref for ref in refs if any(ref in gaps for gaps in lacking.values())]
    targets = [each for each, gaps in lacking.items() if gaps]
    if targets:
        say(f"load {', '.join(wanted)} into {', '.join(str(each.name) for each in targets)}")
        _stream(wanted, targets)
    return {str(each.name): gaps for each, gaps in lacking.items() if gaps}


def load_while_creating(
    client: DockerClient, cluster: str, refs: Sequence[str], *, count: int, abandoned: threading.Event
) -> None:
    """As `load`, as soon as `count` nodes run a containerd, while kind is still at work on them.

    Raises:
        ClusterError: `abandoned` was set, since there will be no cluster.
    """

    def there() -> Seen[None]:
        if abandoned.is_set():
            raise ClusterError("nothing was loaded: there is no cluster", where=cluster)
        nodes = [each for each in containers.nodes(client, cluster) if each.status == "running"]
        answering = [each for each in nodes if _answers(each)]
        saw = f"{len(answering)} of {count} nodes have a containerd that answers"
        return Seen(len(answering) == count, None, saw)

    wait_for(there, within=_CONTAINERD_SECONDS, what=f"containerd in the nodes of {cluster}")
    load(containers.nodes(client, cluster), refs)


def missing(node: Container, refs: Sequence[str]) -> list[str]:
    """Return those of `refs` that the node's containerd has not got."""
    code, output = containers.run(node, [*_CTR, "list", "--quiet"])
    if code:
        raise ClusterError("the node's containerd does not answer", where=str(node.name), details=[output])
    have = set(output.split())
    return [ref for ref in refs if full_name(ref) not in have]


def full_name(ref: str) -> str:
    """Return a reference as containerd stores it: with registry, namespace and tag."""
    name, _, digest = ref.partition("@")
    first, slash, _ = name.partition("/")
    if not slash:
        name = f"docker.io/library/{name}"
    elif "." not in first and ":" not in first and first != "localhost":
        name = f"docker.io/{name}"
    if digest:
        return f"{name}@{digest}"
    return name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"


def _answers(node: Container) -> bool:
    return containers.run(node, [*_CTR, "list", "--quiet"])[0] == 0


def _stream(refs: Sequence[str], nodes: Sequence[Container]) -> None:
    """Copy one `docker save` into every node's `ctr import`, chunk by chunk, without a temporary file.

    Raises:
        EnvironmentMissing: the engine could not save the images.
        ClusterError: a node did not take them, or it took longer than ten minutes.
    """
    docker = ["docker", "--host", engine_url()]
    unpack = [*_CTR, "import", "--all-platforms", "--digests", "-"]
    importers = [
        subprocess.Popen(
            [*docker, "exec", "--interactive", str(node.id), *unpack],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for node in nodes
    ]
    source = subprocess.Popen([*docker, "save", *refs], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    processes = (source, *importers)
    try:
        with _deadline(_STREAM_SECONDS, processes) as late:
            all_given = _pump(source, importers)
            if not all_given:  # nobody takes the rest
                source.kill()
            for process in processes:
                process.wait()
        if late.is_set():
            raise ClusterError(
                f"loading images took longer than {_STREAM_SECONDS:.0f} s",
                where=", ".join(str(node.name) for node in nodes),
                fix="sandbox doctor; if the machine is well: sandbox down, then sandbox up",
            )
        if all_given and source.returncode:
            raise EnvironmentMissing(
                "the engine could not save the images",
                where=", ".join(refs),
                fix="sandbox images build",
                details=_said(source),
            )
        for node, importer in zip(nodes, importers, strict=True):
            if importer.returncode:
                raise ClusterError(
                    "the node did not take the images",
                    where=str(node.name),
                    fix="sandbox down, then sandbox up",
                    details=_said(importer),
                )
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
            _close(process)


@contextmanager
def _deadline(seconds: float, processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[threading.Event]:
    """Kill the processes when time is out, which ends every read, write and wait on them; the event tells of it."""
    late = threading.Event()

    def end() -> None:
        late.set()
        for process in processes:
            process.kill()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def _pump(source: subprocess.Popen[bytes], importers: Sequence[subprocess.Popen[bytes]]) -> bool:
    """Write all that `source` gives to each importer. One that broke is left out; its exit code tells why.

    Returns:
        Whether all of it was given to at least one.
    """
    alive = list(importers)
    while alive and (chunk := _output(source).read(_CHUNK)):
        for importer in tuple(alive):
            if importer.stdin is None:
                continue
            try:
                importer.stdin.write(chunk)
            except BrokenPipeError:
                alive.remove(importer)
    for importer in importers:
        if importer.stdin is not None:
            with suppress(BrokenPipeError):
                importer.stdin.close()
    return bool(alive)


def _output(process: subprocess.Popen[bytes]) -> IO[bytes]:
    if process.stdout is None:
        raise ValueError("started without stdout=PIPE")
    return process.stdout


def _said(process: subprocess.Popen[bytes]) -> list[str]:
    return process.stderr.read().decode(errors="replace").splitlines()[-3:] if process.stderr else []


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()
