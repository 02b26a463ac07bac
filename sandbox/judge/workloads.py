"""Workloads: were their pods watched to the end, did they print what they must, did the scheduler say why they wait."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from sandbox.metrics import pods as figures
from sandbox.metrics.pods import Pod, Pods, Watched
from sandbox.spec.results import Check, Status
from sandbox.spec.scenario import Scenario
from sandbox.spec.slo import Selector, parse_expression, parse_selector
from sandbox.spec.workload import Workload
from sandbox.timeline import WorkloadFinished

_LINES = 8
_RAN = ("running", "succeeded", "failed")
# state -> the metrics of which a threshold says how many pods may be in it: as such, or as the rest of those that are
# promised to come further
_SPOKEN: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "failed": (frozenset({"pods_failed"}), frozenset()),
    "lost": (frozenset({"pods_lost"}), frozenset()),
    "scheduled": (frozenset(), frozenset({"pods_running", "pods_succeeded", "pods_printing", "gpus_allocated"})),
}
_SPOKEN["pending"] = (frozenset({"pods_pending", "pods_because"}), _SPOKEN["scheduled"][1] | {"pods_scheduled"})
_SPOKEN["refused"] = (frozenset({"pods_refused"}), _SPOKEN["pending"][1] | {"pods_created"})
_AT_LEAST = frozenset({"==", ">=", ">"})
_WORDS = {
    "failed": "failed",
    "lost": "were deleted by others",
    "scheduled": "have a node and never ran there",
    "pending": "wait for a node",
    "refused": "were refused",
}


def workload_checks(scenario: Scenario, pods: Pods) -> list[Check]:
    """For each workload: was it watched to the end, is all said of what did not run, what it prints and is told."""
    checks = []
    for wanted in scenario.workloads:
        found = pods.workloads.get(wanted.name)
        checks.append(_watched(wanted, found))
        if found is not None and found.finished is not None:
            checks.append(_whole(scenario, wanted, found))
        if wanted.prints is not None:
            checks.append(_prints(wanted, wanted.prints, found))
        if wanted.because is not None:
            checks.append(_because(wanted, wanted.because, found))
    return checks


def _watched(wanted: Workload, found: Watched | None) -> Check:
    """Every pod was created or refused, and watched to the end of the run: else its counts say nothing."""
    observed = "never begun"
    if found is None:
        reason = "the run did not come to it"
    elif found.finished is None:
        reason, observed = "the watch was cut short: what became of its pods is not known", "begun, and never ended"
    else:
        reason = _unproven(wanted, found, found.finished)
        observed = f"{found.finished.created} of {wanted.pods} pods created, watched until {found.finished.why}"
        if found.finished.refused:
            observed += f"; {found.finished.refused} refused"
        observed += "".join(f"; in the end {_tally(event.states)}" for event in found.closed)
    return Check(
        id=f"workload/{wanted.name}/watched",
        group="workload",
        title=f"the pods of {wanted.name} were created and watched",
        status="invalid" if reason else "pass",
        observed=observed,
        expected=f"{wanted.pods} pods, watched until they are where they stay, and looked at when the run is over",
        samples=len(found.pods) if found else None,
        reason=reason,
        evidence=_refusals(found) + ([f"t={found.finished.t:.2f}s {observed}"] if found and found.finished else []),
    )


def _unproven(wanted: Workload, found: Watched, finished: WorkloadFinished) -> str:
    """Why its pods are not known; empty where they are."""
    known = finished.created + finished.refused
    told = sum(pod.created is not None or pod.state == "refused" for pod in found.pods.values())
    if known != wanted.pods:
        return f"{known} pods were asked for, not {wanted.pods}"
    if told != known:
        return f"the timeline holds {told} of {known} pods: evidence is missing"
    if finished.why == "time is out":
        late = [pod.name for pod in found.pods.values() if pod.stuck or (pod.pending and not pod.told)]
        who = f", such as {late[0]}" if late else ""
        return f"its {wanted.within:g} s were over before its pods were where they stay{who}: give it more `within`"
    if len(found.closed) != 1:
        return f"its pods were looked at {len(found.closed)} times when the run was over, and once is needed"
    seen, there = found.closed[0].states, Counter(pod.now for pod in found.pods.values())
    if seen != there:
        return f"at the end of the run they were {_tally(seen)}, and the timeline tells of {_tally(there)}"
    return ""


def _tally(states: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none"


def _whole(scenario: Scenario, wanted: Workload, found: Watched) -> Check:
    """A promise is for the whole set: every pod ran or ended well, or it is said how many may not."""
    states: dict[str, list[Pod]] = {}
    for pod in found.pods.values():
        states.setdefault(pod.now, []).append(pod)
    unsaid = {state: states[state] for state in _SPOKEN if states.get(state) and not _spoken(scenario, wanted, state)}
    status: Status = "fail" if unsaid.keys() & {"failed", "lost"} else "invalid" if unsaid else "pass"
    words = [f"{len(pods)} of {len(found.pods)} pods {_WORDS[state]}" for state, pods in unsaid.items()]
    ways = [f"`{name}`" for state in unsaid for name in sorted(_SPOKEN[state][0] or _SPOKEN[state][1])]
    fix = f"{', '.join(words)}, and nothing is promised of them; a threshold on {' or '.join(ways)} says how many may"
    return Check(
        id=f"workload/{wanted.name}/whole",
        group="workload",
        title=f"every pod of {wanted.name} ran and ended well, or it is promised how many may not",
        status=status,
        observed=_tally({state: len(pods) for state, pods in states.items()}),
        expected="none but those that a threshold speaks of",
        samples=len(found.pods),
        reason=fix if unsaid else "",
        evidence=[
            f"{pod.name} {state}: {pod.said or pod.told or 'nothing was said of it'}"
            for state, pods in unsaid.items()
            for pod in pods
        ][:_LINES],
    )


def _spoken(scenario: Scenario, wanted: Workload, state: str) -> bool:
    """Whether a threshold says how many of its pods may be in that state."""
    itself, further = _SPOKEN[state]
    if state == "pending" and wanted.because is not None:
        return True
    for text, thresholds in scenario.slo.items():
        selector = parse_selector(text)
        if selector.tags.get("workload") not in {None, wanted.name}:
            continue
        operators = {parse_expression(each.threshold, selector.metric).operator for each in thresholds}
        if selector.metric in itself or (selector.metric in further and operators & _AT_LEAST):
            return True
    return False


def _refusals(found: Watched | None) -> list[str]:
    said = Counter(pod.said for pod in found.pods.values() if pod.state == "refused") if found else Counter()
    return [f"{count} x refused: {text}" for text, count in said.most_common(_LINES)]


def _prints(wanted: Workload, expression: str, found: Watched | None) -> Check:
    """Every pod that ran printed it, and did not fail for all that; one that has a node and never ran may yet not."""
    started = [pod for pod in found.pods.values() if pod.scheduled is not None] if found and found.finished else []
    wrong = [pod for pod in started if pod.state == "failed" or (not pod.printed and pod.state in _RAN)]
    right = [pod for pod in started if pod.printed and pod not in wrong]
    stuck = [pod for pod in started if pod.stuck]
    status: Status = "pass"
    reason = ""
    if wrong:
        status, first = "fail", wrong[0]
        words = f"printed it, and failed: {first.said}" if first.printed else f"{first.state}"
        reason = f"{first.name} {words}" + ("" if first.printed else f", and its last line is: {first.line or 'none'}")
    elif not right:
        status, reason = "invalid", "no pod of it ran, so none could print anything"
    elif stuck:
        status, reason = "invalid", f"{stuck[0].name} has a node and never ran there, so it could not print anything"
    many = len(right) + len(wrong) + len(stuck)
    return Check(
        id=f"workload/{wanted.name}/prints",
        group="workload",
        title=f"every pod of {wanted.name} that got a node printed {expression}, and none failed",
        status=status,
        observed=f"{len(right)} of {many} did",
        expected="all that got a node",
        samples=many,
        reason=reason,
        evidence=[f"{pod.name} on {pod.node}: {pod.line or 'nothing'}" for pod in [*wrong, *stuck, *right][:_LINES]],
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
    timed = [(pod.waited, pod) for pod in figures.of(found) if pod.waited is not None]
    slowest = sorted(timed, key=lambda each: each[0], reverse=True)[:most]
    return lines + [
        f"t={pod.scheduled:.2f}s {pod.name} on {pod.node}, {waited:.3f} s after it was created"
        for waited, pod in slowest
    ]


def _places(found: Sequence[Watched], most: int) -> list[str]:
    on = Counter(pod.node for pod in figures.of(found) if pod.node and pod.state != "lost")
    lines = [f"{node}: {count} pods" for node, count in on.most_common(most)]
    return [*lines, *([f"and {len(on) - most} nodes more"] if len(on) > most else [])]
