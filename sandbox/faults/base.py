"""What a fault is, and the one place that drives it and writes its life into the timeline.

A fault is a generator read like a pytest fixture:

    victims = ...           # nothing matched: raise NoTarget, never a silent no-op
    <inject>
    yield Evidence(...)     # injected
    <look from outside>
    yield Evidence(...)     # proven: seen by something other than the injector
    <undo>
    ctx.wait(...)           # until healed; out of time here is the system's failure, not ours
    return Evidence(...)    # healed
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from sandbox.cluster import Cluster
from sandbox.errors import DeadlineExceeded, SandboxError, Unproven
from sandbox.kube import Kube, Seen, wait_for
from sandbox.kube.wait import Watched
from sandbox.progress import say
from sandbox.spec.registry import Registry
from sandbox.timeline import FaultEvent, Timeline

T = TypeVar("T")
_LONGEST_PAUSE = 2.0  # how long a run that is being ended may wait for a fault that looks on
_SHORT_PAUSE = 0.5


class NoTarget(SandboxError):
    """The target matched nothing. The run is `invalid`: nothing was tested."""


@dataclass(frozen=True)
class Evidence:
    """What was done or seen: a sentence, and values that a reader can verify."""

    detail: str
    values: dict[str, Any] = field(default_factory=dict)


Injection = Generator[Evidence, None, Evidence]


@dataclass
class Looks:
    """When the last look began that saw something not to be so yet, on the monotonic clock; or the wait for it."""

    refused: float | None = None


@dataclass(frozen=True)
class Context:
    """What a fault works on.

    Attributes:
        kube: the API, as the cluster's administrator.
        cluster: the cluster, for what happens below the API.
        namespace: where the stack under test lives.
        stop: set when the run is being ended; nobody waits any longer then.
        looks: when something was last seen not to be so yet.
    """

    kube: Kube
    cluster: Cluster
    namespace: str
    stop: threading.Event
    looks: Looks = field(default_factory=Looks)

    def wait(self, condition: Callable[[], Seen[T]], *, within: float, what: str) -> T:
        """As `wait_for`, but given up when the run is being ended.

        Raises:
            DeadlineExceeded: it did not come.
            Unproven: the run is being ended.
        """
        self.looks.refused = time.monotonic()
        return wait_for(_UnlessStopped(condition, self.stop, self.looks), within=within, what=what)


@dataclass(frozen=True)
class _UnlessStopped(Generic[T]):
    condition: Callable[[], Seen[T]]
    stop: threading.Event
    looks: Looks

    def __call__(self) -> Seen[T]:
        if self.stop.is_set():
            raise Unproven("the run was ended before this was seen")
        begun = time.monotonic()
        seen = self.condition()
        if not seen.done:
            self.looks.refused = begun
        return seen

    def pause(self, seconds: float) -> None:
        if isinstance(self.condition, Watched):
            self.condition.pause(min(seconds, _LONGEST_PAUSE))
        else:
            self.stop.wait(min(seconds, _SHORT_PAUSE))


FAULTS: Registry[Callable[..., Injection]] = Registry("fault")


def drive(name: str, index: int, context: Context, params: dict[str, Any], timeline: Timeline) -> None:
    """Run one fault to its end, writing each state as it is reached; a failing fault is an event, no exception."""
    context = replace(context, looks=Looks())  # several faults run at once

    def write(state: Any, evidence: Evidence) -> None:
        refused = context.looks.refused if state == "healed" else None
        say(f"fault {name} {state.replace('_', ' ')}: {evidence.detail.splitlines()[0] if evidence.detail else ''}")
        timeline.append(
            FaultEvent(
                t=timeline.now(),
                fault=name,
                index=index,
                state=state,
                detail=evidence.detail,
                evidence=evidence.values,
                uncertainty=None if refused is None else time.monotonic() - refused,
            )
        )

    write("started", Evidence(f"parameters {params}"))
    try:
        injection: Injection = FAULTS.call(name, context, params)
        write("injected", next(injection))
        write("proven", next(injection))
    except NoTarget as error:
        write("no_target", Evidence(str(error)))
    except StopIteration:
        write("failed", Evidence("ended without proof from outside that it happened"))
    except Exception as error:  # noqa: BLE001 - whatever went wrong belongs into the evidence, and the run goes on
        write("failed", Evidence(f"{type(error).__name__}: {error}"))
    else:
        context.looks.refused = None
        try:
            write("healed", _finish(injection))
        except DeadlineExceeded as error:
            write("not_healed", Evidence(str(error)))
        except Exception as error:  # noqa: BLE001 - the same: what we could not see is not the system's failure
            write("failed", Evidence(f"{type(error).__name__}: {error}"))


def _finish(injection: Injection) -> Evidence:
    try:
        next(injection)
    except StopIteration as end:
        return end.value if isinstance(end.value, Evidence) else Evidence("healed")
    raise RuntimeError("a fault yields exactly twice: injected, proven")
