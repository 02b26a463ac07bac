"""Emulated GPUs on a real cluster: they follow the work, answer NVIDIA's own words, and outlive what befalls a node."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import nvsmi
import pytest
from gpu_ground import Ground, until, working
from promql import filled

from sandbox import cluster, images, paths
from sandbox.cluster import nodes
from sandbox.gpu import control, witness
from sandbox.gpu.control import Device
from sandbox.gpu.emulator.devices import Fault
from sandbox.kube import Kube, Object, stacks, wait_for
from sandbox.kube.conditions import gone
from sandbox.probes import promql
from sandbox.progress import say
from sandbox.pytest_plugin import Clusters
from sandbox.spec.catalogue import find
from sandbox.spec.cluster import ClusterSpec

pytestmark = [pytest.mark.live, pytest.mark.alone]  # it measures, and has the cluster to itself
PUBLIC = json.loads((Path(__file__).parents[1] / "data" / "dcgm-12239.json").read_text())
OWN = json.loads((paths.shipped("stacks") / "prometheus/dashboards/gpu.json").read_text())
# what our own dashboard asks for and a cluster without trouble does not have, and why not
ABSENT = {"kubelet_admission_rejections_total": "a kubelet begins to count when it first refuses a pod"}
BUSY = 73  # percent, with 8 streams of 64: docs/explanation/gpu-model.md
# The pod of NVIDIA's own pages on their device plugin, in our words: what it tolerates and selects.
DOCUMENTED: dict[str, Any] = {
    "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
}
GIVEN = "ls /dev | grep nvidia; echo $NVIDIA_VISIBLE_DEVICES; nvidia-smi -L"
NOTHING = "{ ls /dev | grep nvidia; env | grep NVIDIA; command -v nvidia-smi; } || echo nothing"
WRAPPER = """\
#!{python}
import sys
from pathlib import Path
from sandbox.kube import Kube
done = Kube.connect(Path({kubeconfig!r}), {context!r}).exec({namespace!r}, {pod!r}, ["nvidia-smi", *sys.argv[1:]])
sys.stdout.write(done.stdout)
sys.exit(done.code)
"""
Measured = Callable[[str, float, str], None]


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Measured:
    """For figures that are told (`pytest -rP`, `--junit-xml`) and not judged, or only roughly."""

    def tell(what: str, value: float, unit: str) -> None:
        record_property(what, f"{value:.3g} {unit}")
        say(f"measured: {what}: {value:.3g} {unit}")

    return tell


@pytest.fixture(scope="module")
def ground(sandbox_clusters: Clusters) -> Iterator[Ground]:
    there = sandbox_clusters.up("solo-gpu")
    kube = Kube.connect(there.kubeconfig, there.context)
    wanted: dict[str, dict[str, Any]] = {"prometheus": {}, "vllm-sim": {"gpus": 1, "interTokenLatency": "20ms"}}
    specs = {name: stacks.load(name) for name in wanted}
    refs = images.ensure(["toolbox", *(each for stack in specs.values() for each in stack.images)])
    named = {name: image.ref for name, image in refs.items()}
    nodes.load_images(there, list(named.values()))
    with ExitStack() as undo:
        made = []
        for name, values in wanted.items():
            undo.callback(stacks.undeploy, kube, specs[name])
            made.append(stacks.deploy(kube, specs[name], values, images=named, addresses=there.node_addresses))
        yield Ground(there, kube, named["toolbox"], *made)


def test_the_sensors_follow_the_work_on_the_gpu_that_is_held_and_on_no_other(
    ground: Ground, measured: Measured
) -> None:
    def utilization() -> dict[str, float]:
        return {each.labels["UUID"]: each.value for each in ground.scraped()["DCGM_FI_DEV_GPU_UTIL"].samples}

    def idle(found: dict[str, float]) -> bool:
        return len(found) == 4 and not any(found.values())

    mine = ground.held()
    until(utilization, idle, within=10, what="utilization")
    rest = ground.held().power_draw
    with working(ground.server) as work:
        found = until(utilization, lambda found: any(found.values()), within=10, what="utilization")
        risen = time.monotonic() - work.began
        assert [uuid for uuid, value in found.items() if value] == [mine.uuid]
        found = until(utilization, lambda found: found[mine.uuid] == BUSY, within=10, what="utilization")
        assert sum(found.values()) == BUSY
        power = until(lambda: ground.held().power_draw, lambda watts: watts > rest + 50, within=5, what="power")
    until(utilization, idle, within=10, what="utilization")
    measured("load's start to GPU_UTIL > 0", risen, "s")
    measured("load's end to GPU_UTIL = 0", time.monotonic() - work.ended, "s")
    measured("power at rest", rest, "W")
    measured("power under load", power, "W")
    assert risen < 4  # two seconds at most, says the model; the machine may be busy


def test_every_series_of_a_held_gpu_names_who_holds_it_and_no_other_series_names_anybody(ground: Ground) -> None:
    mine, families = ground.held(), ground.scraped()
    holder = {"namespace": "inference", "pod": ground.pod()["metadata"]["name"], "container": "server"}
    series = [each for name, family in families.items() if name.startswith("DCGM_") for each in family.samples]
    assert {each.labels["UUID"] for each in series} == {each.uuid for each in ground.devices()}
    for each in series:
        named = {key: value for key, value in each.labels.items() if key in holder}
        assert named == (holder if each.labels["UUID"] == mine.uuid else {}), each
    (stamp,) = families["gpu_emulator_info"].samples
    assert stamp.labels["emulated"] == "true"


def test_nvidia_smi_answers_in_an_image_without_libc_or_shell_and_shows_the_claimed_gpu_alone(ground: Ground) -> None:
    mine = ground.held()
    for absent in ("sh", "ls", "python3"):
        assert ground.inside(absent)[0] != 0
    assert ground.inside("nvidia-smi", "-L") == (0, f"GPU 0: {mine.name} (UUID: {mine.uuid})\n")
    code, table = ground.inside("nvidia-smi")
    assert code == 0
    assert re.search(r"NVIDIA-SMI 580\.105\.08 +Driver Version: 580\.105\.08 +CUDA Version: 13\.0", table)
    assert re.findall(r"^\| +(\d+)  (NVIDIA .+?)  ", table, re.MULTILINE) == [("0", mine.name)]
    assert f"{mine.memory_used:.0f}MiB / {mine.memory_total:6.0f}MiB" in table
    code, answer = ground.inside("nvidia-smi", "--query-gpu=index,uuid,name,memory.total,power.limit", "--format=csv")
    row = f"0, {mine.uuid}, {mine.name}, {mine.memory_total:.0f} MiB, {mine.power_limit:.2f} W"
    assert code == 0
    assert answer.splitlines() == ["index, uuid, name, memory.total [MiB], power.limit [W]", row]


def test_an_unmodified_client_of_nvidia_smi_reads_of_it_what_monitoring_reads(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, program = ground.held(), tmp_path / "nvidia-smi"
    there = {"kubeconfig": str(ground.cluster.kubeconfig), "context": ground.cluster.context}
    there |= {"namespace": ground.server.namespace, "pod": ground.pod()["metadata"]["name"]}
    program.write_text(WRAPPER.format(python=sys.executable, **there))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (gpu,) = nvsmi.get_gpus()
    assert (gpu.id, gpu.uuid, gpu.name, gpu.driver) == ("0", mine.uuid, mine.name, "580.105.08")
    assert (gpu.mem_total, gpu.mem_used, gpu.gpu_util) == (mine.memory_total, mine.memory_used, 0)
    assert gpu.mem_used + gpu.mem_free == gpu.mem_total
    assert gpu.temperature == pytest.approx(mine.temperature_gpu, abs=2)
    assert nvsmi.get_gpu_processes() == []
    for least, found in ((gpu.mem_free, [mine.uuid]), (gpu.mem_free + 1, [])):
        assert [each.uuid for each in nvsmi.get_available_gpus(mem_util_max=100, mem_free_min=least)] == found


def test_the_pod_of_nvidias_pages_runs_to_its_end_on_a_gpu_of_its_own(ground: Ground) -> None:
    devices, mine = {each.uuid: each for each in ground.devices()}, ground.held()
    *files, claimed, listed = ground.printed("cuda-vectoradd", GIVEN, gpus=1, **DOCUMENTED)
    assert claimed in devices.keys() - {mine.uuid}
    assert {*files} == {f"nvidia{devices[claimed].index}", "nvidiactl", "nvidia-uvm"}
    assert listed == f"GPU 0: {devices[claimed].name} (UUID: {claimed})"


def test_a_pod_that_asks_for_no_gpu_finds_nothing_of_them(ground: Ground) -> None:
    assert ground.printed("no-gpu", NOTHING) == ["nothing"]


def test_prometheus_shows_the_load_and_both_dashboards_answer(ground: Ground) -> None:
    def answers(query: str) -> promql.Samples:
        return [
            (labels, value) for labels, value in promql.query(ground.prometheus.url, query) if not math.isnan(value)
        ]

    public = {filled(each["expr"], **PUBLIC["variables"]) for each in PUBLIC["queries"]}
    own = {filled(each["expr"]) for panel in OWN["panels"] for each in panel.get("targets", [])}
    absent = {each for each in own if any(name in each for name in ABSENT)}
    assert len(absent) == len(ABSENT)
    with working(ground.server):
        ((labels, _),) = until(
            lambda: answers("DCGM_FI_DEV_GPU_UTIL > 0"), bool, within=20, what="utilization in Prometheus"
        )
        until(
            lambda: [each for each in sorted((public | own) - absent) if not answers(each)],
            lambda found: not found,
            within=40,
            what="panels without a figure",
        )
    assert labels["UUID"] == ground.held().uuid
    assert labels["pod"] == labels["exported_pod"] == ground.pod()["metadata"]["name"]
    assert labels["node"] == labels["Hostname"] == ground.node
    for each in absent:
        answers(each)  # it is accepted
    for each in PUBLIC["labels"]:  # what one chooses from above the panels
        assert "" not in {labels.get(each["label"], "") for labels, _ in answers(each["metric"])}


def test_a_restarted_kubelet_hears_of_its_gpus_again_and_who_holds_one_keeps_it(
    ground: Ground, measured: Measured
) -> None:
    before, statuses = ground.held(), ground.pod()["status"]["containerStatuses"]
    begun, at = ground.kubelet()[0], time.monotonic()
    with working(ground.server, streams=2):
        ground.on_node("systemctl", "restart", "kubelet")
        until(ground.kubelet, lambda now: now[0] > begun and now[1] > 0, within=60, what="kubelet's registrations")
        ground.offers(4)
        measured("kubelet's restart to 4 GPUs", time.monotonic() - at, "s")
    after = ground.held()
    assert (after.uuid, after.holders) == (before.uuid, before.holders)
    until(
        lambda: ground.pod()["status"]["containerStatuses"],
        lambda now: now == statuses,
        within=30,
        what="containers: the same ones, ready",
    )
    listed = ground.printed("the-others", GIVEN, gpus=3, **DOCUMENTED)[-3:]
    given = {re.findall(r"UUID: (.+)\)", line)[0] for line in listed}
    assert given == {each.uuid for each in ground.devices()} - {before.uuid}


def lost(gpu: Device, ident: str, seconds: float) -> Fault:
    return Fault(ident, time.time() + seconds, gpu=gpu.index, xid=79, unhealthy=True, lost=True)


def declared(ground: Ground, fault: Fault) -> None:
    """Write it down as the harness does. Nobody takes it off again."""
    texts = {f"{ground.node}.json": json.dumps([vars(fault)])}
    ground.kube.patch("v1", "ConfigMap", "faults", {"data": texts}, control.NAMESPACE)


def test_the_emulators_successor_takes_over_gpus_labels_and_an_acting_fault(ground: Ground, measured: Measured) -> None:
    labels, first, statuses = ground.labels(), ground.emulator(), ground.pod()["status"]["containerStatuses"]
    fault = lost(ground.free(), "outlives-the-emulator", 120)
    assert labels["nvidia.com/gpu.count"] == "4"
    control.inject(ground.kube, {ground.node: [fault]})
    try:
        ground.offers(3)
        at = time.monotonic()
        ground.kube.delete([first], within=30)
        wait_for(control.acting(ground.kube, {ground.node: [fault]}), within=60, what="the fault in the successor")
        ground.offers(3)
        measured("emulator's end to its successor's GPUs", time.monotonic() - at, "s")
        assert ground.emulator()["metadata"]["uid"] != first["metadata"]["uid"]
        now = control.state(ground.kube, ground.node)
        shown = {each.index: witness.shown(ground.kube, now, "DCGM_FI_DEV_XID_ERRORS", each) for each in now.devices}
        assert shown == {each.index: 79 if each.index == fault.gpu else 0 for each in now.devices}
    finally:
        assert control.heal(ground.kube, [fault.id]) == [fault.id]
    ground.offers(4)
    until(ground.labels, lambda found: found == labels, within=10, what="labels")
    assert ground.pod()["status"]["containerStatuses"] == statuses


def test_a_fault_that_nobody_heals_ends_by_itself_and_an_emulator_at_rest_keeps_to_its_memory(
    ground: Ground, measured: Measured
) -> None:
    fault, before = lost(ground.free(), "of-a-killed-harness", 12), ground.uses()
    declared(ground, fault)
    ground.offers(3)
    assert time.time() < fault.until
    ground.offers(4)
    late = time.time() - fault.until
    (now,) = [each for each in ground.devices() if each.index == fault.gpu]
    assert (now.health, now.faults, now.xid, now.lost) == ("Healthy", (), 0, False)
    after, (status,) = ground.uses(), ground.emulator()["status"]["containerStatuses"]
    measured("a fault's end to 4 GPUs", late, "s")
    measured("emulator's memory", after["memory"], "MiB")
    # Prometheus asks it once a second meanwhile
    measured("emulator's share of a core", 100 * (after["cpu"] - before["cpu"]) / (after["at"] - before["at"]), "%")
    assert 0 < late < 10
    assert after["memory"] < 64
    assert status["restartCount"] == 0  # with more it would have been killed


@pytest.fixture
def halved(ground: Ground) -> Iterator[Object]:
    """Half of the same cluster's GPUs are handed out by the DRA driver for a while; the server's pod before that."""
    spec, pod = find("clusters", "solo-gpu", ClusterSpec, kind="cluster").model, ground.pod()
    (group,) = spec.gpu
    other = spec.model_copy(update={"gpu": [group.model_copy(update={"mode": "both"})]})
    try:
        cluster.up(other, name=ground.cluster.name)
        yield pod
    finally:
        cluster.up(spec, name=ground.cluster.name)


def test_a_running_cluster_is_changed_in_place_and_taints_that_nobody_removes_end_by_themselves(
    ground: Ground, measured: Measured, halved: Object
) -> None:
    ground.offers(2)
    device = [each for each in ground.devices() if each.offered_by == "dra"][-1]
    fault = lost(device, "of-another-killed-harness", 6)
    declared(ground, fault)
    taints = wait_for(witness.tainted(ground.kube, device), within=10, what="the taints")
    assert time.time() < fault.until
    marks = ("gpu-lost=:NoSchedule", "unhealthy=xid-79:NoExecute", "xid=79:NoSchedule")
    assert taints == [f"gpu.nvidia.com/{mark}" for mark in marks]
    wait_for(witness.untainted(ground.kube, device), within=30, what="the end of the taints, although nobody healed")
    late = time.time() - fault.until
    measured("a fault's end to the end of its taints", late, "s")
    assert 0 < late < 10
    assert ground.pod()["status"]["containerStatuses"] == halved["status"]["containerStatuses"]


def test_nothing_of_a_stack_holds_a_gpu_when_it_is_gone(ground: Ground) -> None:
    ground.held()
    stacks.undeploy(ground.kube, stacks.load("vllm-sim"))
    wait_for(gone(ground.kube, "v1", "Pod", "inference"), within=30, what="the end of the pods")
    until(ground.devices, lambda now: len(now) == 4 and not any(each.holders for each in now), within=10, what="GPUs")
