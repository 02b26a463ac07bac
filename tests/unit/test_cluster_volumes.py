"""/var of nodes: the script that copies it, run for real on folders; and the volumes of images, made once."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from filelock import FileLock

from sandbox.cluster import volumes
from sandbox.errors import ClusterError

BLOB = "lib/containerd/io.containerd.content.v1.content/blobs/sha256/abc"
LAYERS = "lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"


def script(root: Path, *lines: str) -> subprocess.CompletedProcess[str]:
    """Run lines with our functions, on the volumes below `root`."""
    text = "\n".join([volumes._FUNCTIONS.read_text(), *lines])
    env = {**os.environ, "SANDBOX_VOLUMES": str(root)}
    return subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=False, env=env)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A volume as a node leaves one: a blob, a layer, a container's own files, a database, a socket."""
    var = tmp_path / "from" / "_data"
    files = {
        BLOB: "blob",
        f"{LAYERS}/1/fs/bin/tool": "layer",
        f"{LAYERS}/15/fs/log": "written by a container",
        "lib/containerd/io.containerd.metadata.v1.bolt/meta.db": "what there is",
        "lib/etcd/member/wal/0.wal": "entry",
        "log/pods/one.log": "said",
    }
    for path, text in files.items():
        (var / path).parent.mkdir(parents=True, exist_ok=True)
        (var / path).write_text(text)
    (var / LAYERS / "1" / "fs" / "bin" / "tool").chmod(0o755)
    (var / "lib" / "kubelet").mkdir()
    (var / "lib" / "link").symlink_to("etcd")
    with (var / "lib/etcd/member/wal/0.wal").open("r+b") as reserved:
        reserved.truncate(64_000_000)
    (tmp_path / "to" / "_data").mkdir(parents=True)
    return var


def copied(tmp_path: Path, *written: str) -> Path:
    done = script(tmp_path, shlex.join(["copy", "from", "to", *written]))
    assert done.returncode == 0, done.stderr
    return tmp_path / "to" / "_data"


def test_a_copy_holds_the_same_and_shares_only_what_containerd_never_changes(source: Path, tmp_path: Path) -> None:
    into = copied(tmp_path, f"/var/{LAYERS}/15/fs", "/var/lib/docker/overlay2/abc/diff")
    there = sorted(str(path.relative_to(source)) for path in source.rglob("*"))
    assert sorted(str(path.relative_to(into)) for path in into.rglob("*")) == there
    shared = {path for path in there if (source / path).is_file() and (source / path).samefile(into / path)}
    shared -= {path for path in shared if (source / path).is_symlink()}
    assert {path for path in shared if not path.startswith("lib/link")} == {BLOB, f"{LAYERS}/1/fs/bin/tool"}
    assert os.access(into / LAYERS / "1/fs/bin/tool", os.X_OK)


@pytest.mark.parametrize(
    "path", [f"{LAYERS}/15/fs/log", "lib/containerd/io.containerd.metadata.v1.bolt/meta.db", "log/pods/one.log"]
)
def test_what_a_copy_writes_in_place_the_source_never_sees(source: Path, tmp_path: Path, path: str) -> None:
    into = copied(tmp_path, f"/var/{LAYERS}/15/fs")
    before = (source / path).read_text()
    with (into / path).open("a") as file:
        file.write(" and more")
    assert (source / path).read_text() == before


def test_the_layer_of_a_container_that_writes_would_be_shared_if_it_were_not_named(
    source: Path, tmp_path: Path
) -> None:
    assert (copied(tmp_path) / LAYERS / "15/fs/log").samefile(source / LAYERS / "15/fs/log")


def test_what_a_database_reserved_takes_no_room_and_sockets_are_left_out(source: Path, tmp_path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(source / "lib/kubelet/s"))
        into = copied(tmp_path)
    assert not (into / "lib/kubelet/s").exists()
    wal = (into / "lib/etcd/member/wal/0.wal").stat()
    assert wal.st_size == 64_000_000
    assert wal.st_blocks * 512 < 1_000_000


def test_a_volume_without_images_is_copied_too(tmp_path: Path) -> None:
    (tmp_path / "from/_data/lib").mkdir(parents=True)
    (tmp_path / "to/_data").mkdir(parents=True)
    assert (copied(tmp_path) / "lib").is_dir()


def test_a_file_of_ours_is_put_as_it_is(source: Path, tmp_path: Path) -> None:
    text = "a 'quoted' $word\nand a line\\n"
    assert script(tmp_path, shlex.join(["put", "from", "lib/ours/file", text])).returncode == 0
    assert (source / "lib/ours/file").read_text() == text


