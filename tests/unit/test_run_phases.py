"""The phases around the load, on stand-ins for what they call: what is looked at, what is handed on, what is undone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sandbox import probes, run
from sandbox.cluster import Owner
from sandbox.cluster.record import Origin
from sandbox.kube import guardrails, stacks
from sandbox.kube.guardrails import Tenant
from sandbox.plan import Plan, load_all
from sandbox.run import Options, Outcome, Run, execute
from sandbox.timeline import Fact, PhaseChanged, Probed, read

ROOT = Path(__file__).parents[2]
TENANT = Tenant("tenant-a", "tenant", "workbench", "inference", None, "i:1")
Executed = Callable[..., tuple[Outcome, list[Any]]]


@pytest.fixture
def plan() -> Plan:
    plan = load_all([str(ROOT / "scenarios/chaos/survive-a-lost-replica.yaml")])[0]
    recover = plan.scenario.recover.model_copy(update={"within": 0.2})
    object.__setattr__(plan, "scenario", plan.scenario.model_copy(update={"recover": recover}))
    return plan


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool | None]:
    """What each probe says; all of them yes."""
    says: dict[str, bool | None] = {"k8s.ready": True, "openai.chat": True}
    monkeypatch.setattr(probes, "look", lambda name, *_: probes.Seen(says[name], f"{name}: {says[name]}"))
    monkeypatch.setattr(run, "_STEADY_SECONDS", 0.2)
    monkeypatch.setattr(run.steady, "hold", lambda _: None)
    return says


@pytest.fixture
def done() -> list[str]:
    return []


@pytest.fixture
def executed(plan: Plan, done: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Executed:
    """A run through all of its phases, with nothing below them; what was done stands in `done`."""
    new = True
    cluster = {"kubeconfig": "", "context": "", "provider": "kind", "node_names": ["n"], "image": "i"}

    def up(*_: object, owner: Owner | None, cold: bool, deployed: dict[str, Any], **__: object) -> Any:
        done.extend(["up", *(["up cold"] if cold else [])])
        assert [*deployed] == ["guardrail tenant", "llama-cpp"]
        assert all(each["metadata"]["name"] for objects in deployed.values() for each in objects)
        created = time.time() if new else 1.0
        return SimpleNamespace(owner=owner, node_addresses=("192.0.2.1",), created=created, origin=Origin(), **cluster)

    def note(words: str, answer: Any = None) -> Callable[..., Any]:
        def noted(*_: object, **__: object) -> Any:
            done.append(words)
            return answer

        return noted

    deployed = stacks.Deployed("llama-cpp", "inference", "m", "http://x", ())
    monkeypatch.setattr(run, "preflight", lambda run: None)
    monkeypatch.setattr(run.cluster, "up", up)
    monkeypatch.setattr(run.cluster, "release", note("down"))
    monkeypatch.setattr(run.cluster, "keep", note("kept"))
    monkeypatch.setattr(run.cluster, "prove_ours", note("proven ours"))
    monkeypatch.setattr(run.Kube, "connect", lambda *_: SimpleNamespace(version="v1"))
    monkeypatch.setattr(run.namespaces, "clear", note("namespaces cleared", []))
    monkeypatch.setattr(run.workloads, "clear", note("workloads cleared"))
    monkeypatch.setattr(run.collect, "write", note("logs collected"))
    monkeypatch.setattr(run, "_references", lambda plan: dict.fromkeys(plan.images, "ref"))
    monkeypatch.setattr(guardrails, "apply", note("guardrail", SimpleNamespace(tenant=TENANT)))
    monkeypatch.setattr(stacks, "deploy", note("stack", deployed))
    monkeypatch.setattr(run, "write_all", note("reported", SimpleNamespace(missed=lambda _: None)))

    def exercise(run: Run) -> None:
        done.append("exercise")
        assert run.tenant == TENANT
        assert run.live[2] == deployed

    phases = (run.up, run.deploy, run.verify, exercise, run.recover, run.judge, run.report)
    monkeypatch.setattr(run, "PHASES", phases)

    def through(*, made: bool = True, **options: Any) -> tuple[Outcome, list[Any]]:
        nonlocal new
        new = made
        outcome = execute(plan, Options(runs=tmp_path, cluster_name=f"unit-{os.getpid()}", **options))
        return outcome, list(read(outcome.folder / "timeline.jsonl"))

    return through


def test_what_others_left_is_cleared_only_where_a_cluster_was_there_before(
    executed: Executed, looks: dict[str, bool | None], done: list[str]
) -> None:
    executed()
    assert "namespaces cleared" not in done[: done.index("exercise")]
    assert done.index("kept") == done.index("stack") + 1
    done.clear()
    executed(made=False)
    assert done.index("workloads cleared") < done.index("namespaces cleared") < done.index("guardrail")
    assert "kept" not in done


def test_a_cold_run_uses_no_snapshot_and_keeps_none(
    executed: Executed, looks: dict[str, bool | None], done: list[str]
) -> None:
    _, events = executed(cold=True)
    assert "up cold" in done
    assert "kept" not in done
    (fact,) = [event.values for event in events if isinstance(event, Fact) and event.about == "cluster"]
    assert fact["came"] == "cold"


def probed(events: list[Any], when: str) -> dict[str, bool | None]:
    return {event.probe: event.ok for event in events if isinstance(event, Probed) and event.when == when}


def test_a_run_goes_up_guarded_deployed_exercised_and_down(
    executed: Executed, looks: dict[str, bool | None], done: list[str]
) -> None:
    outcome, events = executed()
    assert outcome.error is None
    order = ["up", "proven ours", "guardrail", "stack", "exercise", "logs collected", "down"]
    assert [each for each in dict.fromkeys(done) if each in order] == order
    assert probed(events, "before") == probed(events, "after") == {"k8s.ready": True, "openai.chat": True}
    assert [event.name for event in events if isinstance(event, PhaseChanged) and event.status == "failed"] == []


@pytest.mark.parametrize("name", ["k8s.ready", "openai.chat"])
@pytest.mark.parametrize("says", [False, None])
def test_without_a_steady_state_before_it_nothing_is_exercised(
    executed: Executed, looks: dict[str, bool | None], done: list[str], name: str, says: bool | None
) -> None:
    looks[name] = says
    outcome, events = executed()
    assert "exercise" not in done
    assert outcome.results.verdict == "invalid"
    assert name in str(outcome.error)
    assert probed(events, "before")[name] is says
    assert done[-1] == "down"


@pytest.mark.parametrize("name", ["k8s.ready", "openai.chat"])
def test_a_steady_state_that_does_not_come_back_is_seen(
    executed: Executed, looks: dict[str, bool | None], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def breaks(run: Run) -> None:
        looks[name] = False

    *before, _, recover, judge, report = run.PHASES
    monkeypatch.setattr(run, "PHASES", (*before[:3], breaks, recover, judge, report))
    outcome, events = executed()
    assert probed(events, "after")[name] is False
    assert outcome.results.verdict == "fail"
    assert name in outcome.results.headline


@pytest.mark.parametrize(("options", "removed"), [({"keep": True}, False), ({"keep_cluster": True}, False), ({}, True)])
def test_a_cluster_that_was_made_goes_with_the_run_unless_it_is_kept(
    executed: Executed, looks: dict[str, bool | None], done: list[str], options: dict[str, bool], removed: bool
) -> None:
    executed(**options)
    assert ("down" in done) == removed
