"""Figures of workloads: what became of their pods, out of the events of a timeline. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sandbox.spec.results import WorkloadSummary
from sandbox.spec.slo import Selector
from sandbox.timeline import Event, GpuNodes, PodEvent, WorkloadFinished, WorkloadStarted

_ENDS = ("succeeded", "failed", "lost", "refused")
_SHOWN = 5


@dataclass
class Pod:
    """The life of one pod. Times in seconds since the run began, None where it never came to that.

    Attributes:
        state: the last of running, succeeded, failed, lost, refused that it came to; empty before.
        told: the scheduler's last word while it held the pod back.
        said: what was said when it failed, was lost or refused.
        line: of its log, the one that matched what it has to print, or the last.
        devices: what its claim got; none for a claim that another pod of the workload has told of.
    """

    name: str
    created: float | None = None
    scheduled: float | None = None
    node: str = ""
    state: str = ""
    told: str = ""
    said: str = ""
    line: str = ""
    printed: bool | None = None
    devices: list[str] = field(default_factory=list)

    @property
    def pending(self) -> bool:
        """There, and without a node."""
        return self.created is not None and self.scheduled is None and self.state not in _ENDS


@dataclass
class Watched:
    """A workload and its pods. `finished` None: the watch was cut short, so nothing can be said of its pods."""

    name: str
    asked: int
    gpus: int
    pods: dict[str, Pod] = field(default_factory=dict)
    finished: WorkloadFinished | None = None


@dataclass
class Pods:
    """All workloads of a run, and its nodes with GPUs.

    Attributes:
        because: of each workload of the scenario: what the scheduler must say; empty where it may say anything.
        workloads: those that were begun.
        nodes: None where nobody looked.
    """

    because: Mapping[str, str] = field(default_factory=dict)
    workloads: dict[str, Watched] = field(default_factory=dict)
    nodes: GpuNodes | None = None

    def take(self, event: Event) -> None:
        """Go on by one event; those of other things are left alone."""
        match event:
            case WorkloadStarted():
                self.workloads[event.workload] = Watched(event.workload, event.pods, event.gpus)
            case PodEvent() if event.workload in self.workloads:
                pods = self.workloads[event.workload].pods
                _live(pods.setdefault(event.pod, Pod(event.pod)), event)
            case WorkloadFinished() if event.workload in self.workloads:
                self.workloads[event.workload].finished = event
            case GpuNodes():
                self.nodes = event

    def chosen(self, selector: Selector) -> list[Watched]:
        """The workloads that a selector names; none at all where one of them was not watched to its end."""
        name = selector.tags.get("workload")
        wanted = [each for each in self.because if name in {None, each}]
        found = [self.workloads[each] for each in wanted if each in self.workloads and self.workloads[each].finished]
        return found if len(found) == len(wanted) else []


def _live(pod: Pod, event: PodEvent) -> None:
    match event.state:
        case "created":
            pod.created = event.t
        case "waiting":
            pod.told = event.message
        case "scheduled":
            pod.scheduled, pod.node = event.t, event.node
        case "allocated":
            pod.devices = event.devices
        case "printed" | "silent":
            pod.printed, pod.line = event.state == "printed", event.message
        case _:
            pod.state, pod.said = event.state, event.message


def of(found: Sequence[Watched]) -> list[Pod]:
    """All pods of some workloads."""
    return [pod for each in found for pod in each.pods.values()]


def matching(pods: Pods, selector: Selector, metric: str) -> list[Pod]:
    """The pods that a count metric counts."""
    chosen = pods.chosen(selector)
    if metric == "pods_because":
        return [
            pod
            for each in chosen
            for pod in each.pods.values()
            if pod.told and pods.because[each.name] and re.search(pods.because[each.name], pod.told)
        ]
    tests: dict[str, Callable[[Pod], bool]] = {
        "pods_created": lambda pod: pod.created is not None and pod.state != "refused",
        "pods_scheduled": lambda pod: pod.scheduled is not None,
        "pods_pending": lambda pod: pod.pending,
        "pods_printing": lambda pod: pod.printed is True,
    }
    if metric in tests:
        return [pod for pod in of(chosen) if tests[metric](pod)]
    return [pod for pod in of(chosen) if pod.state == metric.removeprefix("pods_")]


def seconds(found: Sequence[Watched]) -> list[float]:
    """From the creation of each pod to its getting a node."""
    return [
        max(0.0, pod.scheduled - pod.created)
        for pod in of(found)
        if pod.created is not None and pod.scheduled is not None
    ]


def scheduling_rate(found: Sequence[Watched]) -> float | None:
    """Pods that got a node per second, from the first creation until the last got it."""
    return _rate([pod.scheduled for pod in of(found)], found)


def creation_rate(found: Sequence[Watched]) -> float | None:
    """Pods created per second, which is as quick as the scheduler can be."""
    return _rate([pod.created for pod in of(found)], found)


def _rate(moments: Sequence[float | None], found: Sequence[Watched]) -> float | None:
    begun = min((pod.created for pod in of(found) if pod.created is not None), default=None)
    done = [moment for moment in moments if moment is not None]
    if begun is None or not done or max(done) <= begun:
        return None
    return len(done) / (max(done) - begun)


def nodes_used(found: Sequence[Watched]) -> set[str]:
    """The nodes that pods got, but those of pods that others deleted."""
    return {pod.node for pod in of(found) if pod.node and pod.state != "lost"}


def gpus_allocated(found: Sequence[Watched]) -> int:
    """GPUs that pods got, by resource and by claim, but those of pods that others deleted."""
    total = 0
    for each in found:
        got = [pod for pod in each.pods.values() if pod.scheduled is not None and pod.state != "lost"]
        total += len(got) * each.gpus + sum(len(pod.devices) for pod in got)
    return total


def nodes_free(nodes: GpuNodes) -> int:
    """Nodes with GPUs of which none is in use."""
    return sum(count for gpus, used, count in nodes.groups if gpus and not used)


def fragmentation(nodes: GpuNodes) -> float | None:
    """Share of the free GPUs that lie on nodes partly in use; None where no GPU is free."""
    free = sum((gpus - used) * count for gpus, used, count in nodes.groups)
    partly = sum((gpus - used) * count for gpus, used, count in nodes.groups if used)
    return partly / free if free > 0 else None


def summarise(pods: Pods) -> list[WorkloadSummary]:
    """Figures of every workload that was begun."""
    return [_summary(each) for each in pods.workloads.values()]


def _summary(each: Watched) -> WorkloadSummary:
    lives = list(each.pods.values())
    states = Counter(pod.state for pod in lives)
    times = seconds([each])
    said = Counter(pod.told for pod in lives if pod.pending and pod.told)
    said.update(pod.said for pod in lives if pod.state in {"failed", "lost", "refused"} and pod.said)
    return WorkloadSummary(
        workload=each.name,
        pods=each.asked,
        created=sum(pod.created is not None and pod.state != "refused" for pod in lives),
        refused=states["refused"],
        scheduled=sum(pod.scheduled is not None for pod in lives),
        pending=sum(pod.pending for pod in lives),
        running=states["running"],
        succeeded=states["succeeded"],
        failed=states["failed"],
        lost=states["lost"],
        nodes=len(nodes_used([each])),
        gpus=gpus_allocated([each]),
        creation_rate=creation_rate([each]),
        scheduling_rate=scheduling_rate([each]),
        scheduling_seconds={
            name: float(np.percentile(times, percent)) for name, percent in (("p50", 50), ("p99", 99), ("max", 100))
        }
        if times
        else {},
        said=[f"{count} x {text}" for text, count in said.most_common(_SHOWN)],
    )
