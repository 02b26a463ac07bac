"""The line to a load pod, with the pod's process on this machine: every event arrives, or it is said."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from sandbox.errors import EnvironmentMissing
from sandbox.load.golden import MODEL, GoldenSettings, golden
from sandbox.load.plan import LoadPlan, PlannedShare
from sandbox.loadpods import _begun, _order, inside, line, objects, parcel
from sandbox.loadpods.line import Clock, Line
from sandbox.spec import profile as profiles
from sandbox.spec.loadtest import Arrivals
from sandbox.timeline import ClientBeat, LoadFinished, Request, Timeline, read

ROOT = Path(__file__).parents[2]


class Here:
    """In place of the stream to a pod: the same program as a process of this machine, in a folder of its own."""

    folder = Path()
    lose = b""

    def __init__(self, _kube: Any, _namespace: str, pod: str, _command: Sequence[str]) -> None:
        home = self.folder / pod
        home.mkdir()
        self._process = subprocess.Popen(
            [sys.executable, "-B", "-P", "-m", "sandbox.load.relay"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=home,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )

    def send(self, data: bytes) -> None:
        if self._process.stdin is not None and data != b"parcel":
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def read(self) -> Iterator[tuple[int, bytes]]:
        output = self._process.stdout
        while output is not None and (piece := os.read(output.fileno(), 4096)):
            yield 1, piece.replace(self.lose, b"") if self.lose else piece
        if output is not None:
            output.close()

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(30)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Here, "folder", tmp_path)
    monkeypatch.setattr(line, "Stream", Here)
    return tmp_path


def plan(url: str, timeline: Timeline, **more: Any) -> LoadPlan:
    given = {"shares": [PlannedShare(profile=profiles.resolve("chat-tiny"), model=MODEL)], **more}
    return LoadPlan(
        **{"url": url, "model": MODEL, "arrivals": Arrivals(process="constant", rate=20), "golden": "there", **given},
        duration=2.0,
        timeout=5.0,
        number_requests=True,
        epoch_ns=timeline.epoch_ns,
        timeline=timeline.path,
    )


def lines(timeline: Timeline, pods: int, here: Path) -> list[Line]:
    names = ["master", *(f"worker-{index}" for index in range(pods))]
    return [Line(None, name, b"parcel", timeline.path, here / "load.log") for name in names]  # type: ignore[arg-type]


def play(made: list[Line], wanted: LoadPlan, clocks: list[Clock]) -> float:
    address = "127.0.0.1:15557"
    for index, (each, clock) in enumerate(zip(made, clocks, strict=True)):
        each.order(_order(wanted, len(made) - 1, clock, address, master=index == 0))
    begun = _begun(made, 60)
    assert all(each.join(30) for each in made)
    return begun


@pytest.mark.realtime
def test_what_pods_write_arrives_whole_on_the_clock_of_the_run(here: Path) -> None:
    settings = GoldenSettings(first=0.03, gap=0.01, tokens=5, log=here / "golden.jsonl")
    with golden(settings) as server, Timeline(here / "timeline.jsonl") as timeline:
        made = lines(timeline, 2, here)
        clocks = [each.clock() for each in made]
        begun = play(made, plan(server.url, timeline), clocks)
        assert [each.code for each in made] == [0, 0, 0]
        for each in made:
            each.close()
        served = {served.number.rpartition("-")[2]: served.received for served in server.served()}
    assert all(clock.same and abs(clock.seen) < 5e6 for clock in clocks)
    events = list(read(timeline.path))
    done = [event for event in events if isinstance(event, Request)]
    (ended,) = [event for event in events if isinstance(event, LoadFinished)]
    assert ended.attempted == len(done) == len(served) == 40
    for request in done:
        place = int(request.tags["number"]) - 1
        assert request.scheduled == pytest.approx(begun + place / 20, abs=1e-6)
        assert request.sent is not None
        received = (served[request.tags["number"]] - timeline.epoch_ns) / 1e9
        assert request.sent <= received <= request.t
    beats = [event for event in events if isinstance(event, ClientBeat)]
    assert {beat.worker for beat in beats if beat.calibrated} == {"1/2", "2/2"}


def test_the_clock_of_another_machine_is_estimated_and_how_well_is_said(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "this_kernel", lambda: ("another boot", "none"))
    with Timeline(here / "timeline.jsonl") as timeline:
        (made,) = lines(timeline, 0, here)
        clock = made.clock()
        made.close()
        order = _order(plan("http://127.0.0.1:1", timeline), 1, Clock(1_000, 5, False, 1_000), "h:1", master=False)
    assert not clock.same
    assert 0 < clock.uncertain < 5e6
    assert abs(clock.offset) <= clock.uncertain, "it is this machine's clock after all"
    assert order["plan"]["epoch_ns"] == timeline.epoch_ns + 1_000


@pytest.mark.realtime
def test_an_event_that_gets_lost_on_the_way_is_a_failure(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = GoldenSettings(first=0.03, gap=0.01, tokens=5, log=here / "golden.jsonl")
    with golden(settings) as server, Timeline(here / "timeline.jsonl") as timeline:
        made = lines(timeline, 1, here)
        clocks = [each.clock() for each in made]
        monkeypatch.setattr(Here, "lose", b'event {"t":')
        play(made, plan(server.url, timeline, golden=""), clocks)
        assert [each.code for each in made] == [1, 1]
        for each in made:
            each.close()
    assert "events, 0 arrived" in (here / "load.log").read_text()


def test_a_key_goes_over_the_line_and_into_no_object(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setenv("OWN_KEY", "very-secret")
    monkeypatch.setenv("TEAM_KEY", "also-secret")
    headers = {"X-Team-Key": "${TEAM_KEY}"}
    with Timeline(here / "timeline.jsonl") as timeline:
        share = PlannedShare(profile=profiles.resolve("chat-tiny"), model=MODEL, api_key_env="OWN_KEY", headers=headers)
        wanted = plan("http://127.0.0.1:8000", timeline, shares=[share])
        order = _order(wanted, 1, Clock(0, 0, True, 0), "10.0.0.1:5557", master=False)
        made = objects.all_of(None, wanted, "image", 2)  # type: ignore[arg-type]
    assert order["env"] == {"OWN_KEY": "very-secret", "TEAM_KEY": "also-secret"}
    assert order["arguments"] == ["--join", "10.0.0.1:5557"]
    assert "very-secret" not in str(made)


def test_the_master_writes_down_that_its_workers_are_calibrated(here: Path) -> None:
    with Timeline(here / "timeline.jsonl") as timeline:
        for golden_url in ("in each pod", ""):
            wanted = plan("http://127.0.0.1:8000", timeline, golden=golden_url)
            master = _order(wanted, 1, Clock(0, 0, True, 0), "10.0.0.1:5557", master=True)
            worker = _order(wanted, 1, Clock(0, 0, True, 0), "10.0.0.1:5557", master=False)
            assert (master["plan"]["golden"], master["calibrate"]) == (golden_url, False)
            assert (worker["plan"]["golden"], worker["calibrate"]) == ("", bool(golden_url))


def test_pods_have_no_rights_and_reach_only_what_they_load(here: Path) -> None:
    class Api:
        def get(self, _version: str, kind: str, name: str, namespace: str) -> dict[str, Any]:
            assert (kind, name, namespace) == ("Service", "vllm-sim", "inference")
            return {"spec": {"selector": {"app": "vllm-sim"}}}

    with Timeline(here / "timeline.jsonl") as timeline:
        wanted = plan(inside("vllm-sim", "inference", 8000), timeline)
        space, policy, *pods = objects.all_of(Api(), wanted, "image", 3)  # type: ignore[arg-type]
        outside = objects.all_of(None, plan("https://127.0.0.1/v1", timeline), "image", 1)[1]  # type: ignore[arg-type]
        with pytest.raises(EnvironmentMissing, match="does not resolve"):
            objects.all_of(None, plan("http://nowhere.invalid", timeline), "image", 1)  # type: ignore[arg-type]
    assert space["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert [pod["metadata"]["name"] for pod in pods] == [objects.MASTER, *map(objects.worker_name, range(3))]
    for pod in pods:
        spec = pod["spec"]
        assert not spec["automountServiceAccountToken"]
        assert spec["activeDeadlineSeconds"] >= 2 + 5
        assert spec["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert policy["spec"]["egress"][-1]["to"] == [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "inference"}},
            "podSelector": {"matchLabels": {"app": "vllm-sim"}},
        }
    ]
    assert outside["spec"]["egress"][-1] == {
        "to": [{"ipBlock": {"cidr": "127.0.0.1/32"}}],
        "ports": [{"protocol": "TCP", "port": 443}],
    }


def test_the_parcel_has_all_that_the_load_process_imports(tmp_path: Path) -> None:
    size, _, data = parcel.packed().partition(b"\n")
    assert int(size) == len(data) < 1_000_000
    zipfile.ZipFile(BytesIO(data)).extractall(tmp_path)
    code = (
        "from gevent import monkey; monkey.patch_all()\n"
        "from sandbox.load import distributed, local, relay, user, worker\n"
        "from sandbox.spec import profile\n"
        "import sandbox\n"
        "print(sandbox.__file__, profile.resolve('chat-short').metadata.name)\n"
    )
    env = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONWARNINGS": "ignore"}
    seen = subprocess.run(
        [sys.executable, "-P", "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert seen.stdout.split() == [str(tmp_path / "sandbox" / "__init__.py"), "chat-short"]
