"""Locust's own ways on our client: its command, its web page, its processes and shapes; and locustfiles as they are."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sandbox.errors import UsageError
from sandbox.load import runner
from sandbox.load.golden import MODEL, Golden, GoldenSettings, Kind, golden
from sandbox.load.plan import LoadPlan
from sandbox.spec.loadtest import Arrivals
from sandbox.timeline import ClientBeat, Event, LoadFinished, LoadStarted, Note, Request, Timeline, read

pytestmark = pytest.mark.realtime  # they measure

ROOT = Path(__file__).parents[2]
KINDS: list[Kind] = ["ok", "cut", "reset", "vanish", "malformed", "inband_error", "http_error", "filtered"]
OUTCOMES = {
    "ok": "ok",
    "cut": "truncated",
    "reset": "truncated",
    "vanish": "truncated",
    "malformed": "inband_error",
    "inband_error": "inband_error",
    "http_error": "http_error",
    "filtered": "guardrail_blocked",
}
ASKING = """
from locust import constant, task
from sandbox.load.user import StreamingUser

class Visitor(StreamingUser):
    wait_time = constant(0.02)
    @task
    def ask(self):
        answer = self.client.chat([{"role": "user", "content": "hi"}], max_tokens=5, name="ask")
        assert answer.ok == (answer.outcome == "ok")
        assert not answer.ok or (len(answer.text.split()) == 5 and 0 < answer.ttft <= answer.e2e)
"""


@pytest.fixture
def timeline(tmp_path: Path) -> Iterator[Timeline]:
    with Timeline(tmp_path / "timeline.jsonl") as opened:
        yield opened


def settings(tmp_path: Path, kinds: list[Kind] | None = None, **more: Any) -> GoldenSettings:
    given = {"first": 0.03, "gap": 0.01, "tokens": 5, "after": 2, "log": tmp_path / "golden.jsonl", **more}
    return GoldenSettings(**given, kinds=kinds or ["ok"])


def written(tmp_path: Path, text: str, name: str = "own.py") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def command(path: Path, url: str, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "locust", "-f", str(path), "--host", url),
        *("--users", "3", "--spawn-rate", "3", "--run-time", "3s", "--stop-timeout", "5", *more),
    ]


def locust(path: Path, url: str, *more: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Locust's own command, without its page, to its end; its numbers come as JSON on standard output."""
    return subprocess.run(
        [*command(path, url, "--headless", "--json", "--only-summary"), *more],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        cwd=path.parent,
        env=os.environ | {"LOCUST_SKIP_MONKEY_PATCH": ""} | (env or {}),
    )


def entries(done: subprocess.CompletedProcess[str]) -> dict[tuple[str, str], dict[str, Any]]:
    """What the one process said that had it all; with `--processes` the others print an empty list."""
    text, found = done.stdout, []
    while (start := text.find("[")) >= 0:
        listed, length = json.JSONDecoder().raw_decode(text[start:])
        found += listed
        text = text[start + length :]
    return {(entry["method"], entry["name"]): entry for entry in found}


def test_locusts_own_command_counts_every_outcome_once(tmp_path: Path) -> None:
    with golden(settings(tmp_path, KINDS)) as server:
        done = locust(written(tmp_path, ASKING), server.url)
        served = Counter(line.kind for line in server.served())
        numbers = [line.number for line in server.served()]
    assert done.returncode == 1, done.stderr  # Locust's own code where some requests failed
    seen = entries(done)
    asked = seen["POST", "ask"]
    assert asked["num_requests"] == sum(served.values()) > 20
    assert asked["num_failures"] == sum(served.values()) - served["ok"]
    assert len(set(numbers)) == len(numbers), "a request was sent twice"
    # what has begun to stream has a time to first token, whatever became of it
    streamed = sum(served[kind] for kind in KINDS if kind not in ("vanish", "http_error"))
    assert seen["TTFT", "ask"]["num_requests"] == streamed
    assert seen["TPOT", "ask"]["num_requests"] == streamed
    assert 30 <= min(map(float, seen["TTFT", "ask"]["response_times"])) < 60
    assert "AssertionError" not in done.stderr


