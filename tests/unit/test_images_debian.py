from __future__ import annotations

import io
import json
import tarfile
from dataclasses import asdict
from pathlib import Path

import pytest

from sandbox.errors import ImageUnavailable
from sandbox.images import apt, container_tree, debian
from sandbox.images.ingredients import Item, debian_licence, spdx
from sandbox.images.recipe import DebianTree, SliceLayer, TreeLayer

STATUS = """\
Package: tool
Status: install ok installed
Version: 1.2
Depends: libone (>= 1), choice-a | choice-b, virtual, dpkg

Package: libone
Status: install ok installed
Version: 2
Pre-Depends: libtwo

Package: libtwo
Status: install ok installed
Version: 3

Package: choice-b
Status: install ok installed
Version: 4

Package: real
Status: install ok installed
Version: 5
Provides: virtual (= 1)

Package: dpkg
Status: install ok installed
Version: 6

Package: gone
Status: deinstall ok config-files
Version: 7
"""
FILES = {
    "usr/bin/tool": b"tool",
    "usr/lib/libone.so": b"one",
    "usr/share/doc/tool/copyright": b"License: Expat\n",
    "usr/share/doc/tool/changelog": b"long",
    "usr/share/man/man1/tool.1": b"manual",
    "etc/alternatives/tool": b"made by a script",
    "usr/bin/dpkg": b"dpkg",
    "dev/null": b"",
    "var/lib/dpkg/status": STATUS.encode(),
    "var/lib/dpkg/info/tool.list": b"/.\n/usr/bin/tool\n/usr/share/doc/tool/copyright\n/usr/share/doc/tool/changelog\n"
    b"/usr/share/man/man1/tool.1\n",
    "var/lib/dpkg/info/libone:amd64.list": b"/lib/libone.so\n",
    "var/lib/dpkg/info/libone:arm64.list": b"/lib/libone.so\n",
    "var/lib/dpkg/info/dpkg.list": b"/usr/bin/dpkg\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    with tarfile.open(tmp_path / "tree.tar", "w") as tar:
        link = tarfile.TarInfo("lib")
        link.type, link.linkname = tarfile.SYMTYPE, "usr/lib"
        tar.addfile(link)
        empty = {f"var/lib/dpkg/info/{name}.list": b"" for name in ("libtwo", "choice-b", "real")}
        for name, content in sorted((FILES | empty).items()):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    items = [Item("debian", name, "1") for name in ("tool", "libone", "libtwo", "choice-b", "real", "dpkg")]
    (tmp_path / "packages.json").write_text(json.dumps([asdict(item) for item in items]))
    return tmp_path


def _names(path: Path) -> set[str]:
    with tarfile.open(path) as tar:
        return {member.name for member in tar if not member.isdir()}


def test_a_slice_follows_dependencies_alternatives_and_what_others_provide(tree: Path) -> None:
    layer = SliceLayer(slice="t", packages=["tool"])
    items = debian.write_slice(tree, layer, tree / "out.tar")
    assert {item.name for item in items} == {"tool", "libone", "libtwo", "choice-b", "real", "dpkg"}


def test_a_slice_has_programs_and_licences_but_no_manuals_and_no_package_manager(tree: Path) -> None:
    layer = SliceLayer(slice="t", packages=["tool"], without_packages=["dpkg"], also=["etc/alternatives/*"])
    debian.write_slice(tree, layer, tree / "out.tar")
    names = _names(tree / "out.tar")
    assert {"usr/bin/tool", "usr/lib/libone.so", "lib", "usr/share/doc/tool/copyright"} <= names
    assert {"etc/alternatives/tool", "var/lib/dpkg/status.d/tool"} <= names
    assert not names & {"usr/bin/dpkg", "usr/share/man/man1/tool.1", "usr/share/doc/tool/changelog"}


@pytest.mark.parametrize("name", ["missing", "gone"])
def test_a_package_that_is_not_installed_is_refused(tree: Path, name: str) -> None:
    with pytest.raises(ImageUnavailable, match=f"the package {name} is not in the Debian tree"):
        debian.write_slice(tree, SliceLayer(slice="t", packages=[name]), tree / "out.tar")


def test_a_whole_tree_leaves_out_devices_and_what_is_named_but_keeps_licences(tree: Path) -> None:
    debian.write_tree(tree, TreeLayer(tree="t", without=["usr/share/doc/*", "usr/share/man/*"]), tree / "out.tar")
    names = _names(tree / "out.tar")
    assert "usr/share/doc/tool/copyright" in names
    assert not names & {"dev/null", "usr/share/doc/tool/changelog", "usr/share/man/man1/tool.1"}


@pytest.mark.parametrize(
    ("user", "debootstrap", "said"), [(1000, "/sbin/debootstrap", "here: not root"), (0, None, "here: no debootstrap")]
)
def test_a_tree_that_can_be_made_in_neither_way_is_refused_with_both_reasons(
    monkeypatch: pytest.MonkeyPatch, user: int, debootstrap: str | None, said: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user)
    monkeypatch.setattr("shutil.which", lambda _: debootstrap)
    monkeypatch.setattr(container_tree, "trouble", lambda suite: [f"docker.io: no {suite}"])
    with pytest.raises(ImageUnavailable, match="in neither way") as raised:
        debian.require(DebianTree(packages=["a"]))
    assert said in raised.value.details[0]
    assert raised.value.details[1] == "in a container of debian:bookworm-slim: docker.io: no bookworm"
    assert "SANDBOX_REGISTRY" in raised.value.fix
    monkeypatch.setattr(container_tree, "trouble", lambda _: [])
    debian.require(DebianTree(packages=["a"]))


def test_root_with_debootstrap_needs_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda _: "/sbin/debootstrap")
    monkeypatch.setattr(debian, "_KEYRING", Path(__file__))
    monkeypatch.setattr(container_tree, "trouble", lambda _: pytest.fail("asked for an engine"))
    debian.require(DebianTree(packages=["a"]))


