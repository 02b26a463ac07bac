"""A load: what is sent, to whom, when each request starts, for how long, and by how many processes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, field_validator, model_validator

from sandbox.spec.base import Duration, Mistakes, Name, Strict
from sandbox.spec.lengths import Pause

STAGED = ("constant", "poisson", "gamma")
MOST_RATE = 10000  # requests per second
_ROUNDING = 1e-6
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_HEADERS = "Sent with every request; `${NAME}` stands for the environment variable of that name."
_FRAMING = frozenset({"connection", "content-length", "transfer-encoding", "upgrade", "expect", "te", "trailer"})
_SECRET = frozenset({"authorization", "proxy-authorization", "cookie", "api-key", "x-api-key", "x-goog-api-key"})


def _as(default: str) -> dict[str, Any]:
    """A default as it is written: the schema's own would be the bare number that is refused."""
    return {"default": default}


class Stage(Strict):
    """One stretch of a rate that changes: a step to `rate`, or a ramp to `rampTo` from the rate before it."""

    rate: float | None = Field(default=None, ge=0, le=MOST_RATE, description="Requests per second, from its start on.")
    ramp_to: float | None = Field(
        default=None, alias="rampTo", ge=0, le=MOST_RATE, description="Reached in a straight line at its end."
    )
    during: Duration = Field(alias="for", gt=0, le=86400)

    @model_validator(mode="after")
    def _one_kind(self) -> Stage:
        if (self.rate is None) == (self.ramp_to is None):
            raise ValueError("write either `rate` (a step) or `rampTo` (a ramp), with `for`")
        return self


class Arrivals(Strict):
    """When requests start. Open loop: a rate, or a trace; closed loop: users that wait for their answer."""

    process: Literal["constant", "poisson", "gamma", "trace", "closed"] = "poisson"
    rate: float | None = Field(default=None, gt=0, le=MOST_RATE, description="Requests per second (open loop).")
    stages: list[Stage] = Field(default_factory=list, description="In place of `rate`: steps and ramps.")
    burstiness: float | None = Field(
        default=None, gt=0, le=1000, description="Gamma: shape of the gaps; 1 is Poisson, below it come bursts."
    )
    trace: str | None = Field(
        default=None, min_length=1, description="A file of loadtests/traces/, or a path: Azure CSV or Mooncake JSONL."
    )
    speed: float = Field(default=1.0, gt=0, le=1000, description="Trace: 2 replays it in half its time.")
    users: int | None = Field(default=None, gt=0, le=10000, description="Users at once (closed loop).")
    spawn_rate: float | None = Field(
        default=None, alias="spawnRate", gt=0, description="Users that start per second; all at once if not given."
    )
    think: Pause | None = Field(
        default=None, description="Closed loop: what a user waits between an answer and the next request."
    )
    seed: int = Field(default=1, description="The same seed gives the same arrivals and prompts.")
    max_in_flight: int = Field(default=2000, alias="maxInFlight", ge=1, description="Beyond it arrivals are `dropped`.")

    @model_validator(mode="after")
    def _one_kind(self) -> Arrivals:
        problems = [*self._source(), *self._belonging()]
        if problems:
            raise Mistakes([((), problem) for problem in problems])
        return self

    def _source(self) -> list[str]:
        rated = self.rate is not None or bool(self.stages)
        if self.process == "closed":
            return [] if self.users is not None and not rated else ["closed arrivals take `users` and no `rate`"]
        if self.process == "trace":
            wrong = self.trace is None or rated or self.users is not None
            return ["trace arrivals take `trace`, and no `rate` or `users`: the trace says when"] if wrong else []
        if self.rate is not None and self.stages:
            return ["write either `rate` or `stages`, not both"]
        if self.stages and not any(stage.rate or stage.ramp_to for stage in self.stages):
            return ["stages: at least one needs a rate above 0"]
        if not rated or self.users is not None:
            return [f"{self.process} arrivals take `rate` (or `stages`) and no `users`"]
        return []

    def _belonging(self) -> list[str]:
        """Keys that mean nothing for this process."""
        given = {
            "burstiness": (self.burstiness is not None, "gamma"),
            "trace": (self.trace is not None, "trace"),
            "speed": (self.speed != 1.0, "trace"),
            "think": (self.think is not None, "closed"),
            "spawnRate": (self.spawn_rate is not None, "closed"),
        }
        found = [f"`{key}` is for `process: {process}`" for key, (there, process) in given.items()
                 if there and process != self.process]  # fmt: skip
        if self.process == "gamma" and self.burstiness is None:
            found.append("gamma arrivals take `burstiness`: 1 is Poisson, 0.25 comes in bursts")
        return found

    def in_words(self) -> str:
        """One phrase: how often."""
        if self.process == "closed":
            return f"{self.users} users"
        if self.process == "trace":
            return f"as in {self.trace}{f', {self.speed:g} times as fast' if self.speed != 1 else ''}"
        steps = [
            f"{stage.rate:g}/s" if stage.rate is not None else f"ramp to {stage.ramp_to:g}/s" for stage in self.stages
        ]
        return f"{f'{self.rate:g}/s' if self.rate else ', '.join(steps)} {self.process}"

    @property
    def staged(self) -> float | None:
        """Seconds that the stages take together; None without stages."""
        return sum(stage.during for stage in self.stages) if self.stages else None


