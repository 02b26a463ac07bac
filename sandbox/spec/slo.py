"""SLOs in k6's threshold words: `metric{tag:value}: ["p(99)<=300ms"]`. Source: grafana.com/docs/k6, Thresholds."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from sandbox.spec.base import Duration, KeyPath, Mistakes, Strict

Kind = Literal["trend", "rate", "count", "value"]
PHASES = ("baseline", "fault", "recovery")
TAGS = ("phase", "tenant", "model", "profile", "workload")
_OF_WORKLOADS = ("workload",)
# Measured once over the whole run, whoever asks: a tag would change nothing.
WHOLE_RUN = ("time_to_recover", "client_lag", "client_cpu", "client_added")
OF_ALL_NODES = ("gpu_nodes_free", "gpu_fragmentation")
OUTCOMES = (
    "ok",
    "http_error",
    "connect_error",
    "timeout",
    "truncated",
    "inband_error",
    "guardrail_blocked",
    "dropped",
    "empty",
)


@dataclass(frozen=True)
class Metric:
    """One metric a threshold can name.

    Attributes:
        kind: trend (a distribution of seconds), rate (a share, 0..1), count (a number of events), value (one number).
        unit: "s", "" (a share or a count), "1/s".
        description: what it measures.
        of: what must be there to be measured: requests of a load, or pods of workloads.
    """

    kind: Kind
    unit: str
    description: str
    of: Literal["requests", "workloads"] = "requests"


_POD_METRICS: dict[str, tuple[Kind, str, str]] = {
    "pods_created": ("count", "", "pods that the API server took"),
    "pods_refused": ("count", "", "pods that the API server refused: quota, admission"),
    "pods_scheduled": ("count", "", "pods that got a node, whatever became of them there"),
    "pods_pending": ("count", "", "pods without a node at the end of the watch"),
    "pods_running": ("count", "", "pods that ran at the end of the watch"),
    "pods_succeeded": ("count", "", "pods whose command ended with 0"),
    "pods_failed": ("count", "", "pods that failed, or that their node refused"),
    "pods_lost": ("count", "", "pods that were deleted by others: preempted, evicted"),
    "pods_printing": ("count", "", "pods whose log matched `prints`"),
    "pods_because": ("count", "", "pods held back with words of the scheduler that match `because`"),
    "scheduling_seconds": ("trend", "s", "from the creation of a pod to its getting a node"),
    "scheduling_rate": ("value", "1/s", "pods that got a node per second, from the first creation to the last"),
    "nodes_used": ("value", "", "nodes that pods got"),
    "gpus_allocated": ("value", "", "GPUs that pods got, by resource or by claim"),
    "gpu_nodes_free": ("value", "", "nodes with GPUs none of which was in use at the end"),
    "gpu_fragmentation": ("rate", "", "share of the GPUs free at the end that lay on nodes partly in use"),
}
METRICS: dict[str, Metric] = {
    "ttft": Metric("trend", "s", "first content minus actual send"),
    "ttft_intended": Metric("trend", "s", "first content minus scheduled send; no coordinated omission"),
    "tpot": Metric("trend", "s", "(last - first token) / (tokens - 1)"),
    "icl": Metric("trend", "s", "gaps between chunks, pooled over requests"),
    "ntpot": Metric("trend", "s", "end-to-end time / tokens"),
    "e2e": Metric("trend", "s", "last byte minus send"),
    "sched_lag": Metric("trend", "s", "how late sends were against their schedule"),
    "client_lag": Metric("trend", "s", "how late the load client's own heartbeat was"),
    "client_added": Metric("trend", "s", "what the load client added to tokens of known send time, beside the load"),
    "good_request_fraction": Metric("rate", "", "requests that were ok / requests attempted, drops included"),
    "request_rate": Metric("value", "1/s", "requests completed per second"),
    "token_rate": Metric("value", "1/s", "tokens received per second"),
    "requests": Metric("count", "", "requests attempted"),
    "time_to_recover": Metric(
        "value", "s", "from the fault's start to the first good completion after the last bad one"
    ),
    "client_cpu": Metric("value", "", "share of one core that the busiest load process used, at its busiest second"),
    **{outcome: Metric("count", "", f"requests that ended `{outcome}`") for outcome in OUTCOMES},
    **{name: Metric(kind, unit, description, "workloads") for name, (kind, unit, description) in _POD_METRICS.items()},
}

AGGREGATIONS: dict[Kind, tuple[str, ...]] = {
    "trend": ("p(N)", "avg", "min", "max", "med", "count"),
    "rate": ("rate", "value"),
    "count": ("count", "rate", "value"),
    "value": ("value",),
}
_CONFIDENCE = 0.99
CONFIDENCE = 0.95  # of what is said of an earlier run, unless a threshold says otherwise
_UNITS = {"us": Fraction(1, 1_000_000), "ms": Fraction(1, 1000), "s": Fraction(1), "m": Fraction(60)}
_DIGITS = 9  # clocks are read in nanoseconds; what floats add beyond is no evidence
Number = float | Fraction
_EXPRESSION = re.compile(
    r"^\s*(?P<agg>p\(\d+(?:\.\d+)?\)|[a-z]+)\s*(?P<op><=|>=|<|>|==|!=)\s*"
    r"(?P<base>baseline\s*(?P<sign>[+-])\s*)?(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)\s*(?P<unit>us|ms|s|m|%)?\s*$"
)
_SELECTOR = re.compile(r"^(?P<metric>[a-z0-9_]+)(?:\{(?P<tags>[^}]*)\})?$")


@dataclass(frozen=True)
class Selector:
    """`metric{tag:value,…}` taken apart."""

    metric: str
    tags: dict[str, str]

    def __str__(self) -> str:
        """As the user wrote it, tags in their order."""
        inner = ",".join(f"{key}:{value}" for key, value in self.tags.items())
        return f"{self.metric}{{{inner}}}" if inner else self.metric


@dataclass(frozen=True)
class Expression:
    """`p(99)<=300ms` taken apart.

    Attributes:
        exact: the bound as it was written, in the metric's base unit (seconds, shares, counts).
        relative: `<=baseline+10%`: the bound is what is allowed beyond an earlier run's figure, here 0.1 - of a time a
            share of it, of a share a difference to it.
    """

    aggregation: str
    quantile: float | None
    operator: str
    exact: Fraction
    relative: bool = False

    @property
    def bound(self) -> float:
        """The bound as the nearest float."""
        return float(self.exact)

    @property
    def samples_needed(self) -> int:
        """Fewest samples for which the figure means anything: ln(1-c)/ln(q) for a percentile, one otherwise.

        c is the chance of not passing wrongly, 0.99: MLPerf's early stopping with no violation.
        """
        quantile = 50.0 if self.aggregation == "med" else self.quantile
        return 1 if quantile is None else math.ceil(math.log(1 - _CONFIDENCE) / math.log(quantile / 100))

    def holds(self, observed: Number) -> bool:
        """Whether `observed` satisfies it: a fraction exactly, a float to nine digits. A NaN never does."""
        if isinstance(observed, float) and math.isnan(observed):
            return False
        left, right = self._sides(observed)
        return {
            "<=": left <= right,
            ">=": left >= right,
            "<": left < right,
            ">": left > right,
            "==": left == right,
            "!=": left != right,
        }[self.operator]

    def decided(self, low: Number, high: Number) -> bool | None:
        """Whether every value from `low` to `high` satisfies it (True), none does (False), or some do (None)."""
        if math.isnan(low) or math.isnan(high):
            return None
        if self.operator in {"==", "!="}:
            (least, bound), (most, _) = self._sides(low), self._sides(high)
            inside = bool(least <= bound <= most)
            if inside and least != most:
                return None
            return inside == (self.operator == "==")
        ends = self.holds(low), self.holds(high)
        return ends[0] if ends[0] == ends[1] else None

    def _sides(self, observed: Number) -> tuple[Number, Number]:
        if isinstance(observed, Fraction):
            return observed, self.exact
        return round(observed, _DIGITS) if math.isfinite(observed) else observed, round(self.bound, _DIGITS)


def parse_selector(text: str) -> Selector:
    """Take `ttft{phase:fault}` apart; ValueError names what is unknown and what would be valid."""
    match = _SELECTOR.match(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not `metric` or `metric{{phase:fault}}`")
    if match["metric"] not in METRICS:
        raise ValueError(f"unknown metric {match['metric']!r}; known: {', '.join(sorted(METRICS))}")
    tags: dict[str, str] = {}
    for part in filter(None, (match["tags"] or "").split(",")):
        key, _, value = (piece.strip() for piece in part.partition(":"))
        if key not in TAGS:
            raise ValueError(f"unknown tag {key!r}; known: {', '.join(TAGS)}")
        if key == "phase" and value not in PHASES:
            raise ValueError(f"unknown phase {value!r}; known: {', '.join(PHASES)}")
        if not value or key in tags:
            raise ValueError(f"{text!r}: tag {key!r} needs exactly one value, such as {{{key}:…}}")
        tags[key] = value
    of_workloads = METRICS[match["metric"]].of == "workloads"
    if wrong := [key for key in tags if (key in _OF_WORKLOADS) != of_workloads]:
        fitting = [key for key in TAGS if (key in _OF_WORKLOADS) == of_workloads]
        raise ValueError(f"{match['metric']} has no tag {wrong[0]!r}; it has {', '.join(fitting)}")
    if tags and match["metric"] in OF_ALL_NODES:
        raise ValueError(f"{match['metric']} is measured over all nodes: write it without {{…}}")
    if tags and match["metric"] in WHOLE_RUN:
        raise ValueError(f"{match['metric']} is measured over the whole run: write it without {{…}}")
    return Selector(match["metric"], tags)


def parse_expression(text: str, metric: str) -> Expression:
    """Take `p(99)<=300ms` apart for `metric`; ValueError says what would be valid."""
    match = _EXPRESSION.match(text)
    if not match:
        raise ValueError(f"{text!r} is not a threshold such as p(99)<=300ms, rate>=0.99 or count<=2")
    known = METRICS[metric]
    allowed = AGGREGATIONS[known.kind]
    aggregation = match["agg"]
    quantile = None
    if aggregation.startswith("p("):
        quantile = float(aggregation[2:-1])
        if not 0 < quantile < 100:  # noqa: PLR2004 - percent
            raise ValueError(f"{aggregation}: a percentile lies between 0 and 100")
    if ("p(N)" if quantile is not None else aggregation) not in allowed:
        raise ValueError(f"{aggregation!r} makes no sense for {metric}, a {known.kind}; use {', '.join(allowed)}")
    if match["base"]:
        return _against_baseline(text, metric, match, quantile)
    return Expression(aggregation, quantile, match["op"], _bound(text, metric, match))


def _bound(text: str, metric: str, match: re.Match[str]) -> Fraction:
    """The figure on the right side as it is written, in the metric's base unit."""
    known, unit, number = METRICS[metric], match["unit"], Fraction(match["number"])
    if known.unit == "s" and match["agg"] != "count":
        if unit not in _UNITS:
            raise ValueError(f"{text!r} needs a unit of time: us, ms, s or m")
        return number * _UNITS[unit]
    if known.kind == "rate" or match["agg"] == "rate":
        number = number / 100 if unit == "%" else number
        if number > 1:
            raise ValueError(f"{text!r}: a share lies between 0 and 1, or 0% and 100%")
        unit = None if unit == "%" else unit
    if unit:
        raise ValueError(f"{text!r}: {metric} has no unit {unit!r}")
    return number


