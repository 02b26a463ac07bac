"""Figures of the emulated GPUs and of the fleet: what the emulator takes, how quick it is, how fast pods are placed."""

from __future__ import annotations

import json
import re
import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml

from sandbox import cluster, images
from sandbox.cluster import Cluster, containers, nodes
from sandbox.gpu import control, witness
from sandbox.gpu.emulator.devices import Fault
from sandbox.kube import Kube, Seen, stacks, wait_for
from sandbox.kube.wait import hold
from sandbox.plan import load_all
from sandbox.run import Options, execute
from sandbox.spec.catalogue import find
from sandbox.spec.cluster import ClusterSpec

NAME = "bench-gpus"
PODS = {
    "apiVersion": "sandbox/v1",
    "kind": "Scenario",
    "metadata": {"name": "five-thousand-pods", "description": "Jobs of one GPU each on a thousand simulated nodes."},
    "cluster": "fleet",
    "workloads": [
        {"name": "jobs", "pods": 5000, "fleet": True, "resources": {"nvidia.com/gpu": 1}, "within": "420s"},
    ],
    "slo": {"pods_scheduled{workload:jobs}": ["value==5000"], "scheduling_rate{workload:jobs}": ["value>0"]},
}
_REST_SECONDS = 60.0
_LOOK_SECONDS = 0.05
_BURST = 8
Row = tuple[str, ...]


def rows(runs: int) -> list[Row]:
    """Everything of the emulator, on a cluster of its own with eight GPUs in both modes."""
    spec = find("clusters", "solo-gpu", ClusterSpec, kind="cluster").model
    eight = spec.gpu[0].model_copy(update={"count": 8, "mode": "both"})
    try:
        made = cluster.up(spec.model_copy(update={"gpu": [eight]}), name=NAME)
        kube = Kube.connect(made.kubeconfig, made.context)
        hold(_REST_SECONDS / 2)
        memory, cores = at_rest(made)
        plugin = [until_withheld(kube, made, 0) for _ in range(runs)]
        driver = [until_tainted(kube, made, 7) for _ in range(runs)]
        reaction = follows_the_work(kube, made, runs)
    finally:
        cluster.down(NAME)
    return [
        ("GPU emulator at rest, 8 devices, memory (working set), MiB", f"{memory:.1f}", "", "", "at most 64 MiB"),
        ("GPU emulator at rest, 8 devices, share of a core", f"{cores:.2%}", "", "", "at most 1 %"),
        ("fault to allocatable at the API server, s", spread(plugin), "", "", "at most 2 s"),
        ("fault to the taint of the ResourceSlice, s", spread(driver), "", "", "at most 2 s"),
        ("first request to DCGM_FI_DEV_GPU_UTIL above 0, s", spread(reaction), "", "", "at most 2 s"),
    ]


def at_rest(made: Cluster) -> tuple[float, float]:
    """MiB and share of a core of the emulator's container, as the container runtime counts them over a minute."""
    before = stats(made)
    hold(_REST_SECONDS)
    after = stats(made)
    seconds = (after["timestamp"] - before["timestamp"]) / 1e9
    return after["memory"] / (1 << 20), (after["cpu"] - before["cpu"]) / 1e9 / seconds


def stats(made: Cluster) -> dict[str, int]:
    """The container runtime's own count for the emulator: nanoseconds and bytes."""
    command = ["crictl", "stats", "--output", "json", "--label", "io.kubernetes.container.name=emulator"]
    code, said = containers.run(nodes.machine(made, made.node_names[0]), command)
    if code:
        raise RuntimeError(said)
    # of a node from a snapshot its containers of before the save are told of, too
    found = max(json.loads(said)["stats"], key=lambda each: each["attributes"]["metadata"].get("attempt", 0))
    return {
        "timestamp": int(found["cpu"]["timestamp"]),
        "cpu": int(found["cpu"]["usageCoreNanoSeconds"]["value"]),
        "memory": int(found["memory"]["workingSetBytes"]["value"]),
    }


