"""Driving faults: each state is written as it is reached, and nothing counts that was not seen from outside."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox import kube, probes
from sandbox.errors import Unproven
from sandbox.faults import FAULTS, Context, Evidence, NoTarget, drive
from sandbox.faults.base import Injection
from sandbox.probes import PROBES, Seen
from sandbox.spec.registry import Registry
from sandbox.timeline import FaultEvent, Timeline, read


@pytest.fixture
def context() -> Context:
    nothing: Any = None
    return Context(nothing, nothing, "inference", threading.Event())


@pytest.fixture
def states(tmp_path: Path, context: Context, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    def run(function: Callable[..., Injection], **params: Any) -> list[str]:
        monkeypatch.setitem(FAULTS.functions, "test.fault", function)
        with Timeline(tmp_path / "timeline.jsonl") as log:
            drive("test.fault", 0, context, params, log)
        return [event.state for event in read(log.path) if isinstance(event, FaultEvent)]

    return run


def whole(ctx: Context, count: int = 1) -> Injection:
    del ctx
    yield Evidence(f"{count} injected")
    yield Evidence("seen from outside")
    return Evidence("well again")


def test_a_whole_fault_is_started_injected_proven_and_healed(states: Callable[..., list[str]]) -> None:
    assert states(whole, count=2) == ["started", "injected", "proven", "healed"]


def test_a_heal_says_by_how_much_it_may_have_been_seen_late(
    tmp_path: Path, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was looked for three times; the second look is the last moment at which it was surely not so."""
    looks = [False, False, True]
    refused: list[float] = []

    def look() -> kube.Seen[None]:
        done = looks.pop(0)
        if not done:
            refused.append(time.monotonic())
        return kube.Seen(done, None, "")

    def slow(ctx: Context) -> Injection:
        yield Evidence("injected")
        yield Evidence("proven")
        ctx.wait(look, within=5.0, what="it to heal")
        return Evidence("well again")

    monkeypatch.setitem(FAULTS.functions, "test.fault", slow)
    with Timeline(tmp_path / "timeline.jsonl") as log:
        drive("test.fault", 0, context, {}, log)
    told = {event.state: event for event in read(log.path) if isinstance(event, FaultEvent)}
    late = told["healed"].uncertainty
    assert late is not None
    assert late == pytest.approx(time.monotonic() - refused[-1], abs=0.2)
    assert late > 0.04, "the pause between two looks"
    assert told["proven"].uncertainty is None


def test_a_fault_without_target_says_so(states: Callable[..., list[str]]) -> None:
    def nobody(ctx: Context) -> Injection:
        del ctx
        if True:
            raise NoTarget("no pod")
        yield Evidence("never")
        return Evidence("never")

    assert states(nobody) == ["started", "no_target"]


def test_a_fault_that_proves_nothing_is_failed_never_proven(states: Callable[..., list[str]]) -> None:
    def unproven(ctx: Context) -> Injection:
        del ctx
        yield Evidence("injected")
        return Evidence("healed, it says")

    assert states(unproven) == ["started", "injected", "failed"]


def test_a_fault_that_breaks_is_an_event_and_no_exception(states: Callable[..., list[str]]) -> None:
    def broken(ctx: Context) -> Injection:
        del ctx
        yield Evidence("injected")
        raise OSError("the node is gone")

    assert states(broken) == ["started", "injected", "failed"]


def never() -> kube.Seen[None]:
    return kube.Seen(False, None, "1 of 3 pods ready")


def test_a_system_that_does_not_come_back_in_time_is_told_from_a_harness_that_breaks(
    states: Callable[..., list[str]],
) -> None:
    def unhealed(ctx: Context) -> Injection:
        yield Evidence("injected")
        yield Evidence("seen")
        ctx.wait(never, within=0.1, what="three ready pods")
        return Evidence("never")

    def broken(ctx: Context) -> Injection:
        del ctx
        yield Evidence("injected")
        yield Evidence("seen")
        raise KeyError("a bug")

    assert states(unhealed) == ["started", "injected", "proven", "not_healed"]
    assert states(broken)[-2:] == ["proven", "failed"]


def test_nobody_waits_for_a_fault_to_heal_when_the_run_is_stopped(context: Context) -> None:
    threading.Timer(0.2, context.stop.set).start()
    with pytest.raises(Unproven, match="run was ended"):
        context.wait(never, within=3600, what="three ready pods")


@pytest.mark.parametrize(
    "params",
    [{"target": {"app": "x"}, "count": 0}, {"target": {"app": "x"}, "count": -1}, {"target": {}}],
)
def test_a_fault_on_nothing_or_on_everything_is_refused_before_the_run(params: dict[str, Any]) -> None:
    assert list(FAULTS.problems("pod.kill", params))


def test_parameters_come_from_the_signature_and_mistakes_are_named() -> None:
    problems = dict(FAULTS.problems("pod.kill", {"target": {"app": "x"}, "cuont": 2}))
    assert "known: target, count, grace, within" in problems["pod.kill", "cuont"]
    assert any("missing" in message or "required" in message for _, message in FAULTS.problems("pod.kill", {}))
    assert not list(FAULTS.problems("pod.kill", {"target": {"app": "x"}, "within": "30s"}))
    assert "known: " in dict(FAULTS.problems("pod.kil", {}))["pod.kil",]


def test_a_probe_that_errors_is_unknown_never_a_pass_or_a_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(ctx: probes.Context) -> Seen:
        raise RuntimeError("no network")

    monkeypatch.setitem(PROBES.functions, "test.probe", broken)
    nothing: Any = None
    assert probes.look("test.probe", probes.Context(nothing, "", "", ""), {}).ok is None


def test_a_registry_calls_with_validated_values() -> None:
    registry: Registry[Callable[..., Iterator[str]]] = Registry("thing")

    @registry.register("repeat")
    def repeat(ctx: str, times: int = 2) -> Iterator[str]:
        yield from [ctx] * times

    assert list(registry.call("repeat", "a", {"times": "3"})) == ["a", "a", "a"]