def test_debootstrap_verifies_what_it_fetches_or_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(debian, "_run", lambda command, **_: ran.append(command))
    monkeypatch.setattr(debian, "_pack", lambda *_: None)
    monkeypatch.setattr(apt, "of_machine", lambda _: None)
    debian._bootstrap(DebianTree(packages=["a"]), tmp_path)
    assert "--force-check-gpg" in ran[0]
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda _: "/sbin/debootstrap")
    monkeypatch.setattr(debian, "_KEYRING", tmp_path / "none")
    assert "keyring" in debian._no_root()


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ("tar: x: Cannot write: No space left on device", "sandbox images trim"),
        ("E: You don't have enough free space in /var/cache/apt/archives/.", "sandbox images trim"),
        ("E: Unable to locate package x", "apt-get update"),
    ],
)
def test_a_full_disk_is_told_apart_from_packages_that_cannot_be_had(said: str, fix: str) -> None:
    with pytest.raises(ImageUnavailable) as raised:
        debian._run(["sh", "-c", 'echo "$1" >&2; exit 1', "sh", said])
    assert said in raised.value.details
    assert fix in raised.value.fix


def test_a_package_is_recorded_with_the_licence_behind_a_link_to_another_packages_folder(tree: Path) -> None:
    with tarfile.open(tree / "tree.tar", "a") as tar:
        for name, target in (("libone", "tool"), ("libtwo", "libtwo"), ("real", "../doc/tool")):
            link = tarfile.TarInfo(f"usr/share/doc/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
    debian._record(tree)
    items = debian.packages(tree)
    assert {name for name, item in items.items() if item.licence == "MIT"} == {"tool", "libone", "real"}
    assert items["libtwo"].licence == "", "a circle of links has no licence"
    assert (items["libone"].version, "gone" in items) == ("2", False)


def test_the_order_of_packages_does_not_change_a_trees_key() -> None:
    assert debian.key(DebianTree(packages=["a", "b"])) == debian.key(DebianTree(packages=["b", "a"]))
    assert debian.key(DebianTree(packages=["a"])) != debian.key(DebianTree(packages=["b"]))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("GPL-2+", "GPL-2.0-or-later"),
        ("LGPL-2.1", "LGPL-2.1-only"),
        ("GPLv3+", "GPL-3.0-or-later"),
        ("Expat", "MIT"),
        ("BSD-3-clause", "BSD-3-Clause"),
        ("g10-permissive", ""),
    ],
)
def test_debians_licence_names_become_spdx_only_where_that_is_certain(name: str, wanted: str) -> None:
    assert spdx(name) == wanted


def test_one_unknown_licence_leaves_the_expression_open_and_keeps_the_words() -> None:
    assert debian_licence(["GPL-2+", "Expat"]) == ("GPL-2.0-or-later AND MIT", "Expat, GPL-2+")
    assert debian_licence(["GPL-2+", "g10-permissive"]) == ("", "GPL-2+, g10-permissive")
    assert debian_licence([]) == ("", "")
