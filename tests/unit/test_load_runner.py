"""The load process as a whole: what it writes into the timeline, and how it ends."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

from sandbox.errors import DeadlineExceeded, EnvironmentMissing, Unproven, UsageError
from sandbox.load import runner
from sandbox.load.arrivals import schedule
from sandbox.load.calibrate import calibrate
from sandbox.load.check import Access, check_endpoint
from sandbox.load.golden import MODEL, Golden, GoldenSettings, Kind, golden
from sandbox.load.plan import LoadPlan, PlannedShare, plan_for
from sandbox.load.record import Pulse, Recorder
from sandbox.load.traffic import Traffic
from sandbox.spec import profile as profiles
from sandbox.spec.base import Metadata
from sandbox.spec.lengths import Fixed, Lognormal, Uniform
from sandbox.spec.loadtest import Arrivals, Load
from sandbox.spec.profile import Profile
from sandbox.timeline import ClientBeat, Event, LoadFinished, LoadStarted, Note, Request, Timeline, read

pytestmark = pytest.mark.realtime  # their clocks are compared

PROFILE = Profile(
    kind="Profile",
    metadata=Metadata(name="test", description="One prompt."),
    prompts=["hi"],
    max_tokens=Fixed(kind="fixed", tokens=5),
)
FOUR_WAYS: list[Kind] = ["ok", "cut", "reset", "hang", "vanish", "malformed", "inband_error", "http_error", "filtered"]


@pytest.fixture
def timeline(tmp_path: Path) -> Iterator[Timeline]:
    with Timeline(tmp_path / "timeline.jsonl") as opened:
        yield opened


def settings(tmp_path: Path, kinds: list[Kind], **more: Any) -> GoldenSettings:
    return GoldenSettings(
        **{"first": 0.03, "gap": 0.01, "tokens": 5, "after": 2, **more}, kinds=kinds, log=tmp_path / "golden.jsonl"
    )


def plan(
    server: Golden,
    timeline: Timeline,
    arrivals: Arrivals,
    duration: float,
    share: dict[str, Any] | None = None,
    **more: Any,
) -> LoadPlan:
    shares = [PlannedShare(**{"profile": PROFILE, "model": MODEL, **(share or {})})]
    return LoadPlan(
        **{"timeout": 5.0, "idle_timeout": 2.0, "url": server.url, "model": MODEL, "shares": shares, **more},
        arrivals=arrivals,
        duration=duration,
        epoch_ns=timeline.epoch_ns,
        timeline=timeline.path,
    )


def requests(events: list[Event]) -> list[Request]:
    return [event for event in events if isinstance(event, Request)]


def test_every_outcome_is_counted_exactly_once(tmp_path: Path, timeline: Timeline) -> None:
    with golden(settings(tmp_path, FOUR_WAYS)) as server:
        load = runner.start(plan(server, timeline, Arrivals(process="constant", rate=30), 1.8), timeline)
        assert load.wait(30) == 0
        served = Counter(line.kind for line in server.served())
    events = list(read(timeline.path))
    seen = Counter(request.outcome for request in requests(events))
    assert sum(seen.values()) == 54
    assert seen == {
        "ok": served["ok"],
        "truncated": served["cut"] + served["reset"] + served["vanish"],
        "timeout": served["hang"],
        "inband_error": served["malformed"] + served["inband_error"],
        "http_error": served["http_error"],
        "guardrail_blocked": served["filtered"],
    }
    assert set(served.values()) == {6}
    assert {r.detail for r in requests(events) if r.outcome == "timeout"} == {
        "silent for 2 s after status 200 and 2 content chunks"
    }


def test_the_timeline_of_a_load_is_whole_and_in_order(tmp_path: Path, timeline: Timeline) -> None:
    with golden(settings(tmp_path, ["ok"])) as server:
        wanted = plan(server, timeline, Arrivals(process="poisson", rate=20, seed=7), 2.2, tags={"team": "a"})
        load = runner.start(wanted, timeline)
        assert load.poll() is None
        assert load.wait(30) == 0
    events = list(read(timeline.path))
    first, last = events[0], events[-1]
    assert isinstance(first, LoadStarted)
    assert isinstance(last, LoadFinished)
    assert first.t == load.started_at
    offsets = sorted(request.scheduled - first.t for request in requests(events))
    expected = [due.at for due in schedule(wanted.arrivals, wanted.duration)]
    assert offsets == pytest.approx(expected, abs=1e-6)
    assert (last.attempted, last.aborted) == (len(expected), "")
    for request in requests(events):
        assert request.sent is not None
        assert request.first is not None
        assert request.last is not None
        assert request.scheduled <= request.sent < request.first <= request.last <= request.t
        assert (request.chunks, request.tokens, len(request.gaps)) == (5, 5, 4)
        assert request.first + sum(request.gaps) == pytest.approx(request.last)
        assert request.tags == {"model": MODEL, "profile": "test", "team": "a"}
    beats = [event for event in events if isinstance(event, ClientBeat)]
    assert sum(beat.beats for beat in beats) >= 200
    assert all(beat.cpu > 0 and len(beat.lag) == min(20, beat.beats) for beat in beats)


def test_arrivals_beyond_the_cap_are_dropped_and_never_delayed(tmp_path: Path, timeline: Timeline) -> None:
    with golden(settings(tmp_path, ["mute"])) as server:
        arrivals = Arrivals(process="constant", rate=20, max_in_flight=3)
        load = runner.start(plan(server, timeline, arrivals, 1.0, timeout=3.0), timeline)
        assert load.wait(30) == 0
        asked = len(server.served())
    events = list(read(timeline.path))
    seen = Counter(request.outcome for request in requests(events))
    assert seen == {"timeout": 3, "dropped": 17}
    assert asked == 3
    assert all(r.sent is None and "maxInFlight" in r.detail for r in requests(events) if r.outcome == "dropped")
    # 0.7 s: far above any scheduling noise, far below the 3 s that a client which waits for a free place would need
    assert all(r.t - r.scheduled < 0.7 for r in requests(events) if r.outcome == "dropped")


def test_users_in_a_closed_loop_wait_for_their_answers(tmp_path: Path, timeline: Timeline) -> None:
    with golden(settings(tmp_path, ["ok"], first=0.1)) as server:
        load = runner.start(plan(server, timeline, Arrivals(process="closed", users=4), 1.5), timeline)
        assert load.wait(30) == 0
    events = list(read(timeline.path))
    done = requests(events)
    assert {request.outcome for request in done} == {"ok"}
    # an answer takes 140 ms: four users make at most 4 x 1.5 / 0.14 = 43 of them, the last ones included 47
    assert 8 <= len(done) <= 47
    edges = sorted([(r.scheduled, 1) for r in done] + [(r.t, -1) for r in done])
    at_once = most = 0
    for _, step in edges:
        at_once += step
        most = max(most, at_once)
    assert most <= 4


def test_no_turn_of_a_conversation_starts_after_the_end(tmp_path: Path, timeline: Timeline) -> None:
    talk = {"turns": {"kind": "fixed", "tokens": 20}, "think": "200ms"}
    profile = Profile.model_validate({**PROFILE.model_dump(by_alias=True, exclude_defaults=True), "conversation": talk})
    with golden(settings(tmp_path, ["ok"])) as server:
        arrivals = Arrivals(process="closed", users=1)
        load = runner.start(plan(server, timeline, arrivals, 1.0, {"profile": profile}), timeline)
        assert load.wait(30) == 0
    seen = requests(list(read(timeline.path)))
    assert 3 <= len(seen) <= 5
    assert max(request.scheduled for request in seen) < load.started_at + 1.0


def test_users_that_would_come_after_the_end_do_not_keep_the_load_waiting(tmp_path: Path, timeline: Timeline) -> None:
    with golden(settings(tmp_path, ["ok"])) as server:
        arrivals = Arrivals(process="closed", users=4, spawn_rate=0.2)
        load = runner.start(plan(server, timeline, arrivals, 1.0), timeline)
        assert load.wait(8) == 0
    finished = list(read(timeline.path))[-1]
    assert isinstance(finished, LoadFinished)
    assert finished.t < load.started_at + 4


def test_a_user_that_is_refused_at_once_does_not_hammer(tmp_path: Path, timeline: Timeline) -> None:
    with golden(settings(tmp_path, ["http_error"])) as server:
        load = runner.start(plan(server, timeline, Arrivals(process="closed", users=2), 1.0), timeline)
        assert load.wait(30) == 0
    assert 4 <= len(requests(list(read(timeline.path)))) <= 22


def test_an_early_stop_cuts_what_is_in_flight_and_does_not_blame_the_server(tmp_path: Path, timeline: Timeline) -> None:
    with golden(settings(tmp_path, ["mute"])) as server:
        wanted = plan(server, timeline, Arrivals(process="constant", rate=10), 60.0, timeout=60.0, grace=0.2)
        load = runner.start(wanted, timeline)
        assert load.poll() is None
        _until(lambda: timeline.now() > load.started_at + 0.5)
        assert load.stop() == 0
    events = list(read(timeline.path))
    assert requests(events) == []
    notes = [event.message for event in events if isinstance(event, Note)]
    assert len(notes) == 1
    assert "are not counted" in notes[0]
    last = events[-1]
    assert isinstance(last, LoadFinished)
    assert (last.attempted, last.aborted) == (0, "asked to end (SIGTERM)")


def _until(true: Any) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_load_ends_when_the_process_that_started_it_is_killed(tmp_path: Path, timeline: Timeline) -> None:
    with golden(settings(tmp_path, ["ok"])) as server:
        wanted = plan(server, timeline, Arrivals(process="constant", rate=5), 120.0, grace=0.2)
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
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        parent.wait()
        parent.stdout.close()
        _until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
    last = list(read(timeline.path))[-1]
    assert isinstance(last, LoadFinished)
    assert "is gone" in last.aborted


def test_a_killed_load_process_leaves_a_timeline_without_an_end(tmp_path: Path, timeline: Timeline) -> None:
    with golden(settings(tmp_path, ["ok"])) as server:
        load = runner.start(plan(server, timeline, Arrivals(process="constant", rate=20), 60.0), timeline)
        _until(lambda: len(server.served()) > 3)
        os.kill(load.pid, signal.SIGKILL)
        assert load.wait(10) == -signal.SIGKILL
    events = list(read(timeline.path))
    assert requests(events)
    assert not any(isinstance(event, LoadFinished) for event in events)


def test_a_load_that_does_not_end_in_time_is_killed_and_said_so(tmp_path: Path, timeline: Timeline) -> None:
    with golden(settings(tmp_path, ["ok"])) as server:
        load = runner.start(plan(server, timeline, Arrivals(process="constant", rate=5), 60.0), timeline)
        with pytest.raises(DeadlineExceeded, match="was killed"):
            load.wait(0.3)
        assert load.poll() == -signal.SIGKILL


def test_a_load_process_that_cannot_come_up_shows_its_log(tmp_path: Path, timeline: Timeline) -> None:
    with golden(settings(tmp_path, ["ok"])) as server:
        wanted = plan(
            server, timeline, Arrivals(process="constant", rate=5), 1.0, ca_file=None, url="http://no.invalid"
        )
    with pytest.raises(Unproven) as caught:
        runner.start(wanted, timeline)
    assert "does not resolve" in str(caught.value)


def test_a_client_that_breaks_ends_with_an_error_and_never_as_a_quiet_run(tmp_path: Path, timeline: Timeline) -> None:
    with golden(settings(tmp_path, ["ok"])) as server:
        wanted = plan(server, timeline, Arrivals(process="constant", rate=20), 2.0)
        code = (
            "import sys\n"
            "from gevent import monkey; monkey.patch_all()\n"
            "from sandbox.load import local, record\n"
            "from sandbox.load.plan import LoadPlan\n"
            "record.Recorder.request = lambda *_: 1 / 0\n"
            "sys.exit(local.run(LoadPlan.model_validate_json(sys.argv[1]), print))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, wanted.model_dump_json()],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    last = list(read(timeline.path))[-1]
    assert isinstance(last, LoadFinished)
    assert "the load client itself broke" in last.aborted


def test_a_load_process_that_hangs_is_ended_by_the_kernel(tmp_path: Path, timeline: Timeline) -> None:
    with golden(settings(tmp_path, ["ok"])) as server:
        wanted = plan(server, timeline, Arrivals(process="constant", rate=5), 0.5, timeout=0.5, grace=0)
        (tmp_path / "plan.json").write_text(wanted.model_dump_json())
        code = (
            "import sys, time\n"
            "from sandbox.load import worker\n"
            "sleep = time.sleep\n"
            "worker._SLACK = 0.0\n"
            "worker._run = lambda *_: sleep(50)\n"
            "sys.exit(worker.main())\n"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "plan.json")], check=False, timeout=40)
    assert done.returncode == -signal.SIGALRM


def test_a_stall_counts_as_every_beat_it_swallowed(tmp_path: Path, timeline: Timeline) -> None:
    wanted = LoadPlan(
        url="http://127.0.0.1:1",
        model="m",
        shares=[PlannedShare(profile=PROFILE, model="m")],
        arrivals=Arrivals(rate=1),
        duration=1,
        epoch_ns=timeline.epoch_ns,
        timeline=timeline.path,
    )
    pulse = Pulse(Recorder(wanted), lambda: 7)
    start = pulse.due
    pulse.beat(start - 1)
    pulse.beat(start + 50_000_000)
    pulse.flush()
    (beat,) = [event for event in read(timeline.path) if isinstance(event, ClientBeat)]
    assert (beat.beats, beat.in_flight) == (6, 7)
    assert beat.lag == pytest.approx([0.05, 0.04, 0.03, 0.02, 0.01, 0.0])


def test_the_api_key_goes_through_the_environment_and_into_no_file(
    tmp_path: Path, timeline: Timeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "s3cret-value")
    with golden(settings(tmp_path, ["ok"], key="s3cret-value").model_copy(update={"log": tmp_path / "g"})) as server:
        arrivals = Arrivals(process="constant", rate=10)
        assert (
            runner.start(plan(server, timeline, arrivals, 0.3, share={"api_key_env": "SOME_KEY"}), timeline).wait(30)
            == 0
        )
        assert runner.start(plan(server, timeline, arrivals, 0.3), timeline).wait(30) == 0
    outcomes = [request.outcome for request in requests(list(read(timeline.path)))]
    assert outcomes == ["ok"] * 3 + ["http_error"] * 3
    assert not [file for file in tmp_path.iterdir() if b"s3cret-value" in file.read_bytes()]


def test_tls_is_checked_against_the_certificates_named(tmp_path: Path, timeline: Timeline) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = [
        openssl,
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    make += ["-subj", "/CN=golden", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*make, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    served = settings(tmp_path, ["ok", "cut", "hang"]).model_copy(update={"certificate": certificate, "key_file": key})
    with golden(served) as server:
        assert server.url.startswith("https://")
        check_endpoint(server.url, MODEL, Access(ca_file=certificate))
        with pytest.raises(EnvironmentMissing, match="certificate"):
            check_endpoint(server.url, MODEL)
        for trusted in (certificate, None):
            arrivals = Arrivals(process="constant", rate=5)
            assert runner.start(plan(server, timeline, arrivals, 1.15, ca_file=trusted), timeline).wait(30) == 0
    seen = [request.outcome for request in requests(list(read(timeline.path)))]
    assert Counter(seen[:6]) == {"ok": 2, "truncated": 2, "timeout": 2}
    assert seen[6:] == ["connect_error"] * 6


def test_the_schedule_follows_from_the_seed() -> None:
    first, again, other = (list(schedule(Arrivals(rate=50, seed=seed), 20)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert first[0].at == 0
    assert all(later.at > earlier.at for earlier, later in pairwise(first))
    assert first[-1].at < 20
    assert 850 < len(first) < 1150  # 1000 expected, standard deviation 32
    assert [due.at for due in schedule(Arrivals(process="constant", rate=4), 1)] == [0, 0.25, 0.5, 0.75]


def bodies(profile: Profile, seed: int, many: int) -> list[bytes]:
    traffic = Traffic([PlannedShare(profile=profile, model="m")], seed)
    return [next(traffic.begin(number)[1]).body for number in range(1, many + 1)]


def test_request_bodies_follow_from_the_seed_and_the_profile() -> None:
    short = profiles.resolve("chat-short")
    first, again, other = (bodies(short, seed, 50) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len(set(first)) > 25
    assert b'"include_usage":true' in first[0]
    (whole,) = bodies(short.model_copy(update={"stream": False, "path": "completions"}), 1, 1)
    assert b"stream" not in whole
    assert b'"prompt"' in whole


def test_lengths_have_the_mean_and_the_bounds_they_were_given() -> None:
    dice = random.Random(1)  # noqa: S311 - reproducible on purpose
    shape = Lognormal(kind="lognormal", mean=58.45, sigma=0.7, min=4, max=100_000)
    drawn = [shape.draw(dice) for _ in range(20_000)]
    assert 56 < sum(drawn) / len(drawn) < 61
    clipped = Lognormal(kind="lognormal", mean=58.45, sigma=0.7, min=50, max=60)
    assert {clipped.draw(dice) for _ in range(2000)} == set(range(50, 61))
    assert {Uniform(kind="uniform", min=2, max=4).draw(dice) for _ in range(200)} == {2, 3, 4}


@pytest.mark.parametrize("name", profiles.names())
def test_every_shipped_profile_resolves_with_prompts(name: str) -> None:
    found = profiles.resolve(name)
    assert found.metadata.name == name
    assert isinstance(found.prompts, list)
    assert len(found.prompts) >= 10


def test_a_profile_of_ones_own_shadows_the_shipped_one_and_is_said_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loadtests" / "profiles").mkdir(parents=True)
    (tmp_path / "loadtests" / "profiles" / "chat-tiny.yaml").write_text(
        "apiVersion: sandbox/v1\nkind: Profile\nmetadata: {name: chat-tiny, description: Mine.}\n"
        "prompts: [mine]\nmaxTokens: {kind: fixed, tokens: 3}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert profiles.resolve("chat-tiny").prompts == ["mine"]
    assert "shadows" in capsys.readouterr().err


def test_bad_profiles_are_refused_with_file_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "loadtests" / "profiles"
    folder.mkdir(parents=True)
    start = "apiVersion: sandbox/v1\nkind: Profile\nmetadata: {name: x, description: X.}\n"
    cases = {
        "lengths": ("prompts: [a]\nmaxTokens: {kind: uniform, min: 9, max: 3}\n", "lengths.yaml:5"),
        "taken": ("prompts: [a]\nmaxTokens: {kind: fixed, tokens: 3}\nextraBody: {stream: false}\n", "taken.yaml:6"),
        "empty": ("prompts: []\nmaxTokens: {kind: fixed, tokens: 3}\n", "empty.yaml:4"),
        "nofile": ("prompts: nowhere.txt\nmaxTokens: {kind: fixed, tokens: 3}\n", "nofile.yaml:4"),
        "typo": ("prompts: [a]\nmaxTokens: {kind: fixed, tokens: 3}\ntemprature: 1\n", "typo.yaml:6"),
    }
    monkeypatch.chdir(tmp_path)
    for name, (text, place) in cases.items():
        (folder / f"{name}.yaml").write_text(start + text)
        with pytest.raises(UsageError) as caught:
            profiles.resolve(name)
        assert place in str(caught.value)
    with pytest.raises(UsageError) as caught:
        profiles.resolve("chat-shrot")
    assert "chat-short" in str(caught.value)


def test_a_plan_comes_from_a_scenarios_load(timeline: Timeline) -> None:
    load = Load.model_validate({"profile": "chat-tiny", "arrivals": {"rate": 2}, "duration": "10s", "timeout": "5s"})
    made = plan_for(load, timeline, url="http://127.0.0.1:1", model="m", tags={"team": "a"})
    (share,) = made.shares
    assert share.tags == {"profile": "chat-tiny", "model": "m"}
    assert made.tags == {"team": "a"}
    assert (made.duration, made.timeout, made.epoch_ns) == (10, 5, timeline.epoch_ns)
    assert LoadPlan.model_validate_json(made.model_dump_json(by_alias=True)) == made
    unread = share.profile.model_copy(update={"prompts": "questions.txt"})
    with pytest.raises(ValidationError, match="not read in"):
        PlannedShare.model_validate({**share.model_dump(), "profile": unread.model_dump()})
    with pytest.raises(ValidationError, match="header"):
        PlannedShare.model_validate({**share.model_dump(), "headers": {"X-A": "b\r\nX-Evil: 1"}})


def test_a_calibration_finds_what_the_client_adds() -> None:
    found = calibrate(rate=10, streams=5, seconds=2)
    assert (found.requests, found.lost) == (20, {})
    assert found.tokens == 20 * 8
    assert 0 < found.added_ttft_p50 <= found.added_ttft_p99
    assert found.added_ttft_p50 < 0.05, "as much as a gap between tokens: it reads late"
    assert found.tokens_per_cpu_second > 0
