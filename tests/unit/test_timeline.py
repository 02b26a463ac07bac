"""The timeline as a file: numbered lines, a broken one, an older one, one of another grammar."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from recorded import recorded, text
from whole_runs import keep

from sandbox import baseline, cli, grammar
from sandbox.errors import EXIT_INVALID, EXIT_PASS, EXIT_USAGE, UsageError
from sandbox.spec.scenario import Scenario
from sandbox.timeline import Note, RunFinished, RunStarted, Timeline, read
from sandbox.watch import Follower

Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Type a command; its exit code, and what stands on stdout and stderr."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sandbox", *map(str, words)])
        monkeypatch.setattr("signal.signal", lambda *_: None)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def note(words: str) -> Note:
    return Note(t=0.0, level="info", message=words)


def test_threads_of_one_writer_number_their_lines_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "timeline.jsonl"
    with Timeline(path) as ours, Timeline(path, ours.epoch_ns, "load") as theirs:

        def write(timeline: Timeline) -> None:
            for count in range(200):
                timeline.append(note(str(count)))

        threads = [threading.Thread(target=write, args=(each,)) for each in (ours, ours, ours, theirs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ours.lines == {"run": {"note": 600}}
        assert theirs.lines == {"load": {"note": 200}}
        last = ours.finished()
    assert (last.seq, last.lines) == (600, {"run": {"note": 600}})
    for writer, many in (("run", 600), ("load", 200)):
        lines = [event for event in read(path) if event.writer == writer]
        assert [event.seq for event in lines] == list(range(many))
        assert all((a.written or 0.0) <= (b.written or 0.0) for a, b in pairwise(lines))


def test_a_line_that_could_not_be_written_takes_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "timeline.jsonl"
    with Timeline(path) as timeline:
        timeline.append(note("one"))
        with monkeypatch.context() as broken:

            def full(*_: object) -> int:
                raise OSError("no space left on device")

            broken.setattr("os.write", full)
            with pytest.raises(OSError, match="no space"):
                timeline.append(note("lost"))
        timeline.append(note("two"))
    assert [event.seq for event in read(path)] == [0, 1]


@pytest.mark.parametrize("broken", [b'{"t":1.0,"type":"no', b"", b"\xff\xfe", b"null", b"[]", b"7", b'"x"', b"{}"])
def test_a_broken_line_in_the_middle_is_never_left_out(tmp_path: Path, broken: bytes) -> None:
    """By nobody who reads: neither the judge nor whoever follows a load to end it."""
    path = tmp_path / "timeline.jsonl"
    whole = note("whole").model_dump_json().encode()
    path.write_bytes(b"\n".join([whole, broken, whole, b""]))
    with pytest.raises(ValueError, match=r"timeline\.jsonl:2: ") as refused:
        list(read(path))
    followed = Follower(path).read()
    assert next(followed).model_dump()["message"] == "whole"
    with pytest.raises(ValueError, match=r"timeline\.jsonl:2: ") as missed:
        list(followed)
    assert str(missed.value) == str(refused.value)


def test_whoever_follows_counts_the_lines_of_all_its_looks(tmp_path: Path) -> None:
    path = tmp_path / "timeline.jsonl"
    whole = note("whole").model_dump_json().encode() + b"\n"
    path.write_bytes(whole * 3)
    follower = Follower(path)
    assert len(list(follower.read())) == 3
    path.write_bytes(whole * 4 + b"torn\n")
    with pytest.raises(ValueError, match=r"timeline\.jsonl:5: a broken line"):
        list(follower.read())
    with pytest.raises(ValueError, match=r"timeline\.jsonl:5: a broken line"):
        list(follower.read()), "it is not left out the next time either"


def altered(name: str, change: Callable[[list[dict[str, Any]]], None]) -> str:
    lines = [json.loads(line) for line in text(name).splitlines()]
    change(lines)
    return "".join(json.dumps(line) + "\n" for line in lines)


OTHERS: list[tuple[Callable[[list[dict[str, Any]]], None], str, str]] = [
    (lambda lines: lines[0].update(grammar=grammar.KNOWN + 1), ":1: ", "written by a newer version (grammar 3"),
    (lambda lines: lines[0].update(grammar=9, colour="blue"), ":1: ", "written by a newer version (grammar 9"),
    (lambda lines: lines[4].update(type="phase.changed"), ":5: ", "phase.changed"),
    (lambda lines: lines[4].update(colour="blue"), ":5: ", "phase.colour: Extra inputs are not permitted"),
    (lambda lines: lines[4].update(t="soon"), ":5: ", "phase.t: "),
    (lambda lines: lines[0]["scenario"].update(kindness="Scenario"), ": ", "kindness"),
    (lambda lines: lines[0]["scenario"].update(apiVersion="sandbox/v9"), ": ", "sandbox/v1"),
]


@pytest.mark.parametrize(("change", "where", "what"), OTHERS)
def test_a_timeline_of_another_grammar_is_refused_in_words(
    change: Callable[[list[dict[str, Any]]], None], where: str, what: str, typed: Typed, tmp_path: Path
) -> None:
    path = tmp_path / "timeline.jsonl"
    path.write_text(altered("open", change))
    for command in ("judge", "report"):
        code, out, err = typed(command, tmp_path)
        assert (code, out) == (EXIT_USAGE, "")
        assert f"{path}{where}" in err
        assert what in err
        assert "fix: judge it with the version that wrote it" in err
        assert "Traceback" not in err
    asks = Scenario.model_validate(
        {**json.loads(text("open").splitlines()[0])["scenario"], "slo": {"ttft": ["p(50)<=baseline+10%"]}}
    )
    with pytest.raises(UsageError, match=r"cannot be judged"):
        baseline.samples_for(asks, tmp_path)


def test_a_report_without_its_timeline_or_of_a_torn_one_is_refused_in_words(typed: Typed, tmp_path: Path) -> None:
    keep(tmp_path, list(recorded("open")))
    assert typed("judge", tmp_path)[0] == EXIT_PASS
    path = tmp_path / "timeline.jsonl"
    path.write_bytes(path.read_bytes().replace(b'{"t"', b'{"t', 1))
    code, _, err = typed("report", tmp_path)
    assert (code, "a broken line" in err, "Traceback" in err) == (EXIT_USAGE, True, False)
    path.unlink()
    code, _, err = typed("report", tmp_path)
    assert (code, "holds no timeline.jsonl" in err) == (EXIT_USAGE, True)


def test_a_timeline_of_an_older_version_is_judged_and_says_what_it_cannot_prove(typed: Typed, tmp_path: Path) -> None:
    def older(lines: list[dict[str, Any]]) -> None:
        del lines[-1], lines[0]["grammar"]
        for line in lines:
            for key in ("writer", "seq", "written"):
                del line[key]
            if line["type"] == "load.finished":
                del line["lines"]

    path = tmp_path / "timeline.jsonl"
    path.write_text(altered("open", older))
    assert {event.seq for event in read(path)} == {None}
    code, out, _ = typed("judge", tmp_path)
    assert (code, "older version" in " ".join(out.split())) == (EXIT_INVALID, True)
    asks = Scenario.model_validate(
        {**json.loads(text("open").splitlines()[0])["scenario"], "slo": {"ttft": ["p(50)<=baseline+10%"]}}
    )
    with pytest.raises(UsageError, match="older version"):
        baseline.samples_for(asks, tmp_path)
    path.write_text(altered("broken", older))
    code, out, _ = typed("judge", tmp_path)
    assert (code, "older version" in " ".join(out.split())) == (1, True)


@pytest.mark.parametrize("name", ["open", "processes"])
def test_a_real_run_begins_with_its_grammar_and_ends_with_its_last_line(name: str) -> None:
    timeline = recorded(name)
    assert isinstance(timeline[0], RunStarted)
    assert timeline[0].grammar == grammar.KNOWN
    assert isinstance(timeline[-1], RunFinished)
