"""The one append-only event log of a run: JSON Lines, one event a line, written as it happens.

Every event carries `t`, seconds since the run began on the machine's monotonic clock (shared by all
processes of the machine, so the load subprocess appends to the same file), and `type`. Lines are
appended with one `write` each to a file opened O_APPEND: writers do not tear each other's lines, and
a crash leaves at most one half line, which `read` reports and leaves out. Each line has its writer's number:
so the judge sees that one is missing, there twice, or in another place.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from sandbox import grammar

Lines = dict[str, dict[str, int]]  # writer -> type -> how many


class _Event(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    t: float = Field(description="Seconds since the run began.")
    writer: str = Field(default="", description="Who wrote the line: run, load, load 1/2 …")
    seq: int | None = Field(default=None, description="The line's number of its writer: 0, 1, 2 … without a gap.")
    written: float | None = Field(default=None, description="When the line was written; never before the line before.")


class RunStarted(_Event):
    """First line: what is judged, and against what."""

    type: Literal["run.started"] = "run.started"
    run_id: str
    wall: str = Field(description="UTC, ISO 8601, at t=0.")
    scenario: dict[str, Any] = Field(description="The scenario as loaded, by alias: judging needs no other file.")
    source: str = Field(description="The scenario's file name.")
    versions: dict[str, str] = Field(default_factory=dict)
    grammar: int = Field(default=1, description="Of this timeline: what its lines look like.")
    inputs: dict[str, dict[str, str]] | None = Field(None, description="What its load's files held: key -> text, hash.")


class PhaseChanged(_Event):
    """A phase of the run began or ended."""

    type: Literal["phase"] = "phase"
    name: str
    status: Literal["started", "ok", "failed"]
    detail: str = ""


class Fact(_Event):
    """Something about the ground the run stood on: cluster, image, stack, host. Shown in reports."""

    type: Literal["fact"] = "fact"
    about: str
    values: dict[str, Any]


class Probed(_Event):
    """One look at the steady state. `ok` None: the probe itself errored, nothing is known."""

    type: Literal["probe"] = "probe"
    probe: str
    index: int = Field(default=0, description="Position in the scenario's steadyState.")
    when: Literal["before", "after"]
    ok: bool | None
    detail: str
    evidence: dict[str, Any] = Field(default_factory=dict)


class LoadStarted(_Event):
    """The first scheduled arrival lies at `t`; fault times count from here."""

    type: Literal["load.started"] = "load.started"
    url: str
    model: str
    profile: str
    asked: dict[str, Any] = Field(description="Arrival process, rate or users, duration, seed.")


EMPTY = "the answer is whole, and says nothing"  # detail of an `empty` request; older clients called it `ok`
EMPTY_ALLOWED = f"{EMPTY}, as its profile allows"  # detail of an `ok` one


class Request(_Event):
    """One attempted request, written when it ended; `t` is its end. Times in seconds since the run began."""

    type: Literal["request"] = "request"
    scheduled: float
    sent: float | None = Field(description="Null: never sent (dropped, or no connection).")
    first: float | None = Field(default=None, description="First non-empty content or reasoning delta.")
    last: float | None = Field(default=None, description="Last content chunk.")
    chunks: int = 0
    tokens: int | None = Field(default=None, description="usage.completion_tokens; null when the server sent none.")
    prompt_tokens: int | None = Field(default=None, description="usage.prompt_tokens, where the server sent it.")
    gaps: list[float] = Field(default_factory=list, description="Seconds between content chunks.")
    connect_uncertainty: float | None = Field(
        default=None, description="Seconds by which the connection may have stood sooner than the client noticed."
    )
    uncertainty: list[float] | None = Field(
        default=None,
        description="Seconds by which each content chunk may have come before it was read; null: unknown.",
    )
    end_uncertainty: float | None = Field(
        default=None, description="Seconds by which the request may have ended sooner than the client noticed."
    )
    content_bytes: int | None = Field(default=None, description="Of content, reasoning and tool calls; null: unknown.")
    first_bytes: int | None = Field(default=None, description="Those of the first content chunk; null: not counted.")
    outcome: str
    status: int | None = None
    detail: str = ""
    server: str = Field(default="", description="Who answered, where the server says so.")
    tags: dict[str, str] = Field(default_factory=dict, description="model, profile, tenant")


class ClientBeat(_Event):
    """The load client on itself, about once a second."""

    type: Literal["client"] = "client"
    lag: list[float] = Field(description="How late each 10 ms heartbeat of this second was, seconds; the worst 20.")
    beats: int = Field(description="Heartbeats in this second.")
    cpu: float = Field(description="Share of one core used since the last beat.")
    machine: float | None = Field(
        default=None, description="Share of all cores that other processes used since then; null: unknown."
    )
    in_flight: int
    worker: str = Field(default="", description="Which of several load processes.")
    added: list[float] = Field(
        default_factory=list, description="What the client added to chunks of the golden server, seconds; the worst 20."
    )
    calibrated: int = Field(default=0, description="Chunks of the golden server in this second.")
    checked: int = Field(default=0, description="Those of them that a bound of the client's could be held against.")
    uncovered: int = Field(default=0, description="Those read later than their bound says: any proves bounds wrong.")
    uncovered_by: float = Field(default=0.0, description="By how much the worst of these, seconds.")
    stalls: list[tuple[float, float]] = Field(default_factory=list, description="Beats due when, how late: from 20 ms.")


class LoadAborted(_Event):
    """A threshold with `abortOnFail` was broken: the load is being ended."""

    type: Literal["load.aborted"] = "load.aborted"
    threshold: str = Field(description="The check's id, such as slo/ttft/p(50)<=50ms.")
    observed: str


class BaselineSamples(_Event):
    """What an earlier run measured, for thresholds that are held against it."""

    type: Literal["baseline"] = "baseline"
    run_id: str
    source: str = Field(description="The earlier run's folder or file.")
    selector: str = Field(description="metric{tags}, as a threshold of this run names it.")
    samples: list[float]
    low: list[float] | None = Field(
        default=None, description="As low as they may be in truth; null: they are what was measured."
    )
    high: list[float] | None = Field(default=None, description="As high as they may be in truth.")


class LoadFinished(_Event):
    """The load client ended by itself. Missing: it crashed or was killed."""

    type: Literal["load.finished"] = "load.finished"
    attempted: int
    aborted: str = Field(default="", description="Why it ended early, if it did.")
    users_asked: int | None = Field(default=None, description="Of a load of users: how many there were to be.")
    users: int | None = Field(default=None, description="How many of those ever began what they were to do.")
    targets: dict[str, int] = Field(
        default_factory=dict, description="Of a locustfile: requests by server; the load's own by its URL."
    )
    lines: Lines = Field(default_factory=dict, description="What the load's writers had written before this line.")


class FaultEvent(_Event):
    """A fault's life. `proven` has evidence from outside the injector.

    `not_healed`: the system did not come back in time. `failed`: the harness could not go on; nothing is known.
    """

    type: Literal["fault"] = "fault"
    fault: str
    index: int = Field(description="Position in the scenario's list.")
    state: Literal["started", "injected", "proven", "healed", "not_healed", "failed", "no_target"]
    detail: str = ""
    evidence: dict[str, Any] = Field(default_factory=dict)
    uncertainty: float | None = Field(
        default=None, description="Seconds by which it may have come to this state before that was seen; null: unknown."
    )


class AttackEvent(_Event):
    """One attempt by a tenant, or its allowed twin."""

    type: Literal["attack"] = "attack"
    attempt: str
    title: str
    variant: Literal["attempt", "allowed"]
    outcome: Literal["denied", "succeeded", "error"]
    expected_by: str = Field(description="Who has to deny it: R, P, Q, N …")
    by: str = Field(default="", description="Who denied it, in the same letters.")
    message: str = ""
    seconds: float = 0.0


class WorkloadStarted(_Event):
    """The first pod of a workload is about to be created."""

    type: Literal["workload.started"] = "workload.started"
    workload: str
    pods: int
    gpus: int = Field(default=0, description="Whole GPUs that each pod asks for as a resource.")
    asked: dict[str, Any] = Field(default_factory=dict, description="Of each pod: resources, claim, where it may go.")


PodState = Literal["created", "refused", "waiting", "scheduled", "allocated",
                   "running", "succeeded", "failed", "lost", "printed", "silent"]  # fmt: skip


class PodEvent(_Event):
    """Something became of a pod of a workload, as the API server told it; `t` of `created` is when it was sent.

    `waiting`: the scheduler holds it back. `lost`: deleted by others. `printed`, `silent`: its log matched, or did not.
    """

    type: Literal["pod"] = "pod"
    workload: str
    pod: str
    state: PodState
    node: str = ""
    message: str = ""
    devices: list[str] = Field(default_factory=list)


class WorkloadFinished(_Event):
    """A workload's pods were watched to an end. Missing: the harness was stopped, or could not watch."""

    type: Literal["workload.finished"] = "workload.finished"
    workload: str
    created: int
    refused: int = 0
    why: Literal["placed", "ended", "settled", "time is out"]


