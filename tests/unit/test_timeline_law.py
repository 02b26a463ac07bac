"""The law of timelines: removing, doubling or moving any line never makes a verdict better.

By brute force: every line of every recorded timeline, edited in every way. Exactly:

- what was no pass is none after any edit, and no edit leaves a pass a pass, but a move among lines of other writers;
- what failed still fails after a line was doubled or moved, to wherever;
- what failed still fails after a line was removed, or is `invalid` where that line was needed to know of the failure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import NAMES, recorded
from test_workloads import LIVES, spec
from test_workloads import history as trainers
from timelines import Shape, events
from whole_runs import whole

from sandbox import baseline
from sandbox.errors import UsageError
from sandbox.judge import judge, weigh
from sandbox.judge.integrity import in_order, timeline_check
from sandbox.spec.results import Status, worst
from sandbox.spec.scenario import Scenario
from sandbox.timeline import Event, RunStarted

SHAPE = Shape(seconds=12.0, rate=8.0, struck=4.0, healed=6.0, lost=0, slowed=1.0)
LOST = spec(workload={"because": None}, slo={"pods_failed": ["value==0"]})


@cache
def timelines() -> dict[str, tuple[Event, ...]]:
    """Those of real runs, and of kinds of run that need a cluster some that are written by hand."""
    found = {name: recorded(name) for name in NAMES}
    found["chaos by hand"] = tuple(whole(events(SHAPE)))
    found["a breach by hand"] = tuple(whole(events(replace(SHAPE, breach=True))))
    found["workloads by hand"] = tuple(whole(trainers()))
    found["a failed pod by hand"] = tuple(whole(trainers(LOST, LIVES)))
    return found


ALL = [*NAMES, "a breach by hand", "workloads by hand", "a failed pod by hand"]


def removed(timeline: list[Event]) -> Iterator[tuple[int, list[Event]]]:
    for at in range(len(timeline)):
        yield at, timeline[:at] + timeline[at + 1 :]


def doubled(timeline: list[Event]) -> Iterator[tuple[int, list[Event]]]:
    for at, line in enumerate(timeline):
        for to in (at, len(timeline)):
            yield at, [*timeline[:to], line, *timeline[to:]]


def moved(timeline: list[Event]) -> Iterator[tuple[int, list[Event]]]:
    end = len(timeline) - 1
    for at, line in enumerate(timeline):
        rest = timeline[:at] + timeline[at + 1 :]
        for to in {0, at - 1, at + 1, end - 1, end} - {at, -1, end + 1}:
            yield at, [*rest[:to], line, *rest[to:]]


class Court:
    """The judge, who weighs the same events only once: what an edit leaves as it was is not judged again."""

    def __init__(self) -> None:
        self._weighed: dict[tuple[int, ...], Status] = {}

    def verdict(self, timeline: list[Event]) -> Status:
        """As `judge` says (see the test of that); a timeline that it refuses is `invalid`."""
        events = in_order(timeline)
        try:
            scenario = scenario_of(timeline)
            key = tuple(map(id, events))
            if key not in self._weighed:
                self._weighed[key] = weigh(events).verdict
        except ValueError:
            return "invalid"
        return worst([self._weighed[key], timeline_check(scenario, timeline, events).status])


def scenario_of(timeline: list[Event]) -> Scenario:
    begun = next((event for event in timeline if isinstance(event, RunStarted)), None)
    if begun is None:
        raise ValueError("nothing to judge")
    return Scenario.model_validate(begun.scenario)


def order_of_each_writer(timeline: list[Event]) -> dict[str, list[int | None]]:
    found: dict[str, list[int | None]] = {}
    for event in timeline:
        found.setdefault(event.writer, []).append(event.seq)
    return found


def test_there_are_recorded_timelines_that_pass_and_some_that_fail() -> None:
    verdicts = Counter(judge(timeline).verdict for timeline in timelines().values())
    assert verdicts["pass"] >= 4
    assert verdicts["fail"] >= 3
    assert set(verdicts) == {"pass", "fail"}


@pytest.mark.parametrize("name", ALL)
def test_removing_any_line_never_makes_a_verdict_better(name: str) -> None:
    timeline, court = list(timelines()[name]), Court()
    before = court.verdict(timeline)
    kept = 0
    for at, edited in removed(timeline):
        after = court.verdict(edited)
        assert after != "pass", f"line {at + 1}, {timeline[at].type}, is gone, and it passes"
        kept += after == before
    if before == "fail":
        assert kept >= len(timeline) / 2, "a failure that one line less hides is the exception"


@pytest.mark.parametrize("name", ALL)
def test_doubling_any_line_never_makes_a_verdict_better(name: str) -> None:
    timeline, court = list(timelines()[name]), Court()
    wanted = "fail" if court.verdict(timeline) == "fail" else "invalid"
    for at, edited in doubled(timeline):
        assert court.verdict(edited) == wanted, f"line {at + 1}, {timeline[at].type}, is there twice"


@pytest.mark.parametrize("name", ALL)
def test_moving_any_line_never_makes_a_verdict_better(name: str) -> None:
    timeline, court = list(timelines()[name]), Court()
    before, order = court.verdict(timeline), order_of_each_writer(timeline)
    for at, edited in moved(timeline):
        same = order_of_each_writer(edited) == order and edited[0] is timeline[0] and edited[-1] is timeline[-1]
        wanted = before if before == "fail" or same else "invalid"
        assert court.verdict(edited) == wanted, f"line {at + 1}, {timeline[at].type}, was moved"


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(ALL), data=st.data())
def test_two_edits_never_make_a_verdict_better(name: str, data: st.DataObject) -> None:
    timeline = list(timelines()[name])
    before = Court().verdict(timeline)
    edited, touched, gone = timeline, False, False
    for _ in range(2):
        at = data.draw(st.integers(0, len(edited) - 1))
        to = data.draw(st.integers(0, len(edited) - 1))
        kind = data.draw(st.sampled_from(["remove", "double", "move"]))
        line, rest = edited[at], edited[:at] + edited[at + 1 :]
        edited = {
            "remove": rest,
            "double": [*edited[:to], line, *edited[to:]],
            "move": [*rest[:to], line, *rest[to:]],
        }[kind]
        gone = gone or kind == "remove"
    touched = order_of_each_writer(edited) != order_of_each_writer(timeline)
    after = Court().verdict(edited)
    assert after != "pass" or (before == "pass" and not touched)
    assert gone or before != "fail" or after == "fail"


@pytest.mark.parametrize("name", ALL)
def test_the_judge_says_what_this_court_says(name: str) -> None:
    timeline, court = list(timelines()[name]), Court()
    for edits in (removed, doubled, moved):
        for at, edited in list(edits(timeline))[3::29]:
            assert judge(edited).verdict == court.verdict(edited), at


def test_without_the_look_at_the_timeline_the_law_is_broken() -> None:
    """Else this file would prove nothing: the checks of what happened do not notice that a line is lost."""
    for name, least in (("open", 5), ("everything", 5), ("workloads by hand", 1)):
        lost = [edited for at, edited in removed(list(timelines()[name])) if at]
        assert sum(weigh(edited).verdict == "pass" for edited in lost) >= least, name


def test_an_edited_timeline_is_no_baseline_either(tmp_path: Path) -> None:
    timeline = list(recorded("open"))
    asked = {**timeline[0].model_dump()["scenario"], "slo": {"ttft": ["p(50)<=baseline+10%"]}}
    wanted = Scenario.model_validate(asked)
    path = tmp_path / "timeline.jsonl"

    def refused(lines: list[Event]) -> str:
        path.write_text("".join(f"{line.model_dump_json()}\n" for line in lines), encoding="utf-8")
        try:
            baseline.samples_for(wanted, tmp_path)
        except UsageError as error:
            return str(error)
        return ""

    assert not refused(timeline)
    for edits in (removed, doubled):
        for at, edited in list(edits(timeline))[1::7]:
            assert "the timeline is whole" in refused(edited) or "run.started" in refused(edited), at
