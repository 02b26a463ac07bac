from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from timelines import HOSTILE, Shape, events, hostile_results

from sandbox.judge import weigh as judge
from sandbox.report.suite import render_suite
from sandbox.report.terminal import render
from sandbox.spec.results import Check, Results

DASH = "\N{EN DASH}"
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")


def _shown(results: Results, *, width: int = 80, colour: bool = False, folder: Path | None = None) -> str:
    stream = io.StringIO()
    render(results, Console(file=stream, width=width, force_terminal=colour, no_color=not colour), folder)
    return stream.getvalue()


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("shape", [Shape(), Shape(breach=True, lost=20), Shape(proven=False)])
def test_no_line_is_wider_than_the_terminal(width: int, shape: Shape) -> None:
    lines = _shown(judge(events(shape)), width=width).splitlines()
    assert max(len(line) for line in lines if not line.startswith(("  report", "  next"))) <= width


def test_the_verdict_stands_first_as_a_word() -> None:
    for shape, word in ((Shape(), "PASS"), (Shape(breach=True, lost=20), "FAIL"), (Shape(proven=False), "INVALID")):
        assert word in _shown(judge(events(shape))).strip().splitlines()[0]


def test_what_failed_is_told_with_observed_expected_and_why_before_what_held() -> None:
    shown = _shown(judge(events(Shape(breach=True, lost=20))))
    assert shown.index("observed") < shown.index("expected") < shown.index("why") < shown.index("✓ slo")
    assert "98.33%" in shown
    assert "value>=0.99" in shown


def test_a_promise_that_held_is_told_with_its_figure() -> None:
    results = judge(events())
    check = next(check for check in results.checks if check.group == "slo" and check.status == "pass")
    assert f"{check.title}: {check.observed}" in _shown(results, width=400)


def test_what_the_reason_says_is_not_said_again_below_it() -> None:
    lines = ["line 4 is lost", "the run has no end", "line 9 is there twice"]
    broken = Check(
        id="validity/timeline", group="validity", title="whole", status="invalid", observed="3 problems",
        expected="none", reason="; ".join(lines[:2]) + " (1 more)", evidence=lines,
    )  # fmt: skip
    results = judge(events()).model_copy(update={"checks": [broken], "verdict": "invalid", "headline": ""})
    shown = _shown(results, width=400)
    assert [shown.count(line) for line in lines] == [1, 1, 1]


def test_failures_come_before_what_could_not_be_proven() -> None:
    shown = _shown(hostile_results())
    assert shown.index("✗ fail") < shown.index("? invalid") < shown.index("✓ slo")


def test_it_says_where_the_report_lies_and_what_to_type_next(tmp_path: Path) -> None:
    assert "report.html" not in _shown(judge(events()), width=200, folder=tmp_path), (
        "no path of a file that is not there"
    )
    (tmp_path / "report.html").touch()
    passed = _shown(judge(events()), width=200, folder=tmp_path)
    assert str(tmp_path / "report.html") in passed
    assert f"sandbox judge {tmp_path}" in passed
    unproven = judge(events(Shape(proven=False)))
    assert "sandbox run 'my own.yaml'" in _shown(unproven.model_copy(update={"source": "my own.yaml"}))
    assert "sandbox run survive-a-lost-replica" in _shown(unproven.model_copy(update={"source": ""}))
    typed = _shown(unproven.model_copy(update={"source": "sandbox load"}))
    assert "sandbox run" not in typed
    assert "the same command" in typed


def test_a_path_is_never_broken_so_that_it_can_be_copied(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 90)
    folder.mkdir()
    (folder / "report.html").touch()
    shown = _shown(judge(events()), width=80, folder=folder).splitlines()
    assert [line for line in shown if line.endswith(f"{folder}/report.html")]


