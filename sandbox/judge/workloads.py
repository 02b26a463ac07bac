"""Workloads: were their pods watched to the end, did they print what they must, did the scheduler say why they wait."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from sandbox.metrics import pods as figures
from sandbox.metrics.pods import Pod, Pods, Watched
from sandbox.spec.results import Check, Status
from sandbox.spec.scenario import Scenario
from sandbox.spec.slo import Selector
from sandbox.spec.workload import Workload

_LINES = 8
_STARTED = ("running", "succeeded", "failed")


def workload_checks(scenario: Scenario, pods: Pods) -> list[Check]:
    """For each workload: was it watched to its end, and what it has to print and to be told."""
    checks = []
    for wanted in scenario.workloads:
        found = pods.workloads.get(wanted.name)
        checks.append(_watched(wanted, found))
        if wanted.prints is not None:
            checks.append(_prints(wanted, wanted.prints, found))
        if wanted.because is not None:
            checks.append(_because(wanted, wanted.because, found))
    return checks


def _watched(wanted: Workload, found: Watched | None) -> Check:
    """Every pod was created or refused, and the watch came to its end: else its counts say nothing."""
    reason, observed = "", "never begun"
    if found is None:
        reason = "the run did not come to it"
    elif found.finished is None:
        reason, observed = "the watch was cut short: what became of its pods is not known", "begun, and never ended"
    else:
        known = found.finished.created + found.finished.refused
        told = sum(pod.created is not None or pod.state == "refused" for pod in found.pods.values())
        observed = f"{found.finished.created} of {wanted.pods} pods created, watched until {found.finished.why}"
        if found.finished.refused:
            observed += f"; {found.finished.refused} refused"
        if known != wanted.pods:
            reason = f"{known} pods were asked for, not {wanted.pods}"
        elif told != known:
            reason = f"the timeline holds {told} of {known} pods: evidence is missing"
    return Check(
        id=f"workload/{wanted.name}/watched",
        group="workload",
        title=f"the pods of {wanted.name} were created and watched",
        status="invalid" if reason else "pass",
        observed=observed,
        expected=f"{wanted.pods} pods, watched until they are where they stay",
        samples=len(found.pods) if found else None,
        reason=reason,
        evidence=_refusals(found) + ([f"t={found.finished.t:.2f}s {observed}"] if found and found.finished else []),
    )


def _refusals(found: Watched | None) -> list[str]:
    said = Counter(pod.said for pod in found.pods.values() if pod.state == "refused") if found else Counter()
    return [f"{count} x refused: {text}" for text, count in said.most_common(_LINES)]


def _prints(wanted: Workload, expression: str, found: Watched | None) -> Check:
    started = [pod for pod in found.pods.values() if pod.scheduled is not None] if found and found.finished else []
    right = [pod for pod in started if pod.printed]
    wrong = [pod for pod in started if not pod.printed and pod.state in _STARTED]
    status: Status = "pass"
    reason = ""
    if wrong:
        status = "fail"
        reason = f"{wrong[0].name} {wrong[0].state}, and its last line is: {wrong[0].line or 'none'}"
    elif not right:
        status, reason = "invalid", "no pod of it ran, so none could print anything"
    return Check(
        id=f"workload/{wanted.name}/prints",
        group="workload",
        title=f"every pod of {wanted.name} that ran printed {expression}",
        status=status,
        observed=f"{len(right)} of {len(right) + len(wrong)} did",
        expected="all that ran",
        samples=len(right) + len(wrong),
        reason=reason,
        evidence=[f"{pod.name} on {pod.node}: {pod.line or 'nothing'}" for pod in [*wrong, *right][:_LINES]],
    )


def _because(wanted: Workload, expression: str, found: Watched | None) -> Check:
    told = [pod for pod in found.pods.values() if pod.told] if found and found.finished else []
    told = [pod for pod in told if pod.pending] or told  # one that waited for a moment only may have been told anything
    unsaid = [pod for pod in found.pods.values() if pod.pending and not pod.told] if found and found.finished else []
    wrong = [pod for pod in told if not re.search(expression, pod.told)]
    status: Status = "pass"
    reason = ""
    if wrong:
        status, reason = "fail", f"of {wrong[0].name} the scheduler said: {wrong[0].told}"
    elif unsaid:
        status, reason = "invalid", f"{unsaid[0].name} waits, and the scheduler has not said why"
    elif not told:
        status, reason = "invalid", "no pod of it was held back, so nothing was said"
    return Check(
        id=f"workload/{wanted.name}/because",
        group="workload",
        title=f"pods of {wanted.name} wait because of {expression}",
        status=status,
        observed=f"said of {len(told) - len(wrong)} of {len(told)} pods held back",
        expected="of all",
        samples=len(told),
        reason=reason,
        evidence=_words(told),
    )


def _words(told: Sequence[Pod]) -> list[str]:
    said: dict[str, list[str]] = {}
    for pod in told:
        said.setdefault(pod.told, []).append(pod.name)
    return [_named(text, names) for text, names in sorted(said.items(), key=lambda item: -len(item[1]))[:_LINES]]


def _named(text: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}: {text}"


def witnesses(pods: Pods, selector: Selector, most: int) -> list[str]:
    """What a reader wants to see of a figure: why pods wait, failed or went; how fast they came, and the slowest."""
    name = selector.metric
    found = pods.chosen(selector)
    if name in {"gpu_nodes_free", "gpu_fragmentation"}:
        groups = sorted(pods.nodes.groups, reverse=True) if pods.nodes else []
        return [f"{count} nodes with {used} of {gpus} GPUs in use" for gpus, used, count in groups[:most]]
    if name in {"scheduling_rate", "scheduling_seconds"}:
        return _pace(found, most)
    if name in {"nodes_used", "gpus_allocated"}:
        return _places(found, most)
    lives = figures.of(found)
    held = _words([pod for pod in lives if pod.pending and pod.told])
    ended = Counter(f"{pod.state}: {pod.said}" for pod in lives if pod.state in {"failed", "lost", "refused"})
    return [*held[:most], *(f"{count} x {text}" for text, count in ended.most_common(most))]


def _pace(found: Sequence[Watched], most: int) -> list[str]:
    created, placed = figures.creation_rate(found), figures.scheduling_rate(found)
    lines = []
    if created and placed:
        lines.append(
            f"created at {created:.0f}/s, placed at {placed:.0f}/s: no scheduler is quicker than its pods come"
        )
    timed = [pod for pod in figures.of(found) if pod.scheduled is not None and pod.created is not None]
    slowest = sorted(timed, key=lambda pod: (pod.scheduled or 0.0) - (pod.created or 0.0), reverse=True)[:most]
    return lines + [
        f"t={pod.scheduled or 0.0:.2f}s {pod.name} on {pod.node}, {(pod.scheduled or 0.0) - (pod.created or 0.0):.3f} s"
        " after it was created"
        for pod in slowest
    ]


def _places(found: Sequence[Watched], most: int) -> list[str]:
    on = Counter(pod.node for pod in figures.of(found) if pod.node and pod.state != "lost")
    lines = [f"{node}: {count} pods" for node, count in on.most_common(most)]
    return [*lines, *([f"and {len(on) - most} nodes more"] if len(on) > most else [])]
