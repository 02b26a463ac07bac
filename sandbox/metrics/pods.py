"""Figures of workloads: what became of their pods, out of the events of a timeline. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from sandbox.spec.results import WorkloadSummary
from sandbox.spec.slo import Selector
from sandbox.timeline import Event, GpuNodes, PodEvent, WorkloadClosed, WorkloadFinished, WorkloadStarted

_ENDS = ("succeeded", "failed", "lost", "refused")
_SHOWN = 5


@dataclass
class Pod:
    """The life of one pod. Times in seconds since the run began, None where it never came to that.

    Attributes:
        state: the last of running, succeeded, failed, lost, refused that it came to; empty before.
        began: whether it was seen to run.
        told: the scheduler's last word while it held the pod back.
        said: what was said when it failed, was lost or refused.
        line: of its log, the one that matched what it has to print, or the last.
        claim, devices: the claim that it holds, and what that got.
    """

    name: str
    created: float | None = None
    scheduled: float | None = None
    node: str = ""
    state: str = ""
    began: bool = False
    told: str = ""
    said: str = ""
    line: str = ""
    printed: bool | None = None
    claim: str = ""
    devices: list[str] = field(default_factory=list)

    @property
    def pending(self) -> bool:
        """There, and without a node."""
        return self.created is not None and self.scheduled is None and self.state not in _ENDS

    @property
    def ran(self) -> bool:
        """A container of it was seen to run, whatever became of it."""
        return self.began or self.state in {"running", "succeeded"}

    @property
    def stuck(self) -> bool:
        """It has a node, and has neither run there nor ended."""
        return self.scheduled is not None and not self.state

    @property
    def waited(self) -> float | None:
        """Seconds from its creation until it got a node."""
        if self.created is None or self.scheduled is None:
            return None
        return max(0.0, self.scheduled - self.created)

    @property
    def now(self) -> str:
        """What it is in, in one word, as a closing tally counts it."""
        return self.state or ("scheduled" if self.scheduled is not None else "pending")


@dataclass
class Watched:
    """A workload and its pods.

    Attributes:
        finished: None: the watch was cut short, so nothing can be said of its pods.
        closed: what its pods were in at the end of the run; empty where nobody looked.
    """

    name: str
    asked: int
    gpus: int
    pods: dict[str, Pod] = field(default_factory=dict)
    finished: WorkloadFinished | None = None
    closed: list[WorkloadClosed] = field(default_factory=list)

    @property
    def end(self) -> float:
        """When its pods were last looked at."""
        return max((event.t for event in (*self.closed, self.finished) if event is not None), default=0.0)


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
            case WorkloadClosed() if event.workload in self.workloads:
                self.workloads[event.workload].closed.append(event)
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
            pod.claim, pod.devices = event.message, event.devices
        case "printed" | "silent":
            pod.printed, pod.line = event.state == "printed", event.message
        case _:
            pod.state, pod.said = event.state, event.message
            pod.began = pod.began or event.state in {"running", "succeeded"}


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
    """From the creation of each pod to its getting a node, of those that got one."""
    return [pod.waited for pod in of(found) if pod.waited is not None]


def waiting(found: Sequence[Watched]) -> list[float]:
    """How long each pod without a node has waited at the end: it will have waited longer than that."""
    return [
        max(0.0, each.end - pod.created)
        for each in found
        for pod in each.pods.values()
        if pod.pending and pod.created is not None
    ]


def scheduling_rate(found: Sequence[Watched]) -> float | None:
    """Pods that got a node per second, from the first creation until the last got it.

    Until the end of the run where one still waits: it took at least so long. None where no pod was created.
    """
    scheduled = [pod.scheduled for pod in of(found)]
    if not any(pod.pending for pod in of(found)):
        return _rate(scheduled, found)
    return _rate(scheduled, found, max(each.end for each in found))


def creation_rate(found: Sequence[Watched]) -> float | None:
    """Pods created per second, which is as quick as the scheduler can be."""
    return _rate([pod.created for pod in of(found)], found)


def _rate(moments: Sequence[float | None], found: Sequence[Watched], until: float | None = None) -> float | None:
    begun = min((pod.created for pod in of(found) if pod.created is not None), default=None)
    done = [moment for moment in moments if moment is not None]
    end = max(done, default=None) if until is None else until
    if begun is None or end is None or end <= begun:
        return None
    return len(done) / (end - begun)


def nodes_of(pods: Sequence[Pod]) -> set[str]:
    """The nodes that these pods got."""
    return {pod.node for pod in pods if pod.node}


def gpus_of(each: Watched, pods: Sequence[Pod]) -> int:
    """GPUs of these pods of a workload, by resource and by claim; those of a claim that several share count once."""
    claimed = {(pod.claim, device) for pod in pods for device in pod.devices}
    return len(pods) * each.gpus + len(claimed)


def holding(each: Watched) -> list[Pod]:
    """Pods of a workload that ran and were not seen to fail, or to be deleted by others."""
    return [pod for pod in each.pods.values() if pod.state in {"running", "succeeded"}]


def nodes_free(nodes: GpuNodes) -> int:
    """Nodes with GPUs of which none is in use."""
    return sum(count for gpus, used, count in nodes.groups if gpus and not used)


def fragmentation(nodes: GpuNodes) -> Fraction | None:
    """Share of the free GPUs that lie on nodes partly in use; None where no GPU is free."""
    # a device that was lost is offered no more, and may still be held
    free = sum(max(0, gpus - used) * count for gpus, used, count in nodes.groups)
    partly = sum(max(0, gpus - used) * count for gpus, used, count in nodes.groups if used)
    return Fraction(partly, free) if free > 0 else None


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
        nodes=len(nodes_of(holding(each))),
        gpus=gpus_of(each, holding(each)),
        creation_rate=creation_rate([each]),
        scheduling_rate=scheduling_rate([each]),
        scheduling_seconds={
            name: float(np.percentile(times, percent)) for name, percent in (("p50", 50), ("p99", 99), ("max", 100))
        }
        if times
        else {},
        said=[f"{count} x {text}" for text, count in said.most_common(_SHOWN)],
    )
