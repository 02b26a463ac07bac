"""Workloads of a scenario: pods that go through the real scheduler, and what their logs and its messages must say."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from sandbox.spec.base import Duration, KeyPath, Mistakes, Name, Strict
from sandbox.spec.fleet import FLEET_LABEL, FLEET_VALUE

MOST_PODS = 5000
GPU = "nvidia.com/gpu"
_OURS = {"containers": "`image`, `command`, `resources`, `container`", "restartPolicy": "nothing: it is Never"}
_CONTAINER_OURS = ("name", "image", "command")


def _expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from error
    return text


Expression = Annotated[str, AfterValidator(_expression)]
Amounts = Annotated[
    dict[str, str | int],
    WithJsonSchema({"type": "object", "additionalProperties": {"type": ["string", "integer"]}}),
]


class Workload(Strict):
    """So many pods of one kind, created at once, and watched until they are where they stay, or time is out."""

    name: Name = Field(max_length=40, description="Its pods are called <name>-1, <name>-2 and so on.")
    pods: int = Field(default=1, ge=1, le=MOST_PODS)
    image: Name = Field(default="toolbox", description="A folder of clusters/images/.")
    command: list[str] | None = Field(
        default=None, min_length=1, description="What the one container runs, once; sleeps until it is removed without."
    )
    resources: Amounts = Field(
        default_factory=dict, description="Limits and requests of the container, such as {nvidia.com/gpu: 1}."
    )
    claim: dict[str, Any] | None = Field(
        default=None, description="A ResourceClaim's spec, such as {devices: {requests: [...]}}; each pod gets its own."
    )
    shared_claim: bool = Field(default=False, alias="sharedClaim", description="One claim for all pods.")
    fleet: bool = Field(default=False, description="On the simulated nodes of the cluster's `fleet`, and only there.")
    labels: dict[str, str] = Field(default_factory=dict, description="Of the pods, beside ours.")
    annotations: dict[str, str] = Field(default_factory=dict, description="Of the pods.")
    pod: dict[str, Any] = Field(
        default_factory=dict,
        description="Partial pod spec, merged in: nodeSelector, affinity, schedulerName.",
    )
    container: dict[str, Any] = Field(default_factory=dict, description="Partial container, merged in: env and so on.")
    prints: Expression | None = Field(
        default=None, description="Regular expression that a line of each pod's log must match once it runs."
    )
    because: Expression | None = Field(
        default=None, description="Regular expression that the scheduler's word on each pod it holds back must match."
    )
    after: Name | None = Field(
        default=None, description="An earlier workload of the list: not before the watch over that one is over."
    )
    at: Duration = Field(
        default=0.0,
        description="So long after the load, or the workloads, started; with `after` so long after that one's end.",
        json_schema_extra={"default": "0s"},
    )
    within: Duration = Field(
        default=30.0, gt=0, le=3600, description="Watched so long at most.", json_schema_extra={"default": "30s"}
    )

    stable_for: Annotated[Duration, Field(ge=1)] | None = Field(
        default=None,
        alias="stableFor",
        description="With a `command` that goes on running: watched no longer once nothing has changed for so long; "
        "without it for all of `within`.",
    )

    @model_validator(mode="after")
    def _sound(self) -> Workload:
        problems: list[tuple[KeyPath, str]] = []
        if self.stable_for is not None and self.command is None:
            problems.append((("stableFor",), "goes with `command`: what only sleeps is watched until it is placed"))
        if self.stable_for is not None and self.stable_for >= self.within:
            problems.append((("stableFor",), f"has to be shorter than `within` ({self.within:g}s)"))
        if self.shared_claim and self.claim is None:
            problems.append((("sharedClaim",), "needs a `claim` to share"))
        if self.fleet and self.prints is not None:
            problems.append((("prints",), "a simulated node runs no container: nothing is printed there"))
        if self.fleet and self.command is not None:
            problems.append((("command",), "a simulated node runs no container: leave the command out"))
        problems += [(("pod", key), f"is written as {ours}") for key, ours in _OURS.items() if key in self.pod]
        problems += [(("container", key), f"write `{key}` beside `container`") for key in _taken(self.container)]
        if problems:
            raise Mistakes(problems)
        return self

    @property
    def gpus(self) -> int:
        """Whole GPUs that each pod asks for as a resource."""
        amount = str(self.resources.get(GPU, 0))
        return int(amount) if amount.isdigit() else 0

    @property
    def placement(self) -> dict[str, Any]:
        """What `fleet` stands for, as a partial pod spec."""
        if not self.fleet:
            return {}
        return {
            "nodeSelector": {FLEET_LABEL: FLEET_VALUE},
            "tolerations": [{"key": FLEET_LABEL, "operator": "Exists", "effect": "NoSchedule"}],
        }


def _taken(container: dict[str, Any]) -> list[str]:
    return [key for key in _CONTAINER_OURS if key in container]
