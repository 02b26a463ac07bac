"""A scenario: what runs, what is done to it, and what must hold."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from sandbox.spec.base import API_VERSION, Duration, KeyPath, Metadata, Mistakes, Name, Strict
from sandbox.spec.slo import Slo, check_slo

_RESERVED = frozenset({"at", "for"})


class StackUse(Strict):
    """A reference inference stack and its values."""

    name: Name
    values: dict[str, Any] = Field(default_factory=dict, description="Checked against the stack's own stack.yaml.")


class Named(Strict):
    """`- name: {param: value}`: one probe or fault by its registered name, with its parameters."""

    name: str = Field(description="A registered name, such as pod.kill or openai.chat.")
    params: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _unfold(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value, "params": {}}
        if not isinstance(value, dict) or "name" in value:
            return value
        names = [key for key in value if key not in _RESERVED]
        if len(names) != 1:
            raise ValueError("write exactly one name here, such as `pod.kill: {count: 1}`")
        rest = {key: item for key, item in value.items() if key in _RESERVED}
        return {"name": names[0], "params": value[names[0]] or {}, **rest}


class FaultUse(Named):
    """A fault and when it strikes, counted from the start of the load."""

    at: Duration = Field(description="Seconds after the load started.")
    lasting: Duration | None = Field(default=None, alias="for", description="How long it is held before it is healed.")


class Arrivals(Strict):
    """When requests start. Open loop: a rate per second; closed loop: users that wait for their answer."""

    process: Literal["constant", "poisson", "closed"] = "poisson"
    rate: float | None = Field(default=None, gt=0, le=10000, description="Requests per second (open loop).")
    users: int | None = Field(default=None, gt=0, le=10000, description="Users at once (closed loop).")
    seed: int = Field(default=1, description="The same seed gives the same arrivals and prompts.")
    max_in_flight: int = Field(default=2000, alias="maxInFlight", ge=1, description="Beyond it arrivals are `dropped`.")

    @model_validator(mode="after")
    def _one_kind(self) -> Arrivals:
        if self.process == "closed":
            if self.users is None or self.rate is not None:
                raise ValueError("closed arrivals take `users` and no `rate`")
        elif self.rate is None or self.users is not None:
            raise ValueError(f"{self.process} arrivals take `rate` and no `users`")
        return self


class Load(Strict):
    """What is sent, how often, for how long."""

    profile: Name = Field(description="A file of loadtests/profiles/.")
    arrivals: Arrivals
    duration: Duration = Field(gt=0, le=86400)
    timeout: Duration = Field(default=60.0, gt=0, description="A request not done by then ends as `timeout`.")
    good: dict[Literal["ttft", "ttft_intended", "tpot", "e2e"], Duration] = Field(
        default_factory=dict, description="Request-level limits a good request must meet, such as {ttft: 1s}."
    )
    idle_timeout: Duration = Field(
        default=10.0, alias="idleTimeout", gt=0, description="A stream silent for so long is cut."
    )


class Recover(Strict):
    """How long the steady state may take to come back after load and faults ended."""

    within: Duration = Field(default=60.0, gt=0)


ScenarioSlo = Annotated[Slo, AfterValidator(check_slo)]
Probes = Annotated[
    list[Named],
    WithJsonSchema({"type": "array", "items": {"type": ["object", "string"], "minProperties": 1, "maxProperties": 1}}),
]
Faults = Annotated[
    list[FaultUse],
    WithJsonSchema(
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"at": {"type": "string"}, "for": {"type": "string"}},
                "required": ["at"],
            },
        }
    ),
]


class Scenario(Strict):
    """One question put to one stack: does it hold?"""

    api_version: Literal["sandbox/v1"] = Field(default=API_VERSION, alias="apiVersion")
    kind: Literal["Scenario"]
    metadata: Metadata
    cluster: str = Field(default="solo", min_length=1, description="A file of clusters/, by name or path.")
    stack: StackUse
    guardrails: list[Name] = Field(default_factory=list, description="Folders of sandbox/guardrails/, applied first.")
    attacks: list[str] = Field(
        default_factory=list,
        description="Attempts of the catalogue made during the load; [all] for every one.",
    )
    steady_state: Probes = Field(alias="steadyState", min_length=1, description="Must hold before, and again after.")
    load: Load | None = None
    faults: Faults = Field(default_factory=list)
    recover: Recover = Field(default_factory=Recover)
    slo: ScenarioSlo = Field(default_factory=dict)
    validity: ScenarioSlo = Field(default_factory=dict, description="As slo; a breach gives `invalid`, not `fail`.")

    @model_validator(mode="after")
    def _sound(self) -> Scenario:
        problems: list[tuple[KeyPath, str]] = []
        if self.load is None:
            given = [key for key in ("slo", "faults", "attacks") if getattr(self, key)]
            problems += [((key,), "needs a `load`: without requests nothing would be measured") for key in given]
        else:
            if not self.slo:
                problems.append((("load",), "a load without `slo` could not fail; write at least one threshold"))
            problems += [
                (("faults", position, "at"), f"strikes after the load has ended ({self.load.duration:g}s)")
                for position, fault in enumerate(self.faults)
                if fault.at >= self.load.duration
            ]
        if problems:
            raise Mistakes(problems)
        return self
