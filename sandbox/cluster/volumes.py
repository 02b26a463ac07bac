"""/var of nodes: engine volumes of ours, filled before the node starts.

All that containerd keeps and never changes is there once for each node image, however many nodes run: a node's volume
holds hard links to it. Hard links need both ends on one mount, so a short-lived container sees the engine's folder of
volumes. It touches those it is told of.
"""

from __future__ import annotations

import hashlib
import shlex
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from docker.errors import NotFound
from filelock import FileLock, Timeout

from sandbox import paths
from sandbox.cluster.ownership import STATE_LABEL
from sandbox.errors import ClusterError
from sandbox.progress import step

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.volumes import Volume

BASE_LABEL = "ai-k8s-sandbox.base"  # of a volume with /var of a node image: the image's id
SERIAL_LABEL = "ai-k8s-sandbox.serial"
_FUNCTIONS = Path(__file__).with_name("copy-var")
_INSIDE = "/volumes"


@dataclass(frozen=True)
class Copy:
    """One volume to be filled from another one.

    Attributes:
        source: a volume's name.
        target: an empty volume's name.
        written: upper folders of the overlays that were mounted in the source: copied, never shared.
        files: path below /var -> text, put there afterwards.
        expected: what the source's fingerprint has to be; empty: anything.
    """

    source: str
    target: str
    written: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    expected: str = ""


def create(docker: DockerClient, name: str, labels: Mapping[str, str]) -> Volume:
    """Make an empty volume, labelled as this state folder's."""
    own = {STATE_LABEL: str(paths.state_dir()), SERIAL_LABEL: uuid.uuid4().hex}
    return docker.volumes.create(name, labels={**labels, **own})


def of_image(docker: DockerClient, image: str) -> str:
    """Name the volume that holds /var as it is in a node image; made when there is none.

    Raises:
        ClusterError: the image is not there, or has nothing to copy with.
    """
    identity = str(docker.images.get(image).id)
    key = hashlib.sha256(f"{paths.state_dir()} {identity}".encode()).hexdigest()[:16]
    name = f"sandbox-base-{key}"
    note = _notes() / f"{name}.filled"
    with FileLock(_notes() / f"{name}.lock"):
        found = find(docker, name)
        if found is not None and serial(found) and _noted(note) == serial(found):
            return name
        if found is not None:  # of a command that was killed while it filled it
            for each in docker.containers.list(all=True, filters={"volume": name}):
                each.remove(force=True, v=True)
            found.remove()
        with step(f"unpack {image} once, for the nodes that share it"):
            volume = create(docker, name, {BASE_LABEL: identity})
            # the engine itself fills an empty volume from the image
            _run(docker, image, ["-c", "exit 0"], {name: "/var"}, volume.attrs["Labels"])
        note.write_text(serial(volume))
    return name


def fill(docker: DockerClient, image: str, copies: Sequence[Copy], labels: Mapping[str, str]) -> None:
    """Fill volumes, one after the other, in one container.

    Args:
        docker: the engine.
        image: of a node, for its tools.
        copies: what from where.
        labels: of the container, should this process not live to remove it.

    Raises:
        ClusterError: a source is not what was expected, or could not be copied; `details` are the last words.
    """
    lines = []
    for each in copies:
        if each.expected:
            lines.append(shlex.join(["expect", each.source, each.expected]))
        lines.append(f"( {shlex.join(['copy', each.source, each.target, *each.written])} )")
        lines += [shlex.join(["put", each.target, path, text]) for path, text in each.files.items()]
    _all_volumes(docker, image, lines, copies[0].source, labels)


def fingerprints(docker: DockerClient, image: str, names: Sequence[str], labels: Mapping[str, str]) -> list[str]:
    """Say of each volume one number for all it holds: names, sizes, owners, modes and times."""
    lines = [f"( {shlex.join(['fingerprint', name])} )" for name in names]
    return _all_volumes(docker, image, lines, names[0], labels).split()


def find(docker: DockerClient, name: str) -> Volume | None:
    """Look a volume up by its name."""
    try:
        return docker.volumes.get(name)
    except NotFound:
        return None


def abandoned(volume: Volume) -> bool:
    """Whether a volume of an image was never filled to its end, and nobody fills it now."""
    name = str(volume.name)
    try:
        with FileLock(_notes() / f"{name}.lock", timeout=0):
            return _noted(_notes() / f"{name}.filled") != serial(volume)
    except Timeout:
        return False


def serial(volume: Volume) -> str:
    """Tell a volume of ours from a later one of its name. When it was made is no help: engines tell its last change."""
    return str((volume.attrs.get("Labels") or {}).get(SERIAL_LABEL, ""))


def mountpoint(docker: DockerClient, name: str) -> str:
    """Where the engine keeps it, on the engine's machine."""
    return str(docker.volumes.get(name).attrs["Mountpoint"])


def _noted(note: Path) -> str:
    """Which volume was filled to its end; empty where none was."""
    try:
        return note.read_text()
    except (OSError, ValueError):
        return ""


def _notes() -> Path:
    folder = paths.state_dir() / "volumes"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _all_volumes(docker: DockerClient, image: str, lines: Sequence[str], one: str, labels: Mapping[str, str]) -> str:
    """Run lines that use our functions, where the folder of volumes that holds `one` is at hand."""
    folder = PurePosixPath(mountpoint(docker, one)).parent.parent
    text = "\n".join([_FUNCTIONS.read_text(encoding="utf-8"), *lines])
    return _run(docker, image, ["-c", text], {str(folder): _INSIDE}, labels)


def _run(
    docker: DockerClient, image: str, command: list[str], mounts: Mapping[str, str], labels: Mapping[str, str]
) -> str:
    """Run bash of the image to its end, without a network; what it wrote to its output."""
    container = docker.containers.create(
        image,
        command,
        entrypoint=["/bin/bash"],
        network_mode="none",
        cap_add=["SYS_ADMIN"],  # what an overlay notes of a layer's folders is hidden from others
        volumes={source: {"bind": target, "mode": "rw"} for source, target in mounts.items()},
        labels={**labels, STATE_LABEL: str(paths.state_dir())},
    )
    try:
        container.start()
        code = int(container.wait()["StatusCode"])
        said = container.logs(stdout=True, stderr=False).decode(errors="replace")
        words = container.logs(stdout=False, stderr=True).decode(errors="replace")
    finally:
        container.remove(force=True, v=True)
    if code:
        raise ClusterError(
            "the /var of a node could not be copied",
            where=image,
            fix="sandbox doctor; if the disk is full, make room, then the same command again",
            details=words.splitlines()[-5:],
        )
    return said
