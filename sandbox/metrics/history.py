"""A timeline taken apart, event by event: of a run that is over, or of one that still goes on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sandbox.metrics.pods import Pods
from sandbox.metrics.table import Rules, Table
from sandbox.spec.results import Window
from sandbox.timeline import (
    ClientBeat,
    Event,
    FaultEvent,
    LoadFinished,
    LoadStarted,
    PhaseChanged,
    Request,
    RunFinished,
)

# Written while and after a run is judged: to judge it again must give the same.
_AFTERWARDS = ("judge", "report", "clean up")


@dataclass(frozen=True)
class FaultWindow:
    """When one fault acted. `injected`/`proven`/`healed` are None where that never happened.

    `late`: seconds by which it may have been healed before that was seen.
    """

    index: int
    name: str
    started: float
    injected: float | None
    proven: float | None
    healed: float | None
    late: float = 0.0


@dataclass
class Record:
    """What a timeline holds, for everything that is asked of it.

    Attributes:
        limits: request-level limits in seconds (see `Load.good`).
        pods: of the scenario's workloads.
        kept: keep the requests themselves too, to show the worst of them; figures need only the table.
        requests: in the order of the table's rows; empty where they are not kept.
        load_asked: seconds for which requests were to start.
        end: when the last event came.
    """

    limits: dict[str, float] = field(default_factory=dict)
    pods: Pods = field(default_factory=Pods)
    kept: bool = True
    table: Table = field(default_factory=Table)
    requests: list[Request] = field(default_factory=list)
    beats: list[ClientBeat] = field(default_factory=list)
    load_started: float | None = None
    load_asked: float = 0.0
    load_finished: float | None = None
    end: float = 0.0
    _lives: dict[int, list[FaultEvent]] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        """Go on by one event."""
        afterwards = isinstance(event, RunFinished) or (isinstance(event, PhaseChanged) and event.name in _AFTERWARDS)
        if not afterwards:
            self.end = max(self.end, event.t)
        match event:
            case Request():
                self.table.append(event)
                if self.kept:
                    self.requests.append(event)
            case ClientBeat():
                self.beats.append(event)
            case FaultEvent():
                self._lives.setdefault(event.index, []).append(event)
            case LoadStarted():
                self.load_started = event.t
                asked = event.asked.get("duration")
                self.load_asked = float(asked) if isinstance(asked, int | float) else 0.0
            case LoadFinished():
                self.load_finished = event.t
            case _:
                self.pods.take(event)

    @property
    def faults(self) -> list[FaultWindow]:
        """Of each fault that was begun, when it acted."""
        return [_life(life) for life in self._lives.values()]

    @property
    def heal_late(self) -> float:
        """Seconds by which the phase `fault` may have ended before it was seen to."""
        healed = [fault for fault in self.faults if fault.injected is not None and fault.healed is not None]
        return max(healed, key=lambda fault: fault.healed or 0.0).late if healed else 0.0

    @property
    def machine(self) -> float | None:
        """Share of the machine's cores that others used while the load ran; None where nobody looked."""
        told = [beat.machine for beat in self.beats if beat.machine is not None]
        return sum(told) / len(told) if told else None

    @property
    def windows(self) -> list[Window]:
        """Phases of the load that tile it - baseline, fault, recovery - and one window per fault."""
        if self.load_started is None:
            return []
        begin, end = self.load_started, max(self.load_finished or self.end, self.load_started)
        acted = [fault for fault in self.faults if fault.injected is not None]
        faults = [
            Window(
                name=fault.name, kind="fault", start=fault.started, end=end if fault.healed is None else fault.healed
            )
            for fault in acted
        ]
        if not faults:
            return [Window(name="baseline", kind="phase", start=begin, end=end)]
        first = min(window.start for window in faults)
        last = min(max(window.end for window in faults), end)
        phases = [("baseline", begin, first), ("fault", first, last), ("recovery", last, end)]
        return [Window(name=name, kind="phase", start=start, end=stop) for name, start, stop in phases] + faults


def record(
    events: Iterable[Event],
    limits: dict[str, float] | None = None,
    workloads: dict[str, str] | None = None,
    rules: Rules | None = None,
) -> Record:
    """Take a run's events apart.

    Args:
        events: of one run.
        limits: request-level limits in seconds (see `Load.good`).
        workloads: those of the scenario, each with the `because` it has, if any.
        rules: by what the client ended requests.
    """
    found = Record(limits or {}, Pods(workloads or {}), table=Table(rules=rules))
    for event in events:
        found.take(event)
    return found


def _life(life: Sequence[FaultEvent]) -> FaultWindow:
    first: dict[str, float] = {}
    late = 0.0
    for event in life:
        if event.state == "healed" and "healed" not in first:
            late = event.uncertainty or 0.0
        first.setdefault(event.state, event.t)
    return FaultWindow(
        index=life[0].index,
        name=life[0].fault,
        started=first.get("started", life[0].t),
        injected=first.get("injected"),
        proven=first.get("proven"),
        healed=first.get("healed"),
        late=late,
    )
