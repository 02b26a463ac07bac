"""What the tests of emulated GPUs on a real cluster share: looking at them from all sides, and giving them work."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from sandbox.cluster import Cluster, containers, nodes
from sandbox.gpu import control
from sandbox.gpu.control import Device
from sandbox.kube import Kube, Object, Seen, wait_for
from sandbox.kube.conditions import Watching, describe
from sandbox.kube.resources import Selection
from sandbox.kube.stacks import Deployed
from sandbox.kube.wait import hold

T = TypeVar("T")
STREAMS = 8  # of the 64 requests that fill the server
TOKENS = 60
_OFTEN = 0.1


@dataclass(frozen=True)
class Ground:
    """A cluster whose one node has GPUs, with a model server that holds one of them and a Prometheus that watches."""

    cluster: Cluster
    kube: Kube
    toolbox: str
    prometheus: Deployed
    server: Deployed

    @property
    def node(self) -> str:
        (name,) = self.cluster.node_names
        return name

    def devices(self) -> tuple[Device, ...]:
        """The GPUs; none while the emulator does not answer."""
        return control.state(self.kube, self.node).devices

    def held(self) -> Device:
        """The one GPU that the model server holds."""
        (found,) = until(self._taken, lambda taken: len(taken) == 1, within=20, what="GPUs that are held")
        return found

    def free(self) -> Device:
        """The last of the three that nobody holds."""
        self.held()  # what held the others has ended a moment ago, perhaps
        return [each for each in self.devices() if not each.holders][-1]

    def offers(self, amount: int) -> None:
        """Wait until so many GPUs can be given to pods of the node, says its kubelet."""
        until(self._allocatable, str(amount).__eq__, within=60, what="allocatable GPUs")

    def labels(self) -> dict[str, str]:
        """Those of the node that NVIDIA's feature discovery would put there, but for the time when it did."""
        found = self._node()["metadata"]["labels"]
        return {key: found[key] for key in found if key.startswith("nvidia.com/") and "timestamp" not in key}

    def pod(self) -> Object:
        """The model server's."""
        (found,) = self.kube.list("v1", "Pod", self.server.namespace)
        return found

    def emulator(self) -> Object:
        """The pod that emulates."""
        name = control.state(self.kube, self.node).emulator
        found = self.kube.get("v1", "Pod", name, control.NAMESPACE)
        assert found, f"pod {name!r} has gone"
        return {"apiVersion": "v1", "kind": "Pod", **found}

    def scraped(self) -> dict[str, Metric]:
        """The node's GPUs as monitoring reads them."""
        text = control.metrics(self.kube, control.state(self.kube, self.node))
        return {each.name: each for each in text_string_to_metric_families(text)}

    def kubelet(self) -> tuple[float, float]:
        """When the kubelet started, and how often it was registered with for GPUs; zeros while it does not answer."""
        answer = self.kube.request("GET", f"/api/v1/nodes/{self.node}/proxy/metrics")
        started = times = 0.0
        for family in text_string_to_metric_families(answer.text if answer.ok else ""):
            for each in family.samples:
                if each.name == "process_start_time_seconds":
                    started = each.value
                elif each.labels.get("resource_name") == "nvidia.com/gpu" and "registration_total" in each.name:
                    times = each.value
        return started, times

    def on_node(self, *command: str) -> str:
        """What a command prints inside the node."""
        code, said = containers.run(nodes.machine(self.cluster, self.node), list(command))
        assert code == 0, said
        return said

    def uses(self) -> dict[str, float]:
        """What the emulator's cgroup has used: `at` and `cpu` in seconds, `memory` (its working set) in MiB."""
        label = "io.kubernetes.container.name=emulator"
        told = json.loads(self.on_node("crictl", "stats", "--output", "json", "--label", label))["stats"]
        # of a node from a snapshot its containers of before the save are told of, too
        found = max(told, key=lambda each: each["attributes"]["metadata"].get("attempt", 0))
        cpu, memory = found["cpu"], found["memory"]
        return {
            "at": int(cpu["timestamp"]) / 1e9,
            "cpu": int(cpu["usageCoreNanoSeconds"]["value"]) / 1e9,
            "memory": int(memory["workingSetBytes"]["value"]) / (1 << 20),
        }

    def inside(self, *command: str) -> tuple[int, str]:
        """How a command ends in the model server's container, and what it prints."""
        done = self.kube.exec(self.server.namespace, self.pod()["metadata"]["name"], command)
        return done.code, done.stdout

    def printed(self, name: str, script: str, *, gpus: int = 0, **spec: Any) -> list[str]:
        """What a pod prints, line by line, that runs a script to its end; it is gone afterwards."""
        container: Object = {"name": name, "image": self.toolbox, "command": ["sh", "-ec", script]}
        if gpus:
            container["resources"] = {"limits": {"nvidia.com/gpu": gpus}}
        meta = {"name": name, "namespace": "default"}
        spec = {"restartPolicy": "OnFailure", "containers": [container], **spec}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}
        self.kube.apply([pod])
        try:
            pods = Selection("v1", "Pod", "default", "", f"metadata.name={name}")
            phase = wait_for(Watching(self.kube, pods, _ran), within=60, what=f"the end of {name}")
            said = self.kube.logs("default", name)
        finally:
            self.kube.delete([pod], grace=0)
        assert phase == "Succeeded", said
        return said.splitlines()

    def _node(self) -> Object:
        return self.kube.get("v1", "Node", self.node) or {}

    def _allocatable(self) -> str:
        return str(self._node()["status"]["allocatable"].get("nvidia.com/gpu"))

    def _taken(self) -> list[Device]:
        return [each for each in self.devices() if each.holders]