class WorkloadClosed(_Event):
    """How a workload's pods were when load, faults and all watches were over. Missing: nobody looked at the end."""

    type: Literal["workload.closed"] = "workload.closed"
    workload: str
    states: dict[str, int] = Field(description="How many pods were in which, such as {running: 4, pending: 2}.")


class GpuNodes(_Event):
    """What the nodes with GPUs came to at that same time: how many have so many, so many in use by whatever pods."""

    type: Literal["gpu.nodes"] = "gpu.nodes"
    groups: list[tuple[int, int, int]] = Field(description="(GPUs of a node, those in use, nodes like that)")


class RunFinished(_Event):
    """Last line: nothing was written after it. Missing: the run was killed, or lines are lost."""

    type: Literal["run.finished"] = "run.finished"
    lines: Lines = Field(description="What the run itself had written before this line.")


class Note(_Event):
    """A line for the reader: a warning, a shadowed name, something left out."""

    type: Literal["note"] = "note"
    level: Literal["info", "warning", "error"]
    message: str


Event = Annotated[
    RunStarted
    | PhaseChanged
    | Fact
    | Probed
    | LoadStarted
    | Request
    | ClientBeat
    | LoadAborted
    | BaselineSamples
    | LoadFinished
    | FaultEvent
    | AttackEvent
    | WorkloadStarted
    | PodEvent
    | WorkloadFinished
    | WorkloadClosed
    | GpuNodes
    | RunFinished
    | Note,
    Field(discriminator="type"),
]
_E = TypeVar("_E", bound=_Event)
_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)


