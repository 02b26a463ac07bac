"""The heart of a run: load, workloads, faults and attacks at the same time, on one clock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from sandbox import attacks, faults, workloads
from sandbox.errors import SandboxError, Unproven
from sandbox.load import runner
from sandbox.loading import start_load
from sandbox.progress import say
from sandbox.spec.scenario import FaultUse
from sandbox.timeline import AttackEvent, Note
from sandbox.watch import Watch

if TYPE_CHECKING:
    from sandbox.run import Run

_LOAD_SLACK = 30.0
_MAKERS = 16  # pods made at once
# Attempts are spread over the first part of the load: the last ones send packets, which takes a while.
_ATTACK_SHARE = 0.7


def exercise(run: Run) -> None:
    """Load, workloads, faults and attacks on one clock."""
    scenario = run.plan.scenario
    if scenario.load is None and not scenario.workloads:
        return
    # Left from the inside out: first everybody is told to stop, then the pool waits for those who do.
    most = len(run.plan.faults) + len(scenario.workloads) + 3
    with ThreadPoolExecutor(max_workers=most, thread_name_prefix="exercise") as pool, ExitStack() as halt:
        process = None
        begun = run.timeline.now()
        if scenario.load is not None:
            process = start_load(run, scenario.load, halt)
            halt.callback(process.stop)
            begun = process.started_at
        halt.callback(run.stop.set)
        strikes = [pool.submit(_strike, run, index, use, begun) for index, use in enumerate(run.plan.faults)]
        work = [*strikes]
        last = _nothing
        if scenario.workloads:
            driven, last = _start_workloads(run, begun, strikes, pool, halt)
            work += driven
        if process is None or scenario.load is None:
            _finish(run, work)
        else:
            work.append(pool.submit(_attack, run, begun, scenario.load.duration))
            watch = Watch(scenario, run.timeline, process.end)
            over = threading.Event()
            halt.callback(over.set)
            work.append(pool.submit(watch.run, over))
            code = process.wait(scenario.load.duration + scenario.load.timeout + _LOAD_SLACK)
            over.set()
            if code or watch.aborted:
                run.stop.set()
            _finish(run, work)
            if code:
                details = runner.tail(process.log)
                raise Unproven(f"the load client ended with exit code {code}", details=details)
        if not run.stop.is_set():
            _finish(run, [pool.submit(last)])


def _nothing() -> None:
    """Where there are no workloads, nothing is looked at last."""


def _start_workloads(
    run: Run, begun: float, strikes: Sequence[Future[None]], pool: ThreadPoolExecutor, halt: ExitStack
) -> tuple[list[Future[None]], Callable[[], None]]:
    """Begin to watch, and start every workload at its time; what is returned beside is to be done when all is over."""
    _, kube = run.ground
    wanted = run.plan.scenario.workloads
    makers = halt.enter_context(ThreadPoolExecutor(max_workers=_MAKERS, thread_name_prefix="pods"))
    board = halt.enter_context(workloads.Board(kube, run.timeline, run.stop))
    ground = workloads.Ground(
        kube=kube,
        images=run.images,
        timeline=run.timeline,
        stop=run.stop,
        calm=lambda: all(strike.done() for strike in strikes),
        pool=makers,
    )
    halt.callback(run.stop.set)  # before the pool of makers is waited for
    driven = [pool.submit(workloads.drive, ground, board, each, begun + each.at) for each in wanted]

    return driven, partial(workloads.close, ground, board, wanted)


def _strike(run: Run, index: int, use: FaultUse, begun: float) -> None:
    """Wait for a fault's time, then drive it."""
    own, kube = run.ground
    if run.stop.wait(max(0.0, begun + use.at - run.timeline.now())):
        return
    context = faults.Context(kube, own, run.namespace, run.stop)
    faults.drive(use.name, index, context, use.params, run.timeline)


def _attack(run: Run, load_started: float, duration: float) -> None:
    """Make every attempt and its allowed twin while load and faults run."""
    if not run.plan.attempts:
        return
    own, kube, _ = run.live
    if run.tenant is None:
        raise Unproven("attacks need a guardrail that makes a tenant", fix="add `guardrails: [tenant]`")
    run.fact("attacks", planned=[attempt.id for attempt in run.plan.attempts])
    moments = attack_moments(len(run.plan.attempts), duration, [use.at for use in run.plan.faults])
    for attempt, at in zip(run.plan.attempts, moments, strict=True):
        if run.stop.wait(max(0.0, load_started + at - run.timeline.now())):
            return
        for result in attacks.make(kube, run.tenant, attempt, nodes=own.node_addresses):
            run.timeline.append(AttackEvent(t=run.timeline.now(), **result.event()))


def attack_moments(count: int, duration: float, strikes: Sequence[float]) -> list[float]:
    """When each attempt is made, in seconds after the load began: spread over it, and one as each fault strikes."""
    free = [_ATTACK_SHARE * duration * number / count for number in range(count)]
    taken = []
    for at in strikes[:count]:
        free.remove(min(free, key=lambda moment: abs(moment - at)))
        taken.append(at)
    return sorted(free + taken)


def _finish(run: Run, work: list[Future[None]]) -> None:
    """Let faults heal and attacks end; whatever broke one of them is said, and the judge misses its evidence."""
    for future in work:
        try:
            future.result()
        except SandboxError as error:
            run.timeline.append(Note(t=run.timeline.now(), level="error", message=str(error)))
            say(str(error))
