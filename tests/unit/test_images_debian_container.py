"""What becomes of an exported container's files; the containers themselves are in tests/live."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from sandbox.errors import EnvironmentMissing, ImageUnavailable
from sandbox.host import registries
from sandbox.images import container_tree

KEPT = {"bin", "usr/bin/sh", "usr/bin/perl", "usr/bin/perl5.36", "etc/passwd", "etc/apt/sources.list", "devices/x"}
DROPPED = {
    *("dev/console", "proc/x", "sys/x", ".dockerenv", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab"),
    *("tmp/sandbox-apt/sources.list", "var/lib/apt/lists/x", "var/cache/apt/x.bin", "usr/sbin/policy-rc.d"),
}


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.mtime, info.uname = kind, link, mode, 99, "root"
    return info


def _exported(path: Path, *, merged: bool = True) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for folder in ("dev", "proc", "sys", "tmp", "var/log"):
            tar.addfile(_member(f"{folder}/", tarfile.DIRTYPE, mode=0o1777 if folder == "tmp" else 0o755))
        tar.addfile(_member("bin", tarfile.SYMTYPE, "usr/bin") if merged else _member("bin", tarfile.DIRTYPE))
        for name in sorted((KEPT | DROPPED) - {"bin", "usr/bin/perl5.36"}, reverse=True):
            info = _member(name, mode=0o4755 if name == "usr/bin/perl" else 0o644)
            info.size, info.pax_headers = len(name), {"SCHILY.xattr.user.x": "y", "mtime": "99.5"}
            tar.addfile(info, io.BytesIO(name.encode()))
        tar.addfile(_member("usr/bin/perl5.36", tarfile.LNKTYPE, "usr/bin/perl", mode=0o4755))
    return path


def test_a_tree_is_the_export_without_what_the_engine_and_the_making_put_there(tmp_path: Path) -> None:
    container_tree._rewrite(_exported(tmp_path / "raw.tar"), tmp_path / "tree.tar")
    with tarfile.open(tmp_path / "tree.tar") as tar:
        members = {member.name: member for member in tar}
        assert {name for name, member in members.items() if not member.isdir()} == KEPT
        assert {"dev", "proc", "sys", "tmp", "var/log"} <= members.keys()
        assert list(members) == sorted(members)
        assert {(each.mtime, each.uname, bool(each.pax_headers)) for each in members.values()} == {(0, "", False)}
        twin = members["usr/bin/perl5.36"]
        assert (twin.isreg(), twin.mode, twin.linkname) == (True, 0o4755, ""), "a hard link stayed one"
        content = tar.extractfile(twin)
        assert content
        assert content.read() == b"usr/bin/perl"
        assert members["tmp"].mode == 0o1777


def test_a_system_that_is_not_merged_is_refused_because_slices_would_lose_its_libraries(tmp_path: Path) -> None:
    with pytest.raises(ImageUnavailable, match="merged"):
        container_tree._rewrite(_exported(tmp_path / "raw.tar", merged=False), tmp_path / "tree.tar")


def test_the_mirror_is_asked_before_docker_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(registries.MIRROR, raising=False)
    assert container_tree.bases("trixie") == ["docker.io/library/debian:trixie-slim"]
    monkeypatch.setenv(registries.MIRROR, "127.0.0.1:5000/lab/")
    assert container_tree.bases("trixie") == [
        "127.0.0.1:5000/lab/debian:trixie-slim",
        "127.0.0.1:5000/lab/library/debian:trixie-slim",
        "docker.io/library/debian:trixie-slim",
    ]


class Engine:
    """An engine that runs one architecture and has no images."""

    def __init__(self, architecture: str) -> None:
        self.architecture = architecture

    def version(self) -> dict[str, str]:
        return {"Arch": self.architecture}


def test_an_engine_of_another_architecture_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(container_tree, "architecture", lambda: "arm64")
    monkeypatch.setattr(container_tree, "client", lambda **_: Engine("amd64"))
    with pytest.raises(EnvironmentMissing, match="runs amd64, images are built here for arm64"):
        container_tree.make("bookworm", ["a"], tmp_path / "tree.tar")


def test_what_keeps_a_container_from_being_used_is_said_once_for_each_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_tree, "architecture", lambda: "arm64")
    monkeypatch.setattr(container_tree, "client", lambda **_: Engine("arm64"))
    monkeypatch.setattr(container_tree, "_present", lambda *_: "")
    monkeypatch.setenv(registries.MIRROR, "127.0.0.1:1")
    monkeypatch.setattr(registries, "unreachable", lambda _: "is silent")
    assert container_tree.trouble("bookworm") == ["127.0.0.1:1: is silent", "docker.io: is silent"]
    monkeypatch.setattr(registries, "unreachable", lambda host: "is silent" if host == "docker.io" else "")
    assert container_tree.trouble("bookworm") == []
