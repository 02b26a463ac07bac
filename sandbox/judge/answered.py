"""Whoever is not named is asked too: of all that is judged at least 99 % must be good, unless that share is promised.

Times are of requests that were answered, and a count of one outcome says nothing of the others. So every selection of
requests that any threshold looks at (its window, its tags) is asked how many of it were not good. A promise counts for
the very selection it names, neither for a part of it nor for more.

What the client cannot tell counts against: a bad request near the edge of a phase belongs to both, and an answer that
may have been beyond a limit of `good` was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sandbox import metrics
from sandbox.judge.witnesses import witnesses
from sandbox.metrics import Mask, Record, truth
from sandbox.spec.results import Check
from sandbox.spec.scenario import Scenario
from sandbox.spec.slo import METRICS, OUTCOMES, WHOLE_RUN, Expression, Selector, parse_expression, parse_selector

_OF_THE_CLIENT = ("client_lag", "client_added", "client_cpu", "sched_lag")
_SHARE = "good_request_fraction"
_FEW = 100  # one in so many may be bad
_EVIDENCE_LINES = 4


@dataclass(frozen=True)
class _Promise:
    """What a threshold says of the requests it selects."""

    selector: Selector
    expression: Expression


def answered_checks(scenario: Scenario, rec: Record) -> list[Check]:
    """One check per selection that is judged and whose share of good requests nothing promises."""
    if scenario.load is None:
        return []
    promises = list(_promises(scenario))
    selections: dict[tuple[tuple[str, str], ...], Selector] = {}
    for each in promises:
        tags = {} if each.selector.metric in WHOLE_RUN else each.selector.tags
        selections.setdefault(tuple(sorted(tags.items())), Selector(_SHARE, tags))
    if not selections:  # nothing asks for the requests: then all of them are asked
        selections[()] = Selector(_SHARE, {})
    good = truth.perhaps_good(rec.table, rec.limits).sure
    named = np.zeros(len(rec.table), dtype=bool)
    checks = []
    for key, selection in selections.items():
        may = metrics.perhaps(rec, selection)
        named |= may.possible
        own = [each for each in promises if tuple(sorted(each.selector.tags.items())) == key]
        if not any(_promises_all(each) for each in own):
            bad = _open(rec, may.possible & ~good, own, int(may.sure.sum()))
            checks.append(_check(rec, selection, may.sure | bad, bad))
    if not named.all():
        checks.append(_elsewhere(rec, ~named, ~named & ~good))
    return checks


def _promises(scenario: Scenario) -> Iterator[_Promise]:
    """Yield what is promised of requests; bounds of `validity` on the load client are no promise of the server's."""
    for slo, left_out in ((scenario.slo, ()), (scenario.validity, _OF_THE_CLIENT)):
        for text, thresholds in slo.items():
            selector = parse_selector(text)
            if METRICS[selector.metric].of == "requests" and selector.metric not in left_out:
                for each in thresholds:
                    yield _Promise(selector, parse_expression(each.threshold, selector.metric))


def _promises_all(each: _Promise) -> bool:
    """The share of good requests is promised. A share that hangs on an earlier run's is none: both may be bad."""
    return each.selector.metric == _SHARE and _at_least(each.expression)


def _open(rec: Record, bad: Mask, promises: Sequence[_Promise], total: int) -> Mask:
    """Which of the bad requests no promise covers.

    A share of `ok` covers all that was not answered. A bound on one outcome covers that one, if it can be broken.
    """
    for each in promises:
        metric, expression = each.selector.metric, each.expression
        if metric == "ok" and expression.aggregation == "rate" and _at_least(expression):
            bad = bad & rec.table.ended("ok")
        elif metric in OUTCOMES and metric != "ok" and _bounds(expression, total):
            bad = bad & ~rec.table.ended(metric)
    return bad


def _at_least(expression: Expression) -> bool:
    return not expression.relative and expression.operator in {">=", ">", "=="} and expression.bound > 0


def _bounds(expression: Expression, total: int) -> bool:
    """Whether it limits how many requests end so, or asks for a share that does."""
    if expression.relative:
        return False
    is_rate = expression.aggregation == "rate"
    return (expression.operator in {"<=", "<", "=="} and expression.bound < (1 if is_rate else total)) or (
        is_rate and _at_least(expression)
    )


def _check(rec: Record, selection: Selector, chosen: Mask, bad: Mask) -> Check:
    tags = str(selection).removeprefix(_SHARE)
    total, lost = int(chosen.sum()), int(bad.sum())
    of = f"requests of {tags}" if tags else "requests"
    reason = ""
    if not total:
        reason = f"there are no {of}: nothing was asked, so nothing was answered"
    elif lost * _FEW > total:
        reason = (
            f"{lost} of {total} {of} were not good ({_said(rec, bad)}), and no threshold promises how many may be; "
            f'write the share that has to be good, such as `{selection}: ["rate>=0.95"]`'
        )
    return Check(
        id=f"validity/answered{tags}",
        group="validity",
        title=f"of the {of}, few are not good, or it is promised how many",
        status="invalid" if reason else "pass",
        observed=_observed(rec, bad, total),
        expected="at least 99% good, or a promise of that same share",
        samples=total,
        reason=reason,
        evidence=witnesses(rec, selection, _EVIDENCE_LINES) if reason else [],
    )


def _elsewhere(rec: Record, chosen: Mask, bad: Mask) -> Check:
    """Requests that no threshold selects: had they no answer, the load was not the one that was to be judged."""
    total, lost = int(chosen.sum()), int(bad.sum())
    broken = lost * _FEW > total
    reason = (
        f"no threshold looks at {total} requests, and {lost} of them were not good ({_said(rec, bad)}); "
        f'promise the share of all, such as `{_SHARE}: ["rate>=0.95"]`'
    )
    return Check(
        id="validity/answered/elsewhere",
        group="validity",
        title="of the requests that no threshold looks at, few are not good",
        status="invalid" if broken else "pass",
        observed=_observed(rec, bad, total),
        expected="at least 99% good, or a threshold that selects them",
        samples=total,
        reason=reason if broken else "",
    )


def _observed(rec: Record, bad: Mask, total: int) -> str:
    lost = int(bad.sum())
    return f"{lost} of {total} not good{f': {_said(rec, bad)}' if lost else ''}"


def _said(rec: Record, bad: Mask) -> str:
    """How the bad ones ended, most first."""
    counts = rec.table.outcomes(bad)
    late = counts.pop("ok", 0)
    words = [f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1])]
    return ", ".join(words + ([f"{late} ok but beyond a limit of `good`"] if late else []))
