from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from gpu_telemetry import LATENCIES, LLAMA, VLLM, PodApi, Served, known, pod, reading, simulator

from sandbox.gpu.emulator import throttle as module
from sandbox.gpu.emulator.pods import Pods
from sandbox.gpu.emulator.throttle import Throttle, nanoseconds

KEY = ("default", "server-0", "server")
HALF = {KEY: 0.5}
SLOW = {"time-to-first-token": "200ms", "time-to-first-token-std-dev": "59.99994ms", "inter-token-latency": "40ms"}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look is due."""
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(module, "SECONDS", 2.0)
    monkeypatch.setattr(module, "_GRACE_SECONDS", 0.0)


def latencies(served: Served) -> dict[str, str]:
    assert served.config is not None
    return {name: text for name, text in served.config.items() if name in LATENCIES}


def act(throttle: Throttle, wanted: dict, times: int = 1) -> None:
    for _ in range(times):
        asyncio.run(throttle.act(wanted))


def records(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def began(served: Served, folder: Path, pods: Pods, source: PodApi, **more: object) -> Throttle:
    source.put(pod(port=served.port, **more))
    known(pods)
    return Throttle(folder, pods)


@pytest.mark.parametrize(
    ("text", "nano"),
    [("0s", 0), ("0", 0), ("250ms", 250e6), ("1m0.5s", 60.5e9), ("1.5µs", 1500), ("1h0m0s", 3600e9), ("7ns", 7)],
)
def test_durations_are_read_as_go_writes_them(text: str, nano: float) -> None:
    assert nanoseconds(text) == nano


@pytest.mark.parametrize("text", ["", "1", "ms", "-1s", "1s ", "one"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        nanoseconds(text)


def test_a_server_is_slowed_while_its_gpu_is_throttled_and_no_longer(tmp_path: Path) -> None:
    source = PodApi()
    with simulator() as served, reading(source) as pods:
        throttle = began(served, tmp_path, pods, source)
        act(throttle, HALF, times=3)
        assert latencies(served) == LATENCIES | SLOW
        assert len(served.posted) == 1
        assert throttle.slowed == (("default", "server-0"),)
        assert records(tmp_path) == ["uid-server-0-one.json"]
        act(throttle, {}, times=2)
        assert latencies(served) == LATENCIES
        assert len(served.posted) == 2
        assert (throttle.slowed, throttle.watched(), records(tmp_path)) == ((), set(), [])


def test_what_the_latencies_were_is_written_down_before_they_change(tmp_path: Path) -> None:
    source = PodApi()
    with simulator() as served, reading(source) as pods:
        served.refuse = True
        throttle = began(served, tmp_path, pods, source)
        act(throttle, HALF)
        assert throttle.slowed == ()
        assert "refused" in throttle.refused["default", "server-0"]
        saved = json.loads((tmp_path / "uid-server-0-one.json").read_text())
        assert saved["original"]["time-to-first-token"] == 100_000_000


def test_another_clock_is_another_multiple_of_what_was_there_first(tmp_path: Path) -> None:
    source = PodApi()
    with simulator() as served, reading(source) as pods:
        throttle = began(served, tmp_path, pods, source)
        for clock, text in ((0.5, "200ms"), (0.25, "400ms"), (0.5, "200ms")):
            act(throttle, {KEY: clock})
            assert latencies(served)["time-to-first-token"] == text
        act(throttle, {})
        assert latencies(served) == LATENCIES


def test_an_emulator_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    source = PodApi()
    with simulator() as served, reading(source) as pods:
        act(began(served, tmp_path, pods, source), HALF)
        act(Throttle(tmp_path, pods), HALF, times=2)
        assert latencies(served) == LATENCIES | SLOW
        act(Throttle(tmp_path, pods), {})
        assert latencies(served) == LATENCIES
        assert records(tmp_path) == []


def test_an_emulator_that_has_just_started_waits_until_it_has_heard_of_the_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = PodApi()
    with simulator() as served, reading(source) as pods:
        act(began(served, tmp_path, pods, source), HALF)
        monkeypatch.setattr(module, "_GRACE_SECONDS", 60.0)
        throttle = Throttle(tmp_path, pods)
        act(throttle, {})
        act(throttle, HALF)
        assert len(served.posted) == 1
        act(throttle, {})
        assert latencies(served) == LATENCIES


def test_an_emulator_that_was_killed_between_writing_down_and_slowing_leaves_nothing(tmp_path: Path) -> None:
    source = PodApi()
    with simulator() as served, reading(source) as pods:
        served.refuse = True
        act(began(served, tmp_path, pods, source), HALF)
        served.refuse = False
        posted = len(served.posted)
        act(Throttle(tmp_path, pods), {})
        assert (latencies(served), len(served.posted), records(tmp_path)) == (LATENCIES, posted, [])


def test_a_container_that_starts_anew_is_slowed_anew_and_never_twice(tmp_path: Path) -> None:
    source = PodApi()
    with simulator() as served, reading(source) as pods:
        throttle = began(served, tmp_path, pods, source)
        act(throttle, HALF)
        assert served.config is not None
        served.config |= LATENCIES  # the container has started anew, and nobody has said so yet
        act(throttle, HALF)
        assert latencies(served) == LATENCIES | SLOW
        source.put(pod(port=served.port, instance="two"))  # now it is known, and the server is slow already
        known(pods)
        act(throttle, HALF, times=2)
        assert latencies(served) == LATENCIES | SLOW
        assert records(tmp_path) == ["uid-server-0-two.json"]
        act(throttle, {})
        assert latencies(served) == LATENCIES
        assert records(tmp_path) == []


def test_a_container_that_starts_anew_after_the_fault_is_left_alone(tmp_path: Path) -> None:
    source = PodApi()
    with simulator() as served, reading(source) as pods:
        throttle = began(served, tmp_path, pods, source)
        act(throttle, HALF)
        assert served.config is not None
        served.config |= LATENCIES
        source.put(pod(port=served.port, instance="two"))
        known(pods)
        act(throttle, {})
        assert (len(served.posted), records(tmp_path)) == (1, [])


def test_a_pod_that_is_gone_or_another_one_of_that_name_leaves_no_record(tmp_path: Path) -> None:
    source = PodApi()
    with simulator() as served, reading(source) as pods:
        throttle = began(served, tmp_path, pods, source)
        act(throttle, HALF)
        source.put(pod(port=served.port, uid="another"))
        known(pods)
        act(throttle, {})
        assert (len(served.posted), records(tmp_path)) == (1, [])
        act(throttle, HALF)
        source.objects.clear()
        known(pods)
        act(throttle, {})
        assert records(tmp_path) == []


def test_nothing_is_sent_to_an_address_that_may_be_somebody_elses_by_now(tmp_path: Path) -> None:
    source = PodApi()
    with simulator() as served, reading(source) as pods:
        act(began(served, tmp_path, pods, source), HALF)
    source.down = True
    with simulator() as served, reading(source) as pods:
        act(Throttle(tmp_path, pods), {})
        assert (served.posted, len(records(tmp_path))) == ([], 1)


def test_a_server_that_does_not_answer_at_the_end_of_the_fault_is_asked_again(tmp_path: Path) -> None:
    source = PodApi()
    with simulator() as served, reading(source) as pods:
        throttle = began(served, tmp_path, pods, source)
        act(throttle, HALF)
        config, served.config = served.config, None
        act(throttle, {})
        assert records(tmp_path) == ["uid-server-0-one.json"]
        served.config = config
        throttle._look_at.clear()
        act(throttle, {})
        assert (latencies(served), records(tmp_path)) == (LATENCIES, [])


def test_latencies_that_somebody_else_set_meanwhile_are_theirs(tmp_path: Path) -> None:
    source = PodApi()
    with simulator() as served, reading(source) as pods:
        throttle = began(served, tmp_path, pods, source)
        act(throttle, HALF)
        assert served.config is not None
        served.config["time-to-first-token"] = "5s"  # by somebody who will put 200 ms back
        act(throttle, HALF)
        assert served.config["time-to-first-token"] == "5s"
        assert "somebody else" in throttle.refused["default", "server-0"]
        act(throttle, {})
        assert latencies(served) == LATENCIES | {"time-to-first-token": "5s"}
        assert records(tmp_path) == ["uid-server-0-one.json"]
        served.config["time-to-first-token"] = "200ms"
        act(throttle, {})
        assert (latencies(served), records(tmp_path)) == (LATENCIES, [])


def test_a_server_without_that_interface_is_said_not_to_be_slowed(tmp_path: Path) -> None:
    for served, why in (
        (Served(LLAMA), "it has no /admin/config"),
        (Served(VLLM, {"something": "else"}), "its /admin/config is not the simulator's"),
        (simulator(**dict.fromkeys(LATENCIES, "0s")), "it has no latencies that could be longer"),
    ):
        source = PodApi()
        with served, reading(source) as pods:
            throttle = began(served, tmp_path, pods, source)
            act(throttle, HALF)
            assert throttle.refused == {("default", "server-0"): why}
            assert (throttle.slowed, served.posted, records(tmp_path)) == ((), [], [])
            act(throttle, {})
            assert throttle.refused == {}


def test_a_server_without_an_address_and_one_that_hangs_are_said_not_to_be_slowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = PodApi()
    with simulator() as served, reading(source) as pods:
        throttle = began(served, tmp_path, pods, source)
        act(throttle, {("default", "unknown", "server"): 0.5})
        assert throttle.refused == {("default", "unknown"): "its server has no address"}
        served.hang.set()
        monkeypatch.setattr(module, "SECONDS", 0.2)
        act(throttle, HALF)
        assert throttle.refused == {("default", "server-0"): "its server does not answer"}


def test_a_server_is_not_asked_all_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 60.0)
    source = PodApi()
    with simulator() as served, reading(source) as pods:
        throttle = began(served, tmp_path, pods, source)
        act(throttle, HALF, times=5)
        assert served.asked.count("/admin/config") == 1
        act(throttle, {})  # but let go of at once
        assert latencies(served) == LATENCIES


def test_a_record_nobody_can_read_is_thrown_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "undo").mkdir()
    (tmp_path / "undo" / "broken.json").write_text("{")
    (tmp_path / "undo" / "half.json.new").write_text("{")
    with reading(PodApi()) as pods:
        assert not Throttle(tmp_path / "undo", pods).watched()
    assert records(tmp_path / "undo") == []
    assert "broken.json" in caplog.text
