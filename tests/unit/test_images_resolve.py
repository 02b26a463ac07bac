"""Which way an image is had, and what is said where none is open; engines and builds are stand-ins."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from docker.errors import APIError
from filelock import FileLock

from sandbox import host, images
from sandbox.errors import EnvironmentMissing, ImageUnavailable, UsageError
from sandbox.host.checks import Check
from sandbox.host.engine import Engine
from sandbox.images import assemble, building, debian, engine, golang, recipe, registry, resolve, store
from sandbox.images.engine import Image

RUNNING = Engine("running", "unix:///x", "engine")
DEAD = Engine("dead", "unix:///x", "engine")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SANDBOX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("SANDBOX_REGISTRY", raising=False)
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An engine without images, and never the real one; how often the host was made ready."""
    calls: list[str] = []
    monkeypatch.setattr(engine, "client", lambda: pytest.fail("asked the real engine"))
    monkeypatch.setattr(host, "prepare", lambda: calls.append("prepared"))
    monkeypatch.setattr(host, "look", lambda: RUNNING)
    monkeypatch.setattr(engine, "find", lambda *_: None)
    return calls


def _image(name: str, source: engine.Source = "built") -> Image:
    return Image(name, f"ai-k8s-sandbox/{name}:1", "sha256:1", 1, source)


def _refuse_pull(*_: object) -> Image:
    raise ImageUnavailable("can be pulled from nowhere", details=["docker.io: is silent"])


def test_what_cannot_be_pulled_is_built_and_it_is_said_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "pull", _refuse_pull)
    monkeypatch.setattr(building, "build", lambda each: _image(each.name))
    assert images.ensure(["node"])["node"].source == "built"
    assert "node: not pulled (docker.io: is silent): building it from packages" in capsys.readouterr().err
    with pytest.raises(ImageUnavailable, match="pulled from nowhere"):
        images.ensure(["node"], mode="pull")


def test_what_can_be_had_in_neither_way_says_why_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> Image:
        raise ImageUnavailable("`go` failed", details=["go: no such module"])

    monkeypatch.setattr(registry, "pull", _refuse_pull)
    monkeypatch.setattr(building, "build", refuse)
    with pytest.raises(ImageUnavailable, match="`go` failed") as raised:
        images.ensure(["node"])
    assert raised.value.details == ["go: no such module", "and it was not pulled: docker.io: is silent"]


@pytest.mark.parametrize("way", ["ensure", "build", "fresh", "pull", "push"])
def test_every_way_to_an_image_brings_the_engine_up_first(
    monkeypatch: pytest.MonkeyPatch, prepared: list[str], way: str
) -> None:
    monkeypatch.setattr(building, "build", lambda each: _image(each.name) if prepared else pytest.fail("too early"))
    monkeypatch.setattr(registry, "pull", lambda each: _image(each.name, "pulled"))
    monkeypatch.setattr(registry, "push", lambda *_: "sha256:2")
    monkeypatch.setattr(debian, "forget", lambda _: None)
    match way:
        case "ensure":
            images.ensure(["toolbox"])
        case "build":
            images.build(["toolbox"])
        case "fresh":
            images.build(["toolbox"], fresh=True)
        case "pull":
            images.pull(["toolbox"])
        case _:
            images.push("127.0.0.1:5000", ["toolbox"])
    assert prepared


def test_a_wrong_name_or_registry_is_refused_before_the_machine_is_touched(
    monkeypatch: pytest.MonkeyPatch, prepared: list[str]
) -> None:
    with pytest.raises(UsageError, match="there is no image"):
        images.ensure(["nodes"])
    with pytest.raises(UsageError, match="is not a registry"):
        images.push("http://127.0.0.1:5000", ["toolbox"])
    monkeypatch.setenv("SANDBOX_REGISTRY", "http://127.0.0.1:5000")
    with pytest.raises(UsageError, match="is not a registry"):
        images.ensure(["toolbox"])
    assert prepared == []


