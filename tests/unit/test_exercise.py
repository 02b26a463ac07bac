"""Load, faults and attacks on one clock: what breaks one of them is never lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sandbox import attacks, exercise, faults
from sandbox.errors import ClusterError, Unproven
from sandbox.kube import stacks
from sandbox.kube.guardrails import Tenant
from sandbox.plan import load_all
from sandbox.run import Options, Run
from sandbox.timeline import AttackEvent, Fact, Note, Timeline, read

ROOT = Path(__file__).parents[2]
TENANT = Tenant("tenant-a", "tenant", "workbench", "inference", None, "i:1")


class Load:
    """A load under way that lasts a moment and ends with `code`."""

    def __init__(self, run: Run, code: int = 0, later: float = 0.0) -> None:
        self.started_at = run.timeline.now() + later
        self.log = run.folder / "load.log"
        self.log.write_text("the last words\n")
        self.code = code
        self.stopped = 0

    def wait(self, _: float) -> int:
        time.sleep(0.05)
        return self.code

    def end(self) -> None:
        pass

    def stop(self) -> int:
        self.stopped += 1
        return self.code


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """The main scenario with two attempts at a hundredth of its pace, on nothing."""
    plan = load_all([str(ROOT / "scenarios/chaos/survive-a-lost-replica.yaml")])[0]
    scenario = plan.scenario
    assert scenario.load is not None
    quick: dict[str, Any] = {"load": scenario.load.model_copy(update={"duration": 0.5})}
    quick["faults"] = [scenario.faults[0].model_copy(update={"at": 0.2})]
    object.__setattr__(plan, "scenario", scenario.model_copy(update=quick))
    object.__setattr__(plan, "attempts", attacks.attempts(["1", "77"]))
    with Timeline(tmp_path / "timeline.jsonl") as timeline, ExitStack() as undo:
        made = Run(plan, Options(), tmp_path, timeline, undo)
        nothing: Any = SimpleNamespace(node_addresses=("192.0.2.1",))
        made.cluster = made.kube = nothing
        made.deployed = stacks.Deployed("llama-cpp", "inference", "m", "http://x", ())
        made.tenant = TENANT
        yield made


Exercised = Callable[..., list[Any]]


@pytest.fixture
def exercised(run: Run, monkeypatch: pytest.MonkeyPatch) -> Exercised:
    """Exercise with a load, a fault and attacks that do as told; what the timeline says then."""

    def through(
        *, load: Load | None = None, strike: Callable[..., None] | None = None, attack: Callable[..., Any] | None = None
    ) -> list[Any]:
        monkeypatch.setattr(exercise, "start_load", lambda *_: load or Load(run))
        monkeypatch.setattr(faults, "drive", strike or (lambda *_: None))
        monkeypatch.setattr(attacks, "make", attack or (lambda *_, **__: []))
        exercise.exercise(run)
        return list(read(run.timeline.path))

    return through


def fails_with(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("part", ["strike", "attack"])
def test_a_bug_in_a_fault_or_an_attack_ends_the_phase_and_is_passed_on(exercised: Exercised, part: str) -> None:
    with pytest.raises(KeyError, match="a bug"):
        exercised(**{part: fails_with(KeyError("a bug"))})


def test_what_the_harness_could_not_do_is_said_in_the_timeline(exercised: Exercised) -> None:
    events = exercised(strike=fails_with(ClusterError("the node is gone")))
    assert [(note.level, note.message) for note in events if isinstance(note, Note)] == [("error", "the node is gone")]


def test_a_load_client_that_broke_ends_the_phase_with_its_last_words(exercised: Exercised, run: Run) -> None:
    with pytest.raises(Unproven, match="the load client ended with exit code 3") as caught:
        exercised(load=Load(run, code=3))
    assert caught.value.details == ["the last words"]
    assert run.stop.is_set()


def test_a_load_that_cannot_start_ends_the_phase(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exercise, "start_load", fails_with(Unproven("the stack does not answer")))
    with pytest.raises(Unproven, match="does not answer"):
        exercise.exercise(run)


def test_a_fault_strikes_at_its_time_after_the_load_began(exercised: Exercised, run: Run) -> None:
    struck: list[tuple[str, int, float]] = []

    def drive(name: str, index: int, context: faults.Context, params: dict[str, Any], timeline: Timeline) -> None:
        struck.append((name, index, timeline.now()))
        assert context.namespace == "inference"
        assert params == {"target": {"app": "llama-cpp"}, "count": 1}

    load = Load(run, later=0.3)
    exercised(load=load, strike=drive)
    ((name, index, at),) = struck
    assert (name, index) == ("pod.kill", 0)
    assert load.started_at + 0.2 <= at < load.started_at + 2.0


def test_every_attempt_and_its_twin_is_made_and_those_that_were_planned_are_named(exercised: Exercised) -> None:
    def make(_kube: object, tenant: Tenant, attempt: Any, *, nodes: Any) -> Iterator[attacks.AttackResult]:
        assert (tenant, nodes) == (TENANT, ("192.0.2.1",))
        for variant, outcome in (("attempt", "denied"), ("allowed", "succeeded")):
            yield attacks.AttackResult(attempt.id, "X", variant, outcome, "P", "P", "", 0.1)  # type: ignore[arg-type]

    events = exercised(attack=make)
    planned = next(event.values["planned"] for event in events if isinstance(event, Fact) and event.about == "attacks")
    assert planned == ["1-privileged-pod", "77-another-tenants-pod"]
    made = [(event.attempt, event.variant) for event in events if isinstance(event, AttackEvent)]
    assert made == [(name, variant) for name in planned for variant in ("attempt", "allowed")]


def test_attacks_that_nobody_can_make_are_said(exercised: Exercised, run: Run) -> None:
    run.tenant = None
    notes = [event.message for event in exercised() if isinstance(event, Note)]
    assert len(notes) == 1
    assert "attacks need a guardrail that makes a tenant" in notes[0]


def test_the_load_is_stopped_whatever_happens(exercised: Exercised, run: Run) -> None:
    load = Load(run)
    with pytest.raises(KeyError):
        exercised(load=load, strike=fails_with(KeyError("a bug")))
    assert load.stopped
    assert run.stop.is_set()