def _against_baseline(text: str, metric: str, match: re.Match[str], quantile: float | None) -> Expression:
    """`p(50)<=baseline+10%`: up to a tenth worse than an earlier run; ValueError says what would be valid."""
    kind = METRICS[metric].kind
    if (
        METRICS[metric].of != "requests"
        or metric in WHOLE_RUN
        or not (kind == "trend" or _is_share(metric, match["agg"]))
    ):
        raise ValueError(f"{text!r}: only times and shares of requests can be held against a baseline, such as ttft")
    if match["agg"] in {"count", "min", "max"}:
        raise ValueError(
            f"{text!r}: {match['agg']} is not held against a baseline, for two runs of one server differ in it; "
            "use p(N), avg or med"
        )
    if metric == "icl":
        raise ValueError(
            f"{text!r}: the gaps of one answer are alike, so they are no samples of their own; "
            "hold tpot against the baseline"
        )
    if match["unit"] != "%":
        raise ValueError(f"{text!r}: what is allowed beyond the baseline is written in per cent, such as baseline+10%")
    worse = {("<=", "+"): 1, (">=", "-"): -1}.get((match["op"], match["sign"]))
    if worse is None:
        raise ValueError(f"{text!r}: write it as <=baseline+10% (no more) or >=baseline-1% (no less)")
    return Expression(match["agg"], quantile, match["op"], worse * Fraction(match["number"]) / 100, relative=True)


