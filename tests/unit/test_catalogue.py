"""Names of the catalogue: what `list` shows is what can be typed, and one name means one file."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox import plan
from sandbox.errors import UsageError
from sandbox.spec import catalogue
from sandbox.spec import profile as profiles
from sandbox.spec.cluster import ClusterSpec

SHAPE = "apiVersion: sandbox/v1\nkind: Cluster\nmetadata: {{name: {name}, description: {words}}}\n"
PROFILE = """\
apiVersion: sandbox/v1
kind: Profile
metadata: {name: mine, description: Mine.}
prompts: mine.txt
maxTokens: {kind: fixed, tokens: 3}
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an empty catalogue of its own."""
    for room in ("clusters", "scenarios", "loadtests/profiles", "loadtests/prompts"):
        (tmp_path / room).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shape(own: Path, file: str, name: str, words: str = "Mine.") -> Path:
    path = own / "clusters" / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(SHAPE.format(name=name, words=words))
    return path


def found(name: str) -> Path:
    return catalogue.find("clusters", name, ClusterSpec, kind="cluster").path


def test_a_spec_is_found_by_its_name_and_by_its_file(own: Path) -> None:
    path = shape(own, "file-a.yaml", "big")
    assert found("big") == found("file-a") == path
    assert plan.catalogue()["clusters"]["big"] == "Mine."
    assert "file-a" not in plan.catalogue()["clusters"]


def test_a_name_comes_before_a_file(own: Path) -> None:
    by_name = shape(own, "one.yaml", "two")
    by_file = shape(own, "two.yaml", "three")
    assert found("two") == by_name
    assert found("three") == by_file


def test_whatever_list_shows_can_be_typed(own: Path) -> None:
    shape(own, "file-a.yaml", "big")
    (own / "clusters" / "nameless.yaml").write_text("kind: Cluster\n")
    for name in plan.catalogue()["clusters"]:
        assert catalogue.locate("clusters", name, kind="cluster")


def test_two_files_of_one_name_in_one_folder_are_refused_and_both_are_named(own: Path) -> None:
    paths = [shape(own, "a.yaml", "big"), shape(own, "more/b.yaml", "big")]
    with pytest.raises(UsageError) as caught:
        found("big")
    assert all(str(path) in str(caught.value) for path in paths)
    assert plan.catalogue()["clusters"]["big"].startswith("cannot be used: ")


def test_ones_own_shadows_the_shipped_one_and_that_is_said_once(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shape(own, "mine.yaml", "solo", "My own.")
    assert found("solo") == found("solo") == path
    assert plan.catalogue()["clusters"]["solo"] == "My own."
    assert capsys.readouterr().err.count("it shadows") == 1


def test_a_file_that_changes_its_name_is_found_by_the_new_one(own: Path) -> None:
    path = shape(own, "a.yaml", "before")
    assert found("before") == path
    shape(own, "a.yaml", "after-that")
    assert found("after-that") == path
    with pytest.raises(UsageError, match="there is no cluster 'before'"):
        found("before")


@pytest.mark.parametrize(
    ("prompts", "says"),
    [(b"caf\xe9\n", "cannot be read"), (b"# nothing\n\n", "holds no prompt"), (None, "no such file")],
)
def test_a_prompt_file_that_cannot_be_used_is_named_with_the_line_that_names_it(
    own: Path, prompts: bytes | None, says: str
) -> None:
    (own / "loadtests/profiles/mine.yaml").write_text(PROFILE)
    if prompts is not None:
        (own / "loadtests/prompts/mine.txt").write_bytes(prompts)
    with pytest.raises(UsageError, match=says) as caught:
        profiles.resolve("mine")
    assert "loadtests/profiles/mine.yaml:4:1: prompts: " in str(caught.value)
    assert prompts is None or str(own / "loadtests/prompts/mine.txt") in str(caught.value)


def test_a_profile_is_found_by_its_name_too(own: Path) -> None:
    (own / "loadtests/profiles/another-file.yaml").write_text(PROFILE.replace("mine.txt", "[hello]"))
    assert profiles.resolve("mine").prompts == ["hello"]
    assert "mine" in profiles.names()