def test_what_was_emulated_and_on_which_machine_stands_with_the_verdict() -> None:
    results = judge(events())
    host = {"cores": 2, "memory_gib": 15.6, "system": "Linux 6.1 x86_64", "engine": "engine 27.1 at unix:///x"}
    facts = results.facts | {"host": host, "stack": {"name": "vllm-sim", "emulated": True}}
    shown = _shown(results.model_copy(update={"facts": facts}), width=100)
    assert "EMULATED stack vllm-sim, on 2 cores, 15.6 GiB, Linux 6.1 x86_64, engine 27.1\n" in shown
    assert shown.index("EMULATED") < shown.index("✓ slo")
    real = results.facts | {"host": host, "stack": {"name": "llama-cpp", "emulated": False}}
    assert "EMULATED" not in _shown(results.model_copy(update={"facts": real}))


@pytest.mark.parametrize("colour", [False, True])
def test_hostile_text_cannot_steer_the_terminal(colour: bool) -> None:
    shown = _shown(hostile_results(), colour=colour)
    ours = re.compile(r"\x1b\[[0-9;]*m")
    bare = ours.sub("", shown) if colour else shown
    assert not _CONTROL.search(bare.replace("\n", ""))
    assert "\x1b[31;5m" not in shown
    assert "\\x1b[31;5m" in bare
    assert _CONTROL.search(HOSTILE), "the attack itself must hold what is looked for"


def test_markup_in_a_message_stays_text() -> None:
    results = judge(events()).model_copy(update={"headline": "[bold]not bold[/bold] [/oops]"})
    assert "[bold]not bold[/bold] [/oops]" in _shown(results)


def test_a_terminal_that_knows_only_ascii_gets_ascii() -> None:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding="ascii") as stream:
        render(judge(events(Shape(breach=True, lost=20))), Console(file=stream, width=80, no_color=True))
        stream.flush()
        text = raw.getvalue().decode("ascii")
    assert "x FAIL" in text
    assert "+ slo" in text


def test_in_a_workflow_what_is_printed_cannot_be_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    lines = [line.strip() for line in _shown(hostile_results()).splitlines()]
    begin = next(n for n, line in enumerate(lines) if line.startswith("::stop-commands::"))
    token = lines[begin].removeprefix("::stop-commands::")
    commands = [n for n, line in enumerate(lines) if line.startswith("::")]
    assert commands[0] == begin
    assert lines[commands[-1]] == f"::{token}::"
    assert len(commands) > 2, "the hostile headline has to try"


def _rows(shown: str, *first: str) -> dict[str, list[str]]:
    found = [re.split(r" {2,}", line.strip()) for line in shown.splitlines()]
    return {cells[0]: cells for cells in found if cells[0] in first}


def test_percentiles_of_too_few_samples_are_dashes() -> None:
    rows = _rows(_shown(judge(events()), width=160), "all", "fault")
    #                       phase, requests, good, req/s, tok/s, TTFT p50, p99, e2e p99, TTFT p95, TPOT p50, p99
    assert rows["all"][6:] == ["668 ms", "878 ms", "509 ms", "18.7 ms", "23.5 ms"]
    assert rows["fault"][5:] == ["426 ms", DASH, DASH, "682 ms", "18.3 ms", DASH], "227 requests: enough for p95 alone"


def test_a_fault_that_no_user_noticed_is_said_in_words() -> None:
    assert "recovered in 1.91 s" in _shown(judge(events()))
    unnoticed = _shown(judge(events(Shape(lost=0)))).splitlines()
    assert "  no bad request" in unnoticed
    assert not [line for line in unnoticed if "recovered in" in line]


def test_a_run_in_which_nothing_was_checked_says_so() -> None:
    empty = hostile_results().model_copy(update={"checks": [], "verdict": "invalid", "headline": "Nothing."})
    assert "nothing was checked" in _shown(empty)


def test_a_suite_is_one_table_with_the_worst_first(tmp_path: Path) -> None:
    runs = [judge(events(shape)) for shape in (Shape(), Shape(proven=False), Shape(breach=True, lost=20))]
    stream = io.StringIO()
    render_suite(runs, Console(file=stream, width=80, no_color=True), tmp_path)
    shown = stream.getvalue()
    assert shown.index("✗ FAIL") < shown.index("? INVALID") < shown.index("✓ PASS")
    assert "3 scenarios: 1 passed, 1 failed, 1 could not be proven" in shown
    assert max(map(len, shown.splitlines())) <= max(80, len(str(tmp_path)) + 30)
