"""The named sabotages of `nox -s mutate` stay true: each still applies, once, and names tests that are there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.mutate.named import ROOT, Sabotage, Untrue, attempt, sabotages

ALL = sabotages()
ROOMS = {"attacks", "cluster", "faults", "load", "probes", "workloads"}


@pytest.mark.parametrize("sabotage", ALL, ids=lambda each: each.name)
def test_a_sabotage_applies_once_and_leaves_a_program_whose_tests_are_there(sabotage: Sabotage) -> None:
    source = (ROOT / sabotage.file).read_text(encoding="utf-8")
    changed = sabotage.sabotaged(source)
    assert changed != source
    ast.parse(changed)
    assert sabotage.tests
    for test in sabotage.tests:
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}" in (ROOT / file).read_text(encoding="utf-8"), test


def test_every_room_and_the_run_has_sabotages_with_names_of_their_own() -> None:
    assert {Path(each.file).parts[1] for each in ALL} >= {*ROOMS, "run.py", "exercise.py"}
    assert len({each.name for each in ALL}) == len(ALL) >= 40


def sabotage(**changes: str) -> Sabotage:
    given = {"name": "adds wrongly", "file": "sums.py", "find": "one + other", "replace": "one - other", **changes}
    return Sabotage(**given, tests=("test_sums.py",))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "sandbox").mkdir()
    for name in ("__init__", "pytest_plugin"):  # which pytest loads wherever the product is installed
        (tmp_path / "sandbox" / f"{name}.py").touch()
    (tmp_path / "sums.py").write_text("def add(one: int, other: int) -> int:\n    return one + other\n")
    (tmp_path / "test_sums.py").write_text(
        "from sums import add\n\n\ndef test_it() -> None:\n    assert add(2, 1) == 3\n"
    )
    return tmp_path


def test_text_that_is_not_there_or_more_than_once_is_an_error(tree: Path) -> None:
    for find in ("one * other", "one"):
        with pytest.raises(Untrue, match="times, not once"):
            sabotage(find=find).sabotaged((tree / "sums.py").read_text())
        assert attempt(tree, sabotage(find=find)).state == "error"


def test_a_bug_that_a_test_sees_is_killed_and_taken_out_again(tree: Path) -> None:
    source = (tree / "sums.py").read_text()
    outcome = attempt(tree, sabotage())
    assert (outcome.state, outcome.detail) == ("killed", "test_sums.py::test_it")
    assert (tree / "sums.py").read_text() == source


def test_a_bug_that_no_test_sees_survives(tree: Path) -> None:
    assert attempt(tree, sabotage(replace="other + one")).state == "survived"


def test_a_program_that_the_tests_cannot_even_read_is_no_bug_that_they_found(tree: Path) -> None:
    outcome = attempt(tree, sabotage(find="def add", replace="def added"))
    assert outcome.state == "error"
    assert "pytest ended with 2" in outcome.detail