def test_of_several_images_the_node_is_made_first(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(building, "build", lambda each: (made.append(each.name), _image(each.name))[1])
    assert list(images.ensure(["llama-cpp", "node", "toolbox"], mode="build")) == ["llama-cpp", "node", "toolbox"]
    assert made == ["node", "llama-cpp", "toolbox"]


def test_without_an_engine_every_image_is_listed_as_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "look", lambda: DEAD)
    monkeypatch.setattr(engine, "find", lambda *_: pytest.fail("asked an engine that is not there"))
    listed = images.list_images()
    assert {"node", "toolbox"} <= {each.name for each in listed}
    assert {each.image for each in listed} == {None}


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Nothing is missing but what a test takes away; what was done with the engine."""
    done: list[str] = []
    monkeypatch.setattr(debian, "present", lambda _: True)
    monkeypatch.setattr(golang, "present", lambda *_: True)
    monkeypatch.setattr(building, "look", lambda: RUNNING)
    monkeypatch.setattr(building, "check_disk", lambda _: [])
    monkeypatch.setattr(assemble, "prepare", lambda _: None)
    monkeypatch.setattr(assemble, "cut", lambda *_: [])
    monkeypatch.setattr(engine, "load", lambda _: done.append("load"))
    monkeypatch.setattr(engine, "finish_node", lambda *_: done.append("finish"))
    monkeypatch.setattr(engine, "untag", lambda ref: done.append(f"untag {ref}"))
    monkeypatch.setattr(engine, "find", lambda *_: _image("node"))
    return done


def test_room_to_compile_is_asked_for_only_where_something_must_be_compiled(
    monkeypatch: pytest.MonkeyPatch, compiled: list[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=5 << 30))
    node = recipe.recipe("node")
    building.build(node)
    monkeypatch.setattr(golang, "present", lambda *_: False)
    with pytest.raises(EnvironmentMissing, match=r"5 GiB free in .*, compiling node takes up to 16 GiB") as raised:
        building.build(node)
    assert "SANDBOX_CACHE_DIR" in raised.value.fix


def test_an_engine_whose_disk_is_full_is_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, compiled: list[str]
) -> None:
    full = Check("disk engine", "missing", "1 GiB free at /var/lib/docker", "docker system prune")
    monkeypatch.setattr(building, "check_disk", lambda _: [full])
    with pytest.raises(EnvironmentMissing) as raised:
        building.build(recipe.recipe("node"))
    assert raised.value.details == ["disk engine: 1 GiB free at /var/lib/docker"]
    assert raised.value.fix == "docker system prune"
    assert compiled == []


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "sandbox images trim"),
        (APIError("500 Server Error: write /x: no space left on device"), "docker system prune"),
        (requests.ConnectionError("connection aborted"), "sandbox doctor"),
    ],
)
def test_a_full_disk_or_an_engine_that_gives_up_is_no_bug_of_ours(
    monkeypatch: pytest.MonkeyPatch, compiled: list[str], error: Exception, fix: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(engine, "finish_node", fail)
    node = recipe.recipe("node")
    with pytest.raises(ImageUnavailable, match="node could not be built") as raised:
        building.build(node)
    assert fix in raised.value.fix
    assert raised.value.where.endswith("node/image.yaml")
    assert compiled == ["load", f"untag {node.ref}-base"], "the half-made image kept its name"
    assert not list(store.folder("scratch", "").iterdir())


def test_only_what_is_read_again_is_recorded_of_an_images_origin(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(building, "build", lambda each: _image(each.name))
    images.ensure(["toolbox"])
    (path,) = (cache / "origin").iterdir()
    assert json.loads(path.read_text()) == {"source": "built"}


class Docker:
    """An engine with images, of which a container uses one."""

    def __init__(self, tags: dict[str, list[str]], used: str) -> None:
        self.left = {tag for each in tags.values() for tag in each}
        self.api = SimpleNamespace(containers=lambda **_: [{"ImageID": used}])
        found = [SimpleNamespace(id=key, tags=each, attrs={"Size": 100}) for key, each in tags.items()]
        self.images = SimpleNamespace(list=lambda: found, remove=self.left.remove)


def test_trimming_removes_what_killed_builds_left_and_images_of_other_recipes_but_none_in_use(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    kept = recipe.recipe("toolbox").ref
    tags = {
        "1": [kept],
        "2": ["ai-k8s-sandbox/toolbox:old"],
        "3": ["ai-k8s-sandbox/node:used"],
        "4": ["kindest/node:v1"],
        "5": ["ai-k8s-sandbox/gone:1-base", "mine:1"],
    }
    docker = Docker(tags, used="3")
    monkeypatch.setattr(engine, "client", lambda: docker)
    for folder in ("scratch/image-node", "go/.x.draft", "go/kept", "go-build", "go-modules"):
        (cache / folder).mkdir(parents=True)
        (cache / folder / "file").write_text("12345")
    assert images.trim() == 4 * 5 + 100
    assert docker.left == {kept, "ai-k8s-sandbox/node:used", "kindest/node:v1", "mine:1"}
    assert [each.name for each in (cache / "go").iterdir()] == ["kept"]
    assert not list((cache / "scratch").iterdir())


def test_nothing_is_trimmed_while_something_is_being_made(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "look", lambda: DEAD)
    (cache / "locks").mkdir(parents=True)
    (cache / "go-build").mkdir()
    with FileLock(cache / "locks" / "image-node.lock"), pytest.raises(EnvironmentMissing, match="making image-node"):
        images.trim()
    assert (cache / "go-build").is_dir()
    images.trim()
    assert not (cache / "go-build").exists()


def test_an_engine_that_stops_answering_is_told_and_not_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any) -> None:
        raise requests.ConnectionError("connection aborted")

    monkeypatch.setattr(engine, "find", gone)
    with pytest.raises(ImageUnavailable, match="connection aborted"):
        resolve.ensure(["toolbox"])
