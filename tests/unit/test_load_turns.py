"""Locustfiles that flatter: users that hang, that raise, that never come, or that ask somebody else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_load_locust import plan, played, requests, settings, wait_for, written
from test_load_runner import plan as planned

from sandbox.load import runner
from sandbox.load.golden import golden
from sandbox.load.targets import Targets
from sandbox.spec.loadtest import Arrivals
from sandbox.timeline import Event, LoadFinished, Note, Timeline, read

pytestmark = pytest.mark.realtime  # they measure

VISITOR = """
import time
from locust import HttpUser, constant, task

class Visitor(HttpUser):
    wait_time = constant(0.02)
    @task
    def ask(self):
{body}
"""


@pytest.fixture
def timeline(tmp_path: Path) -> Iterator[Timeline]:
    with Timeline(tmp_path / "timeline.jsonl") as opened:
        yield opened


def visitor(tmp_path: Path, *body: str, name: str = "own.py") -> Path:
    return written(tmp_path, VISITOR.format(body="\n".join(f"        {line}" for line in body)), name)


ASK = 'self.client.post("/v1/completions", json={"prompt": "hi"}, name="ask")'
CHECKED = 'with self.client.post("/v1/completions", json={"prompt": "hi"}, name="ask", catch_response=True) as answer:'


def end(events: list[Event]) -> LoadFinished:
    assert isinstance(events[-1], LoadFinished)
    return events[-1]


def notes(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Note)]


@pytest.mark.parametrize("processes", [1, 2])
def test_what_users_hang_at_when_the_load_is_over_is_an_answer_that_never_came(
    tmp_path: Path, timeline: Timeline, processes: int
) -> None:
    own = visitor(tmp_path, 'self.client.post("/v1/completions", json={"prompt": "hi", "stream": True}, name="ask")')
    with golden(settings(tmp_path, ["ok", "ok", "mute"])) as server:
        events = played(plan(server, timeline, own, timeout=0.6, processes=processes), timeline)
        asked = len(server.served())
    done = requests(events)
    assert len(done) == asked
    outcomes = Counter(request.outcome for request in done)
    assert outcomes["timeout"] == 3
    assert set(outcomes) == {"ok", "timeout"}
    for request in done:
        if request.outcome == "timeout":
            assert request.t - request.scheduled > 0.6
            assert "Visitor was at ask for " in request.detail
            assert request.tags["profile"] == "own"
    assert len([note for note in notes(events) if "were still at a task and were ended" in note]) == processes
    assert (end(events).users_asked, end(events).users) == (3, 3)


def test_users_that_an_early_stop_cuts_are_not_the_servers_doing_but_those_that_hung_before_are(
    tmp_path: Path, timeline: Timeline
) -> None:
    own = visitor(tmp_path, 'self.client.post("/v1/completions", json={"prompt": "hi", "stream": True}, name="ask")')
    with golden(settings(tmp_path, ["mute"])) as server:
        wanted = plan(server, timeline, own, duration=60.0, timeout=0.5, grace=0.1)
        late = wanted.model_copy(update={"timeout": 30.0})
        load = runner.start(wanted, timeline)
        wait_for(lambda: timeline.now() > load.started_at + 1.0)
        assert load.stop() == 0
        assert [request.outcome for request in requests(list(read(timeline.path)))] == ["timeout"] * 3
        timeline.path.write_bytes(b"")
        load = runner.start(late, timeline)
        wait_for(lambda: timeline.now() > load.started_at + 1.0)
        assert load.stop() == 0
    events = list(read(timeline.path))
    assert requests(events) == []
    assert any("3 requests in flight were cut by the early stop" in note for note in notes(events))


@pytest.mark.parametrize("base", ["HttpUser", "FastHttpUser"])
def test_an_answer_whose_check_raises_is_a_failed_one_and_counts_once(
    tmp_path: Path, timeline: Timeline, base: str
) -> None:
    own = visitor(
        tmp_path,
        "self.asked = getattr(self, 'asked', 0) + 1",
        CHECKED,
        "    if self.asked % 10:",
        "        answer.json()['nothing like that']",
    )
    own.write_text(own.read_text().replace("HttpUser", base))
    with golden(settings(tmp_path)) as server:
        events = played(plan(server, timeline, own, 1), timeline)
        served = len(server.served())
    done = requests(events)
    assert len(done) == served > 10
    good = [request for request in done if request.outcome == "ok"]
    assert len(good) == served // 10
    bad = [request for request in done if request.outcome != "ok"]
    assert {(r.outcome, r.detail) for r in bad} == {("inband_error", "Visitor raised KeyError: 'nothing like that'")}
    assert any(f"({len(bad)} times)" in note for note in notes(events))


def test_a_task_that_raises_on_an_answer_that_had_been_told_of_fails_that_answer(
    tmp_path: Path, timeline: Timeline
) -> None:
    own = visitor(tmp_path, ASK, ASK.replace('"ask"', '"second"') + ".json()['nothing like that']")
    with golden(settings(tmp_path)) as server:
        events = played(plan(server, timeline, own), timeline)
        served = len(server.served())
    done = requests(events)
    assert len(done) == served > 6
    told = {(request.tags["name"], request.outcome) for request in done}
    assert told == {("ask", "ok"), ("second", "inband_error")}
    assert all(request.status == 200 for request in done), "it is the same request, and all that is known of it"


def test_a_task_that_raises_on_a_failure_has_failed_once(tmp_path: Path, timeline: Timeline) -> None:
    own = visitor(tmp_path, f"{ASK}.json()['nothing like that']")
    with golden(settings(tmp_path, ["http_error"])) as server:
        events = played(plan(server, timeline, own), timeline)
        served = len(server.served())
    assert Counter(request.outcome for request in requests(events)) == {"http_error": served}


NESTED = """
from locust import HttpUser, TaskSet, SequentialTaskSet, constant, task
from locust.exception import RescheduleTask, StopUser

