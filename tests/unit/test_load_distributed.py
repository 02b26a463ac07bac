"""A load of several processes on this machine: the same requests as one process makes, and none lost unseen."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import settings as settled
from hypothesis import strategies as st

from sandbox import metrics
from sandbox.errors import UsageError
from sandbox.load import runner
from sandbox.load.arrivals import schedule
from sandbox.load.golden import MODEL, Golden, GoldenSettings, beside, golden
from sandbox.load.plan import LoadPlan, PlannedShare
from sandbox.metrics.summary import summarise
from sandbox.spec.base import Metadata
from sandbox.spec.lengths import Fixed
from sandbox.spec.loadtest import Arrivals
from sandbox.spec.profile import Profile
from sandbox.timeline import ClientBeat, Event, LoadFinished, LoadStarted, Note, Request, Timeline, read

pytestmark = pytest.mark.realtime  # their clocks are compared

PROFILE = Profile(
    kind="Profile",
    metadata=Metadata(name="test", description="Some prompts."),
    prompts=["hi", "ho", "hey"],
    max_tokens=Fixed(kind="fixed", tokens=5),
)
FAILING = "from locust import HttpUser, task\n\nclass Visitor(HttpUser:\n    pass\n"
POSTING = (
    "from locust import HttpUser, constant, task\n"
    "class Visitor(HttpUser):\n"
    "    wait_time = constant(0.05)\n"
    "    @task\n"
    "    def ask(self):\n"
    "        self.client.post('/v1/completions', json={'prompt': 'hi'}, headers={'X-Request-Id': 'x'})\n"
)


@pytest.fixture
def timeline(tmp_path: Path) -> Iterator[Timeline]:
    with Timeline(tmp_path / "timeline.jsonl") as opened:
        yield opened


def plan(server: Golden, timeline: Timeline, arrivals: Arrivals, duration: float, **more: Any) -> LoadPlan:
    shares = [] if "locustfile" in more else [PlannedShare(profile=PROFILE, model=MODEL)]
    return LoadPlan(
        **{"timeout": 5.0, "idle_timeout": 2.0, "url": server.url, "model": MODEL, "shares": shares, **more},
        arrivals=arrivals,
        duration=duration,
        number_requests=True,
        epoch_ns=timeline.epoch_ns,
        timeline=timeline.path,
    )


def settings(tmp_path: Path, **more: Any) -> GoldenSettings:
    return GoldenSettings(**{"first": 0.03, "gap": 0.01, "tokens": 5, "after": 2, "log": tmp_path / "g.jsonl", **more})


def requests(events: list[Event]) -> list[Request]:
    return [event for event in events if isinstance(event, Request)]


def children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def until(true: Any, within: float = 30) -> None:
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_several_processes_make_exactly_the_requests_of_one(tmp_path: Path) -> None:
    arrivals = Arrivals(process="poisson", rate=40, seed=5)
    seen = {}
    for many in (1, 3):
        folder = tmp_path / str(many)
        folder.mkdir()
        with golden(settings(folder)) as server, Timeline(folder / "timeline.jsonl") as timeline:
            wanted = plan(server, timeline, arrivals, 2.0, processes=many)
            load = runner.start(wanted, timeline)
            assert load.wait(60) == 0
            truth = {line.number: line for line in server.served()}
            served = list(truth)
        events = list(read(timeline.path))
        (begun,) = [event for event in events if isinstance(event, LoadStarted)]
        (ended,) = [event for event in events if isinstance(event, LoadFinished)]
        done = requests(events)
        assert begun.t == load.started_at
        assert ended.attempted == len(done) == len(list(schedule(arrivals, 2.0)))
        assert Counter(f"5-{request.tags['number']}" for request in done) == Counter(served)
        assert {request.outcome for request in done} == {"ok"}
        assert all(request.sent is not None and request.sent - request.scheduled < 0.25 for request in done)
        for request in done:
            assert request.first is not None
            assert request.uncertainty is not None
            assert len(request.uncertainty) == request.chunks == 5
            written = truth[f"5-{request.tags['number']}"].written[0] - timeline.epoch_ns
            assert request.first - request.uncertainty[0] <= written / 1e9, "every worker knows its bounds"
        beats = {event.worker for event in events if isinstance(event, ClientBeat)}
        assert beats == ({""} if many == 1 else {"1/3", "2/3", "3/3"})
        seen[many] = sorted((request.tags["number"], round(request.scheduled - begun.t, 6)) for request in done)
    assert seen[1] == seen[3]


def test_users_of_several_processes_are_as_many_as_of_one(tmp_path: Path, timeline: Timeline) -> None:
    with golden(settings(tmp_path, first=1.0)) as server:  # so slow that nobody asks twice before all are there
        arrivals = Arrivals(process="closed", users=5, spawn_rate=10)
        load = runner.start(plan(server, timeline, arrivals, 1.5, processes=2), timeline)
        assert load.wait(60) == 0
        served = Counter(line.number for line in server.served())
    events = list(read(timeline.path))
    done = requests(events)
    assert Counter(f"1-{request.tags['number']}" for request in done) == served
    assert set(served.values()) == {1}
    edges = sorted([(r.scheduled, 1) for r in done] + [(r.t, -1) for r in done])
    at_once = most = 0
    for _, step in edges:
        at_once += step
        most = max(most, at_once)
    assert most == 5
    first = sorted(request.scheduled - load.started_at for request in done)[:5]
    assert first[0] == pytest.approx(0, abs=0.1)
    assert [user / 10 - 0.01 <= at for user, at in enumerate(first)] == [True] * 5, "users came faster than asked"


def test_every_worker_is_calibrated_by_itself(tmp_path: Path, timeline: Timeline) -> None:
    with golden(settings(tmp_path)) as server, golden(beside(tmp_path / "beside.jsonl")) as known:
        arrivals = Arrivals(process="constant", rate=10)
        load = runner.start(plan(server, timeline, arrivals, 2.5, processes=2, golden=known.url), timeline)
        assert load.wait(60) == 0
    beats = [event for event in read(timeline.path) if isinstance(event, ClientBeat)]
    for worker in ("1/2", "2/2"):
        assert sum(beat.calibrated for beat in beats if beat.worker == worker) > 100


def test_a_worker_that_is_killed_makes_the_load_invalid_and_never_quiet(tmp_path: Path, timeline: Timeline) -> None:
    with golden(settings(tmp_path)) as server:
        arrivals = Arrivals(process="constant", rate=20)
        load = runner.start(plan(server, timeline, arrivals, 60.0, processes=2, grace=0.5), timeline)
        workers = children(load.pid)
        assert len(workers) == 2
        until(lambda: len(requests(list(read(timeline.path)))) > 4)
        workers[0].kill()
        assert load.wait(30) == 1
    events = list(read(timeline.path))
    assert not [event for event in events if isinstance(event, LoadFinished)]
    said = [event.message for event in events if isinstance(event, Note) and event.level == "error"]
    assert len(said) == 1
    assert f"(process {workers[0].pid}) was ended by SIGKILL" in said[0]
    assert said[0].partition(":")[0] in load.log.read_text()
    assert not [worker for worker in workers if worker.is_running()]


def test_an_early_stop_ends_every_worker_in_order(tmp_path: Path, timeline: Timeline) -> None:
    with golden(settings(tmp_path)) as server:
        arrivals = Arrivals(process="constant", rate=20)
        load = runner.start(plan(server, timeline, arrivals, 60.0, processes=3), timeline)
        workers = children(load.pid)
        until(lambda: len(requests(list(read(timeline.path)))) > 4)
        assert load.stop() == 0
    events = list(read(timeline.path))
    (ended,) = [event for event in events if isinstance(event, LoadFinished)]
    assert ended.aborted == "asked to end (SIGTERM)"
    assert ended.attempted == len(requests(events))
    assert not [worker for worker in workers if worker.is_running()]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_the_load_process(tmp_path: Path, timeline: Timeline, how: signal.Signals) -> None:
    with golden(settings(tmp_path)) as server:
        arrivals = Arrivals(process="constant", rate=20)
        load = runner.start(plan(server, timeline, arrivals, 60.0, processes=2, grace=0.2), timeline)
        workers = children(load.pid)
        if how is signal.SIGINT:  # as a terminal does: the whole group at once
            os.killpg(load.pid, how)
            assert load.wait(30) == 0
        else:
            load.kill()
        until(lambda: not [worker for worker in workers if worker.is_running()])
    ended = [event for event in read(timeline.path) if isinstance(event, LoadFinished)]
    assert [event.aborted for event in ended] == (["stopped by SIGINT"] if how is signal.SIGINT else [])


def test_all_of_it_ends_with_the_process_that_started_it(tmp_path: Path, timeline: Timeline) -> None:
    with golden(settings(tmp_path)) as server:
        wanted = plan(server, timeline, Arrivals(process="constant", rate=5), 120.0, grace=0.2, processes=2)
        code = (
            "import sys, time\n"
            "from sandbox.load import plan, runner\n"
            "from sandbox.timeline import Timeline\n"
            "told = plan.LoadPlan.model_validate_json(sys.argv[1])\n"
            "print(runner.start(told, Timeline(told.timeline, told.epoch_ns)).pid, flush=True)\n"
            "time.sleep(120)\n"
        )
        parent = subprocess.Popen([sys.executable, "-c", code, wanted.model_dump_json()], stdout=subprocess.PIPE)
        assert parent.stdout is not None
        load = psutil.Process(int(parent.stdout.readline()))
        workers = children(load.pid)
        parent.kill()
        parent.wait()
        parent.stdout.close()
        until(lambda: not [process for process in (load, *workers) if process.is_running()])
    (ended,) = [event for event in read(timeline.path) if isinstance(event, LoadFinished)]
    assert ended.aborted == "the process that started the load is gone"


def test_a_users_own_locustfile_runs_on_several_processes(tmp_path: Path, timeline: Timeline) -> None:
    own = tmp_path / "posting.py"
    own.write_text(POSTING)
    with golden(settings(tmp_path)) as server:
        arrivals = Arrivals(process="closed", users=4)
        load = runner.start(plan(server, timeline, arrivals, 1.5, processes=2, locustfile=own), timeline)
        assert load.wait(60) == 0
        served = len(server.served())
    events = list(read(timeline.path))
    (ended,) = [event for event in events if isinstance(event, LoadFinished)]
    assert ended.attempted == len(requests(events)) == served > 20
    assert ended.aborted == ""
    assert {event.worker for event in events if isinstance(event, ClientBeat)} == {"1/2", "2/2"}


def test_a_locustfile_that_does_not_load_is_refused_by_the_master_too(tmp_path: Path, timeline: Timeline) -> None:
    own = tmp_path / "failing.py"
    own.write_text(FAILING)
    with golden(settings(tmp_path)) as server, pytest.raises(UsageError, match="does not load: ") as caught:
        runner.start(
            plan(server, timeline, Arrivals(process="closed", users=1), 1.0, processes=2, locustfile=own), timeline
        )
    assert caught.value.where == f"{own}:3"
    assert list(read(timeline.path)) == []


@settled(max_examples=40, deadline=None)
@given(
    parts=st.lists(st.lists(st.floats(0.001, 10.0), min_size=1, max_size=60), min_size=1, max_size=4), dice=st.randoms()
)
def test_merged_percentiles_are_those_of_all_samples(parts: list[list[float]], dice: random.Random) -> None:
    """Each part is what a worker writes, line by line and in any order with the others', into the same file."""
    pooled = [value for part in parts for value in part]
    turns = [place for place, part in enumerate(parts) for _ in part]
    dice.shuffle(turns)
    with tempfile.TemporaryDirectory() as name, ExitStack() as workers:
        path = Path(name) / "timeline.jsonl"
        files = [workers.enter_context(Timeline(path, 0)) for _ in parts]
        left = [list(part) for part in parts]
        files[0].append(LoadStarted(t=0.0, url="", model="m", profile="p", asked={}))
        for place in turns:
            value = left[place].pop()
            files[place].append(Request(t=value, scheduled=0.0, sent=0.0, first=value, last=value, outcome="ok"))
        files[0].append(LoadFinished(t=11.0, attempted=len(pooled)))
        merged = summarise(metrics.record(read(path)))[0].percentiles["ttft"]
    assert merged["count"] == len(pooled)
    for percent in (50, 90, 95, 99):
        assert merged[f"p{percent}"] == pytest.approx(float(np.percentile(pooled, percent)))


def test_workers_that_freeze_for_seconds_end_the_load_with_the_reason(tmp_path: Path, timeline: Timeline) -> None:
    """Locust gives up on workers that are silent for some seconds and would have the rest stop by themselves."""
    with golden(settings(tmp_path)) as server:
        arrivals = Arrivals(process="constant", rate=20)
        load = runner.start(plan(server, timeline, arrivals, 60.0, processes=2), timeline)
        workers = children(load.pid)
        for worker in workers:
            worker.suspend()
        until(lambda: timeline.now() > load.started_at + 7)
        for worker in workers:
            worker.resume()
        assert load.wait(30) == 0
    events = list(read(timeline.path))
    (ended,) = [event for event in events if isinstance(event, LoadFinished)]
    assert ended.aborted == "Locust's master and workers lost each other"
    assert ended.attempted == len(requests(events))
