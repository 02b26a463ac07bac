"""Figures of workloads as thresholds hold them: what each is for certain, what it may be, and whether it had a chance.

A figure that is good because nothing happened says nothing: where no pod ever ran none could fail, and none could take
a second node. Such a figure has no value. A pod that has a node and has not run there may still come to either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from sandbox.metrics import pods as pods_
from sandbox.metrics.pods import Pod, Pods, Watched
from sandbox.spec.slo import METRICS, OF_ALL_NODES, Expression, Selector

_OF_THOSE_THAT_RAN = {"pods_failed": "fail", "pods_printing": "print anything"}
_OF_ALL_ASKED = frozenset({"pods_created", "pods_refused"})


@dataclass(frozen=True)
class Figure:
    """One figure: a count, a share or a rate.

    Attributes:
        low, high: between which it lies; None: there is nothing to say it of.
        samples: how many pods, or nodes, it is said of.
        why: what makes it uncertain, or keeps it from being said.
    """

    low: Fraction | None
    high: Fraction | None
    samples: int
    why: str = ""


def figure(pods: Pods, selector: Selector, expression: Expression) -> Figure:
    """Everything but `scheduling_seconds`, which is a trend."""
    name, found = selector.metric, pods.chosen(selector)
    asked = sum(each.asked for each in found)
    if name in OF_ALL_NODES:
        return _of_nodes(pods, name, expression)
    if not found:
        return Figure(None, None, 0)
    if METRICS[name].kind == "count":
        return _count(pods, selector, expression, asked)
    if name == "scheduling_rate":
        rate = pods_.scheduling_rate(found)
        exact = None if rate is None else Fraction(rate)
        return Figure(exact, exact, asked)
    return _places(found, name, expression, asked)


def _count(pods: Pods, selector: Selector, expression: Expression, asked: int) -> Figure:
    name, every = selector.metric, pods_.of(pods.chosen(selector))
    many, stuck, why = len(pods_.matching(pods, selector, name)), 0, ""
    if name in _OF_THOSE_THAT_RAN:
        chance = [pod for pod in every if pod.ran or pod.state == "failed"]
        stuck, why = _stuck(every) if name == "pods_failed" else (0, "")
        nothing = f"no pod of it ran, so none could {_OF_THOSE_THAT_RAN[name]}"
    else:
        chance = [pod for pod in every if name in _OF_ALL_ASKED or (pod.created is not None and pod.state != "refused")]
        nothing = "no pod of it was created, so nothing could become of one"
    if not chance and expression.holds(0.0):
        return Figure(None, None, 0, nothing)
    per = asked if expression.aggregation == "rate" else 1
    return Figure(Fraction(many, per), Fraction(many + stuck, per), asked, why)


def _places(found: Sequence[Watched], name: str, expression: Expression, asked: int) -> Figure:
    """Nodes or GPUs: those of pods that ran; those of pods that have not yet run may come to it."""
    held = [(each, pods_.holding(each)) for each in found]
    more = [(each, [*those, *(pod for pod in each.pods.values() if pod.stuck)]) for each, those in held]
    if name == "gpus_allocated":
        low, high = (sum(pods_.gpus_of(each, those) for each, those in part) for part in (held, more))
    else:
        # of those that failed too: as an upper bound counts them, and they are no proof of a lower one
        took = [pod for pod in pods_.of(found) if pod.state != "lost"]
        low, high = len(pods_.nodes_of([pod for _, those in held for pod in those])), len(pods_.nodes_of(took))
    if not any(those for _, those in held) and expression.holds(float(high)):
        return Figure(None, None, 0, "no pod of it ran and held, so none could take anything")
    return Figure(Fraction(low), Fraction(high), asked, _why(found) if low != high else "")


def _why(found: Sequence[Watched]) -> str:
    every = pods_.of(found)
    failed = sum(pod.state == "failed" for pod in every)
    return _stuck(every)[1] or f"{failed} pods got a node and failed there"


def _stuck(every: Sequence[Pod]) -> tuple[int, str]:
    stuck = [pod.name for pod in every if pod.stuck]
    return len(stuck), f"{len(stuck)} pods have a node and have not run there, such as {stuck[0]}" if stuck else ""


def _of_nodes(pods: Pods, name: str, expression: Expression) -> Figure:
    nodes = pods.nodes
    if nodes is None or not nodes.groups:
        return Figure(None, None, 0, "nobody looked at nodes with GPUs, or there is none")
    in_use = any(used for _, used, _ in nodes.groups)
    ran = any(pods_.gpus_of(each, pods_.holding(each)) for each in pods.workloads.values())
    value = {"gpu_nodes_free": pods_.nodes_free, "gpu_fragmentation": pods_.fragmentation}[name](nodes)
    if not in_use and not ran and value is not None and expression.holds(float(value)):
        return Figure(None, None, 0, "no GPU was ever in use, so none could be in anybody's way")
    exact = None if value is None else Fraction(value)
    return Figure(exact, exact, 1)
