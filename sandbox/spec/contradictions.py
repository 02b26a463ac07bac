"""What in a scenario cannot be true together. Read as far as it can be, whatever else is wrong with the document."""

from __future__ import annotations

from typing import Any

from sandbox.spec.base import KeyPath, reach
from sandbox.spec.document import (
    ROOMS,
    Problems,
    expected,
    given,
    in_seconds,
    pods,
    sent,
    thresholds,
    workloads,
)
from sandbox.spec.slo import METRICS, Expression, Selector, parse_selector
from sandbox.spec.vacuous import vacuous
from sandbox.spec.validity import needless

_AT = "at"
_PER_REQUEST = frozenset({"ttft", "ttft_intended", "tpot", "ntpot", "e2e", "sched_lag"})
_LUCK = 1.3  # random arrivals may be so many more than their rate says
_SHORTEST = 4.6  # seconds: what a p99 of the load client's heartbeat takes
_OF_A_CLUSTER = ("guardrails", "attacks", "faults", "steadyState")
_OF_A_STACK = ("openai.chat", "k8s.ready")
_DEFAULT_WITHIN = "30s"


def contradictions(raw: Any) -> list[tuple[KeyPath, str]]:
    """What in a scenario's document cannot be true together: (keys, message).

    `raw` is read as far as it can be, so that this can be asked where another key breaks the model.
    """
    if not isinstance(raw, dict):
        return []
    problems = [*_stack(raw), *_steady_state(raw)]
    if not raw.get("load") and not raw.get("workloads"):
        lost = [key for key in ("slo", "faults", "attacks") if raw.get(key)]
        why = "needs a `load` or `workloads`: without requests or pods nothing would be measured"
        return [*problems, *(((key,), why) for key in lost)]
    if raw.get("attacks") and not raw.get("load"):
        problems.append((("attacks",), "needs a `load`: attempts are made while it runs"))
    problems += [*_no_threshold(raw), *_late_faults(raw), *_workloads(raw), *_beyond(raw)]
    problems += [each for room in ROOMS for each in _unanswerable(raw, room)]
    return problems


def idle(raw: Any) -> list[tuple[KeyPath, str]]:
    """What would be run in vain: too short to show anything, or a check that could not fail: (keys, message).

    No part of the model: the judge reads scenarios that older versions ran, and says `invalid` of what proves nothing.
    """
    if not isinstance(raw, dict) or not (raw.get("load") or raw.get("workloads")):
        return []
    return [*_too_short(raw), *_too_few_samples(raw), *needless(raw), *vacuous(raw)]


def _stack(raw: dict[str, Any]) -> Problems:
    if raw.get("stack") is not None:
        return []
    if reach(raw, "load", "endpoint"):
        lost = [] if raw.get("workloads") else [key for key in _OF_A_CLUSTER if raw.get(key)]
        words = "needs a `stack` or `workloads`: a load that goes to an `endpoint` alone has no cluster"
        problems: Problems = [((key,), words) for key in lost]
        workers = reach(raw, "load", "workers")
        if reach(workers, "pods") and not reach(workers, "cluster") and not raw.get("workloads"):
            words = "there is no cluster for them; name a running one with `cluster`, or write `processes`"
            problems.append((("load", "workers", "pods"), words))
        return problems
    if raw.get("load"):
        words = "needs a `stack`, or an `endpoint` of its own: somebody has to answer the requests"
        return [(("load",), words)]
    return [] if raw.get("workloads") else [(("stack",), "must be there, or `workloads`: else nothing is tested")]


def _steady_state(raw: dict[str, Any]) -> Problems:
    """What is served must be seen to work; probes that look at a stack need one."""
    uses = raw.get("steadyState")
    if raw.get("stack") is not None:
        return [] if uses else [(("steadyState",), "must be there, with a probe of the stack, such as openai.chat")]
    names = [_name(use) for use in uses] if isinstance(uses, list) else []
    words = "looks at a stack, and this scenario has none"
    return [(("steadyState", n), f"{name} {words}") for n, name in enumerate(names) if name in _OF_A_STACK]


def _name(use: Any) -> str:
    if isinstance(use, dict):
        return str(use["name"] if "name" in use else next(iter(use), ""))
    return str(use)


def _no_threshold(raw: dict[str, Any]) -> Problems:
    if raw.get("slo"):
        return []
    if raw.get("load"):
        return [(("load",), "a load without `slo` could not fail; write at least one threshold")]
    asked = any(reach(each, key) for each in workloads(raw) for key in ("prints", "because"))
    words = "without `slo`, and none with `prints` or `because`, could not fail; write at least one threshold"
    return [] if asked else [(("workloads",), f"workloads {words}")]


def _workloads(raw: dict[str, Any]) -> Problems:
    problems: Problems = []
    names: list[Any] = []
    for number, each in enumerate(workloads(raw)):
        name = reach(each, "name")
        if name is not None and name in names:
            problems.append((("workloads", number, "name"), f"{name!r} is another workload's name too"))
        if (first := reach(each, "after")) is not None and first not in names:
            words = f"{first!r} is no workload before this one; there are: {', '.join(map(str, names)) or 'none'}"
            problems.append((("workloads", number, "after"), words))
        names.append(name)
    return problems


