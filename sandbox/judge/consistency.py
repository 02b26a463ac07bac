"""What cannot have been: times in an impossible order, two ends of one thing, a load client that skipped a second.

Each question is asked of the whole run, and answered with a sentence for each contradiction. Nothing here judges what
was tested; it says whether the evidence can be true.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sandbox.judge.pulse import pulse_problems
from sandbox.spec.scenario import Scenario
from sandbox.timeline import (
    AttackEvent,
    BaselineSamples,
    Event,
    Fact,
    FaultEvent,
    GpuNodes,
    LoadAborted,
    LoadFinished,
    LoadStarted,
    PhaseChanged,
    PodEvent,
    Probed,
    Request,
    RunFinished,
    WorkloadClosed,
    WorkloadFinished,
    WorkloadStarted,
)

PHASES = ("preflight", "up", "deploy", "verify", "exercise", "recover", "judge", "report")
_AFTERWARDS = ("judge", "report")
_EPSILON = 1e-6  # of one clock, read twice
_EARLY = 0.05  # a timer may wake that much too soon
_NEAR = 1.0  # two clocks, or two threads that tell of the same moment
_LEAD = 5.0  # a load says when it will begin
_WRITTEN_WITHIN = 10.0  # of the moment that a line tells of
_NEXT = {
    "": {"started"},
    "started": {"injected", "failed", "no_target"},
    "injected": {"proven", "failed", "no_target"},
    "proven": {"healed", "not_healed", "failed"},
}
_ENDS = frozenset({"succeeded", "failed", "lost"})
_ONCE = frozenset({"created", "refused", "scheduled"})
_EXERCISED = (
    LoadStarted, LoadFinished, LoadAborted, FaultEvent, AttackEvent, WorkloadStarted, PodEvent, WorkloadClosed, GpuNodes
)  # fmt: skip


def contradictions(scenario: Scenario, timeline: Sequence[Event]) -> list[str]:
    """Return a sentence for each thing in a timeline that contradicts another, or the clock."""
    requests = [event for event in timeline if isinstance(event, Request)]
    others = [event for event in timeline if not isinstance(event, Request)]
    return [
        *_clock(others),
        *_phases(others),
        *_places(scenario, others),
        *_load(others, requests),
        *_faults(scenario, others),
        *_attacks(scenario, others),
        *_workloads(scenario, others),
        *_single(others),
    ]


def _clock(timeline: Sequence[Event]) -> Iterator[str]:
    """No line tells of a time before the run, or of one that was still to come when it was written."""
    for event in timeline:
        if not event.t >= 0:
            yield f"{event.type} at t={event.t:.2f}s, before the run began"
        if event.written is None:
            continue
        ahead = _LEAD if isinstance(event, LoadStarted) else _EPSILON
        if event.t > event.written + ahead:
            yield f"{event.type} at t={event.t:.2f}s was written at {event.written:.2f} s, before it happened"
        elif event.t < event.written - _WRITTEN_WITHIN and not isinstance(event, PodEvent | BaselineSamples):
            yield f"{event.type} at t={event.t:.2f}s was written at {event.written:.2f} s: the clock was set in between"


def _phases(timeline: Sequence[Event]) -> Iterator[str]:
    """One after the other in the order that is always the same, each begun once and ended once."""
    changes = [event for event in timeline if isinstance(event, PhaseChanged) and event.name != "clean up"]
    if not any(change.status == "started" for change in changes):
        return
    open_, last, seen = "", 0.0, list[str]()
    for change in changes:
        if change.t < last - _EPSILON:
            yield f"phase {change.name} {change.status} at t={change.t:.2f}s, after one at {last:.2f} s"
        last = max(last, change.t)
        if change.status == "started":
            if open_:
                yield f"phase {change.name} began at t={change.t:.2f}s, before {open_} had ended"
            if change.name in seen:
                yield f"phase {change.name} began twice"
            open_ = change.name
            seen.append(change.name)
        elif change.name != open_:
            yield f"phase {change.name} ended at t={change.t:.2f}s and was not under way"
        else:
            open_ = ""
    if open_ and open_ not in _AFTERWARDS and any(isinstance(event, RunFinished) for event in timeline):
        yield f"phase {open_} began and never ended, in a run that came to its end"
    ran = [name for name in seen if name in PHASES and name not in _AFTERWARDS]
    if ran != list(PHASES[: len(ran)]):
        yield f"the phases ran as {', '.join(ran)}, and not in their order"


def _places(scenario: Scenario, timeline: Sequence[Event]) -> Iterator[str]:
    """Everything happened in the phase that does it."""
    began, ended = _spans(timeline)
    for event in timeline:
        if isinstance(event, _EXERCISED):
            phase = "exercise"
        elif isinstance(event, Probed):
            phase = "verify" if event.when == "before" else "recover"
            uses = scenario.steady_state
            if not (event.index < len(uses) and uses[event.index].name == event.probe):
                yield f"probe {event.probe} ({event.index}) is none of the scenario's"
        else:
            continue
        if phase in began and not began[phase] - _NEAR <= event.t <= ended.get(phase, event.t) + _NEAR:
            yield f"{event.type} at t={event.t:.2f}s, outside phase {phase}"


def _spans(timeline: Sequence[Event]) -> tuple[dict[str, float], dict[str, float]]:
    changes = [event for event in timeline if isinstance(event, PhaseChanged)]
    began = {each.name: each.t for each in changes if each.status == "started"}
    return began, {each.name: each.t for each in changes if each.status != "started"}


def _load(timeline: Sequence[Event], requests: Sequence[Request]) -> Iterator[str]:
    """Requests lie within the load, each with its times in order, and its client beat all the while."""
    started = [event for event in timeline if isinstance(event, LoadStarted)]
    finished = [event for event in timeline if isinstance(event, LoadFinished)]
    if not started:
        if requests or finished:
            yield "a load without load.started"
        return
    begin, end = started[0].t, finished[0].t if finished else float("inf")
    if end < begin:
        yield f"the load finished at t={end:.2f}s and started at {begin:.2f} s"
    first, last = begin - _NEAR, end + _NEAR
    for event in requests:
        wrong = _request(event)
        if wrong or event.scheduled < first or event.t > last:
            wrong = wrong or f"was due at {event.scheduled:.2f} s, and the load lasted from {begin:.2f} to {end:.2f} s"
            yield f"a request that ended at t={event.t:.2f}s {wrong}"
    yield from pulse_problems(timeline, requests, started[0], finished[0] if finished else None)


def _request(event: Request) -> str:
    """What is impossible about a request; empty where nothing is. There may be many, so few questions are asked."""
    due, sent, first, last, end = event.scheduled, event.sent, event.first, event.last, event.t
    if not (0 <= due <= end + _EARLY and (sent is None or due - _EARLY <= sent <= end + _EPSILON)):
        return "was due or sent after its end, or sent before it was due"
    if event.written is not None and end > event.written + _EPSILON:
        return f"was written at {event.written:.2f} s, before it ended"
    if first is None or last is None:
        return "has chunks and no time of them" if event.chunks or first is not last else ""
    if not (sent is not None and sent <= first <= last <= end + _EPSILON):
        return "got its first token before it was sent, or its last before its first or after its end"
    gaps = event.gaps
    if gaps and (abs(first + sum(gaps) - last) > _EPSILON * len(gaps) or min(gaps) < 0):
        return "has gaps that do not lead from its first token to its last"
    return ""


def _faults(scenario: Scenario, timeline: Sequence[Event]) -> Iterator[str]:
    """Each fault has one life: started, injected, proven, healed, or an end before that."""
    states: dict[int, str] = {}
    last: dict[int, float] = {}
    begun = next((event.t for event in timeline if isinstance(event, LoadStarted)), 0.0)
    for event in timeline:
        if not isinstance(event, FaultEvent):
            continue
        index, name = event.index, f"fault {event.index} ({event.fault})"
        if not (index < len(scenario.faults) and scenario.faults[index].name == event.fault):
            yield f"{name} is none of the scenario's"
        elif event.state == "started" and event.t < begun + scenario.faults[index].at - _EARLY:
            yield f"{name} started at t={event.t:.2f}s, before its time"
        before = states.get(index, "")
        if event.state not in _NEXT.get(before, ()):
            yield f"{name} is {event.state} at t={event.t:.2f}s, and {before or 'never started'} before"
        if event.t < last.get(index, 0.0):
            yield f"{name} is {event.state} at t={event.t:.2f}s, before it was {before}"
        states[index], last[index] = event.state, event.t


def _attacks(scenario: Scenario, timeline: Sequence[Event]) -> Iterator[str]:
    """What was tried had been planned, and was tried once."""
    plans = [event for event in timeline if isinstance(event, Fact) and event.about == "attacks"]
    tried = [event for event in timeline if isinstance(event, AttackEvent)]
    if not scenario.attacks and not plans and not tried:
        return
    exercised = any(isinstance(event, PhaseChanged) and event.name == "recover" for event in timeline)
    if len(plans) > 1 or (not plans and (tried or exercised)):
        yield f"{len(plans)} lists of planned attempts; there has to be one"
    planned = {name for plan in plans for name in plan.values.get("planned", [])}
    made: set[tuple[str, str]] = set()
    for event in tried:
        if plans and event.attempt not in planned:
            yield f"attempt {event.attempt} was made and not planned"
        if (event.attempt, event.variant) in made:
            yield f"attempt {event.attempt} ({event.variant}) was made twice"
        made.add((event.attempt, event.variant))


def _workloads(scenario: Scenario, timeline: Sequence[Event]) -> Iterator[str]:
    """Each workload began and ended once; each of its pods was made once and ended once."""
    known = {each.name for each in scenario.workloads}
    began: dict[str, float] = {}
    over: set[str] = set()
    lives: dict[tuple[str, str], set[str]] = {}
    for event in timeline:
        if isinstance(event, WorkloadStarted):
            if event.workload in began or event.workload not in known:
                yield f"workload {event.workload} began twice, or is none of the scenario's"
            began.setdefault(event.workload, event.t)
        elif isinstance(event, WorkloadFinished):
            if event.workload in over or event.t < began.get(event.workload, float("inf")):
                yield f"workload {event.workload} was watched to its end twice, or before it began"
            over.add(event.workload)
        elif isinstance(event, PodEvent):
            states = lives.setdefault((event.workload, event.pod), set())
            if event.t < began.get(event.workload, float("inf")) - _EPSILON:
                yield f"pod {event.pod} is {event.state} at t={event.t:.2f}s, before its workload began"
            if event.state in states & _ONCE or (event.state in _ENDS and states & _ENDS):
                yield f"pod {event.pod} is {event.state} at t={event.t:.2f}s for the second time, or after another end"
            if (event.state == "refused" and states) or "refused" in states:
                yield f"pod {event.pod} was refused, and something became of it"
            states.add(event.state)


def _single(timeline: Sequence[Event]) -> Iterator[str]:
    """What there is only one of."""
    for kind in (LoadStarted, LoadFinished, LoadAborted, GpuNodes):
        if (count := sum(isinstance(event, kind) for event in timeline)) > 1:
            yield f"{count} lines {kind.model_fields['type'].default}; there has to be one"
    selectors = [event.selector for event in timeline if isinstance(event, BaselineSamples)]
    if len(selectors) != len(set(selectors)):
        yield "two baselines for one figure"
