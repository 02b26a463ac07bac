"""Drive one workload: make its pods at its time, follow them until they are where they stay, read what they print."""

from __future__ import annotations

import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from sandbox.kube import ApiError, Kube
from sandbox.kube.failures import passing
from sandbox.progress import say
from sandbox.spec.workload import Workload
from sandbox.timeline import GpuNodes, Timeline, WorkloadClosed, WorkloadFinished, WorkloadStarted
from sandbox.workloads import gpus, objects
from sandbox.workloads.board import ENDED, Board, Life

_LOOK = 0.2
_AGAIN = 0.5
_AT_ONCE = 16
_LOG_EVERY = 1.0
_PLACED = 1.0  # all run for so long: none was only about to go
_QUIET = 4.0  # nothing changed for so long: nothing will
_LOG_LINES = 200
_LINE = 300
_RESOURCE = "resource.k8s.io/v1"
Why = Literal["placed", "ended", "settled", "time is out"]


@dataclass(frozen=True)
class Ground:
    """What workloads are driven on.

    Attributes:
        kube: the API, as the cluster's administrator.
        images: name of clusters/images/ -> reference the nodes can run.
        timeline: where it is written down.
        stop: set when the run is being ended.
        calm: whether no fault is still to strike or to heal: until then nothing that stands still is settled.
        pool: makes pods and reads logs, so many at once.
    """

    kube: Kube
    images: Mapping[str, str]
    timeline: Timeline
    stop: threading.Event
    calm: Callable[[], bool]
    pool: Executor


def drive(ground: Ground, board: Board, workload: Workload, at: float) -> None:
    """Take one workload from its first pod to the end of its watch; nothing is written of an end that was not seen.

    Args:
        ground: what it is driven on.
        board: follows its pods.
        workload: with its `after`, which is waited for.
        at: seconds since the run began; counts where there is no `after`.
    """
    try:
        if _its_turn(ground, board, workload, at):
            _drive(ground, board, workload)
    finally:
        board.group(workload.name).over.set()


def _its_turn(ground: Ground, board: Board, workload: Workload, at: float) -> bool:
    """Wait for it; False when the run is being ended."""
    if workload.after is not None:
        earlier = board.group(workload.after).over
        while not earlier.wait(_LOOK):
            if ground.stop.is_set():
                return False
        at = ground.timeline.now() + workload.at
    return not ground.stop.wait(max(0.0, at - ground.timeline.now()))


def _drive(ground: Ground, board: Board, workload: Workload) -> None:
    deadline = time.monotonic() + workload.within
    asked = {
        "resources": workload.resources,
        "claim": workload.claim is not None,
        "fleet": workload.fleet,
        "pod": workload.pod,
    }
    ground.timeline.append(
        WorkloadStarted(
            t=ground.timeline.now(), workload=workload.name, pods=workload.pods, gpus=workload.gpus, asked=asked
        )
    )
    board.group(workload.name)
    if (claim := objects.claim(workload)) is not None:
        ground.kube.create(claim)
    numbers = range(1, workload.pods + 1)
    made = list(ground.pool.map(lambda number: _make(ground, board, workload, number), numbers))
    if None in made:  # the run is being ended
        return
    why = _until_settled(ground, board, workload, deadline)
    if why is None:
        return
    if workload.claim is not None:
        _devices(ground, board, workload)
    _silent(ground, board, workload)
    created = sum(map(bool, made))
    lives = board.pods(workload.name).values()
    say(f"workload {workload.name}, {why}: {_counts(lives)}")
    ground.timeline.append(
        WorkloadFinished(
            t=ground.timeline.now(), workload=workload.name, created=created, refused=len(made) - created, why=why
        )
    )


def _make(ground: Ground, board: Board, workload: Workload, number: int) -> bool | None:
    """Whether the API server took the pod; None where the run is being ended."""
    if ground.stop.is_set():
        return None
    pod = objects.pod(workload, number, ground.images)
    name, sent = pod["metadata"]["name"], ground.timeline.now()
    while True:
        try:
            ground.kube.create(pod)
        except ApiError as error:
            if passing(error):  # a server that is not up to it for the moment refuses nothing
                if ground.stop.wait(_AGAIN):
                    return None
                continue
            board.refused(workload.name, name, error.message)
            return False
        board.created(workload.name, name, sent)
        return True


def _until_settled(ground: Ground, board: Board, workload: Workload, deadline: float) -> Why | None:
    """Watch until every pod is where it stays, or time is out; None where the run is being ended."""
    read_at = 0.0
    while True:
        if board.error is not None:
            raise board.error
        pods = board.pods(workload.name)
        if workload.prints is not None and time.monotonic() >= read_at:
            _read(ground, board, workload, pods)
            read_at = time.monotonic() + _LOG_EVERY
        late = time.monotonic() >= deadline
        if (why := _over(ground, board, workload, pods, late=late)) is not None:
            return why
        if ground.stop.wait(min(_LOOK, max(0.0, deadline - time.monotonic()))):
            return None