def test_processes_of_locusts_own_share_the_work(tmp_path: Path) -> None:
    with golden(settings(tmp_path)) as server:
        done = locust(ROOT / "loadtests" / "locustfile.py", server.url, "--processes", "2")
        numbers = [line.number for line in server.served()]
    assert done.returncode == 0, done.stderr
    asked = {name: entry["num_requests"] for (kind, name), entry in entries(done).items() if kind == "POST"}
    assert sum(asked.values()) == len(numbers) > 3
    assert len({number.split("-")[1] for number in numbers}) == 2, "one process did all of it"


def test_a_shape_decides_how_many_users_there_are(tmp_path: Path) -> None:
    short = (ROOT / "loadtests" / "locustfile_steps.py").read_text()
    short = short.replace("((10, 2), (20, 4), (30, 8))", "((2, 1), (4, 3))").replace(
        "constant_pacing(1)", "constant_pacing(0.2)"
    )
    with golden(settings(tmp_path)) as server:
        done = locust(written(tmp_path, short), server.url)
        received = sorted(line.received for line in server.served())
    assert done.returncode == 0, done.stderr
    assert entries(done)["POST", "chat-short"]["num_requests"] == len(received)
    # of each stage a second and a half: from the first request on, and up to the last, since the shape's end waits for
    # neither
    first = sum(at - received[0] < 1.5e9 for at in received)
    second = sum(received[-1] - at < 1.5e9 for at in received)
    assert 5 <= first <= 9
    assert 2 * first < second <= 3.6 * first


def test_locusts_page_shows_requests_ttft_and_tpot(tmp_path: Path) -> None:
    with golden(settings(tmp_path)) as server:
        port = free_port()
        own = written(tmp_path, ASKING)
        told = command(own, server.url, "--autostart", "--web-host", "127.0.0.1", "--web-port", str(port))
        page = f"http://127.0.0.1:{port}"
        told[told.index("3s")] = "60s"
        with subprocess.Popen(told, stderr=subprocess.DEVNULL, cwd=tmp_path) as process:
            try:
                stats = wait_for(lambda: shown(page, "TPOT"))
                assert httpx.get(page, trust_env=False).status_code == 200
                process.send_signal(signal.SIGTERM)
                process.wait(30)
            finally:
                process.kill()
    rows = {(row["method"], row["name"]): row for row in stats["stats"]}
    assert {("POST", "ask"), ("TTFT", "ask"), ("TPOT", "ask")} <= {*rows}
    assert rows["TTFT", "ask"]["avg_response_time"] < rows["POST", "ask"]["avg_response_time"]
    assert stats["user_count"] == 3


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def shown(page: str, kind: str) -> dict[str, Any] | None:
    try:
        stats: dict[str, Any] = httpx.get(f"{page}/stats/requests", trust_env=False).json()
    except httpx.TransportError:
        return None
    return stats if any(row["method"] == kind for row in stats["stats"]) else None