def _too_short(raw: dict[str, Any]) -> Problems:
    """A load in which the client's heartbeat has too few beats to show that it kept up."""
    lasting = in_seconds(reach(raw, "load", "duration"))
    foreign = reach(raw, "load", "locustfile")  # our own client says itself how late it may be
    if not foreign or lasting is None or lasting >= _SHORTEST or reach(raw, "loosen", "client_lag"):
        return []
    words = f"{lasting:g}s are too short to show that the load client kept up, which takes 459 beats of 10 ms"
    return [(("load", "duration"), f"{words}; 5s or longer, or a lower percentile under `loosen: client_lag`")]


def _late_faults(raw: dict[str, Any]) -> Problems:
    faults, end = raw.get("faults"), in_seconds(reach(raw, "load", "duration"))
    what = "load has"
    if end is None and not raw.get("load"):
        ends: dict[Any, float] = {}
        for each in workloads(raw):
            at, within = in_seconds(given(each, "at", "0s")), in_seconds(given(each, "within", _DEFAULT_WITHIN))
            ends[reach(each, "name")] = ends.get(reach(each, "after"), 0.0) + (at or 0.0) + (within or 0.0)
        end = max(ends.values(), default=None)
        what = "last workload's time has"
    if end is None or not isinstance(faults, list):
        return []
    starts = [in_seconds(reach(fault, _AT)) for fault in faults]
    words = f"strikes after the {what} ended ({end:g}s)"
    return [(("faults", n, _AT), words) for n, start in enumerate(starts) if start is not None and start >= end]


def _unanswerable(raw: dict[str, Any], room: str) -> Problems:
    """Selectors that no request and no pod of this scenario can meet."""
    problems: Problems = []
    for text in raw[room] if isinstance(raw.get(room), dict) else ():
        try:
            selector = parse_selector(str(text))
        except ValueError:
            continue  # the model has said so
        of = METRICS[selector.metric].of
        found = _no_request(raw, selector) if of == "requests" else _no_pod(raw, selector)
        problems += [((room, text), words) for words in found]
    return problems


def _no_request(raw: dict[str, Any], selector: Selector) -> list[str]:
    if not raw.get("load"):
        return [f"{selector.metric} is measured on requests, and there is no `load`"]
    words = []
    if not raw.get("faults") and selector.tags.get("phase") in {"fault", "recovery"}:
        words.append("there are no `faults`: all of the load is {phase:baseline}")
    if not raw.get("faults") and selector.metric == "time_to_recover":
        words.append("there are no `faults` to recover from; write one, or leave this out")
    for tag in ("profile", "tenant"):
        there, asked = sent(raw, tag), selector.tags.get(tag)
        if asked is not None and asked not in there:
            use = f"use {{{tag}:{there[0]}}}, or no tag" if there else "leave the tag out"
            words.append(f"the load sends no {tag} {asked!r}; {use}")
    return words


def _no_pod(raw: dict[str, Any], selector: Selector) -> list[str]:
    if not raw.get("workloads"):
        return [f"{selector.metric} is measured on pods, and there are no `workloads`"]
    name = selector.tags.get("workload")
    known = [str(reach(each, "name")) for each in workloads(raw)]
    if name is not None and name not in known:
        return [f"there is no workload {name!r}; there are: {', '.join(known)}"]
    asked = {"pods_printing": "prints", "pods_because": "because"}.get(selector.metric)
    if asked and not any(reach(each, asked) for each in workloads(raw, name)):
        which = f"workload {name}" if name else "no workload"
        return [f"{which} has {'no ' if name else ''}`{asked}`, so there is nothing to count"]
    return []


def _beyond(raw: dict[str, Any]) -> Problems:
    """Counts of pods that would take more pods than there are."""
    problems: Problems = []
    for each in thresholds(raw):
        metric = METRICS[each.selector.metric]
        if metric.of != "workloads" or metric.kind != "count" or each.expression.aggregation == "rate":
            continue
        most = pods(raw, each.selector.tags.get("workload"))
        if _unreachable(each.expression, most):
            problems.append((each.keys, f"{each.said} needs more pods than the {most} there are"))
    return problems


def _unreachable(expression: Expression, most: int) -> bool:
    bound, operator = expression.bound, expression.operator
    return (bound > most and operator in {"==", ">="}) or (bound >= most and operator == ">")


def _too_few_samples(raw: dict[str, Any]) -> Problems:
    """Percentiles for which this load cannot send enough requests; closed loops send as many as are answered."""
    planned = expected(raw)
    problems: Problems = []
    for each in thresholds(raw) if planned is not None else ():
        own = each.more.get("minSamples")
        needed = own if isinstance(own, int) else each.expression.samples_needed
        if each.selector.metric in _PER_REQUEST and needed > _LUCK * (planned or 0):
            words = f"needs {needed} samples, and this load sends about {planned:.0f} requests"
            hint = "load for longer, ask for a lower percentile, or set minSamples"
            problems.append((each.keys, f"{each.said} {words}; {hint}"))
    return problems
