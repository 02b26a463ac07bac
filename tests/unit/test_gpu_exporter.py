from __future__ import annotations

import http.client
import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gpu_dra import NODE, PROFILE, fault, gpus
from prometheus_client.parser import text_string_to_metric_families

from sandbox.gpu.emulator import exporter
from sandbox.gpu.emulator.devices import Board, Holder, Reading
from sandbox.gpu.emulator.snapshot import Pulse

Samples = dict[str, list[tuple[dict[str, str], float]]]
READING = Reading(
    utilization=0.5,
    memory_utilization=0.4,
    tensor_active=0.25,
    memory_used=30000.4,
    power=345.6789,
    energy=123456.7,
    temperature=48.6,
    memory_temperature=52.2,
    sm_clock=1980.0,
    nvlink_bandwidth=90e9,
)
WHOLE = {
    "DCGM_FI_DEV_SM_CLOCK": ("gauge", 1980),
    "DCGM_FI_DEV_MEM_CLOCK": ("gauge", 2619),
    "DCGM_FI_DEV_MEMORY_TEMP": ("gauge", 52),
    "DCGM_FI_DEV_GPU_TEMP": ("gauge", 49),
    "DCGM_FI_DEV_POWER_USAGE": ("gauge", 345.679),
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": ("counter", 123457),
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": ("counter", 0),
    "DCGM_FI_DEV_GPU_UTIL": ("gauge", 50),
    "DCGM_FI_DEV_MEM_COPY_UTIL": ("gauge", 40),
    "DCGM_FI_DEV_XID_ERRORS": ("gauge", 0),
    "DCGM_FI_DEV_FB_TOTAL": ("gauge", 81559),
    "DCGM_FI_DEV_FB_FREE": ("gauge", 51559),
    "DCGM_FI_DEV_FB_USED": ("gauge", 30000),
    "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL": ("counter", 0),
    "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": ("counter", 0),
    "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL": ("counter", 90000),
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE": ("gauge", 0.5),
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": ("gauge", 0.25),
    "DCGM_FI_PROF_DRAM_ACTIVE": ("gauge", 0.4),
}
NOT_OF_INSTANCES = {"DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_MEM_COPY_UTIL", "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL"}


@pytest.fixture(autouse=True)
def quick_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "_POLL_SECONDS", 0.01)


@contextmanager
def serving(board: Board, pulse: Pulse | None = None) -> Iterator[int]:
    server = exporter.serve(board, 0, pulse=pulse or Pulse())
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def get(port: int, path: str, **headers: str) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type", ""), answer.read().decode()
    finally:
        connection.close()


def scraped(board: Board) -> str:
    with serving(board) as port:
        status, _, text = get(port, "/metrics")
    assert status == 200
    return text