class Timeline:
    """Appends events of one writer, and numbers them. Safe from several threads: one `write` a line, O_APPEND."""

    def __init__(self, path: Path, epoch_ns: int | None = None, writer: str = "run") -> None:
        """Open `path` for appending; `epoch_ns` is `time.monotonic_ns()` at t=0 (now, if not given).

        `writer`: nobody else's in this file, for each numbers its own lines.
        """
        self.path = path
        self.epoch_ns = time.monotonic_ns() if epoch_ns is None else epoch_ns
        self._writer = writer
        self._lock = threading.Lock()
        self._written: Counter[str] = Counter()
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def now(self) -> float:
        """Seconds since the run began."""
        return (time.monotonic_ns() - self.epoch_ns) / 1e9

    def append(self, event: Event) -> None:
        """Write one event as one line, with its number."""
        with self._lock:  # or two lines had the same number, or stood in another order than their numbers
            os.write(self._file, self._numbered(event).model_dump_json(exclude_defaults=False).encode() + b"\n")
            self._written[event.type] += 1

    @property
    def lines(self) -> Lines:
        """How many lines of each type were written here."""
        return {self._writer: dict(self._written)}

    def finished(self) -> RunFinished:
        """The run's last line as it would be written now."""
        with self._lock:
            return self._numbered(RunFinished(t=self.now(), lines=self.lines))

    def _numbered(self, event: _E) -> _E:
        return event.model_copy(update={"writer": self._writer, "seq": self._written.total(), "written": self.now()})

    def close(self) -> None:
        """Close the file; events already written stay."""
        os.close(self._file)

    def __enter__(self) -> Self:
        """For `with`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close on the way out."""
        self.close()


def wall_now() -> str:
    """UTC now, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def read(path: Path) -> Iterator[Event]:
    """Yield the events of a timeline in the order they were written.

    A last line without its newline (the writer was killed) becomes a `Note`; a broken line elsewhere, and one of
    another grammar, raises ValueError naming the line, for then the evidence cannot be trusted.
    """
    last = 0.0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                yield Note(t=last, level="warning", message=f"line {number} is cut off: the writer was killed there")
                return
            event = parsed(line, path, number)
            last = event.t
            yield event


def parsed(line: bytes, path: Path, number: int) -> Event:
    """One line of a timeline; ValueError names a broken one, and one of another grammar."""
    try:
        event = _ADAPTER.validate_json(line)
    except ValidationError as error:
        raise ValueError(f"{path}:{number}: {grammar.strange(line, error)}") from error
    if isinstance(event, RunStarted) and event.grammar > grammar.KNOWN:
        raise ValueError(f"{path}:{number}: {grammar.newer(event.grammar)}")
    return event