class Share(Strict):
    """One part of a mixed load: its profile, and on whose behalf it is sent to which model."""

    profile: Name = Field(description="A file of loadtests/profiles/.")
    weight: float = Field(default=1.0, gt=0, description="Of all arrivals it gets weight / sum of weights.")
    model: str | None = Field(default=None, min_length=1, description="The endpoint's own where it is left out.")
    tenant: Name | None = Field(default=None, description="A tag for SLOs; its own API key and headers, if given.")
    api_key_env: str | None = Field(
        default=None, alias="apiKeyEnv", min_length=1, description="Environment variable that holds the API key."
    )
    headers: dict[str, str] = Field(default_factory=dict, description=_HEADERS)

    @field_validator("headers")
    @classmethod
    def _one_line(cls, value: dict[str, str]) -> dict[str, str]:
        return sendable(value)


def sendable(headers: dict[str, str]) -> dict[str, str]:
    """Refuse what cannot be sent as a header, and a secret: a scenario is written into reports."""
    for name, text in headers.items():
        if not f"{name}{text}".isprintable() or not name.isascii() or not name or set(name) & set(" :"):
            raise ValueError(f"{name!r} is not a header that can be sent")
        if not text.isascii():
            raise ValueError(f"{name}: a header's text must be ASCII")
        if name.lower() in _FRAMING:
            raise ValueError(f"{name} is written by the client, which knows what it sends")
        if name.lower() in _SECRET and not VARIABLE.search(text):
            raise ValueError(f"{name} is a secret, and reports are shared: name a variable that holds it, as ${{NAME}}")
    return headers


def variables_in(headers: Mapping[str, str]) -> set[str]:
    """The environment variables that headers name as `${NAME}`."""
    return {name for text in headers.values() for name in VARIABLE.findall(text)}


class Endpoint(Strict):
    """Any OpenAI-compatible server, in place of a stack of ours."""

    url: str = Field(pattern=r"^https?://", description="http(s)://host:port, with or without /v1.")
    model: str | None = Field(default=None, description="What is asked for; may be left out where one is served.")
    api_key_env: str | None = Field(
        default=None, alias="apiKeyEnv", min_length=1, description="Environment variable that holds the API key."
    )
    ca_file: Path | None = Field(default=None, alias="caFile", description="Certificates to trust, for an own CA.")
    headers: dict[str, str] = Field(default_factory=dict, description=_HEADERS)

    @field_validator("headers")
    @classmethod
    def _one_line(cls, value: dict[str, str]) -> dict[str, str]:
        return sendable(value)

    @field_validator("url")
    @classmethod
    def _without_secrets(cls, value: str) -> str:
        if "@" in urlsplit(value).netloc:
            raise ValueError("holds a user or a password, and reports are shared: leave it out, see `apiKeyEnv`")
        return value


