from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest

from sandbox.errors import UsageError
from sandbox.images import assemble, recipe
from sandbox.images.ingredients import Ingredients

GOOD = """\
apiVersion: sandbox/v1
kind: Image
metadata: {name: demo, description: An image for tests.}
version: "1"
debian:
  base: {packages: [busybox]}
layers:
  - slice: base
    packages: [busybox]
  - files: rootfs
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "here" / "clusters" / "images" / "demo"
    (made / "rootfs").mkdir(parents=True)
    (made / "image.yaml").write_text(GOOD)
    (made / "rootfs" / "script").write_text("#!/bin/sh\n")
    (made / "rootfs" / "program").write_text("ELF")
    monkeypatch.chdir(tmp_path / "here")
    return made


def test_every_shipped_recipe_is_valid_and_pins_what_go_and_pip_download() -> None:
    assert {"node", "llama-cpp", "toolbox", "vllm-sim", "gpu-emulator"} <= set(recipe.names())
    for name in recipe.names():
        found = recipe.recipe(name)
        for module in found.spec.go.values():
            folder = found.folder / module.module
            if "require" in (folder / "go.mod").read_text():  # else it is all our own
                assert (folder / "go.sum").stat().st_size > 0
        for wheels in found.spec.wheels.values():
            lines = (found.folder / wheels.requirements).read_text().splitlines()
            pins = [line for line in lines if "==" in line and not line.startswith("#")]
            assert pins
            assert sum("--hash=sha256:" in line for line in lines) >= len(pins)


def test_a_users_own_folder_adds_an_image(folder: Path) -> None:
    assert recipe.recipe("demo").ref == f"ai-k8s-sandbox/demo:{recipe.recipe('demo').key}"


def test_the_key_does_not_depend_on_where_the_recipe_lies(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    assert recipe.digest_of([], [folder]) == recipe.digest_of([], [copy])


@pytest.mark.parametrize("change", ["content", "mode", "new file", "image.yaml"])
def test_the_key_changes_with_anything_in_the_recipe(folder: Path, change: str) -> None:
    before = recipe.recipe("demo").key
    script = folder / "rootfs" / "script"
    match change:
        case "content":
            script.write_text("#!/bin/sh\nexit 1\n")
        case "mode":
            (folder / "rootfs" / "program").chmod(0o755)
        case "new file":
            (folder / "rootfs" / "more").write_text("")
        case "image.yaml":
            (folder / "image.yaml").write_text(GOOD.replace('version: "1"', 'version: "2"'))
    assert recipe.recipe("demo").key != before


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of this tool, in a copy of the tool."""
    made = tmp_path / "sandbox" / "gpu" / "emulator"
    (made / "__pycache__").mkdir(parents=True)
    for name in ("__init__.py", "a.py", "a.pyi", "a.proto", "__pycache__/a.cpython-311.pyc"):
        (made / name).write_text("# as it was\n")
    monkeypatch.setattr(recipe.paths, "shipped", lambda room: tmp_path / "sandbox" / room)
    return made


WITH_PACKAGE = GOOD + "  - package: gpu/emulator\n"


@pytest.mark.parametrize(("change", "other"), [("a.py", True), ("new.py", True), ("__pycache__/b.pyc", False)])
def test_the_key_changes_with_the_package_that_an_image_takes_in(
    folder: Path, package: Path, change: str, other: bool
) -> None:
    (folder / "image.yaml").write_text(WITH_PACKAGE)
    before = recipe.recipe("demo").key
    (package / change).write_text("# changed\n")
    assert (recipe.recipe("demo").key != before) is other


def test_the_key_of_an_image_without_a_package_is_that_of_its_folder_alone(folder: Path) -> None:
    plain = recipe.digest_of([f"{recipe.FORMAT} {recipe.architecture()}"], [folder])
    assert recipe.recipe("demo").key == plain[:12]


def test_a_package_is_laid_into_the_image_alone_and_without_what_only_typing_needs(
    folder: Path, package: Path, tmp_path: Path
) -> None:
    (folder / "image.yaml").write_text(WITH_PACKAGE)
    demo = recipe.recipe("demo")
    layer = assemble._cut(demo, demo.spec.layers[-1], tmp_path / "layer.tar", Ingredients())
    with tarfile.open(layer.path) as tar:
        names = [member.name for member in tar.getmembers() if member.isfile()]
    assert names == ["opt/lib/sandbox/gpu/emulator/__init__.py", "opt/lib/sandbox/gpu/emulator/a.py"]


def test_a_package_that_this_tool_has_not_got_is_refused_with_its_line(folder: Path) -> None:
    (folder / "image.yaml").write_text(GOOD + "  - package: gpu/nothing\n")
    with pytest.raises(UsageError) as raised:
        recipe.recipe("demo")
    assert "image.yaml:11:5: layers[2].package: there is no package gpu/nothing in this tool" in str(raised.value)


def test_an_unknown_image_is_refused_with_those_that_exist() -> None:
    with pytest.raises(UsageError, match=r"there is no image 'nodes'; there are .*node"):
        recipe.recipe("nodes")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("slice: base", "slice: bass", "'bass' is not defined; defined: base"),
        ("name: demo", "name: other", "must be 'demo', the name of its folder"),
        ('version: "1"', 'version: "1"\ncolour: red', "colour: unknown key"),
        ("packages: [busybox]}", "packages: []}", "at least 1 item"),
        ('version: "1"', 'version: "1"\nfinish: /bin/finish', "`contains` and `finish` come together"),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_line(folder: Path, old: str, new: str, said: str) -> None:
    (folder / "image.yaml").write_text(GOOD.replace(old, new))
    with pytest.raises(UsageError) as raised:
        recipe.recipe("demo")
    assert said in str(raised.value)
    assert "image.yaml" in str(raised.value)


def test_everything_a_recipe_names_and_has_not_got_is_said_at_once_with_its_line(folder: Path) -> None:
    parts = "go: {a: {module: go/a, packages: {a: ./a}}}\nwheels: {w: {requirements: r.txt}}\n"
    (folder / "image.yaml").write_text(
        GOOD.replace("files: rootfs", "files: rootfz").replace("layers:", f"{parts}layers:")
    )
    with pytest.raises(UsageError) as raised:
        recipe.recipe("demo")
    said = raised.value.details
    assert len(said) == 3
    for place, words in (("wheels.w.requirements", "r.txt"), ("go.a.module", "go/a/go.mod"), ("files", "rootfz")):
        assert any("image.yaml:" in line and place in line and words in line for line in said), place


def test_the_mistakes_of_all_recipes_are_said_at_once(folder: Path) -> None:
    (folder / "image.yaml").write_text("kind: Image\n")
    shutil.copytree(folder, folder.with_name("other"))
    with pytest.raises(UsageError, match="2 images cannot be made") as raised:
        recipe.recipes(["demo", "toolbox", "other", "demo"])
    assert any("demo/image.yaml" in line for line in raised.value.details)
    assert any("other/image.yaml" in line for line in raised.value.details)
    assert [each.name for each in recipe.recipes(["toolbox", "vllm-sim"])] == ["toolbox", "vllm-sim"]


def test_a_users_image_that_hides_ours_is_said_aloud_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder, folder.with_name("toolbox"))
    (folder.with_name("toolbox") / "image.yaml").write_text(GOOD.replace("name: demo", "name: toolbox"))
    assert [recipe.recipe("toolbox").folder for _ in range(2)] == [folder.with_name("toolbox")] * 2
    assert capsys.readouterr().err.count("image toolbox:") == 1
