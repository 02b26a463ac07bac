"""The numbers of a timeline's lines: what is missing, moved, doubled or written out of order, in words."""

from __future__ import annotations

import pytest

from sandbox.judge import integrity
from sandbox.timeline import LoadFinished, Note, RunFinished

Line = tuple[str, int | None, float | None]


def note(writer: str = "a", seq: int | None = None, written: float | None = None, message: str = "hello") -> Note:
    return Note(t=1.0, writer=writer, seq=seq, written=written, level="info", message=message)


def said(*lines: Line | Note) -> list[str]:
    return list(integrity._numbers([each if isinstance(each, Note) else note(*each) for each in lines]))


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [("a", 0, 0.05)],
        [("a", 0, 0.5), ("a", 1, 0.5), ("b", 0, 0.2), ("a", 2, 0.6), ("b", 1, 0.2)],
    ],
)
def test_lines_in_order_are_no_problem_whatever_other_writers_do(lines: list[Line]) -> None:
    assert said(*lines) == []


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([("a", 0, 0.5), ("a", 2, 0.6)], ["line 2: a's 2 comes where its 1 is due: 1 missing or moved"]),
        ([("a", 0, 0.5), ("a", 3, 0.6)], ["line 2: a's 3 comes where its 1 is due: 1 to 2 missing or moved"]),
        (
            [("a", 0, 0.5), ("a", 5, 0.6), ("a", 6, 0.7)],
            ["line 2: a's 5 comes where its 1 is due: 1 to 4 missing or moved"],
        ),
        ([("a", 1, 0.05)], ["line 1: a's 1 comes where its 0 is due: 0 missing or moved"]),
        (
            [("a", 0, 0.5), ("a", 1, 0.6), ("a", 1, 0.6), ("a", 2, 0.7)],
            ["line 3: a's 1 (note) comes late, or for the second time"],
        ),
        (
            [("a", 0, 0.5), ("a", 2, 0.7), ("a", 1, 0.6), ("a", 3, 0.8)],
            [
                "line 2: a's 2 comes where its 1 is due: 1 missing or moved",
                "line 3: a's 1 (note) comes late, or for the second time",
                "line 3: written at 0.600 s, and a's line before at 0.700 s",
            ],
        ),
        (
            [("a", 0, 0.5), ("a", 1, 0.4), ("a", 2, 0.45), ("a", 3, 0.5)],
            [
                "line 2: written at 0.400 s, and a's line before at 0.500 s",
                "line 3: written at 0.450 s, and a's line before at 0.500 s",
            ],
        ),
        (
            [("a", 0, 0.5), ("a", None, None), ("a", 3, 0.7)],
            ["line 2 (note) has no number", "line 3: a's 3 comes where its 1 is due: 1 to 2 missing or moved"],
        ),
        ([("a", 0, None), ("a", 0, 0.5)], ["line 1 (note) has no number"]),
        ([("", 0, 0.5)], ["line 1 (note) has no number"]),
        ([("a", None, 0.5)], ["line 1 (note) has no number"]),
        ([("b", 0, 0.9), ("a", 1, 0.5)], ["line 2: a's 1 comes where its 0 is due: 0 missing or moved"]),
    ],
)  # fmt: skip
def test_a_line_that_is_missing_doubled_or_moved_is_named(lines: list[Line], expected: list[str]) -> None:
    assert said(*lines) == expected


def test_a_line_that_could_not_be_read_says_so_itself() -> None:
    assert said(("a", 0, 0.5), note(message="line 2 is no JSON")) == ["line 2 is no JSON"]
    assert said(("a", 0, 0.5), note(message="line 22 is no JSON")) == ["line 2 (note) has no number"]
    unread = LoadFinished(t=1.0, attempted=0)
    assert list(integrity._numbers([unread])) == ["line 1 (load.finished) has no number"]


def end(writer: str, **lines: int) -> RunFinished:
    return RunFinished(
        t=9.0, writer=writer, seq=9, written=9.0, lines={"load": lines} if lines else {writer: {"note": 1}}
    )


def test_what_the_writers_counted_is_held_against_what_is_there() -> None:
    one, closing = note("a", 0, 0.5), end("a")
    assert list(integrity._tallies([one, closing])) == []
    assert list(integrity._tallies([closing])) == ["a wrote 1 lines note, and the timeline holds 0"]
    assert list(integrity._tallies([one, one, closing])) == ["a wrote 1 lines note, and the timeline holds 2"]
    assert list(integrity._tallies([one])) == ["a wrote 1 lines, and no closing line tells how many"]
    assert list(integrity._tallies([note("", 0, 0.5)])) == ["nobody wrote 1 lines, and no closing line tells how many"]
    of_others = end("a", note=2)
    assert list(integrity._tallies([one, note("load", 0, 0.5), of_others])) == [
        "a wrote 0 lines note, and the timeline holds 1",
        "load wrote 2 lines note, and the timeline holds 1",
    ]
    assert list(integrity._tallies([end("a", note=1)])) == ["load wrote 1 lines note, and the timeline holds 0"]


def test_the_end_of_a_run_is_there_once_and_last() -> None:
    one, closing = note("a", 0, 0.5), end("a")
    assert list(integrity._end([one, closing])) == []
    assert "is missing" in next(iter(integrity._end([one])))
    assert list(integrity._end([closing, one])) == ["run.finished is line 1 of 2, and has to be the last"]
    assert list(integrity._end([closing, one, closing])) == ["run.finished is line 1, 3 of 3, and has to be the last"]
    assert list(integrity._end([one, closing, closing])) == ["run.finished is line 2, 3 of 3, and has to be the last"]


def test_each_writer_is_held_to_its_own_count_whatever_the_others_are() -> None:
    """One that nobody closed does not keep the next from being looked at, and one that closed twice is told."""
    lines = [note("nobody's", 0, 0.5), note("a", 0, 0.5), note("a", 1, 0.6), end("a")]
    assert list(integrity._tallies(lines)) == [
        "nobody's wrote 1 lines, and no closing line tells how many",
        "a wrote 1 lines note, and the timeline holds 2",
    ]
    twice = [note("a", 0, 0.5), end("a"), end("a")]
    assert list(integrity._tallies(twice)) == ["a wrote 1 lines run.finished, and the timeline holds 2"]
    other = LoadFinished(t=2.0, writer="load", seq=0, written=2.0, attempted=0)
    assert list(integrity._tallies([other])) == []
    assert list(integrity._tallies([other, other])) == []  # how often it closed is said by its numbers
