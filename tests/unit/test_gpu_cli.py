"""`sandbox gpu …`: what it shows, what it does to a cluster, and what it refuses before anything is done."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox import cli, cluster
from sandbox.errors import EXIT_ENVIRONMENT, EXIT_PASS, EXIT_USAGE, ClusterError
from sandbox.gpu import control
from sandbox.kube import Kube
from sandbox.spec.gpu import GpuGroup
from tests.unit.gpu_cluster import QUICK, GpuCluster, gpu_cluster

Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GpuCluster]:
    groups = {"n1": GpuGroup(profile="h100", count=2), "n2": GpuGroup(profile="l4", count=1)}
    with gpu_cluster(tmp_path, monkeypatch, groups) as made:
        made.hold("sim", "n1", 1, latencies=QUICK)
        monkeypatch.setattr(cluster, "current", lambda _: made.own)
        monkeypatch.setattr(cluster, "prove_ours", lambda _: None)
        monkeypatch.setattr(cluster, "lease", lambda _: nullcontext())
        monkeypatch.setattr(Kube, "connect", lambda *_: made.kube)
        yield made


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sandbox", "gpu", *words])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def test_status_shows_who_holds_what_and_that_it_is_emulated(typed: Typed, there: GpuCluster) -> None:
    control.inject(there.kube, {"n1": [control.Fault("a", time.time() + 60, gpu=0, xid=48, unhealthy=True)]})
    code, out, _ = typed("status")
    lines = out.splitlines()
    assert code == EXIT_PASS
    assert [line for line in lines if line.startswith("n")] == [
        "n1: NVIDIA H100 80GB HBM3, emulated",
        "n2: NVIDIA L4, emulated",
    ]
    assert "XID 48" in next(line for line in lines if line.startswith("0 "))
    assert "inference/sim" in next(line for line in lines if line.startswith("1 "))


def test_status_says_which_emulator_does_not_answer(typed: Typed, there: GpuCluster) -> None:
    there.silent = {"n2"}
    code, out, _ = typed("status")
    assert code == EXIT_PASS
    assert "its GPU emulator does not answer" in out


def test_status_answers_programs(typed: Typed, there: GpuCluster) -> None:
    found = json.loads(typed("status", "solo-gpu", "-o", "json")[1])
    assert [(each["node"], len(each["devices"])) for each in found] == [("n1", 2), ("n2", 1)]
    assert found[0]["devices"][1]["holders"][0]["pod"] == "sim"
    assert found[0]["devices"][0]["memoryTotal"] == 81559


def test_xids_are_shown_without_a_cluster(typed: Typed) -> None:
    code, out, _ = typed("xids")
    assert code == EXIT_PASS
    assert "GPU has fallen off the bus" in out
    assert json.loads(typed("xids", "-o", "json")[1])["31"]["unhealthy"] is False


def test_a_fault_strikes_device_and_server_and_ends_by_itself(typed: Typed, there: GpuCluster) -> None:
    code, out, err = typed("fault", "lost", "--node", "n1", "--gpu", "1", "--for", "30s")
    assert code == EXIT_PASS, err
    assert "XID 79 (GPU has fallen off the bus) on GPU 1 of n1; SIGKILL to inference/sim" in out
    (fault,) = there.faults
    assert (fault["gpu"], fault["lost"]) == (1, True)
    assert fault["until"] == pytest.approx(time.time() + 30, abs=5)
    assert there.done == [("kill", "n1")]


def test_a_fault_of_a_node_needs_no_gpu(typed: Typed, there: GpuCluster) -> None:
    found = json.loads(typed("fault", "plugin-down", "--node", "n2", "-o", "json")[1])
    assert found["where"] == "n2"
    assert there.faults[0]["plugin_down"] is True


def test_a_throttle_stops_only_who_cannot_be_told(typed: Typed, there: GpuCluster) -> None:
    throttle = ("fault", "throttle", "--node", "n1", "--gpu", "1", "--clock", "0.4", "--for", "20s")
    assert "told to be slower: inference/sim" in typed(*throttle)[1]
    assert not there.done
    there.pod("sim").latencies = None
    assert "left 40% of its time: inference/sim" in typed(*throttle)[1]
    assert there.done == [("stop", "n1", "20", "0.4")]


def test_heal_ends_everything(typed: Typed, there: GpuCluster) -> None:
    assert "there was no fault" in typed("heal")[1]
    typed("fault", "xid", "--xid", "119", "--node", "n1", "--gpu", "1")
    assert there.pod("sim").held
    code, out, _ = typed("heal")
    assert code == EXIT_PASS
    assert "is over" in out
    assert "n1: its processes go on" in out
    assert not there.faults
    assert not there.pod("sim").held


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("nonsense --node n1 --gpu 0", "use one of: xid, lost, ecc, throttle, plugin-down"),
        ("xid --node n1 --gpu 0 --xid 5", "use one of: 13, 31"),
        ("lost --node n1 --gpu 0 --xid 79", "--xid goes with xid, not with lost"),
        ("plugin-down --node n1 --gpu 0", "--gpu goes with xid or lost or ecc or throttle"),
        ("throttle --node n1 --gpu 0 --clock 1", "use 0.1 to 0.95"),
        ("throttle --node n1 --gpu 0 --reason cold", "use one of: thermal, power"),
        ("throttle --node n1 --gpu 0 --process none", "--process goes with xid or lost or ecc"),
        ("ecc --node n1 --gpu 0 --kind odd", "uncorrectable, uncontained, contained, corrected"),
        ("ecc --node n1 --gpu 0 --errors 0", "use 1 to 1e+06"),
        ("lost --node n1 --gpu 0 --process slow", "use one of: none, crash, hang"),
        ("lost --node n1 --gpu 0 --for 30", "such as 60s or 5m"),
        ("lost --node n1 --gpu 0 --for 2h", "use 1 to 3600"),
        ("lost --gpu 0", "say which"),
        ("lost --node n1", "use one of: 0, 1"),
        ("lost --node n1 --gpu 7", "use one of: 0, 1"),
        ("lost --node n9 --gpu 0", "use one of: n1, n2"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is(
    words: str, says: str, typed: Typed, there: GpuCluster
) -> None:
    code, _, err = typed("fault", *words.split())
    assert code == EXIT_USAGE, err
    assert says in err
    assert there.version == 1


def test_a_cluster_that_is_not_provably_ours_is_left_alone(
    typed: Typed, there: GpuCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strange(_: object) -> None:
        raise ClusterError("not ours")

    monkeypatch.setattr(cluster, "prove_ours", strange)
    assert typed("fault", "lost", "--node", "n1", "--gpu", "1")[0] == EXIT_ENVIRONMENT
    assert typed("heal")[0] == EXIT_ENVIRONMENT
    assert there.version == 1
    assert not there.done


def test_signals_into_somebody_elses_nodes_are_refused(
    typed: Typed, there: GpuCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "current", lambda _: replace(there.own, provider="existing"))
    code, _, err = typed("fault", "lost", "--node", "n1", "--gpu", "1")
    assert code == EXIT_USAGE
    assert "fix: --process none" in err
    assert there.version == 1
    assert typed("fault", "lost", "--node", "n1", "--gpu", "1", "--process", "none")[0] == EXIT_PASS
    assert typed("heal")[0] == EXIT_PASS


def test_a_fault_of_which_half_is_done_is_taken_back(
    typed: Typed, there: GpuCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> str:
        raise ClusterError("the node is gone")

    monkeypatch.setattr("sandbox.gpu.strike.strike", broken)
    assert typed("fault", "lost", "--node", "n1", "--gpu", "1")[0] == EXIT_ENVIRONMENT
    assert not there.faults


def test_a_cluster_without_gpus_is_told_from_one_that_has_some(typed: Typed, there: GpuCluster) -> None:
    there.boards = {}
    code, _, err = typed("status")
    assert code == EXIT_USAGE
    assert "sandbox up solo-gpu" in err