ALTERED: dict[str, Callable[[Path], object]] = {
    "a file that is cut": lambda var: os.truncate(var / BLOB, 1),
    "a file written over": lambda var: (var / BLOB).write_text("bl0b"),
    "a file more": lambda var: (var / "lib/more").touch(),
    "a file less": lambda var: (var / "log/pods/one.log").unlink(),
    "other rights": lambda var: (var / BLOB).chmod(0o600),
    "another target of a link": lambda var: ((var / "lib/link").unlink(), (var / "lib/link").symlink_to("kubelet")),
}


@pytest.mark.parametrize("how", ALTERED)
def test_a_volume_that_was_altered_is_not_copied(source: Path, tmp_path: Path, how: str) -> None:
    number = script(tmp_path, "fingerprint from").stdout.strip()
    assert script(tmp_path, f"expect from {number}").returncode == 0
    ALTERED[how](source)
    refused = script(tmp_path, f"expect from {number}", "( copy from to )")
    assert (refused.returncode, refused.stderr) == (3, "from is not what was saved\n")
    assert [*(tmp_path / "to" / "_data").iterdir()] == []


class Docker:
    """An engine as far as volumes go."""

    def __init__(self) -> None:
        self.held: dict[str, dict[str, str]] = {}
        self.runs: list[str] = []
        self.code = 0
        self.left: list[str] = []

    @property
    def volumes(self) -> Any:
        return SimpleNamespace(get=self._get, create=self._create)

    @property
    def images(self) -> Any:
        return SimpleNamespace(get=lambda ref: SimpleNamespace(id=f"id of {ref}"))

    @property
    def containers(self) -> Any:
        return SimpleNamespace(create=self._run, list=lambda **_: [])

    def _get(self, name: str) -> Any:
        if name not in self.held:
            raise volumes.NotFound("no such volume")
        return SimpleNamespace(
            name=name, attrs={"Labels": self.held[name], "Mountpoint": f"/v/{name}/_data"},
            remove=lambda: self.held.pop(name),
        )  # fmt: skip

    def _create(self, name: str, labels: dict[str, str]) -> Any:
        self.held[name] = labels
        return self._get(name)

    def _run(self, image: str, command: list[str], **_: object) -> Any:
        self.runs.append(command[1])
        self.left.append(image)
        words = {True: b"", False: b"no space left on device"}
        return SimpleNamespace(
            start=lambda: None, wait=lambda: {"StatusCode": self.code},
            logs=lambda stdout, stderr: words[stdout], remove=lambda **_: self.left.pop(),
        )  # fmt: skip


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Docker:
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path / "state"))
    return Docker()


def test_the_volume_of_an_image_is_filled_once(docker: Docker) -> None:
    name = volumes.of_image(cast("Any", docker), "node:1")
    assert volumes.of_image(cast("Any", docker), "node:1") == name
    assert len(docker.runs) == 1
    assert volumes.of_image(cast("Any", docker), "node:2") != name


@pytest.mark.parametrize("how", ["killed while it was filled", "removed and made anew by somebody", "removed"])
def test_a_volume_that_was_never_filled_or_is_another_one_is_made_anew(docker: Docker, how: str) -> None:
    docker.code = 1 if how.startswith("killed") else 0
    if docker.code:
        with pytest.raises(ClusterError):
            volumes.of_image(cast("Any", docker), "node:1")
        docker.code = 0
    else:
        name = volumes.of_image(cast("Any", docker), "node:1")
        del docker.held[name]
        if how != "removed":
            docker.held[name] = {}
    name = volumes.of_image(cast("Any", docker), "node:1")
    assert docker.held[name][volumes.SERIAL_LABEL]
    assert len(docker.runs) == 2


def test_a_volume_is_abandoned_only_when_nobody_fills_it_and_nobody_did(docker: Docker) -> None:
    name = volumes.of_image(cast("Any", docker), "node:1")
    assert not volumes.abandoned(docker._get(name))
    note = volumes._notes() / f"{name}.filled"
    note.unlink()
    assert volumes.abandoned(docker._get(name))
    with FileLock(note.with_suffix(".lock")):
        assert not volumes.abandoned(docker._get(name))


def test_a_copy_that_fails_says_why_and_leaves_no_container(docker: Docker) -> None:
    docker.held["from"] = {}
    docker.code = 1
    with pytest.raises(ClusterError, match="could not be copied") as told:
        volumes.fill(cast("Any", docker), "node:1", [volumes.Copy("from", "to")], {})
    assert told.value.details == ["no space left on device"]
    assert docker.left == []
