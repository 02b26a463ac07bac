"""Images in the container engine: looked up, loaded, pulled, and node images finished."""

from __future__ import annotations

import json
import os
import tarfile
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from docker.errors import DockerException, ImageNotFound, StreamParseError
from urllib3.exceptions import HTTPError

from sandbox.errors import ImageUnavailable
from sandbox.host.engine import client
from sandbox.images import store

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

Source = Literal["pulled", "built"]
# all that talking to an engine can end with, its disk or ours being full included; what requests raises is an OSError
FAILURES = (DockerException, StreamParseError, HTTPError, OSError)
OURS = "ai-k8s-sandbox/"
_VOLUME = "/mnt"
_LIFE = 3600  # seconds after which a build container ends by itself, should its maker be killed
_TAIL = 10


@dataclass(frozen=True)
class Image:
    """An image that the engine has. `ref` is the name to run it by, `size` in bytes."""

    name: str
    ref: str
    id: str
    size: int
    source: Source


def find(name: str, ref: str, source: Source) -> Image | None:
    """The image of that reference, or None."""
    try:
        found = client().images.get(ref)
    except ImageNotFound:
        return None
    return Image(name, ref, str(found.id), int(found.attrs.get("Size", 0)), source)


def load(archive: Path) -> None:
    """Give an archive to the engine."""
    with archive.open("rb") as content, explained("the engine did not take the image"):
        client().images.load(content)


@contextmanager
def explained(what: str, *, where: str = "", fix: str = "sandbox doctor") -> Iterator[None]:
    """Turn whatever the engine or a disk ends with into ImageUnavailable: what, in whose words, and the fix.

    Around a block, or as a decorator around a function.
    """
    try:
        yield
    except FAILURES as error:
        words = said(error)
        raise ImageUnavailable(f"{what}: {words}", where=where, fix=store.remedy(words, fix)) from error


def said(error: Exception) -> str:
    """A failure in the words of who failed."""
    text = str(error) or type(error).__name__
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text


def finish_node(base: str, contained: Path, program: str, ref: str) -> None:
    """Unpack an archive of images into the containerd of a node image `base` and name the result `ref`.

    containerd runs once inside a container of the image, on a volume, since it cannot stack its own overlay on the
    engine's; what it made is then copied into the image.
    """
    # a name, not a label: committing would hand a label on to every node that runs the image
    name = f"ai-k8s-sandbox-build-{ref.rpartition(':')[2]}"
    docker = client()
    _remove(docker, name)
    container = docker.containers.run(
        base,
        [str(_LIFE)],
        name=name,
        entrypoint="sleep",
        privileged=True,
        network_mode="none",
        volumes=[_VOLUME],
        detach=True,
        auto_remove=True,
    )
    try:
        _finish(container, contained, program)
        repository, _, tag = ref.rpartition(":")
        before = docker.images.get(base).attrs["Config"]
        kept = ("Entrypoint", "Cmd", "Env", "Labels", "StopSignal", "User")
        container.commit(repository, tag, conf={word: before.get(word) for word in kept})
    finally:
        _remove(docker, name)


def _finish(container: Container, contained: Path, program: str) -> None:
    _copy_in(container, contained, _VOLUME)
    done = container.exec_run([program, f"{_VOLUME}/{contained.name}", f"{_VOLUME}/scratch"])
    output = done.output if isinstance(done.output, bytes) else b"".join(done.output)
    if done.exit_code:
        raise ImageUnavailable(
            f"{program} failed in the node image (exit code {done.exit_code})",
            where=contained.name,
            details=output.decode(errors="replace").splitlines()[-_TAIL:],
            fix="sandbox doctor, then: sandbox images build node",
        )


def _copy_in(container: Container, path: Path, folder: str) -> None:
    """Copy a file into a container without holding it in memory: a tar is read from a pipe while it is written."""
    read, write = os.pipe()

    def pack() -> None:
        with suppress(BrokenPipeError), os.fdopen(write, "wb") as pipe, tarfile.open(fileobj=pipe, mode="w|") as tar:
            tar.add(path, path.name)  # an engine that stops reading says why by itself

    writer = threading.Thread(target=pack, daemon=True)
    writer.start()
    with os.fdopen(read, "rb") as content:
        container.put_archive(folder, content)
    writer.join()


def _remove(docker: DockerClient, name: str) -> None:
    """Remove the build container of that name, which only an interrupted build can have left: builds hold a lock."""
    with suppress(*FAILURES):
        docker.containers.get(name).remove(force=True, v=True)


def untag(ref: str) -> None:
    """Take a name away; what other images need of it stays. Never hides what went wrong before."""
    with suppress(*FAILURES):
        client().images.remove(ref, noprune=True)


def remove_old(current: Collection[str]) -> int:
    """Remove the images of ours whose names are not among those, except what a container is made of; bytes freed."""
    docker = client()
    used = {each["ImageID"] for each in docker.api.containers(all=True)}
    freed = 0
    for image in docker.images.list():
        old = [tag for tag in image.tags if tag.startswith(OURS) and tag not in current]
        if not old or image.id in used:
            continue
        for tag in old:
            docker.images.remove(tag)
        freed += int(image.attrs.get("Size", 0)) if len(old) == len(image.tags) else 0
    return freed
