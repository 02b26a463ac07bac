"""Debian trees made in a container, as on a machine without root: against real apt, and the images cut from them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import test_images_live
import yaml
from docker import DockerClient
from docker.errors import ImageNotFound

from sandbox import images, paths
from sandbox.errors import ImageUnavailable
from sandbox.host import registries
from sandbox.host.engine import client
from sandbox.images import container_tree, debian, recipe, store
from sandbox.images.recipe import DebianTree, architecture

pytestmark = pytest.mark.live

# fixtures of the pull path's own tests
mirror, registry_binary = test_images_live.mirror, test_images_live.registry_binary
RESTRICTED = test_images_live.RESTRICTED
SUITE = "bookworm"
STAND_IN = "127.0.0.1:1/sandbox-test"  # a registry that never answers: only what the engine has can be used
OWN = {"toolbox": "toolbox-of-container", "llama-cpp": "llama-cpp-of-container"}


def _left() -> list[str]:
    """Those of this process: others build images beside these tests."""
    there = client().containers.list(all=True, ignore_removed=True)
    return [each.name for each in there if f"sandbox-tree-{os.getpid()}-" in (each.name or "")]


@pytest.fixture(scope="module")
def rooted() -> Path:
    """A tree that debootstrap made, to compare with and to stand in for Debian's image where no registry has it."""
    if debian._no_root():
        pytest.skip("needs root and debootstrap, to compare with")
    debian.build(recipe.recipe("toolbox").spec.debian["toolbox"])
    return store.folder("debian", f"{SUITE}-minbase-{architecture()}")


@pytest.fixture(scope="module")
def without_root(rooted: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of its own, recipes under names of their own, and no way to be root in."""
    wheels = paths.cache_dir() / "wheels"
    folder = tmp_path_factory.mktemp("unrooted")
    (folder / "cache").mkdir()
    if wheels.is_dir():  # 0.4 GB that are not what is tested
        (folder / "cache/wheels").symlink_to(wheels)
    for name, own in OWN.items():
        shutil.copytree(recipe.recipe(name).folder, folder / "clusters/images" / own)
        path = folder / "clusters/images" / own / "image.yaml"
        spec = yaml.safe_load(path.read_text())
        spec["metadata"]["name"] = own
        path.write_text(yaml.safe_dump(spec))
    docker, image = client(), f"{STAND_IN}/debian:{SUITE}-slim"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SANDBOX_CACHE_DIR", str(folder / "cache"))
        patch.setattr(debian, "_no_root", lambda: "refused by the test")
        if container_tree.trouble(SUITE):
            docker.api.import_image_from_file(str(rooted / "tree.tar"), f"{STAND_IN}/debian", f"{SUITE}-slim")
            patch.setenv(registries.MIRROR, STAND_IN)
        patch.chdir(folder)
        refs = [image, *(recipe.recipe(own).ref for own in OWN.values())]
        _without(docker, refs[1:])  # of tests that were killed: what is there is not built
        try:
            yield folder
        finally:
            _without(docker, refs)


def _without(docker: DockerClient, refs: Sequence[str]) -> None:
    for ref in refs:
        with suppress(ImageNotFound):
            docker.images.remove(ref)


@pytest.fixture(scope="module")
def built(without_root: Path) -> dict[str, images.Image]:
    return images.build(OWN.values())


def test_a_slice_of_a_containers_tree_has_what_debootstraps_has(
    rooted: Path, built: dict[str, images.Image], tmp_path: Path
) -> None:
    own = recipe.recipe(OWN["toolbox"])
    layer = next(each for each in own.spec.layers if isinstance(each, recipe.SliceLayer))
    key = debian.key(own.spec.debian["toolbox"])
    found = {}
    for folder in (rooted.parent / key, paths.cache_dir() / "debian" / key):
        items = debian.write_slice(folder, layer, tmp_path / "slice.tar")
        found[folder] = {item.name for item in items}
        assert all(item.version for item in items)
        assert {each.name for each in folder.iterdir()} == {"tree.tar", "packages.json"}
    one, other = found.values()
    assert one == other
    assert {"busybox", "wget", "libc6"} <= one
    assert _left() == []


def test_a_toolbox_of_a_containers_tree_fetches_listens_and_looks_up(built: dict[str, images.Image]) -> None:
    script = (
        "id -u; nc -l -p 8080 -e echo hello & sleep 1; nc -w 2 127.0.0.1 8080;"
        "wget -T 2 -t 1 -q -O - http://127.0.0.1:9/ ; echo wget $?; "
        "nslookup localhost 127.0.0.1 >/dev/null 2>&1; echo ns $?"
    )
    image = built[OWN["toolbox"]].ref
    said = client().containers.run(image, ["sh", "-c", script], remove=True, **RESTRICTED).decode()
    assert said.split() == ["65532", "hello", "wget", "4", "ns", "1"]


def test_a_model_server_of_a_containers_tree_answers(built: dict[str, images.Image]) -> None:
    container = client().containers.run(
        built[OWN["llama-cpp"]].ref, detach=True, ports={"8080": ("127.0.0.1", None)}, **RESTRICTED
    )
    try:
        container.reload()
        url = f"http://127.0.0.1:{container.ports['8080/tcp'][0]['HostPort']}"
        test_images_live._answers(f"{url}/health")
        body = {
            "model": httpx.get(f"{url}/v1/models").json()["data"][0]["id"],
            "messages": [{"role": "user", "content": "Say hello."}],
            "max_tokens": 8,
        }
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
        assert answer["usage"]["completion_tokens"] >= 1
        assert answer["choices"][0]["message"]["content"].strip()
    finally:
        container.remove(force=True)


def test_a_package_that_debian_does_not_have_is_named_and_nothing_is_left(without_root: Path) -> None:
    tree = DebianTree(suite=SUITE, packages=["no-such-package-anywhere"])
    with pytest.raises(ImageUnavailable) as raised:
        debian.build(tree)
    assert any("no-such-package-anywhere" in line for line in raised.value.details)
    assert not debian.present(tree)
    assert _left() == []


def test_debians_image_is_pulled_from_the_mirror_and_one_that_lacks_it_is_named(
    without_root: Path, rooted: Path, mirror: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    docker, repository = client(), f"127.0.0.1:{mirror}/lab/library/debian"
    docker.api.import_image_from_file(str(rooted / "tree.tar"), repository, f"{SUITE}-slim")
    try:
        assert not [line for line in docker.images.push(repository, f"{SUITE}-slim", stream=True) if b'"error"' in line]
        docker.images.remove(f"{repository}:{SUITE}-slim")
        monkeypatch.setenv(registries.MIRROR, f"127.0.0.1:{mirror}/lab")
        assert container_tree.trouble(SUITE) == []
        container_tree.make(SUITE, ["hostname"], tmp_path / "tree.tar")
        assert docker.images.get(f"{repository}:{SUITE}-slim").attrs["Architecture"] == architecture()
        monkeypatch.setenv(registries.MIRROR, f"127.0.0.1:{mirror}/empty")
        monkeypatch.setattr(container_tree, "bases", lambda suite: [f"127.0.0.1:{mirror}/empty/debian:{suite}-slim"])
        with pytest.raises(ImageUnavailable, match="can be pulled from nowhere") as raised:
            container_tree.make(SUITE, ["hostname"], tmp_path / "again.tar")
        assert f"127.0.0.1:{mirror}/empty/debian" in raised.value.details[0]
        assert not (tmp_path / "again.tar").exists()
    finally:
        with suppress(ImageNotFound):
            docker.images.remove(f"{repository}:{SUITE}-slim")
