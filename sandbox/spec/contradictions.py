"""What in a scenario cannot be true together. Read as far as it can be, whatever else is wrong with the document."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from sandbox.spec.base import KeyPath, reach, seconds
from sandbox.spec.slo import METRICS, Expression, Selector, parse_expression, parse_selector

_AT = "at"
_PER_REQUEST = frozenset({"ttft", "ttft_intended", "tpot", "ntpot", "e2e", "sched_lag"})
_LUCK = 1.3  # random arrivals may be so many more than their rate says
_SHORTEST = 4.6  # seconds: what a p99 of the load client's heartbeat takes
_OF_A_CLUSTER = ("guardrails", "attacks", "faults", "steadyState")
_OF_A_STACK = ("openai.chat", "k8s.ready")
_DEFAULT_WITHIN = "30s"
Problems = list[tuple[KeyPath, str]]


def contradictions(raw: Any) -> list[tuple[KeyPath, str]]:
    """What in a scenario's document cannot be true together: (keys, message).

    `raw` is read as far as it can be, so that this can be asked where another key breaks the model.
    """
    if not isinstance(raw, dict):
        return []
    problems = [*_stack(raw), *_steady_state(raw)]
    if not raw.get("load") and not raw.get("workloads"):
        given = [key for key in ("slo", "faults", "attacks") if raw.get(key)]
        why = "needs a `load` or `workloads`: without requests or pods nothing would be measured"
        return [*problems, *(((key,), why) for key in given)]
    if raw.get("attacks") and not raw.get("load"):
        problems.append((("attacks",), "needs a `load`: attempts are made while it runs"))
    problems += _cannot_fail(raw)
    problems += _too_short(raw)
    problems += _late_faults(raw)
    problems += _workloads(raw)
    rooms = [found(raw, room) for found in (_unanswerable, _too_few_samples, _beyond) for room in ("slo", "validity")]
    return [*problems, *(each for found in rooms for each in found)]


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


def _cannot_fail(raw: dict[str, Any]) -> Problems:
    if raw.get("slo"):
        return []
    if raw.get("load"):
        return [(("load",), "a load without `slo` could not fail; write at least one threshold")]
    asked = any(reach(each, key) for each in _each(raw) for key in ("prints", "because"))
    words = "without `slo`, and none with `prints` or `because`, could not fail; write at least one threshold"
    return [] if asked else [(("workloads",), f"workloads {words}")]


def _each(raw: dict[str, Any]) -> list[Any]:
    found = raw.get("workloads")
    return found if isinstance(found, list) else []


def _workloads(raw: dict[str, Any]) -> Problems:
    problems: Problems = []
    names: list[Any] = []
    for number, each in enumerate(_each(raw)):
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
    lasting, own = _seconds(reach(raw, "load", "duration")), raw.get("validity")
    named = isinstance(own, dict) and any(str(text).startswith("client_lag") for text in own)
    if lasting is None or lasting >= _SHORTEST or named:
        return []
    words = f"{lasting:g}s are too short to show that the load client kept up, which takes 459 beats of 10 ms"
    return [(("load", "duration"), f"{words}; 5s or longer, or a bound of your own under `validity: client_lag`")]


def _late_faults(raw: dict[str, Any]) -> Problems:
    faults, end = raw.get("faults"), _seconds(reach(raw, "load", "duration"))
    what = "load has"
    if end is None and not raw.get("load"):
        ends: dict[Any, float] = {}
        for each in _each(raw):
            at, within = _seconds(_or(each, "at", "0s")), _seconds(_or(each, "within", _DEFAULT_WITHIN))
            ends[reach(each, "name")] = ends.get(reach(each, "after"), 0.0) + (at or 0.0) + (within or 0.0)
        end = max(ends.values(), default=None)
        what = "last workload's time has"
    if end is None or not isinstance(faults, list):
        return []
    starts = [_seconds(reach(fault, _AT)) for fault in faults]
    words = f"strikes after the {what} ended ({end:g}s)"
    return [(("faults", n, _AT), words) for n, start in enumerate(starts) if start is not None and start >= end]


def _or(raw: Any, key: str, default: str) -> Any:
    found = reach(raw, key)
    return default if found is None else found


def _seconds(value: Any) -> float | None:
    try:
        return seconds(value)
    except ValueError:
        return None


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
        sent, asked = _sent(raw, tag), selector.tags.get(tag)
        if asked is not None and asked not in sent:
            use = f"use {{{tag}:{sent[0]}}}, or no tag" if sent else "leave the tag out"
            words.append(f"the load sends no {tag} {asked!r}; {use}")
    return words


def _sent(raw: dict[str, Any], tag: str) -> list[str]:
    """The values of a tag that the load's requests have."""
    mix, own = reach(raw, "load", "mix"), reach(raw, "load", "locustfile")
    if tag == "profile" and isinstance(own, str):
        return [PurePath(own).stem]
    found = [reach(share, tag) for share in mix] if isinstance(mix, list) and mix else [reach(raw, "load", tag)]
    return [value for value in found if isinstance(value, str)]


