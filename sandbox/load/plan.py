"""What the load process is told, as one JSON file: it needs nothing else of the run."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from sandbox.spec import profile as profiles
from sandbox.spec import trace
from sandbox.spec.base import Strict
from sandbox.spec.loadtest import Arrivals, Load, sendable
from sandbox.spec.locustfile import locate
from sandbox.spec.profile import Profile
from sandbox.spec.trace import Row
from sandbox.timeline import Note, Timeline

_WHOLE = 0.98  # of what was asked for: the last request of a trace comes a little before its end


class PlannedShare(Strict):
    """One part of the load, resolved. The key itself is never in here, only the variable that holds it."""

    profile: Profile = Field(description="With its prompts read in.")
    name: str = Field(default="", description="What the scenario calls the profile; its own name, if not given.")
    model: str
    tenant: str = ""
    weight: float = Field(default=1.0, gt=0)
    api_key_env: str = Field(default="", description="Environment variable with the API key; empty: none is sent.")
    headers: dict[str, str] = Field(default_factory=dict)

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
        return sendable(value)

    @property
    def tags(self) -> dict[str, str]:
        """What selectors ask for."""
        tags = {"model": self.model, "profile": self.name or self.profile.metadata.name}
        return {**tags, "tenant": self.tenant} if self.tenant else tags


class LoadPlan(Strict):
    """One load, resolved. Times in seconds."""

    url: str = Field(description="http(s)://host:port, with or without /v1.")
    model: str = Field(description="The endpoint's own; a share may ask for another.")
    shares: list[PlannedShare] = Field(default_factory=list, description="None where a locustfile decides.")
    locustfile: Path | None = None
    arrivals: Arrivals
    rows: list[Row] = Field(default_factory=list, description="The trace that is replayed.")
    duration: float = Field(gt=0)
    timeout: float = Field(default=60.0, gt=0)
    idle_timeout: float = Field(default=10.0, gt=0)
    grace: float = Field(default=5.0, ge=0, description="What requests in flight get when the load is stopped early.")
    ca_file: Path | None = Field(default=None, description="Certificates to trust, for https with an own CA.")
    keep_alive: bool = Field(default=False, description="Reuse connections; the default opens one per request.")
    processes: int = Field(default=1, ge=1, description="Locust workers on this machine.")
    golden: str = Field(default="", description="URL of the golden server; empty: the client is not calibrated.")
    number_requests: bool = Field(default=False, description="Put each request's number into its tags.")
    tags: dict[str, str] = Field(default_factory=dict, description="Of every request, beside its share's.")
    epoch_ns: int = Field(description="CLOCK_MONOTONIC at t=0 of the run.")
    timeline: Path


def shares_for(load: Load, model: str) -> list[PlannedShare]:
    """Return the parts of a scenario's load, profiles read in; `model` is asked for where a share names none.

    Raises:
        UsageError: a profile does not exist or is wrong.
    """
    endpoint = load.endpoint
    return [
        PlannedShare(
            profile=profiles.resolve(share.profile),
            name=share.profile,  # as the scenario names it, and its selectors ask for it
            model=share.model or model,
            tenant=share.tenant or "",
            weight=share.weight,
            api_key_env=share.api_key_env or (endpoint.api_key_env if endpoint else None) or "",
            headers={**(endpoint.headers if endpoint else {}), **share.headers},
        )
        for share in load.shares
    ]


def rows_for(load: Load) -> list[Row]:
    """Return the lines of the trace that a load replays, as far as it gets; none where it replays none.

    Raises:
        UsageError: the trace does not exist or is wrong; names each line.
    """
    wanted = load.arrivals
    return trace.resolve(wanted.trace, load.duration * wanted.speed) if wanted.trace else []


def plan_for(
    load: Load, timeline: Timeline, *, url: str, model: str, golden: str = "", tags: dict[str, str] | None = None
) -> LoadPlan:
    """Return the plan of a scenario's `load`, written to `timeline`'s clock and file.

    Raises:
        UsageError: a profile or trace does not exist or is wrong, or a locustfile does not exist.
    """
    rows = rows_for(load)
    if rows and (last := rows[-1].at / load.arrivals.speed) < _WHOLE * load.duration:
        words = f"the trace ended before the load: its last of {len(rows)} requests was due after {last:.1f} s"
        timeline.append(
            Note(t=timeline.now(), level="info", message=f"{words}, and {load.duration:g} s were asked for")
        )
    return LoadPlan(
        url=url,
        model=model,
        shares=shares_for(load, model),
        locustfile=locate(load.locustfile) if load.locustfile else None,
        arrivals=load.arrivals,
        rows=rows,
        duration=load.duration,
        timeout=load.timeout,
        idle_timeout=load.idle_timeout,
        ca_file=load.endpoint.ca_file if load.endpoint else None,
        keep_alive=load.keep_alive,
        processes=load.workers.processes,
        golden=golden,
        tags=tags or {},
        epoch_ns=timeline.epoch_ns,
        timeline=timeline.path.resolve(),
    )