class Steps(SequentialTaskSet):
    @task
    def first(self):
        self.client.post("/v1/completions", json={"prompt": "hi"}, name="first")
    @task
    def second(self):
        self.client.post("/v1/completions", json={"prompt": "hi"}, name="second")
        raise ValueError("no")
    @task
    def third(self):
        self.interrupt()

class Visitor(HttpUser):
    wait_time = constant(0.02)
    tasks = [Steps]

class Login(HttpUser):
    wait_time = constant(0.1)
    fixed_count = 1
    def on_start(self):
        raise RuntimeError("no such account")
    @task
    def ask(self):
        pass

class Once(HttpUser):
    fixed_count = 1
    @task
    def ask(self):
        self.client.post("/v1/completions", json={"prompt": "hi"}, name="once")
        raise StopUser()
"""


def test_tasks_in_sets_and_those_that_end_in_order_are_told_apart(tmp_path: Path, timeline: Timeline) -> None:
    with golden(settings(tmp_path)) as server:
        events = played(plan(server, timeline, written(tmp_path, NESTED)), timeline)
    seen = Counter((request.tags["name"], request.outcome) for request in requests(events))
    assert {name for name, _ in seen} == {"first", "second", "once", "on_start"}
    assert seen["first", "ok"] >= seen["second", "inband_error"] > 3
    assert seen["second", "ok"] == 0, "its task raised"
    assert (seen["once", "ok"], seen["on_start", "inband_error"]) == (1, 1)
    assert end(events).users == 2, "the third never began a task"


@pytest.mark.parametrize("processes", [1, 2])
def test_users_that_never_came_are_not_among_those_that_are_told_of(
    tmp_path: Path, timeline: Timeline, processes: int
) -> None:
    with golden(settings(tmp_path)) as server:
        wanted = plan(server, timeline, visitor(tmp_path, ASK), processes=processes)
        slow = wanted.model_copy(update={"arrivals": Arrivals(process="closed", users=50, spawn_rate=2)})
        last = end(played(slow, timeline))
    assert last.users_asked == 50
    assert last.users is not None
    assert 2 <= last.users <= 5


def test_users_of_a_planned_load_are_counted_and_an_open_load_has_none(tmp_path: Path, timeline: Timeline) -> None:
    with golden(settings(tmp_path)) as server:
        arrivals = Arrivals(process="closed", users=20, spawn_rate=4)
        last = end(played(planned(server, timeline, arrivals, duration=1.2), timeline))
        assert last.users_asked == 20
        assert last.users == 5
        timeline.path.write_bytes(b"")
        last = end(played(planned(server, timeline, Arrivals(process="constant", rate=10), duration=1.0), timeline))
    assert (last.users_asked, last.users, last.targets) == (None, None, {})


@pytest.mark.parametrize("processes", [1, 2])
def test_it_is_counted_whom_a_locustfile_asks(tmp_path: Path, timeline: Timeline, processes: int) -> None:
    own = visitor(tmp_path, ASK)
    with golden(settings(tmp_path)) as server, golden(settings(tmp_path, log=tmp_path / "other.jsonl")) as other:
        named = server.url.replace("127.0.0.1", "localhost")
        text = own.read_text() + (
            "from sandbox.load.user import StreamingUser\n"
            "class Stranger(Visitor):\n"
            f"    host = {other.url!r}\n"
            "class Reader(StreamingUser):\n"
            "    wait_time = constant(0.05)\n"
            "    @task\n"
            "    def ask(self):\n"
            "        self.client.chat('hi', max_tokens=5)\n"
            "class Absolute(HttpUser):\n"
            f"    host = {other.url!r}\n"
            "    wait_time = constant(0.05)\n"
            "    @task\n"
            "    def ask(self):\n"
            f"        self.client.post({named!r} + '/v1/completions', json={{}})\n"
        )
        own.write_text(text)
        events = played(plan(server, timeline, own, 4, processes=processes), timeline)
        served = (len(server.served()), len(other.served()))
    assert end(events).targets == dict(zip((server.url, other.url), served, strict=True))
    assert min(served) > 3


def test_one_server_has_many_names_and_another_port_is_another_server() -> None:
    targets = Targets("http://127.0.0.1:8000/v1")
    for url in ("http://127.0.0.1:8000/x?y", "http://localhost:8000", "HTTP://127.0.0.1:8000"):
        targets.ask(url)
    assert targets.counts == {"http://127.0.0.1:8000/v1": 3}
    for url in ("http://127.0.0.1:8001/x", "https://127.0.0.1", "http://no.such.host.invalid:8000", "grpc://x", None):
        targets.ask(url)
    assert targets.counts == {
        "http://127.0.0.1:8000/v1": 3,
        "http://127.0.0.1:8001": 1,
        "https://127.0.0.1:443": 1,
        "http://no.such.host.invalid:8000": 1,
        "grpc://x:None": 1,
        "": 1,
    }