def _no_pod(raw: dict[str, Any], selector: Selector) -> list[str]:
    if not raw.get("workloads"):
        return [f"{selector.metric} is measured on pods, and there are no `workloads`"]
    name = selector.tags.get("workload")
    known = [str(reach(each, "name")) for each in _each(raw)]
    if name is not None and name not in known:
        return [f"there is no workload {name!r}; there are: {', '.join(known)}"]
    asked = {"pods_printing": "prints", "pods_because": "because"}.get(selector.metric)
    if asked and not any(reach(each, asked) for each in _chosen(raw, name)):
        which = f"workload {name}" if name else "no workload"
        return [f"{which} has {'no ' if name else ''}`{asked}`, so there is nothing to count"]
    return []


def _chosen(raw: dict[str, Any], name: str | None) -> list[Any]:
    return [each for each in _each(raw) if name is None or reach(each, "name") == name]


def _beyond(raw: dict[str, Any], room: str) -> Problems:
    """Counts of pods that would take more pods than there are."""
    problems: Problems = []
    for text, thresholds in raw[room].items() if isinstance(raw.get(room), dict) else ():
        for position, threshold in enumerate(thresholds if isinstance(thresholds, list) else ()):
            try:
                selector = parse_selector(str(text))
                expression = parse_expression(_text(threshold), selector.metric)
            except (ValueError, TypeError):  # the model has said so
                continue
            if METRICS[selector.metric].of != "workloads" or METRICS[selector.metric].kind != "count":
                continue
            most = sum(_number(_or(each, "pods", "1")) for each in _chosen(raw, selector.tags.get("workload")))
            if expression.aggregation != "rate" and _unreachable(expression, most):
                problems.append(
                    ((room, text, position), f"{_text(threshold)} needs more pods than the {most} there are")
                )
    return problems


def _text(threshold: Any) -> Any:
    return threshold.get("threshold") if isinstance(threshold, dict) else threshold


def _number(value: Any) -> int:
    return int(value) if str(value).isdigit() else 0


def _unreachable(expression: Expression, most: int) -> bool:
    bound, operator = expression.bound, expression.operator
    return (bound > most and operator in {"==", ">="}) or (bound >= most and operator == ">")


def _too_few_samples(raw: dict[str, Any], room: str) -> Problems:
    """Percentiles for which this load cannot send enough requests; closed loops send as many as are answered."""
    expected = _expected(raw)
    if expected is None or not isinstance(raw.get(room), dict):
        return []
    problems: Problems = []
    for text, thresholds in raw[room].items():
        for position, threshold in enumerate(thresholds if isinstance(thresholds, list) else ()):
            try:
                metric = parse_selector(str(text)).metric
                needed = parse_expression(threshold, metric).samples_needed
            except (ValueError, TypeError):  # the model has said so, or `minSamples` says otherwise
                continue
            if metric in _PER_REQUEST and needed > _LUCK * expected:
                words = f"needs {needed} samples, and this load sends about {expected:.0f} requests"
                hint = "load for longer, ask for a lower percentile, or set minSamples"
                problems.append(((room, text, position), f"{threshold} {words}; {hint}"))
    return problems


def _expected(raw: dict[str, Any]) -> float | None:
    """How many requests a rate or its stages send; None where the server or a trace decides."""
    arrivals = reach(raw, "load", "arrivals")
    rate, lasting = reach(arrivals, "rate"), _seconds(reach(raw, "load", "duration"))
    if isinstance(rate, int | float):
        return rate * lasting if lasting is not None else None
    stages = reach(arrivals, "stages")
    if not isinstance(stages, list) or not stages:
        return None
    sent, before = 0.0, 0.0
    for stage in stages:
        span, step, ramp = _seconds(reach(stage, "for")), reach(stage, "rate"), reach(stage, "rampTo")
        if span is None or not isinstance(after := ramp if step is None else step, int | float):
            return None  # the model has said so
        sent += span * (after if step is not None else (before + after) / 2)
        before = after
    return sent
