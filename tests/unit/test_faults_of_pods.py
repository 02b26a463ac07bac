"""Faults that strike pods, on a stand-in for a Deployment, its pods and their nodes' container runtime.

What is done has to be seen there, and what is not there to be seen is never proven.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sandbox.cluster import Cluster, Node, containers, nodes
from sandbox.faults import Context, drive, pods
from sandbox.kube import Kube
from sandbox.timeline import FaultEvent, Timeline, read
from tests.unit.api_server import Answer, Asked, Json, serving

TARGET = {"target": {"app": "sim"}}
WHOLE = ["started", "injected", "proven", "healed"]
APPS = "/apis/apps/v1"
PODS = "/api/v1/namespaces/inference/pods"
DEPLOYMENTS = f"{APPS}/namespaces/inference/deployments"


@dataclass
class Pod:
    name: str
    node: str
    revision: str = "1"
    ready: bool = True
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    container: str = field(default_factory=lambda: uuid.uuid4().hex * 2)

    def as_json(self) -> Json:
        labels = {"app": "sim", "pod-template-hash": self.revision}
        return {
            "metadata": {"name": self.name, "namespace": "inference", "uid": self.uid, "labels": labels},
            "spec": {"nodeName": self.node},
            "status": {
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": str(self.ready)}],
                "containerStatuses": [{"name": "server", "containerID": f"containerd://{self.container}"}],
            },
        }


@dataclass
class Stack:
    """Three replicas on two nodes, and a controller that makes a pod for each that is gone.

    Attributes:
        done: what was done to pods and processes, in order.
        undead: the node's runtime goes on running what was killed or deleted.
        wanting: the controller makes so many pods fewer than are missing.
        sleeping: the controller does nothing about a new template.
        halting: it makes new pods, and never ends the old ones.
    """

    kube: Kube
    pods: list[Pod]
    running: dict[str, str]  # container id -> node
    revision: str = "1"
    done: list[str] = field(default_factory=list)
    undead: bool = False
    wanting: int = 0
    sleeping: bool = False
    halting: bool = False

    @property
    def own(self) -> Cluster:
        there = tuple(Node(name, "worker", "10.0.0.1", f"c-{name}") for name in ("n1", "n2"))
        return Cluster("solo", "kind", Path("/k"), "c", "r", "u", "s", "i", 0.0, there)

    def answer(self, asked: Asked) -> Answer | None:
        if "watch" in asked.query:
            return Answer(lines=[])
        return self.deployments(asked) or self.all_pods(asked)

    def deployments(self, asked: Asked) -> Answer | None:
        if asked.path == APPS:
            return Answer(200, {"resources": [{"name": "deployments", "kind": "Deployment", "namespaced": True}]})
        if asked.path == DEPLOYMENTS:
            return listed([self.deployment()] if self.chosen(asked) else [])
        if asked.path == f"{DEPLOYMENTS}/sim" and asked.method == "PATCH":
            self.roll(asked.body)
            return Answer(200, self.deployment())
        return None

    def all_pods(self, asked: Asked) -> Answer | None:
        if asked.path == PODS:
            return listed([pod.as_json() for pod in self.pods] if self.chosen(asked) else [])
        pod = next((pod for pod in self.pods if asked.path == f"{PODS}/{pod.name}"), None)
        if pod is None:
            return None
        if asked.method == "DELETE":
            self.end(pod, asked.body["gracePeriodSeconds"])
        return Answer(200, pod.as_json())

    def chosen(self, asked: Asked) -> bool:
        return asked.query.get("labelSelector", ["app=sim"])[0] == "app=sim"

    def deployment(self) -> Json:
        new = [pod for pod in self.pods if pod.revision == self.revision]
        return {
            "metadata": {"name": "sim", "namespace": "inference", "generation": int(self.revision)},
            "spec": {"replicas": 3},
            "status": {
                "observedGeneration": int(self.revision),
                "replicas": len(self.pods),
                "updatedReplicas": len(new),
                "availableReplicas": len(self.pods),
            },
        }

    def end(self, pod: Pod, grace: int) -> None:
        self.done.append(f"delete {pod.name} in {grace} s")
        self.pods.remove(pod)
        if not self.undead:
            self.running.pop(pod.container, None)
        if self.wanting:
            self.wanting -= 1
        else:
            self.make(f"{pod.name}-next")

    def make(self, name: str) -> None:
        made = Pod(name, "n1", self.revision)
        self.pods.append(made)
        self.running[made.container] = made.node

    def roll(self, change: Json) -> None:
        self.done.append(", ".join(change["spec"]["template"]["metadata"]["annotations"]))
        if self.sleeping:
            return
        old, self.revision = self.pods, str(int(self.revision) + 1)
        self.pods = [*old] if self.halting else []
        for pod in old:
            self.make(f"{pod.name}-new")

    def shell(self, node: str, command: list[str]) -> tuple[int, str]:
        """The node's `ctr`."""
        assert command[:3] == ["ctr", "--namespace", "k8s.io"]
        if command[3:] == ["tasks", "list"]:
            rows = [f"{each} 1 RUNNING" for each, where in self.running.items() if where == node]
            return 0, "\n".join(["TASK PID STATUS", *rows])
        assert command[3:6] == ["tasks", "kill", "--signal"]
        signal, container = command[6:]
        self.done.append(f"{signal} to {self.of(container)}")
        if self.running.get(container) != node:
            return 1, "no such task"
        if signal == "SIGKILL" and not self.undead:
            del self.running[container]
        return 0, ""

    def of(self, container: str) -> str:
        return next((pod.name for pod in self.pods if pod.container == container), "nobody")


