"""Timelines that contradict themselves, each with its numbers in order: only what they tell can give them away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from recorded import recorded
from test_timeline_law import LOST, timelines
from test_workloads import LIVES
from test_workloads import history as trainers
from whole_runs import numbered, whole

from sandbox.judge import judge
from sandbox.spec.results import Check
from sandbox.timeline import (
    AttackEvent,
    ClientBeat,
    Event,
    Fact,
    FaultEvent,
    LoadFinished,
    PhaseChanged,
    PodEvent,
    Request,
    RunFinished,
    RunStarted,
    WorkloadFinished,
)

Edit = Callable[[list[Event]], list[Event]]


def kept(timeline: list[Event]) -> Check:
    """What is said of a timeline after somebody numbered and closed it anew."""
    (found,) = [each for each in judge(timeline).checks if each.id == "validity/timeline"]
    return found


def forged(timeline: list[Event]) -> list[Event]:
    return numbered([event for event in timeline if not isinstance(event, RunFinished)])


def without(wanted: Callable[[Event], bool], which: int = 0) -> Edit:
    def edit(timeline: list[Event]) -> list[Event]:
        gone = [event for event in timeline if wanted(event)][which]
        return [event for event in timeline if event is not gone]

    return edit


def changed(wanted: Callable[[Event], bool], which: int = 0, **keys: Any) -> Edit:
    """One event with other values; a callable gets the event."""

    def edit(timeline: list[Event]) -> list[Event]:
        one = [event for event in timeline if wanted(event)][which]
        told = {key: value(one) if callable(value) else value for key, value in keys.items()}
        return [event.model_copy(update=told) if event is one else event for event in timeline]

    return edit


def again(wanted: Callable[[Event], bool], **keys: Any) -> Edit:
    """The same event once more, with other values."""

    def edit(timeline: list[Event]) -> list[Event]:
        at = next(place for place, event in enumerate(timeline) if wanted(event))
        return [*timeline[: at + 1], timeline[at].model_copy(update=keys), *timeline[at + 1 :]]

    return edit


def stepped(seconds: float, after: float) -> Edit:
    """A clock that jumps: every line after a moment tells of another time."""
    times = ("t", "scheduled", "sent", "first", "last")

    def later(event: Event) -> Event:
        told = {name: value + seconds for name in times if (value := getattr(event, name, None)) is not None}
        return event.model_copy(update=told)

    return lambda timeline: [later(event) if event.t > after else event for event in timeline]


def in_the_load(seconds: float) -> Edit:
    """The same, after the load client's third beat."""
    return lambda timeline: stepped(seconds, [event.t for event in timeline if isinstance(event, ClientBeat)][2])(
        timeline
    )


def is_a(kind: type, **keys: Any) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, kind) and all(getattr(event, key) == value for key, value in keys.items())


beat, answered = is_a(ClientBeat), is_a(Request, outcome="ok")
attempt = is_a(AttackEvent, variant="attempt")


@pytest.mark.parametrize("name", ["open", "closed", "processes", "chaos by hand", "workloads by hand"])
def test_a_timeline_that_is_numbered_anew_and_otherwise_as_it_was_is_whole(name: str) -> None:
    found = kept(forged(list(timelines()[name])))
    assert found.status == "pass", found.evidence