class Workers(Strict):
    """Who sends: processes of this machine, or pods of the cluster; Locust distributes either way."""

    processes: int = Field(default=1, ge=1, le=64, description="Locust workers on this machine.")
    pods: int | None = Field(default=None, ge=1, le=64, description="Locust workers as pods instead.")
    cluster: str | None = Field(
        default=None, min_length=1, description="Pods: the name of another running cluster that sends; else the tested."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Workers:
        if self.pods is not None and self.processes != 1:
            raise ValueError("write either `processes` or `pods`")
        if self.cluster is not None and self.pods is None:
            raise ValueError("`cluster` says where `pods` run: write `pods` too")
        return self


def _stages_last(schema: dict[str, Any]) -> None:
    """Editors must take a load whose stages say how long it lasts; the model says it where neither does."""
    schema["required"].remove("duration")


class Load(Strict):
    """What is sent, how often, for how long."""

    model_config = ConfigDict(json_schema_extra=_stages_last)

    profile: Name | None = Field(default=None, description="A file of loadtests/profiles/.")
    mix: list[Share] = Field(default_factory=list, description="In place of `profile`: several, with weights.")
    locustfile: str | None = Field(
        default=None, min_length=1, description="In place of `profile`: a locustfile of your own, run as it is."
    )
    arrivals: Arrivals
    duration: Duration = Field(gt=0, le=86400, description="May be left out with `stages`: their sum.")
    timeout: Duration = Field(
        default=60.0, gt=0, description="A request not done by then ends as `timeout`.", json_schema_extra=_as("60s")
    )
    good: dict[Literal["ttft", "ttft_intended", "tpot", "e2e"], Duration] = Field(
        default_factory=dict, description="Request-level limits a good request must meet, such as {ttft: 1s}."
    )
    idle_timeout: Duration = Field(
        default=10.0,
        alias="idleTimeout",
        gt=0,
        description="A stream silent for so long is cut.",
        json_schema_extra=_as("10s"),
    )
    keep_alive: bool = Field(
        default=False, alias="keepAlive", description="Reuse connections; the default opens one per request."
    )
    endpoint: Endpoint | None = Field(default=None, description="Where it goes, if not to the stack.")
    workers: Workers = Field(default_factory=Workers)

    @model_validator(mode="before")
    @classmethod
    def _sum_of_stages(cls, value: Any) -> Any:
        """The duration of staged arrivals is the sum of their stages."""
        if not isinstance(value, dict) or "duration" in value:
            return value
        arrivals = value.get("arrivals")
        try:
            made = arrivals if isinstance(arrivals, Arrivals) else Arrivals.model_validate(arrivals)
        except ValueError:
            return value  # said where the arrivals are read
        return value if made.staged is None else {**value, "duration": f"{made.staged:.6f}s"}

    @model_validator(mode="after")
    def _sound(self) -> Load:
        problems: list[str] = []
        if [self.profile is not None, bool(self.mix), self.locustfile is not None].count(True) != 1:
            problems.append("write exactly one of `profile`, `mix` or `locustfile`")
        if self.locustfile is not None and self.arrivals.process != "closed":
            problems.append("a `locustfile` brings its own users: write `arrivals: {process: closed, users: N}`")
        if self.locustfile is not None and self.endpoint and (self.endpoint.api_key_env or self.endpoint.headers):
            problems.append("a `locustfile` brings keys and headers of its own: leave those of `endpoint` out")
        if (staged := self.arrivals.staged) is not None and abs(staged - self.duration) > _ROUNDING * staged:
            problems.append(f"the stages take {staged:g}s together; leave `duration` out, or make it so long")
        if problems:
            raise Mistakes([((), problem) for problem in problems])
        return self

    @property
    def shares(self) -> list[Share]:
        """What is mixed: one share where there is one profile, none where a locustfile decides."""
        return self.mix or ([Share(profile=self.profile)] if self.profile else [])