def listed(items: list[Json]) -> Answer:
    return Answer(200, {"items": items, "metadata": {"resourceVersion": "1"}})


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    there = [Pod("sim-a", "n1"), Pod("sim-b", "n2"), Pod("sim-c", "n1")]
    with serving(tmp_path) as (server, kube):
        made = Stack(kube, there, {pod.container: pod.node for pod in there})
        server.rules.append(made.answer)
        monkeypatch.setattr(nodes, "machine", lambda _, node: node)
        monkeypatch.setattr(containers, "run", made.shell)
        monkeypatch.setattr(pods, "_PROOF_SECONDS", 0.4)
        yield made


Run = Callable[..., list[FaultEvent]]


@pytest.fixture
def run(tmp_path: Path, stack: Stack) -> Run:
    def start(name: str, **params: Any) -> list[FaultEvent]:
        context = Context(stack.kube, stack.own, "inference", threading.Event())
        with Timeline(tmp_path / "timeline.jsonl") as timeline:
            drive(name, 0, context, {"within": "400ms", **TARGET, **params}, timeline)
        return [event for event in read(timeline.path) if isinstance(event, FaultEvent)]

    return start


def states(events: list[FaultEvent]) -> list[str]:
    return [event.state for event in events]


def test_a_killed_pod_gets_sigkill_on_its_node_and_is_deleted(run: Run, stack: Stack) -> None:
    first, *others = stack.pods
    events = run("pod.kill")
    assert states(events) == WHOLE, events[-1].detail
    assert stack.done == ["SIGKILL to sim-a", "delete sim-a in 0 s"]
    assert first.container not in stack.running
    assert all(pod in stack.pods and pod.container in stack.running for pod in others)
    assert events[1].evidence == {"pods": {"sim-a": first.uid}}


def test_as_many_pods_are_killed_as_were_asked_for_each_on_its_own_node(run: Run, stack: Stack) -> None:
    assert states(run("pod.kill", count=2)) == WHOLE
    assert sorted(stack.done[:2]) == ["SIGKILL to sim-a", "SIGKILL to sim-b"]


def test_pods_that_are_to_drain_get_no_signal(run: Run, stack: Stack) -> None:
    assert states(run("pod.kill", grace=5)) == WHOLE
    assert stack.done == ["delete sim-a in 5 s"]


def test_a_container_that_the_nodes_runtime_still_runs_is_no_killed_pod(run: Run, stack: Stack) -> None:
    stack.undead = True
    events = run("pod.kill")
    assert states(events) == ["started", "injected", "failed"]
    assert "the end of the killed pods did not come" in events[-1].detail


def test_a_kill_that_the_nodes_runtime_cannot_be_asked_about_is_not_proven(
    run: Run, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(node: str, command: list[str]) -> tuple[int, str]:
        return stack.shell(node, command) if "kill" in command else (1, "no containerd")

    monkeypatch.setattr(containers, "run", silent)
    assert states(run("pod.kill"))[-1] == "failed"


def test_fewer_pods_than_before_are_not_healed(run: Run, stack: Stack) -> None:
    stack.wanting = 1
    events = run("pod.kill", count=2)
    assert states(events) == ["started", "injected", "proven", "not_healed"]
    assert "2 of 2 pods with app=sim in inference ready, wanted 3" in events[-1].detail


def test_a_pod_that_does_not_serve_is_nobody_to_kill(run: Run, stack: Stack) -> None:
    stack.pods[0].ready = False
    events = run("pod.kill", count=3)
    assert states(events) == ["started", "no_target"]
    assert "2 ready pods carry app=sim in inference, 3 asked for" in events[-1].detail
    assert not stack.done


def test_a_restart_gives_the_deployment_a_new_template_and_waits_for_all_its_pods(run: Run, stack: Stack) -> None:
    events = run("rollout.restart")
    assert states(events) == WHOLE, events[-1].detail
    assert stack.done == ["kubectl.kubernetes.io/restartedAt"]
    assert sorted(events[2].evidence["new_pods"]) == ["sim-a-new", "sim-b-new", "sim-c-new"]


def test_without_a_pod_of_another_template_no_restart_is_proven(run: Run, stack: Stack) -> None:
    stack.sleeping = True
    events = run("rollout.restart")
    assert states(events) == ["started", "injected", "failed"]
    assert "none of a new template" in events[-1].detail


def test_a_restart_that_leaves_old_pods_is_not_healed(run: Run, stack: Stack) -> None:
    stack.halting = True
    events = run("rollout.restart")
    assert states(events) == ["started", "injected", "proven", "not_healed"]
    assert "wanted 3, there 6" in events[-1].detail


def test_labels_that_nothing_carries_are_no_target(run: Run, stack: Stack) -> None:
    for name in ("pod.kill", "rollout.restart"):
        assert states(run(name, target={"app": "other"}))[-1] == "no_target"
    assert not stack.done
