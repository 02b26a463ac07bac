"""A report that could not be written: no path that does not exist, the reason, and never exit code 0."""

from __future__ import annotations

import errno
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_cli import Typed, recorded, typed
from test_judge import history
from test_run import executed, plan
from whole_runs import whole

from sandbox import limit, run, search, suite
from sandbox.errors import EnvironmentMissing
from sandbox.judge import weigh as judge
from sandbox.plan import Plan
from sandbox.report import files, write
from sandbox.run import Options, Outcome, Run, execute
from sandbox.spec.results import Results

__all__ = ["executed", "plan", "typed"]  # fixtures
NAMES = ("results.json", "junit.xml", "metrics.om", "report.html", "load.json")
Full = Callable[..., None]


@pytest.fixture(autouse=True)
def _plain_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page without charts: they take their time, and what is asked here is whether it is there."""
    monkeypatch.setattr(write, "write_html", lambda results, _, path: files.write_atomic(path, results.headline))


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Full:
    """The disk has no room for files of these names any more."""

    def fill(*names: str) -> None:
        def mkstemp(dir: Path, prefix: str, suffix: str) -> tuple[int, str]:  # noqa: A002 - as mkstemp calls it
            if prefix.strip(".") in names:
                raise OSError(errno.ENOSPC, "No space left on device")
            return tempfile.mkstemp(dir=dir, prefix=prefix, suffix=suffix)

        monkeypatch.setattr(files, "tempfile", SimpleNamespace(mkstemp=mkstemp))

    return fill


def judged(verdict: str) -> Callable[[Run], None]:
    """A phase after which the run has that verdict, and figures of a load in its timeline."""

    def phase(under_way: Run) -> None:
        for event in history(after=verdict == "pass")[1:4]:
            under_way.timeline.append(event)

    return phase


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, executed: Callable[..., Outcome]) -> Callable[[str], Outcome]:
    def through(verdict: str) -> Outcome:
        monkeypatch.setattr(run, "judged", lambda _: results(verdict))
        return executed(judged(verdict))

    return through


def results(verdict: str = "pass") -> Results:
    return judge(whole(history(after=verdict == "pass")))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_passed_and_left_no_whole_report_ends_with_4_and_says_why(
    name: str, ended: Callable[[str], Outcome], full: Full, capsys: pytest.CaptureFixture[str]
) -> None:
    full(name)
    outcome = ended("pass")
    assert (outcome.results.verdict, outcome.exit_code) == ("pass", 4)
    assert f"{outcome.folder / name}: No space left on device" in capsys.readouterr().err
    assert f"sandbox judge {outcome.folder}" in str(outcome.error)


def test_a_run_whose_report_is_whole_ends_with_the_code_of_its_verdict(ended: Callable[[str], Outcome]) -> None:
    assert ended("pass").exit_code == 0


def test_a_failure_stays_a_failure_whatever_could_not_be_written(ended: Callable[[str], Outcome], full: Full) -> None:
    full(*NAMES)
    assert ended("fail").exit_code == 1


def test_a_folder_for_runs_that_cannot_be_made_is_said_before_anything_is_touched(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(EnvironmentMissing, match="cannot be made") as caught:
        execute(plan, Options(runs=tmp_path / "runs", cluster_name="unit-none"))
    assert "--runs" in caught.value.fix


def test_judge_and_report_end_with_4_where_a_file_could_not_be_written(
    typed: Typed, tmp_path: Path, full: Full
) -> None:
    recorded(tmp_path)
    name = "report.html"
    full(name)
    for command in ("judge", "report"):
        code, out, err = typed(command, tmp_path)
        assert code == 4, command
        assert f"{tmp_path / name}: No space left on device" in err
        assert str(tmp_path / name) not in out, "a path that is not there is not shown"
    code, out, _ = typed("judge", tmp_path, "-o", "json")
    assert (code, json.loads(out)["verdict"]) == (4, "pass")
    failed = tmp_path / "failed"
    failed.mkdir()
    assert typed("judge", recorded(failed, after=False))[0] == 1


@pytest.mark.parametrize("name", ["junit.xml", "index.html"])
@pytest.mark.parametrize("command", ["run", "load"])
def test_a_suite_whose_files_could_not_be_written_ends_with_4_and_shows_no_path_of_them(  # noqa: PLR0917 - fixtures
    name: str, command: str, typed: Typed, tmp_path: Path, full: Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [Outcome(results().model_copy(update={"run_id": f"r{n}"}), tmp_path / f"r{n}", None) for n in range(2)]
    monkeypatch.setattr(suite, "execute_all", lambda *_: made)
    monkeypatch.setattr("sandbox.cli_load._look", lambda *_: None)
    asked = ["first-answer"] if command == "run" else ["http://127.0.0.1:9", "--rate", "20"]
    assert typed(command, *asked, "--runs", tmp_path)[0] == 0
    for file in tmp_path.iterdir():
        file.unlink()
    full(name)
    code, out, err = typed(command, *asked, "--runs", tmp_path)
    assert code == 4
    assert f"{tmp_path / name}: No space left on device" in err
    assert str(tmp_path / name) not in out
    assert [file.name for file in tmp_path.iterdir()] == [{"junit.xml": "index.html"}.get(name, "junit.xml")]


def test_a_step_summary_that_cannot_be_written_ends_with_4(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "execute_all", lambda *_: [Outcome(results(), tmp_path, None)])
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "nowhere" / "summary.md"))
    code, _, err = typed("run", "first-answer", "--runs", tmp_path)
    assert code == 4
    assert f"the step summary, {tmp_path / 'nowhere' / 'summary.md'}: No such file or directory" in err


def test_a_search_whose_steps_or_answer_could_not_be_written_does_not_end_with_0(
    plan: Plan, tmp_path: Path, full: Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = EnvironmentMissing("1 report file could not be written")
    monkeypatch.setattr(limit, "execute", lambda *_: Outcome(results(), tmp_path, lost))
    with pytest.raises(EnvironmentMissing, match="1 report file"):
        limit.find(plan, (1, 2), tmp_path)
    monkeypatch.setattr(limit, "execute", lambda *_: Outcome(results(), tmp_path, None))
    assert isinstance(limit.find(plan, (1, 2), tmp_path)[1], search.Found)
    full("search.json")
    with pytest.raises(EnvironmentMissing, match="No space left on device"):
        limit.find(plan, (1, 2), tmp_path)