@contextmanager
def lost(kube: Kube, node: str, gpu: int) -> Iterator[float]:
    """A GPU off the bus; yields when that was asked for. Back when left."""
    fault = Fault(f"bench-{uuid.uuid4().hex[:8]}", time.time() + 120, gpu=gpu, xid=79, unhealthy=True, lost=True)
    begun = time.monotonic()
    control.inject(kube, {node: [fault]})
    try:
        yield begun
    finally:
        control.heal(kube, [fault.id])
        wait_for(control.ended(kube, {node: [fault]}), within=30, what="the end of the fault")
        wait_for(lambda: _allocatable(kube, node, 4), within=30, what="the device being back")


def until_withheld(kube: Kube, made: Cluster, gpu: int) -> float:
    """Seconds from declaring a fault to one device less in the Node's status."""
    with lost(kube, made.node_names[0], gpu) as begun:
        _soon(lambda: _allocatable(kube, made.node_names[0], 3).done)
        return time.monotonic() - begun


def until_tainted(kube: Kube, made: Cluster, gpu: int) -> float:
    """Seconds from declaring a fault to the taint of the device in its ResourceSlice."""
    device = control.device(control.states(kube), made.node_names[0], gpu)
    with lost(kube, made.node_names[0], gpu) as begun:
        _soon(lambda: witness.tainted(kube, device)().done)
        return time.monotonic() - begun


def follows_the_work(kube: Kube, made: Cluster, runs: int) -> list[float]:
    """Seconds from the first of some streams to the exporter showing the device busy."""
    stack = stacks.load("vllm-sim")
    refs = {name: image.ref for name, image in images.ensure(stack.images).items()}
    nodes.load_images(made, list(refs.values()))
    deployed = stacks.deploy(
        kube, stack, {"gpus": 1, "interTokenLatency": "50ms"}, images=refs, addresses=made.node_addresses
    )
    seen = []
    for _ in range(runs):
        _soon(lambda: _busy(kube, made) == 0)
        body = {"model": deployed.model, "max_tokens": 120, "messages": [{"role": "user", "content": "Go on."}]}
        work = [threading.Thread(target=_ask, args=(deployed.url, body)) for _ in range(_BURST)]
        begun = time.monotonic()
        for each in work:
            each.start()
        _soon(lambda: _busy(kube, made) > 0)
        seen.append(time.monotonic() - begun)
        for each in work:
            each.join()
    return seen


def fleet(_: int) -> list[Row]:
    """A thousand nodes up, and five thousand pods placed on them; once, for it takes minutes."""
    spec = find("clusters", "fleet", ClusterSpec, kind="cluster").model
    name = "bench-fleet"
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    (folder / "pods.yaml").write_text(yaml.safe_dump(PODS))
    plan = load_all([str(folder / "pods.yaml")])[0]
    try:
        begun = time.monotonic()
        cluster.up(spec, name=name, app_images=["toolbox"], cold=True)
        up = time.monotonic() - begun
        outcome = execute(plan, Options(runs=folder, cluster_name=name, keep_cluster=True))
    finally:
        cluster.down(name)
    if outcome.results.verdict != "pass":
        raise RuntimeError(outcome.results.headline)
    told = {check.title: check.observed for check in outcome.results.checks}
    rate = next(observed for title, observed in told.items() if title.startswith("scheduling_rate"))
    figure = re.search(r"[\d.]+", rate)
    return [
        ("`sandbox up fleet`: one real node and 1,000 simulated ones Ready, s", f"{up:.1f}", "", "", "at most 60 s"),
        ("5,000 pods placed on them, pods/s", figure[0] if figure else rate, "", "", "reported"),
    ]


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _allocatable(kube: Kube, node: str, wanted: int) -> Seen[None]:
    found = (kube.get("v1", "Node", node) or {}).get("status", {}).get("allocatable", {}).get("nvidia.com/gpu")
    return Seen(found == str(wanted), None, f"allocatable is {found}")


def _busy(kube: Kube, made: Cluster) -> float:
    return max(each.utilization_gpu for each in control.state(kube, made.node_names[0]).devices)


def _ask(url: str, body: dict[str, object]) -> None:
    httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60, trust_env=False).raise_for_status()


def _soon(look: Callable[[], bool]) -> None:
    """As `wait_for`, at shorter steps than anything that is measured takes."""
    deadline = time.monotonic() + 60
    while not look():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not come within a minute")
        time.sleep(_LOOK_SECONDS)
