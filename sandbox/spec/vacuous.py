"""What in a scenario could not fail, or never hold, whatever the system does: a check that proves nothing."""

from __future__ import annotations

import math
import re
from typing import Any

from sandbox.spec.base import reach
from sandbox.spec.document import (
    Problems,
    Written,
    expected,
    given,
    in_seconds,
    lasting,
    pods,
    strikes,
    thresholds,
    workloads,
)
from sandbox.spec.slo import METRICS, OUTCOMES

_TIMEOUT = "60s"
_ANSWER_TIMES = frozenset({"ttft", "ttft_intended", "tpot", "icl", "ntpot", "e2e"})
_OF_THE_CLIENT = frozenset({"client_lag", "client_cpu", "client_added", "sched_lag"})
_NEEDS_GOOD = frozenset({"good_request_fraction", "time_to_recover"})
_AT_MOST, _AND_SOME = 2, 20  # so many times as many requests as expected, and so many more, never come by chance
_UNLIKE = ("x", "0/3 nodes are available: 3 Insufficient cpu.", "_", "Überlauf", "  7\t")


def vacuous(raw: Any) -> Problems:
    """(keys, message) of each thing that could not fail or could not hold."""
    if not isinstance(raw, dict):
        return []
    found: Problems = []
    for each in thresholds(raw):
        found += [(each.keys, f"{each.said} {words}") for words in _settled(raw, each)]
    return found + _words(raw) + (_of_the_load(raw) if raw.get("load") else [])


def _of_the_load(raw: dict[str, Any]) -> Problems:
    return [*_client_alone(raw), *_good(raw), *_users(raw), *_recovery(raw), *_no_baseline(raw), *_late_abort(raw)]


def _settled(raw: dict[str, Any], each: Written) -> list[str]:
    """What the answer is before anything was measured."""
    most, why = _most(raw, each)
    bound, operator = each.expression.bound, each.expression.operator
    if each.expression.relative:
        share = METRICS[each.selector.metric].unit != "s"
        return ["could not fail: a share changes by 100 % at most"] if share and abs(bound) >= 1 else []
    timed = METRICS[each.selector.metric].unit == "s"  # that it took as long as it may, to the nanosecond, is no chance
    whole = _counts(each) and bound != math.floor(bound)
    always = {
        "<=": bound >= most,
        "<": bound > most or (timed and bound == most),
        ">=": bound <= 0,
        "!=": bound > most or whole,
    }
    never = {"<": bound <= 0, ">=": bound > most, ">": bound >= most, "==": bound > most or whole}
    lowest = "no figure is below 0"
    if always.get(operator):
        said = lowest if operator == ">=" else why or "a count is a whole number"
        return [f"could not fail: {said}; write a limit that can be broken"]
    if never.get(operator) and METRICS[each.selector.metric].of == "requests":  # of pods it is said with their number
        said = lowest if operator == "<" else why or "a count is a whole number"
        return [f"could never hold: {said}; write a limit that can be kept"]
    return []


def _most(raw: dict[str, Any], each: Written) -> tuple[float, str]:
    """The highest that the figure can be, and why."""
    metric, aggregation = each.selector.metric, each.expression.aggregation
    if METRICS[metric].kind == "rate" or aggregation == "rate":
        return 1.0, "a share lies between 0 and 1"
    if metric == "client_cpu":
        return 1.0, "a load process is one thread, which takes one core at most"
    if METRICS[metric].of == "workloads" and (METRICS[metric].kind == "count" or metric == "nodes_used"):
        there = pods(raw, each.selector.tags.get("workload"))
        return there, f"there are {there} pods"
    if metric in _ANSWER_TIMES and aggregation != "count":
        limit = in_seconds(given(reach(raw, "load"), "timeout", _TIMEOUT))
        return (limit or math.inf), f"no answer takes longer than the load's `timeout`, {limit:g}s" if limit else ""
    if metric in {"requests", *OUTCOMES} and (planned := expected(raw)) is not None:
        return _AT_MOST * planned + _AND_SOME, f"this load sends about {planned:.0f} requests"
    return math.inf, ""