def samples(text: str) -> Samples:
    """By the name on the wire: the parser would add _total to a counter without."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removesuffix("_total") if family.name.startswith("DCGM_") else sample.name
            found.setdefault(name, []).append((sample.labels, sample.value))
    return found


def held(board: Board, *holders: tuple[str, str]) -> Board:
    board.holders = tuple(Holder("serving", pod, "server", (uuid,)) for pod, uuid in holders)
    return board


def test_every_series_of_a_gpu_is_as_dcgm_exporter_has_it() -> None:
    board = gpus(1)
    gpu = board.gpus[0]
    board.readings = {gpu.uuid: READING}
    held(board, ("vllm-0", gpu.uuid))
    text = scraped(board)
    labels = {
        "gpu": "0",
        "UUID": gpu.uuid,
        "pci_bus_id": "00000000:10:00.0",
        "device": "nvidia0",
        "modelName": "NVIDIA H100 80GB HBM3",
        "Hostname": NODE,
        "container": "server",
        "namespace": "serving",
        "pod": "vllm-0",
    }
    found = {name: each for name, each in samples(text).items() if name.startswith("DCGM_")}
    assert found == {name: [(labels, value)] for name, (_, value) in WHOLE.items()}
    lines = text.splitlines()
    for name, (kind, _) in WHOLE.items():
        assert f"# TYPE {name} {kind}" in lines
        assert len([line for line in lines if line.startswith(f"# HELP {name} ")]) == 1
        assert len([line for line in lines if line.startswith(f"{name}{{")]) == 1


def test_a_gpu_nobody_holds_has_no_pod() -> None:
    board = gpus(2)
    found = samples(scraped(held(board, ("vllm-0", board.gpus[1].uuid))))
    for name in WHOLE:
        free, taken = (labels for labels, _ in found[name])
        assert not free.keys() & {"pod", "namespace", "container", "GPU_I_ID", "GPU_I_PROFILE"}
        assert taken["pod"] == "vllm-0"
    assert [labels["device"] for labels, _ in found["DCGM_FI_DEV_GPU_UTIL"]] == ["nvidia0", "nvidia1"]


def test_a_gpu_that_several_share_has_a_series_for_each() -> None:
    board = gpus(1)
    board.readings = {board.gpus[0].uuid: READING}
    uuid = board.gpus[0].uuid
    found = samples(scraped(held(board, ("a", uuid), ("b", uuid))))
    assert [(labels["pod"], value) for labels, value in found["DCGM_FI_DEV_GPU_UTIL"]] == [("a", 50), ("b", 50)]


def test_instances_take_the_place_of_their_gpu_and_lack_what_dcgm_has_for_whole_gpus_only() -> None:
    board = gpus(2, mig=[["1g.10gb", "3g.40gb"], []])
    cut, whole = board.gpus
    small, large = cut.mig
    board.readings = {cut.uuid: READING, small.uuid: Reading(memory_used=5000), whole.uuid: READING}
    found = samples(scraped(held(board, ("vllm-0", large.uuid))))
    for name in NOT_OF_INSTANCES:
        assert [labels["gpu"] for labels, _ in found[name]] == ["1"]
    (first, used), (second, _), (third, _) = found["DCGM_FI_DEV_FB_USED"]
    assert used == 5000
    assert [total for _, total in found["DCGM_FI_DEV_FB_TOTAL"]] == [9984, 40448, PROFILE.memory_mib]
    assert (first["GPU_I_PROFILE"], first["GPU_I_ID"]) == ("1g.10gb", str(small.gi))
    assert (second["GPU_I_PROFILE"], second["GPU_I_ID"], second["pod"]) == ("3g.40gb", str(large.gi), "vllm-0")
    assert first["UUID"] == second["UUID"] == cut.uuid
    assert "pod" not in first
    assert "GPU_I_ID" not in third


def test_a_gpu_without_a_reading_yet_is_idle() -> None:
    found = samples(scraped(gpus(1)))
    assert found["DCGM_FI_DEV_POWER_USAGE"][0][1] == PROFILE.idle_power


def test_a_lost_gpu_shows_its_xid_and_nothing_else() -> None:
    board = gpus(2)
    board.readings = {board.gpus[1].uuid: READING}
    board.set_faults([fault(lost=True, xid=79, unhealthy=True)])
    found = samples(scraped(board))
    assert [value for _, value in found["DCGM_FI_DEV_XID_ERRORS"]] == [79, 0]
    for name in WHOLE.keys() - {"DCGM_FI_DEV_XID_ERRORS"}:
        assert [labels["gpu"] for labels, _ in found[name]] == ["1"], name


def test_errors_are_those_of_the_faults_that_act_and_the_last_xid_counts() -> None:
    board = gpus(1)
    board.set_faults([fault("a", xid=48, dbe=1), fault("b", xid=94, dbe=2, sbe=5), fault("c", xid=31, seconds=-1)])
    found = samples(scraped(board))
    assert found["DCGM_FI_DEV_XID_ERRORS"][0][1] == 94
    assert found["DCGM_FI_DEV_ECC_DBE_VOL_TOTAL"][0][1] == 3
    assert found["DCGM_FI_DEV_ECC_SBE_VOL_TOTAL"][0][1] == 5
    board.set_faults([])
    assert samples(scraped(board))["DCGM_FI_DEV_XID_ERRORS"][0][1] == 0


def test_every_scrape_says_that_it_is_emulated_and_by_what() -> None:
    found = samples(scraped(gpus(1)))
    about = {"emulated": "true", "node": NODE, "profile": "h100", "mode": "dra", "version": exporter.VERSION}
    assert found["gpu_emulator_info"] == [(about, 1.0)]
    assert "process_resident_memory_bytes" in found


def test_the_version_is_the_sandboxs() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["version"] == exporter.VERSION


def test_no_label_breaks_the_text() -> None:
    board = gpus(1)
    board.holders = (Holder('name"space\\', "pod\nname", "contäiner", (board.gpus[0].uuid,)),)
    labels, _ = samples(scraped(board))["DCGM_FI_DEV_GPU_UTIL"][0]
    assert (labels["namespace"], labels["pod"], labels["container"]) == ('name"space\\', "pod\nname", "contäiner")


def test_the_text_is_plain_whatever_the_scraper_would_take() -> None:
    with serving(gpus(1)) as port:
        _, kind, text = get(port, "/metrics?x=1", Accept="application/openmetrics-text;version=1.0.0")
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    assert "# EOF" not in text


def test_the_state_is_json() -> None:
    board, pulse = gpus(1), Pulse(slowed=(("serving", "vllm-0"),))
    with serving(board, pulse) as port:
        status, kind, text = get(port, "/state")
    assert (status, kind) == (200, "application/json")
    state = json.loads(text)
    assert state["slowed"] == [{"namespace": "serving", "pod": "vllm-0"}]
    assert state["devices"][0]["uuid"] == board.gpus[0].uuid


def test_it_is_healthy_only_while_the_telemetry_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    pulse = Pulse()
    with serving(gpus(1), pulse) as port:
        assert get(port, "/healthz")[0] == 503
        monkeypatch.setattr("sandbox.gpu.emulator.snapshot.time.monotonic", lambda: 100.0)
        pulse.ticked = 96.0
        assert get(port, "/healthz") == (200, "text/plain; version=0.0.4; charset=utf-8", "ok\n")
        pulse.ticked = 94.0
        assert get(port, "/healthz")[0] == 503
        assert get(port, "/")[0] == 404


def test_it_answers_over_ipv6_too() -> None:
    with serving(gpus(1)) as port:
        connection = http.client.HTTPConnection("::1", port, timeout=5)
        try:
            connection.request("GET", "/healthz")
        except OSError:
            pytest.skip("no IPv6 here")
        assert connection.getresponse().status == 503
        connection.close()


def test_a_scraper_that_hangs_up_or_says_nothing_stops_nobody() -> None:
    with serving(gpus(8)) as port:
        silent = http.client.HTTPConnection("127.0.0.1", port)
        silent.connect()
        for _ in range(3):
            rude = http.client.HTTPConnection("127.0.0.1", port)
            rude.request("GET", "/metrics")
            rude.close()
        assert get(port, "/metrics")[0] == 200
        silent.close()
