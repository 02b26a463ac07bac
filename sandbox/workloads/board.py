"""What is known of the pods, by one watch over their namespace; each change becomes an event of the timeline."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any, Self

from sandbox.errors import SandboxError, Unproven
from sandbox.kube import ApiError, Kube, Object, Seen, wait_for
from sandbox.kube.failures import Unreachable, passing
from sandbox.kube.resources import Selection
from sandbox.timeline import PodEvent, PodState, Timeline
from sandbox.workloads.objects import NAMESPACE, WORKLOAD_LABEL

_PODS = Selection("v1", "Pod", NAMESPACE, WORKLOAD_LABEL)
_GONE = 410
_WATCH_SECONDS = 2.0  # how long a run that is being ended may wait for the watch
_PAUSE = 0.5
_LAST_LOOK_SECONDS = 30.0
_MOST_WORDS = 20  # of the scheduler on one pod: its counts of nodes change at every try
_PHASES: dict[str, PodState] = {"Running": "running", "Succeeded": "succeeded", "Failed": "failed"}
ENDED = frozenset({"succeeded", "failed", "lost", "refused"})


@dataclass
class Life:
    """What is known of one pod."""

    node: str = ""
    state: str = ""  # running, succeeded, failed, lost, refused
    told: str = ""
    words: int = 0
    printed: bool = False
    read: bool = False  # after its end: its log will say no more

    @property
    def now(self) -> str:
        """What it is in, in one word, as a closing tally counts it."""
        return self.state or ("scheduled" if self.node else "pending")

    @property
    def settled(self) -> bool:
        """Where it stays unless something happens: it runs, has ended, or the scheduler has said why it waits."""
        return bool(self.state) or (not self.node and bool(self.told))


@dataclass
class Group:
    """The pods of one workload.

    Attributes:
        pods: name -> what is known of it.
        changed: when one of them last did, on the monotonic clock.
        over: set when nobody drives it any more.
    """

    pods: dict[str, Life] = field(default_factory=dict)
    changed: float = field(default_factory=time.monotonic)
    over: threading.Event = field(default_factory=threading.Event)


class Board:
    """Follows every pod of every workload from `with` on, in a thread of its own."""

    def __init__(self, kube: Kube, timeline: Timeline, stop: threading.Event) -> None:
        self._kube = kube
        self._timeline = timeline
        self._stop = stop
        self._left = threading.Event()
        self._lock = threading.Lock()
        self._groups: dict[str, Group] = {}
        self._thread = threading.Thread(target=self._follow, name="workloads", daemon=True)
        self.error: SandboxError | None = None

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching: what becomes of the pods from now on is the cleaning up."""
        self._leave()

    def close(self) -> None:
        """Stop watching, and take what became of every pod from one last look at all of them.

        Raises:
            Unproven: the watch broke off before.
            DeadlineExceeded: the API server could not be asked.
        """
        self._leave()
        if self.error is not None:
            raise Unproven("the watch over the pods broke off", details=[str(self.error)])
        there = wait_for(self._list, within=_LAST_LOOK_SECONDS, what="a last look at the pods")
        for pod in there:
            self._take("MODIFIED", pod)
        left = {(pod["metadata"]["labels"][WORKLOAD_LABEL], pod["metadata"]["name"]) for pod in there}
        with self._lock:
            known = [(workload, name) for workload, group in self._groups.items() for name in group.pods]
        for workload, name in known:
            if (workload, name) not in left:
                self._vanished(workload, name)

    def _leave(self) -> None:
        self._left.set()
        self._thread.join()

    def _list(self) -> Seen[list[Object]]:
        return Seen(True, self._kube.list_at(_PODS)[0], "")

    def _vanished(self, workload: str, name: str) -> None:
        """Nobody told of its end, and it is not there any more."""
        with self._lock:
            life = self._groups[workload].pods[name]
            if life.state in ENDED:
                return
            life.state = "lost"
        self.write(workload, name, "lost", node=life.node, message="it was not there any more at the last look")

    def write(self, workload: str, pod: str, state: PodState, *, t: float | None = None, **more: Any) -> None:
        """Put one event into the timeline."""
        moment = self._timeline.now() if t is None else t
        self._timeline.append(PodEvent(t=moment, workload=workload, pod=pod, state=state, **more))

    def group(self, workload: str) -> Group:
        """A workload's pods, whether there are any yet or not."""
        with self._lock:
            return self._groups.setdefault(workload, Group())

    def pods(self, workload: str) -> dict[str, Life]:
        """What is known now, as a copy."""
        with self._lock:
            return dict(self._groups[workload].pods)

    def created(self, workload: str, pod: str, t: float) -> None:
        """Note that the API server took a pod, which was sent at `t`."""
        with self._lock:
            self._life(workload, pod)
        self.write(workload, pod, "created", t=t)

    def refused(self, workload: str, pod: str, message: str) -> None:
        """Note that the API server did not take a pod."""
        with self._lock:
            self._life(workload, pod).state = "refused"
        self.write(workload, pod, "refused", message=message)

    def quiet(self, workload: str) -> float:
        """Seconds since a pod of it last changed."""
        with self._lock:
            return time.monotonic() - self._groups[workload].changed

    def _life(self, workload: str, pod: str) -> Life:
        group = self._groups.setdefault(workload, Group())
        group.changed = time.monotonic()
        return group.pods.setdefault(pod, Life())

    def _follow(self) -> None:
        since = ""
        while not (self._left.is_set() or self._stop.is_set()):
            try:
                if not since:
                    items, since = self._kube.list_at(_PODS)
                    for item in items:
                        self._take("ADDED", item)
                for change in self._kube.watch(_PODS, since=since, within=_WATCH_SECONDS):
                    since = change["object"]["metadata"]["resourceVersion"]
                    if change["type"] != "BOOKMARK":
                        self._take(change["type"], change["object"])
                    if self._left.is_set():
                        return
            except (ApiError, Unreachable) as error:
                if isinstance(error, ApiError) and error.status == _GONE:
                    since = ""
                elif not passing(error):
                    self.error = error
                    return
                self._stop.wait(_PAUSE)

    def _take(self, kind: str, thing: Object) -> None:
        """Compare what the API server tells of a pod with what was known, and write down what is new."""
        meta, status = thing["metadata"], thing.get("status", {})
        workload, name = meta["labels"][WORKLOAD_LABEL], meta["name"]
        node, conditions = thing["spec"].get("nodeName", ""), status.get("conditions", [])
        told = next((_words(c) for c in conditions if c["type"] == "PodScheduled" and c["status"] != "True"), "")
        found: list[tuple[PodState, dict[str, Any]]] = []
        with self._lock:
            life = self._life(workload, name)
            if told and not node and told != life.told and life.words < _MOST_WORDS:
                life.told, life.words = told, life.words + 1
                found.append(("waiting", {"message": told}))
            if node and not life.node:
                life.node = node
                found.append(("scheduled", {"node": node}))
            state = _PHASES.get(status.get("phase", ""))
            if (kind == "DELETED" or meta.get("deletionTimestamp")) and life.state not in ENDED:
                state = state if state in ENDED else "lost"
            if state and state != life.state and life.state not in ENDED:
                life.state = state
                found.append((state, {"node": node, "message": _why(status) if state in {"failed", "lost"} else ""}))
        for state, more in found:
            self.write(workload, name, state, **more)


def _words(condition: Object) -> str:
    return str(condition.get("message") or condition.get("reason") or "")


def _why(status: Object) -> str:
    """Why a pod failed or was deleted, in the words of whoever did it."""
    words = [str(status.get("reason", "")), str(status.get("message", ""))]
    words += [_words(each) for each in status.get("conditions", []) if each["type"] == "DisruptionTarget"]
    for each in status.get("containerStatuses", []):
        end = each.get("state", {}).get("terminated")
        if end and end.get("exitCode"):
            words.append(f"exit code {end['exitCode']} {end.get('reason', '')} {end.get('message', '')}".strip())
    return ": ".join(filter(None, words))