def _ran(pods: list[Object]) -> Seen[str]:
    """The phase of a pod that ran to its end, or failed once: `OnFailure` starts it again and again."""
    status = pods[0]["status"] if pods else {}
    again = any(each["restartCount"] for each in status.get("containerStatuses", []))
    phase = str(status.get("phase", "absent"))
    return Seen(again or phase in {"Succeeded", "Failed"}, phase, describe(pods[0]) if pods else phase)


@dataclass
class _Often:
    """A condition that is looked at ten times a second: for what is measured, not only awaited."""

    look: Callable[[], Seen[Any]]

    def __call__(self) -> Seen[Any]:
        return self.look()

    def pause(self, seconds: float) -> None:
        hold(min(seconds, _OFTEN))


def until(look: Callable[[], T], holds: Callable[[T], bool], *, within: float, what: str) -> T:
    """Wait for something to become so; what it has become."""

    def seen() -> Seen[T]:
        found = look()
        return Seen(holds(found), found, f"{what}: {found}")

    found: T = wait_for(_Often(seen), within=within, what=f"the wanted {what}")
    return found


@dataclass
class Work:
    """Streams that are asked for again and again: since when, until when, and what went wrong."""

    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    answered: int = 0
    failures: list[str] = field(default_factory=list)


@contextmanager
def working(server: Deployed, streams: int = STREAMS) -> Iterator[Work]:
    """So many users, each with one request at a time, until the end of the block. Every stream has to come whole."""
    stop, work, lock = threading.Event(), Work(), threading.Lock()

    def user() -> None:
        while not stop.is_set():
            trouble = _stream(server)
            with lock:
                work.answered += not trouble
                work.failures += [trouble] if trouble else []

    users = [threading.Thread(target=user) for _ in range(streams)]
    for each in users:
        each.start()
    try:
        yield work
    finally:
        stop.set()
        for each in users:
            each.join()
        work.ended = time.monotonic()
    assert work.answered >= streams
    assert not work.failures


def _stream(server: Deployed) -> str:
    """Ask for one, and take it to its end; what was wrong with it."""
    body = {
        "model": server.model,
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "stream": True,
        "messages": [{"role": "user", "content": "Go on and on."}],
    }
    url = f"{server.url}/v1/chat/completions"
    try:
        with httpx.stream("POST", url, json=body, timeout=60, trust_env=False) as answer:
            last = [line for line in answer.iter_lines() if line][-1:]
    except httpx.HTTPError as error:
        return repr(error)
    whole = answer.status_code == httpx.codes.OK and last == ["data: [DONE]"]
    return "" if whole else f"HTTP {answer.status_code}, at last {last}"
