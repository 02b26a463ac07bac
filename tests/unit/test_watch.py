"""The watcher of a running load: what it sees, when it ends a load, and what it costs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from test_judge import GOOD, LOAD_AT, check, fault, history, request, scenario

from sandbox.judge import weigh as judge
from sandbox.spec.scenario import Scenario
from sandbox.timeline import ClientBeat, Event, LoadAborted, LoadFinished, LoadStarted, Request, Timeline, read
from sandbox.watch import Watch

BEGUN: list[Event] = [LoadStarted(t=LOAD_AT, url="http://127.0.0.1:1", model="m", profile="chat-short", asked={})]


def aborting(expression: str, **more: Any) -> list[dict[str, Any]]:
    return [{"threshold": expression, "abortOnFail": True, **more}]


class Running:
    """A load that goes on: its timeline, its watcher, and how often it was told to end."""

    def __init__(self, folder: Path, elapsed: float = 20.0, **keys: Any) -> None:
        spec = {**scenario(), **keys}
        self.timeline = Timeline(folder / "timeline.jsonl")
        self.timeline.epoch_ns -= int((LOAD_AT + elapsed) * 1e9)
        self.ended: list[str] = []
        self.watch = Watch(Scenario.model_validate(spec), self.timeline, lambda: self.ended.append("ended"))
        self.write(BEGUN)

    def write(self, events: Iterable[Event]) -> None:
        for event in events:
            self.timeline.append(event)

    @property
    def told(self) -> list[LoadAborted]:
        return [event for event in read(self.timeline.path) if isinstance(event, LoadAborted)]


def test_it_reads_on_where_it_stopped_and_comes_to_what_the_judge_comes_to(tmp_path: Path) -> None:
    spec = {"slo": {"ttft": aborting("p(50)<=99ms", minSamples=250)}}
    load = Running(tmp_path, **spec)
    load.write(GOOD[:200])
    assert not load.watch.look(), "not enough yet"
    assert len(load.watch.record.table) == 200
    load.write(GOOD[200:])
    assert load.watch.look()
    (told,) = load.told
    assert told.observed == check(judge(history(spec=scenario(**spec))), "slo/ttft").observed
    assert load.ended == ["ended"]
    assert load.watch.look(), "it has ended"
    assert (len(load.told), load.ended) == (1, ["ended"]), "and is not ended again"


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    load = Running(tmp_path, slo={"ttft": aborting("p(50)<=5s")})
    lines = b"".join(each.model_dump_json().encode() + b"\n" for each in GOOD[:20])
    with load.timeline.path.open("ab", buffering=0) as file:
        file.write(lines[:-50])
        load.watch.look()
        assert len(load.watch.record.table) == 19
        file.write(lines[-50:])
        load.watch.look()
    assert len(load.watch.record.table) == 20


@pytest.mark.parametrize(("lag", "ends"), [(0.5, True), (0.001, False)])
def test_the_load_clients_own_figures_may_end_a_load(tmp_path: Path, lag: float, ends: bool) -> None:
    load = Running(tmp_path, validity={"client_lag": aborting("p(99)<=10ms")})
    load.write(GOOD[:20])
    load.write(ClientBeat(t=LOAD_AT + n, lag=[lag] * 20, beats=100, cpu=0.2, in_flight=3) for n in range(1, 7))
    assert load.watch.look() is ends
    assert [each.threshold for each in load.told] == (["validity/client_lag/p(99)<=10ms"] if ends else [])


def test_too_few_beats_end_no_load_though_they_are_no_pass_either(tmp_path: Path) -> None:
    load = Running(tmp_path, validity={"client_lag": aborting("p(99)<=10ms")})
    load.write([ClientBeat(t=LOAD_AT + 1, lag=[0.5] * 20, beats=100, cpu=0.2, in_flight=3)])
    assert not load.watch.look()


def test_a_load_that_its_own_client_spoilt_is_invalid_and_not_failed() -> None:
    spec = scenario(validity={"client_lag": aborting("p(99)<=10ms")})
    told = LoadAborted(t=LOAD_AT + 6, threshold="validity/client_lag/p(99)<=10ms", observed="500.0 ms")
    results = judge(history(spec=spec, extra=[told], aborted="asked to end (SIGTERM)"))
    assert results.verdict == "invalid"
    assert check(results, "validity/client_lag").status == "invalid"
    assert check(results, "validity/load-client").status == "pass"


@pytest.mark.parametrize(
    ("watched", "ends"),
    [(6.0, True), (4.0, False)],
    ids=["longer than it may take", "not as long as it may take"],
)
def test_a_recovery_that_takes_too_long_ends_a_load(tmp_path: Path, watched: float, ends: bool) -> None:
    load = Running(tmp_path, slo={"time_to_recover": aborting("value<=5s")})
    load.write([*GOOD[:100], *fault("started", "injected", "proven")])
    load.write(request(20 + n / 10, "connect_error", took=0.1) for n in range(int(watched * 10)))
    assert load.watch.look() is ends


def test_tags_and_phases_are_those_of_the_moment(tmp_path: Path) -> None:
    load = Running(tmp_path, slo={"good_request_fraction{phase:fault}": aborting("rate>=0.9", minSamples=5)})
    load.write(request(LOAD_AT + n / 10, "timeout") for n in range(50))
    assert not load.watch.look(), "there is no fault yet"
    load.write(fault("started", "injected", at=16.0))
    load.write(request(17 + n / 10, "timeout") for n in range(10))
    assert load.watch.look()


def test_a_load_that_has_finished_is_not_ended_again(tmp_path: Path) -> None:
    load = Running(tmp_path, slo={"ttft": aborting("p(50)<=1ms")})
    load.write([*GOOD[:20], LoadFinished(t=LOAD_AT + 5, attempted=20)])
    assert not load.watch.look()
    assert not load.told


def test_it_stops_looking_when_it_is_told_so(tmp_path: Path) -> None:
    load = Running(tmp_path, slo={"ttft": aborting("p(50)<=5s")})
    over = threading.Event()
    over.set()
    load.watch.run(over)
    assert not len(load.watch.record.table)


def test_a_look_is_cheap_however_much_has_come(tmp_path: Path) -> None:
    """One second of 200 requests, after 10,000 of them: at most a twentieth of a core."""
    slo = {"ttft": aborting("p(99)<=10s"), "good_request_fraction{phase:baseline}": aborting("rate>=0.1")}
    load = Running(tmp_path, slo=slo)

    def many(of: int) -> list[Request]:
        return [each.model_copy(update={"gaps": [0.02] * 50}) for each in (GOOD * (of // len(GOOD) + 1))[:of]]

    load.write(many(10_000))
    load.watch.look()
    costs = []
    for _ in range(5):
        load.write(many(200))
        begun = time.thread_time()
        assert not load.watch.look()
        costs.append(time.thread_time() - begun)
    assert len(load.watch.record.table) == 11_000
    assert min(costs) < 0.05
    assert not load.watch.record.requests
    assert not len(load.watch.record.table.samples("icl", load.watch.record.table.ended("ok"))), "gaps nobody asks for"


def test_gaps_are_kept_where_a_threshold_is_about_them(tmp_path: Path) -> None:
    load = Running(tmp_path, slo={"icl": aborting("max<=10ms")})
    load.write([GOOD[0].model_copy(update={"gaps": [0.005, 0.02]})])
    assert load.watch.look()
    assert load.told[0].observed == "20.0 ms"
