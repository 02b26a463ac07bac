"""Exit codes, and judging a run again from its files alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_judge import history, request
from whole_runs import keep

from sandbox import suite
from sandbox.errors import ClusterError, DeadlineExceeded, UsageError
from sandbox.judge import weigh as judge
from sandbox.plan import Plan, load_all
from sandbox.run import Options, Outcome
from sandbox.timeline import PhaseChanged, RunStarted, Timeline, read


def outcome(verdict_events: list, error: BaseException | None = None) -> Outcome:  # type: ignore[type-arg]
    return Outcome(judge(verdict_events), Path("runs/x"), error)


PASS = history()
FAIL = history(after=False)
INVALID = history(after=None)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (outcome(PASS), 0),
        (outcome(FAIL), 1),
        (outcome(INVALID), 3),
        (outcome(INVALID, ClusterError("no engine")), 4),
        (outcome(INVALID, DeadlineExceeded("too slow")), 3),
        (outcome(INVALID, RuntimeError("a bug")), 3),
        (outcome(FAIL, ClusterError("the engine died after the failure")), 1),
        (outcome(PASS, KeyboardInterrupt()), 130),
    ],
)
def test_a_run_ends_with_the_code_of_its_verdict(given: Outcome, code: int) -> None:
    assert given.exit_code == code


def test_the_worst_run_decides_and_no_run_at_all_is_invalid() -> None:
    assert suite.exit_code([outcome(PASS), outcome(INVALID), outcome(FAIL)]) == 1
    assert suite.exit_code([outcome(PASS), outcome(INVALID)]) == 3
    assert suite.exit_code([outcome(FAIL), outcome(PASS, KeyboardInterrupt())]) == 130
    assert suite.exit_code([]) == 3


def test_a_run_is_judged_again_from_its_timeline_alone(tmp_path: Path) -> None:
    keep(tmp_path, history(requests=[request(10 + n / 10, "timeout") for n in range(300)]))
    first, _ = suite.replay(tmp_path)
    assert first.verdict == "fail"
    assert suite.replay(tmp_path)[0] == first
    assert {"report.html", "junit.xml", "results.json"} <= {path.name for path in tmp_path.iterdir()}
    assert len(suite.rewrite(tmp_path).files) == 5


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"timeline\.jsonl"):
        suite.replay(tmp_path)
    (tmp_path / "timeline.jsonl").write_text("not an event\n")
    with pytest.raises(UsageError, match="cannot be judged"):
        suite.replay(tmp_path)


def test_a_timeline_whose_writer_was_killed_in_a_line_is_read_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "timeline.jsonl"
    begun = next(event for event in PASS if isinstance(event, RunStarted))
    with Timeline(path) as log:
        log.append(begun)
        log.append(PhaseChanged(t=1, name="up", status="started"))
    path.write_bytes(path.read_bytes() + b'{"t":2.0,"type":"pha')
    events = list(read(path))
    assert "cut off" in events[-1].model_dump()["message"]
    assert judge(events).verdict == "invalid"


def test_scenarios_of_one_shape_follow_each_other_and_the_last_one_lets_the_cluster_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ["more-pods-than-gpus", "first-answer", "allocatable-returns", "steady-load"]
    ran: list[tuple[str, bool]] = []

    def run(plan: Plan, options: Options) -> Outcome:
        ran.append((plan.scenario.metadata.name, options.keep_cluster))
        return outcome(PASS)

    monkeypatch.setattr(suite, "execute", run)
    monkeypatch.setattr(suite, "release", lambda name: None)
    suite.execute_all(load_all(names), Options())
    assert ran == [
        ("more-pods-than-gpus", True),
        ("allocatable-returns", False),
        ("first-answer", True),
        ("steady-load", False),
    ]
