"""A scenario's document that no model vouches for yet, read as far as it can be: whatever else is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, NamedTuple

from sandbox.spec.base import KeyPath, reach, seconds
from sandbox.spec.slo import Expression, Selector, parse_expression, parse_selector

Problems = list[tuple[KeyPath, str]]
ROOMS = ("slo", "validity")


class Written(NamedTuple):
    """One threshold as a document has it. `said`: its text; `more`: the keys beside that, such as minSamples."""

    keys: KeyPath
    selector: Selector
    expression: Expression
    said: str
    more: dict[str, Any]


def thresholds(raw: Any, *rooms: str) -> Iterator[Written]:
    """Every threshold that can be read; of one that cannot, the model has said so."""
    for room in rooms or ROOMS:
        slo = reach(raw, room)
        for text, entries in slo.items() if isinstance(slo, dict) else ():
            for position, entry in enumerate(entries if isinstance(entries, list) else ()):
                said: Any = entry.get("threshold") if isinstance(entry, dict) else entry
                try:
                    selector = parse_selector(str(text))
                    expression = parse_expression(said, selector.metric)
                except (ValueError, TypeError):
                    continue
                more = entry if isinstance(entry, dict) else {}
                yield Written((room, text, position), selector, expression, said, more)


def in_seconds(value: Any) -> float | None:
    """A duration; None where it is none."""
    try:
        return seconds(value)
    except ValueError:
        return None


def given(raw: Any, key: str, default: str) -> Any:
    """What stands at `key`, or its default."""
    found = reach(raw, key)
    return default if found is None else found


def workloads(raw: Any, name: str | None = None) -> list[Any]:
    """The workloads of that name; all of them without one."""
    found = reach(raw, "workloads")
    return [each for each in found if name in {None, reach(each, "name")}] if isinstance(found, list) else []


def pods(raw: Any, name: str | None = None) -> int:
    """How many pods those workloads ask for."""
    asked = [given(each, "pods", "1") for each in workloads(raw, name)]
    return sum(int(each) for each in asked if str(each).isdigit())


def lasting(raw: Any) -> float | None:
    """Seconds that the load lasts: its `duration`, or its stages together."""
    stages = reach(raw, "load", "arrivals", "stages")
    found = in_seconds(reach(raw, "load", "duration"))
    if found is not None or not isinstance(stages, list) or not stages:
        return found
    spans = [in_seconds(reach(stage, "for")) for stage in stages]
    return sum(span for span in spans if span is not None) if None not in spans else None


def strikes(raw: Any) -> list[float]:
    """When each fault strikes, in seconds after the load began, as far as that can be read."""
    faults = reach(raw, "faults")
    found = [in_seconds(reach(each, "at")) for each in faults] if isinstance(faults, list) else []
    return [at for at in found if at is not None]


def sent(raw: Any, tag: str) -> list[str]:
    """The values of a tag that the load's requests have."""
    mix, own = reach(raw, "load", "mix"), reach(raw, "load", "locustfile")
    if tag == "profile" and isinstance(own, str):
        return [PurePath(own).stem]
    found = [reach(share, tag) for share in mix] if isinstance(mix, list) and mix else [reach(raw, "load", tag)]
    return [value for value in found if isinstance(value, str)]


def expected(raw: Any) -> float | None:
    """How many requests a rate or its stages send; None where the server or a trace decides."""
    arrivals = reach(raw, "load", "arrivals")
    rate, span = reach(arrivals, "rate"), in_seconds(reach(raw, "load", "duration"))
    if isinstance(rate, int | float):
        return rate * span if span is not None else None
    stages = reach(arrivals, "stages")
    if not isinstance(stages, list) or not stages:
        return None
    total, before = 0.0, 0.0
    for stage in stages:
        span, step, ramp = in_seconds(reach(stage, "for")), reach(stage, "rate"), reach(stage, "rampTo")
        if span is None or not isinstance(after := ramp if step is None else step, int | float):
            return None  # the model has said so
        total += span * (after if step is not None else (before + after) / 2)
        before = after
    return total
