"""Load from pods of a real cluster: the schedule of one process, every event at home, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox import images
from sandbox.cluster import Cluster, nodes
from sandbox.errors import UsageError
from sandbox.kube import Kube, stacks
from sandbox.load.arrivals import schedule
from sandbox.load.plan import LoadPlan, PlannedShare
from sandbox.loadpods import NAMESPACE, inside, start_pods
from sandbox.pytest_plugin import Clusters
from sandbox.spec import profile as profiles
from sandbox.spec.loadtest import Arrivals
from sandbox.timeline import ClientBeat, Event, Fact, LoadFinished, LoadStarted, Request, Timeline, read

pytestmark = [pytest.mark.live, pytest.mark.alone]
POISSON = Arrivals(process="poisson", rate=20, seed=3)
OWN = """
from locust import constant_pacing, task
from sandbox.load.user import StreamingUser

class Visitor(StreamingUser):
    wait_time = constant_pacing(0.2)
    @task
    def ask(self):
        assert self.client.chat("hi", max_tokens=4, name="ask").ok
"""


@pytest.fixture(scope="module")
def ground(sandbox_clusters: Clusters) -> Iterator[tuple[Kube, stacks.Deployed, str]]:
    cluster: Cluster = sandbox_clusters.up("solo")
    refs = {name: image.ref for name, image in images.ensure(["vllm-sim", "load-worker"]).items()}
    nodes.load_images(cluster, list(refs.values()))
    kube = Kube.connect(cluster.kubeconfig, cluster.context)
    stack = stacks.load("vllm-sim")
    try:
        yield kube, stacks.deploy(kube, stack, {}, images=refs, addresses=cluster.node_addresses), refs["load-worker"]
    finally:
        stacks.undeploy(kube, stack)


@pytest.fixture
def timeline(tmp_path: Path) -> Iterator[Timeline]:
    with Timeline(tmp_path / "timeline.jsonl") as opened:
        yield opened


def plan(deployed: stacks.Deployed, timeline: Timeline, duration: float, **more: Any) -> LoadPlan:
    shares = [PlannedShare(profile=profiles.resolve("chat-tiny"), model=deployed.model)]
    url = inside("vllm-sim", deployed.namespace, 8000)
    given = {"url": url, "shares": shares, "arrivals": POISSON, "golden": "in each pod", "timeout": 10.0, **more}
    return LoadPlan(
        **given,
        model=deployed.model,
        duration=duration,
        number_requests=True,
        epoch_ns=timeline.epoch_ns,
        timeline=timeline.path,
    )


def requests(events: list[Event]) -> list[Request]:
    return [event for event in events if isinstance(event, Request)]


def test_pods_send_the_schedule_of_one_process_and_every_event_arrives(
    ground: tuple[Kube, stacks.Deployed, str], timeline: Timeline
) -> None:
    kube, deployed, image = ground
    load = start_pods(kube, plan(deployed, timeline, 5.0), image, 2, timeline)
    assert load.poll() is None
    policies = kube.list("networking.k8s.io/v1", "NetworkPolicy", NAMESPACE)
    assert [policy["metadata"]["name"] for policy in policies] == ["load"]
    assert load.wait(60) == 0, load.log.read_text()
    assert kube.get("v1", "Namespace", NAMESPACE) is None
    events = list(read(timeline.path))
    (begun,) = [event for event in events if isinstance(event, LoadStarted)]
    (ended,) = [event for event in events if isinstance(event, LoadFinished)]
    done = requests(events)
    expected = [(str(place), round(due.at, 6)) for place, due in enumerate(schedule(POISSON, 5.0), start=1)]
    seen = sorted((int(r.tags["number"]), round(r.scheduled - begun.t, 6)) for r in done)
    assert [(str(number), at) for number, at in seen] == expected
    assert (ended.attempted, ended.aborted) == (len(done), "")
    assert Counter(request.outcome for request in done) == {"ok": len(done)}
    assert begun.t == load.started_at
    assert begun.asked["calibrated"] is True
    beats = [event for event in events if isinstance(event, ClientBeat)]
    for worker in ("1/2", "2/2"):
        assert sum(beat.calibrated for beat in beats if beat.worker == worker) > 300
    for request in done:
        assert request.sent is not None
        assert request.first is not None
        assert request.scheduled <= request.sent < request.first <= request.t
        assert request.first - request.sent > 0.05, "sooner than the stack can: clocks are mixed"
    (fact,) = [event for event in events if isinstance(event, Fact)]
    assert {*fact.values} == {"load-master", "load-worker-1", "load-worker-2"}
    for clock in fact.values.values():  # a node of kind is a container here: its clock is this kernel's
        assert clock["clock"] == "this kernel's"
        assert clock["uncertain_ms"] == 0
        assert abs(clock["offset_seen_ms"]) < 50


def test_an_early_stop_and_a_lost_worker(ground: tuple[Kube, stacks.Deployed, str], tmp_path: Path) -> None:
    kube, deployed, image = ground
    with Timeline(tmp_path / "stopped.jsonl") as timeline:
        load = start_pods(kube, plan(deployed, timeline, 60.0), image, 1, timeline)
        until(lambda: len(requests(list(read(timeline.path)))) > 5)
        assert load.stop() == 0, load.log.read_text()
        events = list(read(timeline.path))
        last = events[-1]
        assert isinstance(last, LoadFinished)
        assert (last.attempted, last.aborted) == (len(requests(events)), "asked to end (SIGTERM)")
    with Timeline(tmp_path / "lost.jsonl") as timeline:
        load = start_pods(kube, plan(deployed, timeline, 60.0), image, 2, timeline)
        until(lambda: len(requests(list(read(timeline.path)))) > 5)
        kube.request("DELETE", f"/api/v1/namespaces/{NAMESPACE}/pods/load-worker-2", {"gracePeriodSeconds": 0})
        assert load.wait(30) != 0
        assert "load-worker-2: exit code" in load.log.read_text()
        assert not [event for event in read(timeline.path) if isinstance(event, LoadFinished)]
    assert kube.get("v1", "Namespace", NAMESPACE) is None


def test_a_locustfile_goes_along_and_a_bad_one_is_refused(
    ground: tuple[Kube, stacks.Deployed, str], timeline: Timeline, tmp_path: Path
) -> None:
    kube, deployed, image = ground
    own = tmp_path / "own.py"
    wanted = plan(deployed, timeline, 3.0, locustfile=own, shares=[], arrivals=Arrivals(process="closed", users=4))
    own.write_text("import nowhere_at_all\n")
    with pytest.raises(UsageError, match="nowhere_at_all"):
        start_pods(kube, wanted, image, 1, timeline)
    own.write_text(OWN)
    assert start_pods(kube, wanted, image, 2, timeline).wait(60) == 0
    done = requests(list(read(timeline.path)))
    assert 20 <= len(done) <= 64
    assert {(request.outcome, request.tags["name"]) for request in done} == {("ok", "ask")}
    assert all(request.first is not None for request in done)


def test_pods_end_when_the_harness_is_killed(
    ground: tuple[Kube, stacks.Deployed, str],
    timeline: Timeline,
    sandbox_clusters: Clusters,
) -> None:
    kube, deployed, image = ground
    cluster = sandbox_clusters.up("solo")
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from sandbox.kube import Kube\n"
        "from sandbox.load.plan import LoadPlan\n"
        "from sandbox.loadpods import start_pods\n"
        "from sandbox.timeline import Timeline\n"
        "told = LoadPlan.model_validate_json(sys.argv[1])\n"
        "kube = Kube.connect(Path(sys.argv[2]), sys.argv[3])\n"
        "start_pods(kube, told, sys.argv[4], 1, Timeline(told.timeline, told.epoch_ns))\n"
        "print('begun', flush=True)\n"
        "time.sleep(120)\n"
    )
    told = plan(deployed, timeline, 120.0, grace=0.5).model_dump_json(by_alias=True)
    command = [sys.executable, "-c", code, told, str(cluster.kubeconfig), cluster.context, image]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ) as harness:
        assert harness.stdout is not None
        assert harness.stdout.readline() == b"begun\n"
        assert busy(kube) > 1
        harness.kill()
    until(lambda: busy(kube) == 1)


def busy(kube: Kube) -> int:
    """How many processes the worker's pod has; one does nothing but wait."""
    listing = "import os; print(sum(name.isdigit() for name in os.listdir('/proc')))"
    seen = kube.exec(NAMESPACE, "load-worker-1", ["/usr/bin/python3.11", "-I", "-c", listing])
    return int(seen.stdout) - 1


def until(true: Any, within: float = 40) -> None:
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)
