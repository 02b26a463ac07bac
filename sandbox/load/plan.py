"""What the load process is told, as one JSON file: it needs nothing else of the run."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from sandbox.spec import profile as profiles
from sandbox.spec.base import Strict
from sandbox.spec.profile import Profile
from sandbox.spec.scenario import Arrivals, Load
from sandbox.timeline import Timeline


class LoadPlan(Strict):
    """One load, resolved. Times in seconds; the key itself is never in here, only the variable that holds it."""

    url: str = Field(description="http(s)://host:port, with or without /v1.")
    model: str
    profile: Profile = Field(description="With its prompts read in.")
    arrivals: Arrivals
    duration: float = Field(gt=0)
    timeout: float = Field(default=60.0, gt=0)
    idle_timeout: float = Field(default=10.0, gt=0)
    grace: float = Field(default=5.0, ge=0, description="What requests in flight get when the load is stopped early.")
    api_key_env: str = Field(default="", description="Environment variable with the API key; empty: none is sent.")
    ca_file: Path | None = Field(default=None, description="Certificates to trust, for https with an own CA.")
    headers: dict[str, str] = Field(default_factory=dict)
    keep_alive: bool = Field(default=False, description="Reuse connections; the default opens one per request.")
    number_requests: bool = Field(default=False, description="Put each request's number into its tags.")
    tags: dict[str, str] = Field(default_factory=dict)
    epoch_ns: int = Field(description="CLOCK_MONOTONIC at t=0 of the run.")
    timeline: Path

    @field_validator("profile")
    @classmethod
    def _read_in(cls, value: Profile) -> Profile:
        if isinstance(value.prompts, str):
            raise ValueError(  # noqa: TRY004 - pydantic turns ValueErrors into messages
                "name the profile through sandbox.spec.profile.resolve: its prompts are not read in yet"
            )
        return value

    @field_validator("headers")
    @classmethod
    def _one_line(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not f"{name}{text}".isprintable() or not name.isascii() or not name or set(name) & set(" :"):
                raise ValueError(f"{name!r} is not a header that can be sent")
        return value


def plan_for(load: Load, timeline: Timeline, *, url: str, model: str, tags: dict[str, str] | None = None) -> LoadPlan:
    """Return the plan of a scenario's `load`, written to `timeline`'s clock and file.

    Raises:
        UsageError: the profile does not exist or is wrong.
    """
    return LoadPlan(
        url=url,
        model=model,
        profile=profiles.resolve(load.profile),
        arrivals=load.arrivals,
        duration=load.duration,
        timeout=load.timeout,
        idle_timeout=load.idle_timeout,
        tags={"profile": load.profile, **(tags or {})},  # as the scenario names it, and its selectors ask for it
        epoch_ns=timeline.epoch_ns,
        timeline=timeline.path.resolve(),
    )
