"""Whatever a client that reads and sends late comes to, the exact times of the same run come to as well."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from truths import world

from sandbox import metrics
from sandbox.metrics import Record
from sandbox.spec.slo import parse_expression, parse_selector

_TIMES = ("ttft", "ttft_intended", "tpot", "ntpot", "icl", "e2e")
_TRENDS = ("p(50)", "p(90)", "p(99)", "avg", "min", "max", "med")
_SHARES = ("good_request_fraction", "ok", "timeout", "truncated")
_PHASES = ("", "", "{phase:baseline}", "{phase:fault}", "{phase:recovery}")
_HISTORIES, _PARTS, _EACH = 5000, 10, 4


def asked(dice: random.Random, exact: Record) -> tuple[str, str]:
    """A selector and a threshold whose bound lies near the true figure, or on it."""
    kind = dice.choice(["time", "time", "share", "count", "pace", "recovery"])
    if kind == "time":
        metric, left, unit = dice.choice(_TIMES), dice.choice(_TRENDS), "ms"
    elif kind == "share":
        metric, left, unit = dice.choice(_SHARES), "rate", "%"
    elif kind == "count":
        metric, left, unit = dice.choice(_SHARES[1:]), "count", ""
    elif kind == "pace":
        metric, left, unit = dice.choice(["request_rate", "token_rate"]), "value", ""
    else:
        metric, left, unit = "time_to_recover", "value", "ms"
    selector = metric if kind == "recovery" else metric + dice.choice(_PHASES)
    seen = metrics.observe(exact, parse_selector(selector), parse_expression(f"{left}<=0{unit}", metric))
    figure = 0.0 if seen.value is None or math.isinf(seen.value) else float(seen.value)
    figure *= {"ms": 1000, "%": 100, "": 1}[unit]
    bound = max(0.0, figure + dice.choice([0.0, dice.gauss(0, 0.02), dice.gauss(0, 0.3)]) * max(figure, 1.0))
    bound = round(bound) if kind == "count" else min(bound, 100.0) if unit == "%" else bound
    return selector, f"{left}{dice.choice(['<=', '<', '>=', '>', '<=', '>=', '==', '!='])}{bound:.6f}{unit}"


@pytest.mark.parametrize("part", range(_PARTS))
def test_no_verdict_contradicts_that_of_the_exact_times(part: int) -> None:
    told: Counter[str] = Counter()
    for seed in range(part, _HISTORIES, _PARTS):
        exact, observed = world(seed)
        dice = random.Random(f"thresholds of {seed}")  # noqa: S311 - reproducible
        for _ in range(_EACH):
            text, threshold = asked(dice, exact)
            selector = parse_selector(text)
            expression = parse_expression(threshold, selector.metric)
            true, seen = (metrics.observe(each, selector, expression) for each in (exact, observed))
            verdict = expression.decided(seen.low, seen.high) if seen.value is not None and seen.samples else None
            told[str(verdict)] += 1
            if verdict is not None:
                assert true.value is not None, (seed, text, threshold)
                same = expression.decided(true.low, true.high) is verdict
                assert same, f"seed {seed}: {text} {threshold} is {verdict} of {seen}, in truth {true}"
    assert told["True"] > 0.2 * sum(told.values()), told
    assert told["False"] > 0.1 * sum(told.values()), told
    assert told["None"] < 0.6 * sum(told.values()), told
