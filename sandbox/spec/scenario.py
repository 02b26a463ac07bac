"""A scenario: what runs, what is done to it, and what must hold."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, WithJsonSchema, model_validator

from sandbox.spec.base import API_VERSION, Duration, Metadata, Mistakes, Name, Strict
from sandbox.spec.contradictions import contradictions
from sandbox.spec.loadtest import Arrivals, Load
from sandbox.spec.slo import Slo, Threshold, check_slo
from sandbox.spec.validity import check_loosen
from sandbox.spec.workload import Workload

__all__ = ["Arrivals", "FaultUse", "Load", "Named", "Recover", "Scenario", "StackUse", "Steady", "called"]
_AT = "at"


class Named(Strict):
    """`- name: {param: value}`: one probe, fault or guardrail by its name, with its parameters."""

    name: str = Field(description="A registered name, such as pod.kill or openai.chat; or a guardrail's.")
    params: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _unfold(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value, "params": {}}
        if not isinstance(value, dict) or "name" in value:
            return value
        names = [key for key in value if key != _AT]
        if len(names) != 1:
            there = ", ".join(map(str, names)) or "none"
            raise ValueError(f"write exactly one name here, such as `pod.kill: {{count: 1}}`; there: {there}")
        rest = {key: item for key, item in value.items() if key == _AT}
        return {"name": names[0], "params": {} if value[names[0]] is None else value[names[0]], **rest}


class FaultUse(Named):
    """A fault and when it strikes, counted from the start of the load, or of the first workload without one."""

    at: Duration = Field(description="After the load started.")


class Recover(Strict):
    """How long the steady state may take to come back after load and faults ended."""

    within: Duration = Field(default=60.0, gt=0, json_schema_extra={"default": "60s"})


class Steady(Strict):
    """What makes a state steady: so many looks in a row, in each of which every probe holds."""

    looks: int = Field(default=3, ge=2, le=100, description="In a row; one yes is a moment, and no state.")
    every: Duration = Field(
        default=0.5,
        gt=0,
        le=10,
        description="From the start of one look to the next.",
        json_schema_extra={"default": "500ms"},
    )


ScenarioSlo = Annotated[Slo, AfterValidator(check_slo)]
Uses = Annotated[
    list[Named],
    WithJsonSchema({"type": "array", "items": {"type": ["object", "string"], "minProperties": 1, "maxProperties": 1}}),
]


class StackUse(Strict):
    """A stack, its values, and what it needs beside it."""

    name: Name
    values: dict[str, Any] = Field(default_factory=dict, description="Checked against the stack's own stack.yaml.")
    requires: Uses = Field(
        default_factory=list,
        description="Stacks that are deployed before it, such as prometheus: a name, or a name with values.",
    )


Faults = Annotated[
    list[FaultUse],
    WithJsonSchema(
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"at": {"type": "string"}},
                "required": ["at"],
            },
        }
    ),
]


class Scenario(Strict):
    """One question put to one stack, to the scheduler, or to both: does it hold?"""

    api_version: Literal["sandbox/v1"] = Field(default=API_VERSION, alias="apiVersion")
    kind: Literal["Scenario"]
    metadata: Metadata
    cluster: str = Field(default="solo", min_length=1, description="A file of clusters/, by name or path.")
    stack: StackUse | None = Field(default=None, description="What is served; may be left out beside `workloads`.")
    guardrails: Uses = Field(
        default_factory=list,
        description="Folders of sandbox/guardrails/, applied first: a name, or a name with values.",
    )
    attacks: list[str] = Field(
        default_factory=list,
        description="Attempts of the catalogue made during the load; [all] for every one.",
    )
    steady_state: Uses = Field(
        default_factory=list,
        alias="steadyState",
        description="Must hold before, and again after. A stack needs one; workloads may go without.",
    )
    steady: Steady = Field(default_factory=Steady)
    load: Load | None = None
    workloads: list[Workload] = Field(default_factory=list, description="Pods that go through the scheduler.")
    faults: Faults = Field(default_factory=list)
    recover: Recover = Field(default_factory=Recover)
    slo: ScenarioSlo = Field(default_factory=dict)
    validity: ScenarioSlo = Field(
        default_factory=dict, description="As slo, beside the defaults; a breach gives `invalid`, not `fail`."
    )
    loosen: Annotated[dict[str, Threshold], AfterValidator(check_loosen)] = Field(
        default_factory=dict,
        description="A weaker bound in place of a default of `validity`, such as {client_lag: p(99)<=50ms}.",
    )

    @model_validator(mode="after")
    def _sound(self) -> Scenario:
        if problems := contradictions(self.model_dump(mode="json", by_alias=True)):
            raise Mistakes(problems)
        return self


def called(raw: Any) -> Named | None:
    """The probe or fault that one entry of a scenario's document uses; None where it cannot be read."""
    try:
        return Named.model_validate({k: v for k, v in raw.items() if k != _AT} if isinstance(raw, dict) else raw)
    except ValidationError:
        return None