LIES: dict[str, tuple[str, Edit, str]] = {
    "the first beat is lost": ("open", without(beat), "pulse"),
    "a beat in the middle is lost": ("open", without(beat, 2), "of its pulse"),
    "the last two beats are lost": ("open", lambda each: without(beat, -1)(without(beat, -1)(each)), "pulse"),
    "all beats are lost": ("open", lambda each: [event for event in each if not beat(event)], "that of none"),
    "those of one process are lost": (
        "processes",
        lambda each: [event for event in each if not is_a(ClientBeat, worker="2/2")(event)],
        "2 load processes were asked for",
    ),
    "a beat is there twice": ("open", again(beat), "beat too often"),
    "a fault's start is lost": ("chaos by hand", without(is_a(FaultEvent, state="started")), "never started before"),
    "a fault's injection is lost": ("chaos by hand", without(is_a(FaultEvent, state="injected")), "and started before"),
    "a fault failed and was proven": (
        "chaos by hand",
        again(is_a(FaultEvent, state="injected"), state="failed"),
        "and failed before",
    ),
    "a fault was proven twice": ("chaos by hand", again(is_a(FaultEvent, state="proven")), "and proven before"),
    "a fault healed before it was proven": (
        "chaos by hand",
        changed(is_a(FaultEvent, state="healed"), t=lambda event: event.t - 5),
        "fault 0",
    ),
    "a fault struck before its time": (
        "chaos by hand",
        changed(is_a(FaultEvent, state="started"), t=lambda event: event.t - 2),
        "before its time",
    ),
    "a fault of another scenario": ("chaos by hand", changed(is_a(FaultEvent), fault="node.stop"), "none of the"),
    "a second try succeeded": ("chaos by hand", again(attempt, outcome="succeeded"), "made twice"),
    "an attempt that was not planned": ("chaos by hand", changed(attempt, attempt="2-host"), "not planned"),
    "what was planned is lost": ("chaos by hand", without(is_a(Fact, about="attacks")), "0 lists"),
    "a first token before its request": (
        "open",
        changed(answered, 5, first=lambda event: event.sent - 0.01),
        "first token before it was sent",
    ),
    "a last token before the first": ("open", changed(answered, 5, last=lambda event: event.first - 0.01), "its last"),
    "a request that was sent before it was due": (
        "open",
        changed(answered, 5, sent=lambda event: event.scheduled - 1),
        "sent before it was due",
    ),
    "gaps that are too short": ("open", changed(answered, 5, gaps=lambda event: [0.001] * len(event.gaps)), "gaps"),
    "a gap below zero": (
        "open",
        changed(answered, 5, gaps=lambda event: [-0.1, event.gaps[0] + event.gaps[1] + 0.1, *event.gaps[2:]]),
        "gaps",
    ),
    "a request before the load": ("open", changed(answered, 5, scheduled=1.0, sent=1.0), "the load lasted"),
    "a clock that jumps ahead in the load": ("open", in_the_load(10_000), "of its pulse"),
    "a clock that jumps back": ("open", in_the_load(-10_000), "before the run"),
    "a phase that never ended": ("open", without(is_a(PhaseChanged, name="exercise", status="ok")), "exercise"),
    "a phase that never began": ("open", without(is_a(PhaseChanged, name="verify", status="started")), "verify"),
    "a phase left out": (
        "open",
        lambda each: [event for event in each if not is_a(PhaseChanged, name="verify")(event)],
        "not in their order",
    ),
    "a load that ended twice": ("open", again(is_a(LoadFinished)), "2 lines load.finished"),
    "a workload that ended twice": ("workloads by hand", again(is_a(WorkloadFinished)), "watched to its end twice"),
    "a pod that was made twice": ("workloads by hand", again(is_a(PodEvent, state="created")), "second time"),
    "a pod that failed and succeeded": (
        "a failed pod by hand",
        again(is_a(PodEvent, state="failed"), state="succeeded"),
        "after another end",
    ),
    "a run that began twice": ("open", again(is_a(RunStarted)), "2 run.started"),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_cannot_have_been_is_invalid_and_says_what(lie: str) -> None:
    name, edit, words = LIES[lie]
    results = judge(forged(edit(list(timelines()[name]))))
    found = next(each for each in results.checks if each.id == "validity/timeline")
    assert found.status == "invalid"
    assert words in " ".join(found.evidence), found.evidence
    assert results.verdict != "pass"


def test_the_clock_of_one_line_or_of_all_that_follow_is_held_against_when_they_were_written() -> None:
    timeline = list(recorded("open"))
    for seconds in (10_000.0, -10_000.0, 20.0):
        for at in range(1, len(timeline) - 1):
            edited = [*timeline[:at], *stepped(seconds, -1.0)(timeline[at:])]
            assert kept(edited).status == "invalid", (seconds, at)
            one = [*timeline[:at], *stepped(seconds, -1.0)(timeline[at : at + 1]), *timeline[at + 1 :]]
            assert kept(one).status == "invalid", (seconds, at)


def test_a_failed_run_appended_to_a_good_one_is_no_pass() -> None:
    good, bad = list(timelines()["workloads by hand"]), list(timelines()["a failed pod by hand"])
    for both in ([*good, *bad], [*good[:-1], *bad], forged([*good, *bad])):
        found = kept(both)
        assert found.status == "invalid"
        assert "2 run.started" in found.reason


def test_a_client_that_stalled_says_so_in_its_lag_and_lost_no_second() -> None:
    """Three seconds in which it did not run: the beats that were due are counted when it runs again."""
    timeline = list(recorded("open"))
    beats = [event for event in timeline if isinstance(event, ClientBeat)]
    late = {id(each): beats[3].t for each in beats[1:4]}
    stalled = [
        event.model_copy(update={"t": late[id(event)], "lag": [2.5] * 20}) if id(event) in late else event
        for event in timeline
    ]
    assert kept(forged(stalled)).status == "pass"
    silent = [
        event.model_copy(update={"t": late[id(event)]}) if id(event) in late else event  # the same, and no lag
        for event in timeline
    ]
    assert kept(forged(silent)).status == "invalid"


def test_lines_that_are_lost_or_doubled_are_named_by_writer_and_number() -> None:
    timeline = list(recorded("processes"))
    place = next(at for at, event in enumerate(timeline) if event.writer == "load 2/2" and event.seq == 7)
    gone = kept([*timeline[:place], *timeline[place + 1 :]])
    assert "load 2/2's 8 comes where its 7 is due: 7 missing or moved" in gone.reason
    assert "load 2/2 wrote 50 lines request, and the timeline holds 49" in " ".join(gone.evidence)
    assert "for the second time" in kept([*timeline[:place], timeline[place], *timeline[place:]]).reason
    bare = timeline[place].model_copy(update={"seq": None})
    assert "has no number" in kept([*timeline[:place], bare, *timeline[place + 1 :]]).reason


@pytest.mark.parametrize("writer", ["run", "load", "load 1/2", "load 2/2"])
def test_a_lost_end_of_any_writer_is_seen(writer: str) -> None:
    """Of the last lines no number is missing: the closing tallies tell of them."""
    timeline = list(recorded("processes"))
    own = [event for event in timeline if event.writer == writer]
    for many in (1, 2, 5):
        gone = {id(event) for event in own[-many:]}
        assert kept([event for event in timeline if id(event) not in gone]).status == "invalid"


def test_a_run_that_was_killed_while_it_cleaned_up_has_no_last_line_and_is_no_pass() -> None:
    timeline = list(recorded("open"))
    assert "run.finished, is missing" in kept(timeline[:-1]).reason


def test_an_older_timeline_proves_what_failed_and_no_pass() -> None:
    place = {"writer": "", "seq": None, "written": None}

    def older(name: str) -> list[Event]:
        found = [event.model_copy(update=place) for event in timelines()[name] if not isinstance(event, RunFinished)]
        return [event.model_copy(update={"grammar": 1}) if isinstance(event, RunStarted) else event for event in found]

    passed, failed = judge(older("open")), judge(older("broken"))
    assert (passed.verdict, failed.verdict) == ("invalid", "fail")
    for results in (passed, failed):
        (found,) = [each for each in results.checks if each.id == "validity/timeline"]
        assert "older version" in found.reason
        assert "run the scenario again" in found.reason
    assert [each.status for each in passed.checks].count("invalid") == 1, "all else is judged as it was"


def test_a_timeline_is_no_better_for_having_lost_its_numbers() -> None:
    failed = whole(trainers(LOST, LIVES))
    hidden = [event for event in failed if not (isinstance(event, PodEvent) and event.state == "failed")]
    bare = [
        event.model_copy(update={"writer": "", "seq": None, "written": None, "grammar": 1})
        if isinstance(event, RunStarted)
        else event.model_copy(update={"writer": "", "seq": None, "written": None})
        for event in hidden
    ]
    for timeline in (bare, hidden):
        assert kept(timeline).status == "invalid"
        assert judge(timeline).verdict != "pass"
