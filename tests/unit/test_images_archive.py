from __future__ import annotations

import gzip
import hashlib
import json
import tarfile
from pathlib import Path

from sandbox.images import archive
from sandbox.images.recipe import Config


def _layer(folder: Path, name: str, content: bytes = b"x") -> archive.Layer:
    entries = [archive.Entry("usr/bin/tool", 0o755, content), archive.Entry("/usr/bin/other", link="tool")]
    return archive.write_layer(entries, folder / name)


def test_the_same_content_gives_the_same_layer(tmp_path: Path) -> None:
    one, two = _layer(tmp_path, "1.tar"), _layer(tmp_path, "2.tar")
    assert one.diff_id == two.diff_id == hashlib.sha256(one.path.read_bytes()).hexdigest()
    assert _layer(tmp_path, "3.tar", b"y").diff_id != one.diff_id


def test_a_layer_has_every_folder_on_the_way_and_belongs_to_root(tmp_path: Path) -> None:
    with tarfile.open(_layer(tmp_path, "1.tar").path) as tar:
        members = {member.name: member for member in tar}
    assert list(members) == ["usr", "usr/bin", "usr/bin/other", "usr/bin/tool"]
    assert members["usr/bin"].isdir()
    assert members["usr/bin/other"].linkname == "tool"
    assert members["usr/bin/tool"].mode == 0o755
    assert {(member.uid, member.gid, member.mtime) for member in members.values()} == {(0, 0, 0)}


def test_a_shared_layer_is_in_the_archive_once_and_named_by_both_images(tmp_path: Path) -> None:
    shared, own = _layer(tmp_path, "1.tar"), _layer(tmp_path, "2.tar", b"own")
    images = [
        archive.image("a:1", [shared], Config(entrypoint=["/usr/bin/tool"], user="65532"), {"k": "v"}),
        archive.image("b:1", [shared, own], Config(ports=[8000], stop_signal="SIGRTMIN+3"), {}),
    ]
    archive.write_archive(images, tmp_path / "all.tar")
    with tarfile.open(tmp_path / "all.tar") as tar:
        names = tar.getnames()
        manifest = json.loads(tar.extractfile("manifest.json").read())  # type: ignore[union-attr]
        config = json.loads(tar.extractfile(manifest[1]["Config"]).read())  # type: ignore[union-attr]
    assert names.count(f"{shared.diff_id}/layer.tar") == 1
    assert [each["RepoTags"] for each in manifest] == [["a:1"], ["b:1"]]
    assert manifest[1]["Layers"] == [f"{shared.diff_id}/layer.tar", f"{own.diff_id}/layer.tar"]
    assert config["rootfs"]["diff_ids"] == [f"sha256:{shared.diff_id}", f"sha256:{own.diff_id}"]
    assert config["config"]["ExposedPorts"] == {"8000/tcp": {}}
    assert config["config"]["StopSignal"] == "SIGRTMIN+3"


def test_compressing_changes_the_file_and_neither_content_nor_image(tmp_path: Path) -> None:
    plain = archive.image("a:1", [_layer(tmp_path, "1.tar", b"z" * 100_000)], Config(), {})
    (packed,) = archive.compressed([plain])
    assert packed.config == plain.config
    assert packed.layers[0].path.stat().st_size < plain.layers[0].path.stat().st_size
    assert gzip.decompress(packed.layers[0].path.read_bytes()) == plain.layers[0].path.read_bytes()


def test_an_archive_that_failed_leaves_nothing_under_its_name(tmp_path: Path) -> None:
    layer = _layer(tmp_path, "1.tar")
    layer.path.unlink()
    try:
        archive.write_archive([archive.image("a:1", [layer], Config(), {})], tmp_path / "all.tar")
    except FileNotFoundError:
        pass
    else:
        raise AssertionError("a layer that is gone went unnoticed")
    assert list(tmp_path.iterdir()) == []


def test_files_of_a_recipe_keep_what_makes_them_programs(tmp_path: Path) -> None:
    folder = tmp_path / "rootfs"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "script").write_text("#!/bin/sh\n")  # a checkout may have lost its mode
    (folder / "data").write_text("1")
    modes = {entry.name: entry.mode for entry in archive.folder_entries(folder, "/opt")}
    assert modes == {"opt/bin": 0o755, "opt/bin/script": 0o755, "opt/data": 0o644}
    assert [each.name for each in archive.folder_entries(folder, only=["bin/*"])] == ["bin/script"]
