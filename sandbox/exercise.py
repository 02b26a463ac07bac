"""The heart of a run: load, faults and attacks at the same time, on one clock."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

from sandbox import attacks, faults
from sandbox.errors import SandboxError, Unproven, UsageError
from sandbox.load import check, runner
from sandbox.load.plan import plan_for
from sandbox.progress import say
from sandbox.spec.scenario import FaultUse
from sandbox.timeline import AttackEvent, Note

if TYPE_CHECKING:
    from sandbox.run import Run

_LOAD_SLACK = 30.0
# Attempts are spread over the first part of the load: the last ones send packets, which takes a while.
_ATTACK_SHARE = 0.7


def exercise(run: Run) -> None:
    """Load, faults and attacks on one clock."""
    wanted = run.plan.scenario.load
    if wanted is None:
        return
    _, _, deployed = run.live
    _look_at_endpoint(run)
    say(f"load: {run.plan.load_in_words()}")
    process = runner.start(plan_for(wanted, run.timeline, url=deployed.url, model=deployed.model), run.timeline)
    # Left from the inside out: first everybody is told to stop, then the pool waits for those who do.
    with ThreadPoolExecutor(max_workers=16, thread_name_prefix="exercise") as pool, ExitStack() as halt:
        halt.callback(process.stop)
        halt.callback(run.stop.set)
        work = [pool.submit(_strike, run, index, use, process.started_at) for index, use in enumerate(run.plan.faults)]
        work.append(pool.submit(_attack, run, process.started_at, wanted.duration))
        code = process.wait(wanted.duration + wanted.timeout + _LOAD_SLACK)
        if code:
            run.stop.set()
        _finish(run, work)
    if code:
        raise Unproven(f"the load client ended with exit code {code}", details=runner.tail(process.log))


def _look_at_endpoint(run: Run) -> None:
    """One unmeasured request. What is wrong now is the stack's doing, not a mistake in what the user wrote."""
    _, _, deployed = run.live
    path = run.plan.profile.path if run.plan.profile else "chat"
    try:
        check.check_endpoint(deployed.url, deployed.model, path=path)
    except UsageError as error:
        raise Unproven(error.what, where=error.where, fix=error.fix, details=error.details) from error


def _strike(run: Run, index: int, use: FaultUse, load_started: float) -> None:
    """Wait for a fault's time, then drive it."""
    own, kube, deployed = run.live
    if run.stop.wait(max(0.0, load_started + use.at - run.timeline.now())):
        return
    context = faults.Context(kube, own, deployed.namespace, run.stop)
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