def _over(ground: Ground, board: Board, workload: Workload, pods: Mapping[str, Life], *, late: bool) -> Why | None:
    """Why the watch is over; None where it goes on. `late`: its time is out."""
    told = workload.prints is None or all(life.printed or life.read for life in pods.values() if life.state)
    if len(pods) < workload.pods or not ground.calm() or not told:
        return "time is out" if late else None
    if all(life.state in ENDED for life in pods.values()):
        return "ended"
    quiet = board.quiet(workload.name)
    if workload.command is None and all(life.state for life in pods.values()) and quiet >= _PLACED:
        return "placed"
    still = all(life.settled for life in pods.values())
    if still and quiet >= (_QUIET if late else _enough(workload, pods)):
        return "settled"
    return "time is out" if late else None


def _enough(workload: Workload, pods: Mapping[str, Life]) -> float:
    """How long nothing may have changed: what runs a command may still end badly, so it has all of its time."""
    if workload.command is None or all(life.state != "running" for life in pods.values()):
        return _QUIET
    return math.inf if workload.stable_for is None else workload.stable_for


def _read(ground: Ground, board: Board, workload: Workload, pods: Mapping[str, Life]) -> None:
    """Look into the logs of the pods that run or ran and have not yet printed what they must."""
    expression = re.compile(workload.prints or "")

    def look(name: str, life: Life) -> None:
        ended = life.state in ENDED
        text = ground.kube.logs(objects.NAMESPACE, name, tail=_LOG_LINES)
        line = next((line for line in text.splitlines() if expression.search(line)), None)
        if line is not None and not life.printed:
            life.printed = True
            board.write(workload.name, name, "printed", node=life.node, message=line.strip()[:_LINE])
        life.read = life.read or (ended and bool(text))

    waiting = [(name, life) for name, life in pods.items() if life.state in {"running", "succeeded", "failed"}]
    waiting = [(name, life) for name, life in waiting if not (life.printed or life.read)]
    list(ground.pool.map(lambda pair: look(*pair), waiting))


def _silent(ground: Ground, board: Board, workload: Workload) -> None:
    """Write down what those said that did not print what they must."""
    if workload.prints is None:
        return
    for name, life in board.pods(workload.name).items():
        if life.state in {"running", "succeeded", "failed"} and not life.printed:
            text = ground.kube.logs(objects.NAMESPACE, name, tail=_LOG_LINES).strip()
            last = text.splitlines()[-1][:_LINE] if text else ""
            board.write(workload.name, name, "silent", node=life.node, message=last)


def _devices(ground: Ground, board: Board, workload: Workload) -> None:
    """Which devices the claims of the pods got; of a shared one once."""
    told: set[str] = set()
    claims = {
        each["metadata"]["name"]: each for each in ground.kube.list(_RESOURCE, "ResourceClaim", objects.NAMESPACE)
    }
    owners = {_owner(each): name for name, each in claims.items()}
    for pod, life in board.pods(workload.name).items():
        name = workload.name if workload.shared_claim else owners.get(pod, "")
        allocation = claims.get(name, {}).get("status", {}).get("allocation", {})
        results = allocation.get("devices", {}).get("results", [])
        if not life.node or not results or name in told:
            continue
        told.add(name)
        devices = [f"{each['driver']}/{each['pool']}/{each['device']}" for each in results]
        board.write(workload.name, pod, "allocated", node=life.node, message=name, devices=devices)


def _owner(claim: Mapping[str, Mapping[str, object]]) -> str:
    owners = claim["metadata"].get("ownerReferences")
    first = owners[0] if isinstance(owners, list) and owners else {}
    return str(first.get("name", "")) if isinstance(first, Mapping) else ""


def _counts(lives: Iterable[Life]) -> str:
    states = Counter(life.state or ("scheduled" if life.node else "waiting") for life in lives)
    return ", ".join(f"{count} {state}" for state, count in states.most_common())


def clear(kube: Kube) -> None:
    """Remove the pods on simulated nodes one by one, many at once; the others go with their namespace.

    In one call for all, as the others go, thousands would take longer than a server's answer may. No container runs
    in them, so there is nothing to wait for.
    """
    if kube.get("v1", "Namespace", objects.NAMESPACE) is None:
        return
    body = {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0}
    there = kube.list("v1", "Pod", objects.NAMESPACE, label_selector=objects.ON_FLEET)
    with ThreadPoolExecutor(max_workers=_AT_ONCE, thread_name_prefix="pods") as pool:
        list(pool.map(lambda pod: kube.request("DELETE", kube.path(pod), body), there))


def close(ground: Ground, board: Board, workloads: Sequence[Workload]) -> None:
    """Write down how all pods and the nodes with GPUs are now that everything is over: a promise holds until here.

    Raises:
        Unproven: the watch over the pods broke off.
        DeadlineExceeded: the API server could not be asked.
    """
    board.close()
    for each in workloads:
        states = Counter(life.now for life in board.pods(each.name).values())
        ground.timeline.append(WorkloadClosed(t=ground.timeline.now(), workload=each.name, states=dict(states)))
    if any(each.gpus or each.claim is not None for each in workloads):
        groups = gpus.groups(ground.kube)
        ground.timeline.append(GpuNodes(t=ground.timeline.now(), groups=groups))