def _counts(each: Written) -> bool:
    return each.expression.aggregation == "count" or (
        METRICS[each.selector.metric].kind == "count" and each.expression.aggregation == "value"
    )


def _words(raw: dict[str, Any]) -> Problems:
    """`.*` as what must be printed: there is no line that it does not match."""
    found: Problems = []
    for number, each in enumerate(workloads(raw)):
        for key in ("prints", "because"):
            try:
                pattern = re.compile(reach(each, key))
            except (re.error, TypeError):
                continue
            if pattern.search("") or all(pattern.search(text) for text in _UNLIKE):
                words = f"{pattern.pattern!r} matches whatever is said, so it could not fail; write what must be said"
                found.append((("workloads", number, key), words))
    return found


def _client_alone(raw: dict[str, Any]) -> Problems:
    metrics = {each.selector.metric for each in thresholds(raw, "slo")}
    planned = reach(raw, "load", "arrivals", "process") != "closed"
    own = _OF_THE_CLIENT | ({"requests"} if planned else set())
    if not metrics or metrics - own or len(metrics) < len(raw.get("slo") or ()):
        return []
    words = f"{', '.join(sorted(metrics))}: of the load client alone, so no server could break it"
    return [(("slo",), f"{words}; promise something of the answers, such as `good_request_fraction: [rate>=0.99]`")]


def _good(raw: dict[str, Any]) -> Problems:
    good = reach(raw, "load", "good")
    if not isinstance(good, dict) or not good:
        return []
    found: Problems = []
    if not any(each.selector.metric in _NEEDS_GOOD for each in thresholds(raw)):
        words = "no threshold asks whether requests are good; add `good_request_fraction: [rate>=0.99]` to `slo`"
        found.append((("load", "good"), f"{words}, or leave `good` out"))
    timeout = in_seconds(given(raw["load"], "timeout", _TIMEOUT))
    for name, limit in good.items():
        allowed = in_seconds(limit)
        if allowed is not None and timeout is not None and allowed >= timeout:
            words = f"{allowed:g}s could not fail: no answer takes longer than the load's `timeout`, {timeout:g}s"
            found.append((("load", "good", name), f"{words}; write less"))
    return found


def _users(raw: dict[str, Any]) -> Problems:
    arrivals, span = reach(raw, "load", "arrivals"), lasting(raw)
    users, rate = reach(arrivals, "users"), reach(arrivals, "spawnRate")
    if span is None or not isinstance(users, int) or not isinstance(rate, int | float) or rate <= 0:
        return []
    last = (users - 1) / rate
    if last < span:
        return []
    words = f"the last of {users} users would start after {last:g}s, and the load lasts {span:g}s"
    return [(("load", "arrivals", "spawnRate"), f"{words}; raise it, or load for longer")]


def _recovery(raw: dict[str, Any]) -> Problems:
    """A recovery that takes longer than it is watched is not seen to take too long."""
    span, struck = lasting(raw), strikes(raw)
    if span is None or not struck:
        return []
    left = span - max(struck)
    return [
        (
            each.keys,
            f"{each.said} could not fail: the load ends {left:g}s after the last fault strikes; load for longer",
        )
        for each in thresholds(raw)
        if each.selector.metric == "time_to_recover" and each.expression.operator in {"<", "<="}
        if 0 < left < each.expression.bound
    ]


def _no_baseline(raw: dict[str, Any]) -> Problems:
    if 0.0 not in strikes(raw):
        return []
    words = "a fault strikes as the load begins, so no request is {phase:baseline}; let it strike later"
    found = [each for each in thresholds(raw) if each.selector.tags.get("phase") == "baseline"]
    return list(dict.fromkeys((each.keys[:2], words) for each in found))


def _late_abort(raw: dict[str, Any]) -> Problems:
    span = lasting(raw)
    found: Problems = []
    for each in thresholds(raw):
        wait = in_seconds(each.more.get("delayAbortEval")) or 0.0
        if span is not None and wait >= span:
            words = f"{wait:g}s: the load is over by then ({span:g}s), so nothing would ever end it"
            found.append(((*each.keys, "delayAbortEval"), words))
    return found
