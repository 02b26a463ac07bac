"""`results.json`: the verdict with its checks and figures; a report shows this and the timeline, nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from sandbox.spec.base import Strict

Status = Literal["pass", "fail", "invalid"]
_WORST: dict[Status, int] = {"pass": 0, "invalid": 1, "fail": 2}


def worst(statuses: Iterable[Status]) -> Status:
    """Fail > invalid > pass. Of nothing at all: `invalid`, for no data is never a pass."""
    found = list(statuses)
    return max(found, key=_WORST.__getitem__) if found else "invalid"


class Check(Strict):
    """One question with one answer."""

    id: str = Field(description="Stable, such as slo/ttft{phase:fault}/p(99)<=300ms or attack/1-privileged-pod.")
    group: Literal["phase", "steady-state", "fault", "slo", "workload", "attack", "validity"]
    title: str = Field(description="What was asked, for a person.")
    status: Status
    observed: str = Field(description="What was seen, with its unit.")
    expected: str = Field(description="What had to be.")
    low: float | None = Field(
        default=None, description="The least that the figure can be in truth, in seconds, shares or counts."
    )
    high: float | None = Field(default=None, description="The greatest; null: not a figure, or nothing limits it.")
    samples: int | None = None
    reason: str = Field(default="", description="Why it failed or could not be proven, and what to change.")
    evidence: list[str] = Field(default_factory=list, description="Lines a reader can verify, times included.")


class Window(Strict):
    """A stretch of the run, seconds since it began. `phase` windows tile the load; a fault window may be open-ended."""

    name: str
    kind: Literal["phase", "fault"]
    start: float
    end: float


class Summary(Strict):
    """Figures of one phase (or `all`), of all requests or those of a tag. Times in seconds; null without a sample."""

    phase: str
    tags: dict[str, str] = Field(default_factory=dict, description="Such as {tenant: a}; empty: of every request.")
    requests: int
    outcomes: dict[str, int]
    good_fraction: float | None
    request_rate: float | None
    token_rate: float | None
    tokens_in: int | None = Field(
        default=None, description="Of the prompts that were answered; null where the server did not say it of each."
    )
    tokens_out: int = Field(default=0, description="Received in answers that ended `ok`.")
    percentiles: dict[str, dict[str, float | None]] = Field(
        description="metric -> {p50, p90, p95, p99, min, max, mean, std, count}; metrics ttft, ttft_intended, tpot, "
        "ntpot, icl, e2e, sched_lag"
    )


class WorkloadSummary(Strict):
    """What became of the pods of one workload. Times in seconds; null where there was nothing to measure."""

    workload: str
    pods: int = Field(description="As many as the scenario asks for.")
    created: int
    refused: int
    scheduled: int
    pending: int
    running: int
    succeeded: int
    failed: int
    lost: int
    nodes: int = Field(description="That pods got.")
    gpus: int = Field(description="That pods got.")
    creation_rate: float | None = Field(description="Pods created per second; the scheduler cannot be quicker.")
    scheduling_rate: float | None
    scheduling_seconds: dict[str, float] = Field(description="p50, p99, max")
    said: list[str] = Field(default_factory=list, description="Why pods waited, failed or were refused, with counts.")


class Results(Strict):
    """One run, judged."""

    api_version: Literal["sandbox/v1"] = Field(default="sandbox/v1", alias="apiVersion")
    kind: Literal["Results"] = "Results"
    run_id: str
    scenario: str
    source: str = Field(default="", description="The scenario's file, as the run was given it.")
    description: str
    started: str
    duration: float = Field(description="Seconds from the first event to the last.")
    verdict: Status
    headline: str = Field(description="One sentence: what held, or what broke first.")
    checks: list[Check]
    windows: list[Window] = Field(default_factory=list)
    summaries: list[Summary] = Field(default_factory=list)
    workloads: list[WorkloadSummary] = Field(default_factory=list)
    time_to_recover: float | None = None
    facts: dict[str, dict[str, Any]] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)

    def count(self, status: Status) -> int:
        """How many checks have that status."""
        return sum(check.status == status for check in self.checks)