def _is_share(metric: str, aggregation: str) -> bool:
    return METRICS[metric].kind == "rate" or (METRICS[metric].kind == "count" and aggregation == "rate")


class Threshold(Strict):
    """One expression and how many samples it needs. A bare string is the expression alone."""

    threshold: str = Field(description="Such as p(99)<=300ms, rate>=0.99, count<=2, value<=15s.")
    min_samples: int | None = Field(
        default=None,
        alias="minSamples",
        ge=1,
        description="Fewer samples give `invalid`; the default follows MLPerf.",
    )
    abort_on_fail: bool = Field(
        default=False, alias="abortOnFail", description="End the load as soon as it is broken; looked at every second."
    )
    delay_abort_eval: Duration = Field(
        default=0.0,
        alias="delayAbortEval",
        ge=0,
        description="Not before so long after the load began.",
        json_schema_extra={"default": "0s"},
    )
    confidence: float = Field(
        default=CONFIDENCE, ge=0.8, le=0.999, description="With `baseline`: of the interval that decides."
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Editors must take the bare string too."""
        return {"anyOf": [{"type": "string", "examples": ["p(99)<=300ms"]}, handler(core)]}

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"threshold": value} if isinstance(value, str) else value


Slo = dict[str, list[Threshold]]


# Rates over a time that is not over: they say nothing before its end.
_ONLY_AT_THE_END = ("request_rate", "token_rate")
_ONLY_RISE = ("time_to_recover", "client_cpu")


def _key_mistakes(selector: Selector, expression: Expression, threshold: Threshold) -> list[str]:
    """Keys of a threshold that mean nothing beside its expression."""
    problems = []
    if threshold.abort_on_fail:
        problems += _abort_mistakes(selector.metric, expression)
    elif threshold.delay_abort_eval:
        problems.append("delayAbortEval means nothing without `abortOnFail: true`")
    if threshold.confidence != CONFIDENCE and not expression.relative:
        problems.append("confidence means nothing without a baseline, as in <=baseline+10%")
    return problems


def _abort_mistakes(metric: str, expression: Expression) -> list[str]:
    """Thresholds that nothing can break before the end: to abort on them would be to guess."""
    known, operator = METRICS[metric], expression.operator
    if expression.relative:
        return ["abortOnFail: a baseline is compared when the load has ended; give a bound in figures to abort on"]
    if known.of != "requests" or metric in _ONLY_AT_THE_END:
        return [f"abortOnFail: {metric} is known when all has ended, not before; leave it out"]
    counted = known.kind == "count" and expression.aggregation != "rate"
    rises = counted or expression.aggregation in {"count", "max"} or metric in _ONLY_RISE
    if rises and operator not in {"<", "<="}:
        return [f"abortOnFail: {metric} is known when all has ended, not before: until then it rises; use <= or <"]
    if expression.aggregation == "min" and operator not in {">", ">="}:
        return [f"abortOnFail: the least {metric} is known when all has ended, not before: it falls; use >= or >"]
    return []


def check_slo(slo: Slo) -> Slo:
    """Refuse unknown metrics, tags, aggregations and units, all at once."""
    problems: list[tuple[KeyPath, str]] = []
    for text, thresholds in slo.items():
        try:
            selector = parse_selector(text)
        except ValueError as error:
            problems.append(((text,), str(error)))
            continue
        if not thresholds:
            problems.append(((text,), "needs at least one threshold"))
        for position, threshold in enumerate(thresholds):
            try:
                expression = parse_expression(threshold.threshold, selector.metric)
            except ValueError as error:
                problems.append(((text, position), str(error)))
                continue
            problems += [((text, position), words) for words in _key_mistakes(selector, expression, threshold)]
    if problems:
        raise Mistakes(problems)
    return slo
