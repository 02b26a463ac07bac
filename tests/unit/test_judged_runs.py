"""The judge says of every run what it said before: a change of a verdict, a figure or a word is seen in review."""

from __future__ import annotations

from typing import Any

import pytest
from judged_runs import FOLDER, RUNS, judged, kept


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_judged_as_it_is_kept(name: str) -> None:
    found, wanted = judged(name), kept(name)
    assert wanted is not None, "python -m tests.unit.judged_runs writes what is missing"
    assert found == wanted, "a change that is meant: python -m tests.unit.judged_runs, and read the difference"


def test_nothing_is_kept_of_a_run_that_is_none() -> None:
    assert {file.stem for file in FOLDER.iterdir()} == {*RUNS}


def checks() -> list[tuple[str, dict[str, Any]]]:
    return [(name, check) for name in RUNS for check in (kept(name) or {}).get("checks", [])]


def test_a_check_gives_a_reason_where_it_does_not_pass_and_only_there() -> None:
    wrong = [(name, check["id"]) for name, check in checks() if (check["status"] == "pass") == bool(check["reason"])]
    assert not wrong


def test_a_run_is_as_bad_as_its_worst_check() -> None:
    rank = ["pass", "invalid", "fail"]
    for name in RUNS:
        found = kept(name) or {}
        assert found["verdict"] == max((check["status"] for check in found["checks"]), key=rank.index), name
