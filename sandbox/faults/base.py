"""What a fault is, and the one place that drives it and writes its life into the timeline.

A fault is a generator read like a pytest fixture:

    victims = ...           # nothing matched: raise NoTarget, never a silent no-op
    <inject>
    yield Evidence(...)     # injected
    <look from outside>
    yield Evidence(...)     # proven: seen by something other than the injector
    ctx.hold()              # as long as the scenario's `for:` says
    <undo>
    <wait until healed>
    return Evidence(...)    # healed
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from sandbox.cluster import Cluster
from sandbox.errors import SandboxError
from sandbox.kube import Kube
from sandbox.spec.registry import Registry
from sandbox.timeline import FaultEvent, Timeline


class NoTarget(SandboxError):
    """The target matched nothing. The run is `invalid`: nothing was tested."""


@dataclass(frozen=True)
class Evidence:
    """What was done or seen: a sentence, and values that a reader can verify."""

    detail: str
    values: dict[str, Any] = field(default_factory=dict)


Injection = Generator[Evidence, None, Evidence]


@dataclass(frozen=True)
class Context:
    """What a fault works on.

    Attributes:
        kube: the API, as the cluster's administrator.
        cluster: the cluster, for what happens below the API.
        namespace: where the stack under test lives.
        lasting: seconds the fault is held, None for its own default.
        stop: set when the run is being ended; a held fault heals at once.
    """

    kube: Kube
    cluster: Cluster
    namespace: str
    lasting: float | None
    stop: threading.Event

    def hold(self, default: float = 0.0) -> None:
        """Keep the fault up for `for:` seconds, or less if the run is being ended."""
        self.stop.wait(self.lasting if self.lasting is not None else default)


FAULTS: Registry[Callable[..., Injection]] = Registry("fault")


def drive(name: str, index: int, context: Context, params: dict[str, Any], timeline: Timeline) -> None:
    """Run one fault to its end, writing each state as it is reached; a failing fault is an event, no exception."""

    def write(state: Any, evidence: Evidence) -> None:
        timeline.append(
            FaultEvent(
                t=timeline.now(), fault=name, index=index, state=state, detail=evidence.detail, evidence=evidence.values
            )
        )

    write("started", Evidence(f"parameters {params}"))
    try:
        injection: Injection = FAULTS.call(name, context, params)
        write("injected", next(injection))
        write("proven", next(injection))
        write("healed", _finish(injection))
    except NoTarget as error:
        write("no_target", Evidence(str(error)))
    except StopIteration:
        write("failed", Evidence("ended without proof from outside that it happened"))
    except Exception as error:  # noqa: BLE001 - whatever went wrong belongs into the evidence, and the run goes on
        write("failed", Evidence(f"{type(error).__name__}: {error}"))


def _finish(injection: Injection) -> Evidence:
    try:
        next(injection)
    except StopIteration as end:
        return end.value if isinstance(end.value, Evidence) else Evidence("healed")
    raise RuntimeError("a fault yields exactly twice: injected, proven")
