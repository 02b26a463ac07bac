"""Things of others beside ours, as like ours as can be: nothing of them may change."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from docker.errors import NotFound

from sandbox.cluster.ownership import CLUSTER_LABEL, STATE_LABEL
from sandbox.cluster.snapshots.store import LABEL as SNAPSHOT_LABEL
from sandbox.host.mark import MARK

if TYPE_CHECKING:
    from docker import DockerClient


class Others:
    """A container, a volume, a network, an image, a process, a kubeconfig, and a state folder with a half-made cluster.

    All carry our labels or our mark, with another state folder in them.
    """

    def __init__(self, docker: DockerClient, name: str, folder: Path, process: psutil.Process) -> None:
        self._docker, self._name, self._folder, self._process = docker, name, folder, process
        self._before = self._look()

    def changed(self) -> list[str]:
        """What is not as it was."""
        now = self._look()
        return [f"{what}: was {was}, is {now[what]}" for what, was in self._before.items() if now[what] != was]

    def start_again(self) -> None:
        """Start the container after its engine was restarted, which ends all of them."""
        self._docker.containers.get(self._name).start()
        self._before["container"] = _asked(lambda: _container(self._docker, self._name))

    def _look(self) -> dict[str, Any]:
        docker, name = self._docker, self._name
        files = [self._folder / "kubeconfig", *(self._folder / "others").rglob("*")]
        return {
            "container": _asked(lambda: _container(docker, name)),
            "volume": _asked(lambda: docker.volumes.get(name).attrs["CreatedAt"]),
            "network": _asked(lambda: str(docker.networks.get(name).id)),
            "image": _asked(lambda: str(docker.images.get(f"{name}:kept").id)),
            "process": self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE,
            "files": sorted((str(each), each.read_text() if each.is_file() else "") for each in files),
        }


def _container(docker: DockerClient, name: str) -> str:
    found = docker.containers.get(name)
    return f"{found.id} {found.status} {found.attrs['State']['StartedAt']}"


def _asked(look: Any) -> str:
    try:
        return str(look())
    except NotFound:
        return "gone"


@contextmanager
def others(docker: DockerClient, name: str, folder: Path, image: str) -> Iterator[Others]:
    """Have them for as long as what happens inside.

    Args:
        docker: the engine.
        name: of all of them.
        folder: for their files.
        image: to make a container and an image of; it has `sleep`.
    """
    elsewhere = folder / "others"
    labels = {STATE_LABEL: str(elsewhere), CLUSTER_LABEL: "another", SNAPSHOT_LABEL: "another"}
    _write(folder / "kubeconfig", "current-context: production\n")
    _write(elsewhere / "clusters" / "half" / "creating.json", "{}")
    _write(elsewhere / "clusters" / "half" / "record.json.new", "half")
    network = docker.networks.create(name, labels=labels)
    volume = docker.volumes.create(name, labels=labels)
    container = docker.containers.run(
        image, ["sleep", "86400"], name=name, labels=labels, network=name, detach=True,
        volumes={name: {"bind": "/kept", "mode": "rw"}},
    )  # fmt: skip
    kept = container.commit(name, "kept", conf={"Labels": labels})
    env = {**os.environ, MARK: f"{os.getpid()} -1.0 {elsewhere}", "SANDBOX_STATE_DIR": str(elsewhere)}
    try:
        with subprocess.Popen(["sleep", "86400"], env=env) as process:
            try:
                yield Others(docker, name, folder, psutil.Process(process.pid))
            finally:
                process.kill()
    finally:
        container.remove(force=True)
        docker.images.remove(str(kept.id), force=True)
        volume.remove()
        network.remove()


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