def wait_for(look: Any, within: float = 30) -> Any:
    deadline = time.monotonic() + within
    while not (seen := look()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return seen


def test_a_key_comes_from_the_environment_and_is_sent(tmp_path: Path) -> None:
    keyed = ASKING.replace("    wait_time", '    api_key_env = "OWN_KEY"\n    wait_time')
    with golden(settings(tmp_path, key="secret")) as server:
        done = locust(written(tmp_path, keyed), server.url, env={"OWN_KEY": "secret"})
        assert done.returncode == 0, done.stderr
        assert len(server.served()) == entries(done)["POST", "ask"]["num_requests"]
        for env, said in (({"OWN_KEY": "wrong"}, "refuses the API key"), ({}, "not set: OWN_KEY")):
            done = locust(written(tmp_path, keyed), server.url, env=env)
            assert said in done.stderr
            assert done.returncode == 2


# Under a scenario


def plan(
    server: Golden, timeline: Timeline, path: Path, users: int = 3, duration: float = 1.5, **more: Any
) -> LoadPlan:
    return LoadPlan(
        **{"timeout": 2.0, "idle_timeout": 1.0, "url": server.url, "model": MODEL, **more},
        arrivals=Arrivals(process="closed", users=users),
        locustfile=path,
        duration=duration,
        epoch_ns=timeline.epoch_ns,
        timeline=timeline.path,
    )


def requests(events: list[Event]) -> list[Request]:
    return [event for event in events if isinstance(event, Request)]


def played(wanted: LoadPlan, timeline: Timeline) -> list[Event]:
    load = runner.start(wanted, timeline)
    assert load.wait(60) == 0, load.log.read_text()
    events = list(read(timeline.path))
    first, last = next(event for event in events if isinstance(event, LoadStarted)), events[-1]
    assert isinstance(last, LoadFinished)
    assert last.attempted == len(requests(events))
    assert first.t == load.started_at
    assert sum(event.beats for event in events if isinstance(event, ClientBeat)) >= 20
    return events


def test_a_streaming_users_requests_keep_all_their_times_and_count_once(tmp_path: Path, timeline: Timeline) -> None:
    with golden(settings(tmp_path, KINDS)) as server:
        events = played(plan(server, timeline, written(tmp_path, ASKING)), timeline)
        served = server.served()
    done = requests(events)
    assert Counter(request.outcome for request in done) == Counter(OUTCOMES[line.kind] for line in served)
    spread = 0.0
    for request in done:
        assert request.tags == {"model": MODEL, "profile": "own", "name": "ask"}
        assert request.scheduled == request.sent
        if request.outcome == "ok":
            assert request.sent is not None
            assert request.first is not None
            assert request.last is not None
            # A busy machine may read all of a stream at once: only the widest spread says that both are kept.
            assert request.sent + 0.03 <= request.first <= request.last <= request.t
            spread = max(spread, request.last - request.first)
            assert (request.chunks, request.tokens, len(request.gaps)) == (5, 5, 4)
            assert request.uncertainty is not None
            assert len(request.uncertainty) == 5
            assert None not in (request.connect_uncertainty, request.end_uncertainty, request.content_bytes)
    assert spread >= 0.03


HTTP = """
import time
from locust import {base}, constant, task

class Visitor({base}):
    wait_time = constant(0.02)
    @task
    def ask(self):
        self.client.post("/v1/completions", json={{"prompt": "hi"}}, headers={{"X-Request-Id": "x"}}, name="ask")
    @task
    def judge(self):
        with self.client.post("/v1/embeddings", json={{"input": "hi"}}, catch_response=True, name="judge") as response:
            time.sleep(0.6)
            if response.status_code == 200:
                response.failure("wrong answer")
    @task
    def miss(self):
        self.client.get("/nowhere", name="miss")
"""


@pytest.mark.parametrize("base", ["HttpUser", "FastHttpUser"])
def test_locusts_own_http_users_become_requests_of_the_timeline(tmp_path: Path, timeline: Timeline, base: str) -> None:
    own = written(tmp_path, HTTP.format(base=base), "shop.py")
    with golden(settings(tmp_path)) as server:
        events = played(plan(server, timeline, own), timeline)
        served = len(server.served())
    done = requests(events)
    by_name = {name: [request for request in done if request.tags["name"] == name] for name in ("ask", "judge", "miss")}
    assert len(by_name["ask"]) + len(by_name["judge"]) == served
    assert {(r.outcome, r.status) for r in by_name["ask"]} == {("ok", 200)}
    assert {(r.outcome, r.status) for r in by_name["miss"]} == {("http_error", 404)}
    assert {(r.outcome, r.status, r.detail) for r in by_name["judge"]} == {
        ("inband_error", 200, "CatchResponseError: wrong answer")
    }
    begun = next(event.t for event in events if isinstance(event, LoadStarted))
    for request in done:
        assert request.tags["profile"] == "shop"
        assert request.scheduled == request.sent
        assert request.sent is not None
        assert begun <= request.sent < request.t <= begun + 3
        assert request.t - request.sent < 0.5, "what the locustfile did after the answer was measured too"
        bounds = (request.connect_uncertainty, request.uncertainty, request.end_uncertainty, request.content_bytes)
        assert bounds == (None, None, None, None), "nobody knows how late Locust's own clients read"


FAULTS: list[tuple[Kind, str, int | None]] = [
    ("vanish", "truncated", None),
    ("http_error", "http_error", 503),
    ("rejected", "guardrail_blocked", 400),
    ("mute", "timeout", None),
    ("not_http", "http_error", None),
]


@pytest.mark.parametrize("base", ["HttpUser", "FastHttpUser"])
@pytest.mark.parametrize("failure", FAULTS, ids=[kind for kind, _, _ in FAULTS])
def test_failures_of_locusts_own_users_have_our_names(
    tmp_path: Path, timeline: Timeline, base: str, failure: tuple[Kind, str, int | None]
) -> None:
    kind, outcome, status = failure
    limits = "    network_timeout = 0.4\n" if base == "FastHttpUser" else ""
    extra = "" if base == "FastHttpUser" else ", timeout=0.4"
    text = (
        f"from locust import {base}, constant, task\n"
        f"class Visitor({base}):\n"
        f"{limits}"
        "    wait_time = constant(0.1)\n"
        "    @task\n"
        "    def ask(self):\n"
        f"        self.client.post('/v1/completions', json={{'prompt': 'hi', 'stream': {kind == 'mute'}}}{extra})\n"
    )
    with golden(settings(tmp_path, [kind])) as server:
        done = requests(played(plan(server, timeline, written(tmp_path, text), 1, 1.0), timeline))
    assert len(done) >= 2
    assert {(request.outcome, request.status) for request in done} == {(outcome, status)}, done[0].detail


@pytest.mark.parametrize("base", ["HttpUser", "FastHttpUser"])
def test_where_nobody_listens_it_is_a_connect_error(tmp_path: Path, timeline: Timeline, base: str) -> None:
    text = HTTP.format(base=base).replace(
        "\n    wait_time", f'\n    host = "http://127.0.0.1:{free_port()}"\n    wait_time'
    )
    with golden(settings(tmp_path)) as server:
        events = played(plan(server, timeline, written(tmp_path, text)), timeline)
    assert {(request.outcome, request.sent) for request in requests(events)} == {("connect_error", None)}
    notes = [event.message for event in events if isinstance(event, Note)]
    assert len([note for note in notes if "Visitor has a host of its own and loads http://127.0.0.1" in note]) == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_a_shape_is_honoured_and_may_end_the_load_early(tmp_path: Path, timeline: Timeline, processes: int) -> None:
    shaped = ASKING + (
        "from locust import LoadTestShape\n"
        "class Steps(LoadTestShape):\n"
        "    def tick(self):\n"
        "        return (4, 100) if self.get_run_time() < 2 else None\n"
    )
    with golden(settings(tmp_path, tokens=50, first=0.05, gap=0.01)) as server:
        shaped = shaped.replace("len(answer.text.split()) == 5", "True")
        events = played(
            plan(server, timeline, written(tmp_path, shaped), users=1, duration=30.0, processes=processes), timeline
        )
    done = requests(events)
    edges = sorted([(r.scheduled, 1) for r in done] + [(r.t, -1) for r in done])
    at_once = most = 0
    for _, step in edges:
        at_once += step
        most = max(most, at_once)
    assert most == 4
    assert {request.outcome for request in done} == {"ok"}, "what was in flight at the shape's end was cut"
    last = events[-1]
    assert isinstance(last, LoadFinished)
    assert last.aborted == "", "its end is as it was asked for"
    notes = [event.message for event in events if isinstance(event, Note)]
    assert len([note for note in notes if "Steps ended the load after 2" in note]) == 1
    assert last.t - events[0].t < 8


def test_listeners_and_options_of_a_locustfile_work_and_its_prints_go_to_the_log(
    tmp_path: Path, timeline: Timeline
) -> None:
    text = (
        "from locust import User, constant, events, task\n"
        "print('read')\n"
        "@events.init_command_line_parser.add_listener\n"
        "def _(parser):\n"
        "    parser.add_argument('--colour', default='blue')\n"
        "for name in ('init', 'test_start', 'test_stop', 'quitting'):\n"
        "    getattr(events, name).add_listener(lambda name=name, **_: print('seen', name))\n"
        "class Painter(User):\n"
        "    wait_time = constant(0.1)\n"
        "    @task\n"
        "    def paint(self):\n"
        "        self.environment.events.request.fire(\n"
        "            request_type='PAINT', name=self.environment.parsed_options.colour,\n"
        "            response_time=250, response_length=0, exception=None, context={}, start_time=None)\n"
        "    @task\n"
        "    def spill(self):\n"
        "        raise KeyError('bucket')\n"
    )
    with golden(settings(tmp_path)) as server:
        events = played(plan(server, timeline, written(tmp_path, text)), timeline)
    done = requests(events)
    told = [request for request in done if request.tags["name"] == "blue"]
    assert {round(request.t - request.scheduled, 6) for request in told} == {0.25}
    raised = [(request.tags["name"], request.outcome) for request in done if request not in told]
    assert {*raised} == {("spill", "inband_error")}
    log = (tmp_path / "load.log").read_text()
    assert "read" in log
    for name in ("init", "test_start", "test_stop", "quitting"):
        assert log.count(f"seen {name}") == 1
    notes = [event.message for event in events if isinstance(event, Note)]
    assert len([note for note in notes if "Painter raised KeyError: 'bucket'" in note]) == 1


def test_a_locustfile_that_stops_its_runner_ends_the_load_in_order(tmp_path: Path, timeline: Timeline) -> None:
    text = (
        f"{ASKING}        if self.environment.stats.total.num_requests > 20:\n"
        "            self.environment.runner.quit()\n"
    )
    with golden(settings(tmp_path)) as server:
        events = played(plan(server, timeline, written(tmp_path, text), duration=60.0), timeline)
    last = events[-1]
    assert isinstance(last, LoadFinished)
    assert last.aborted == "the locustfile ended the load"


def test_users_that_never_end_their_task_are_ended_and_that_is_said(tmp_path: Path, timeline: Timeline) -> None:
    text = ASKING + "        import time; time.sleep(600)\n"
    with golden(settings(tmp_path)) as server:
        events = played(plan(server, timeline, written(tmp_path, text), timeout=1.0), timeline)
    assert Counter(request.outcome for request in requests(events)) == {"ok": 3, "timeout": 3}
    notes = [event.message for event in events if isinstance(event, Note)]
    assert [note for note in notes if "3 users were still at a task and were ended" in note]


def test_an_early_stop_gives_a_locustfile_its_grace(tmp_path: Path, timeline: Timeline) -> None:
    with golden(settings(tmp_path, ["mute"])) as server:
        load = runner.start(
            plan(server, timeline, written(tmp_path, ASKING), duration=60.0, timeout=60.0, grace=0.3), timeline
        )
        wait_for(lambda: timeline.now() > load.started_at + 0.5)
        begun = time.monotonic()
        assert load.stop() == 0
        assert time.monotonic() - begun < 4
    events = list(read(timeline.path))
    assert requests(events) == []
    last = events[-1]
    assert isinstance(last, LoadFinished)
    assert last.aborted == "asked to end (SIGTERM)"


BAD = {
    "syntax": ("import locust\ndef f(:\n", ":2", "does not load: "),
    "import": (
        "import locust\n\nimport nowhere_at_all\n",
        ":3",
        "ModuleNotFoundError: No module named 'nowhere_at_all'",
    ),
    "exits": ("import sys\nsys.exit(3)\n", ":2", "SystemExit: 3"),
    "empty": ("import locust\n", ":1", "defines no User class"),
    "weightless": ("from locust import User, task\nclass V(User):\n    weight = 0\n", ":1", "defines no User class"),
    "idle": ("from locust import User\nclass Idle(User):\n    pass\n", "", ":2: class Idle"),
    "shapes": (
        ASKING + "from locust import LoadTestShape\n"
        "class A(LoadTestShape):\n    def tick(self):\n        return None\n"
        "class B(LoadTestShape):\n    def tick(self):\n        return None\n",
        "",
        "more than one LoadTestShape",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_locustfile_that_cannot_run_is_refused_with_its_line(tmp_path: Path, timeline: Timeline, case: str) -> None:
    text, line, said = BAD[case]
    own = written(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        runner.check_locustfile(own)
    assert caught.value.where == f"{own}{line}"
    assert said in str(caught.value)
    with golden(settings(tmp_path)) as server, pytest.raises(UsageError) as again:
        runner.start(plan(server, timeline, own), timeline)
    assert str(again.value) == str(caught.value)
    assert list(read(timeline.path)) == [], "the load had begun"


def test_shipped_locustfiles_load(tmp_path: Path) -> None:
    for path in (ROOT / "loadtests").glob("*.py"):
        runner.check_locustfile(path)
    with pytest.raises(UsageError, match="no such locustfile"):
        runner.check_locustfile(tmp_path / "none.py")


def test_a_shipped_locustfile_runs_under_a_scenario(tmp_path: Path, timeline: Timeline) -> None:
    with golden(settings(tmp_path)) as server:
        events = played(plan(server, timeline, ROOT / "loadtests" / "locustfile.py", 4, 3.0), timeline)
        served = len(server.served())
    done = requests(events)
    assert len(done) == served
    assert {request.tags["profile"] for request in done} == {"locustfile"}
    assert {"question"} <= {request.tags["name"] for request in done} <= {
        "question", "first turn", "second turn", "chat-short"
    }  # fmt: skip
