"""Text from strangers made harmless, and figures made readable. Pure."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

from sandbox.spec.results import Status, Summary
from sandbox.spec.slo import Expression

MARK: dict[Status, str] = {"pass": "✓", "fail": "✗", "invalid": "?"}
MEANING: dict[Status, str] = {
    "pass": "everything that was promised held",
    "fail": "something that was promised did not hold",
    "invalid": "the run could not prove it either way",
}
_ORDER: dict[Status, int] = {"fail": 0, "invalid": 1, "pass": 2}
_BYTE, _PLANE = 0xFF, 0xFFFF
_NEVER_VALID_XML = {0xFFFE, 0xFFFF}
_MS, _US = 1e-3, 1e-6
_ALMOST_ONE = 0.9995  # rounds to 1 s
_MINUTE, _HOUR = 60.0, 3600.0
_TEN, _HUNDRED = 10, 100
EMULATED = "The figures say how the platform around it behaves, not how fast the real thing is."


def plain(text: str) -> str:
    r"""Escape what could steer a terminal, break XML or reorder a line; keep newlines and tabs.

    Servers, pods and attackers write parts of a report. Control characters (ANSI escapes too),
    bidirectional overrides, lone surrogates and XML's forbidden code points become visible escapes
    such as `\x1b`. Everything else stays.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(char) for char in text.replace("\r\n", "\n"))


def _visible(char: str) -> str:
    code = ord(char)
    if char in "\n\t" or (char.isprintable() and code & 0xFFFF not in _NEVER_VALID_XML):
        return char
    if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}:
        return f"\\x{code:02x}" if code <= _BYTE else f"\\u{code:04x}" if code <= _PLANE else f"\\U{code:08x}"
    return char  # a no-break or thin space


def one_line(text: str, limit: int = 400) -> str:
    """`plain`, on one line, cut at `limit` characters with an ellipsis."""
    flat = " ".join(plain(text).split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def seconds(value: float | None) -> str:
    """`412 µs`, `12.3 ms`, `1.24 s`, `2 min 05 s`; an en dash where there is no figure."""
    if value is None or not math.isfinite(value):
        return "–"  # noqa: RUF001 - an en dash is meant
    size = abs(value)
    if size < _MS:
        return f"{value / _US:.0f} µs" if size else "0 s"
    if size < _ALMOST_ONE:
        return f"{_three(value / _MS)} ms"
    if size < 2 * _MINUTE:
        return f"{_three(value)} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if size < _HOUR else f"{minutes // 60} h {minutes % 60:02d} min"


def _three(value: float) -> str:
    """Three significant digits without an exponent."""
    size = abs(value)
    return f"{value:.0f}" if size >= _HUNDRED else f"{value:.1f}" if size >= _TEN else f"{value:.2f}"


def enough(samples: float, percent: float) -> bool:
    """Whether a percentile of so many samples means anything: 459 for the 99th, 90 for the 95th, as the judge asks."""
    return samples >= Expression("", percent, "<=", Fraction(0)).samples_needed


def percentile(summary: Summary, metric: str, percent: int) -> str:
    """A percentile of a summary, in words; an en dash where there are too few samples for it to mean anything."""
    values = summary.percentiles.get(metric) or {}
    return seconds(values.get(f"p{percent}") if enough(values.get("count") or 0, percent) else None)


def recovered(value: float | None) -> str:
    """How long users went without good answers after a fault: `1.24 s`, or that none of them noticed."""
    return "no bad request" if value == 0 else seconds(value)


def labelled(summary: Summary) -> str:
    """Whose figures these are: the phase, or what the tags name: `tenant red`, `fault, model sim-8b`."""
    tags: Mapping[str, str] = summary.tags
    told = [f"{key} {value}" for key, value in tags.items()]
    return ", ".join(told if summary.phase == "all" and told else [summary.phase, *told])


def whole(summaries: Sequence[Summary]) -> Summary | None:
    """That of the whole load."""
    return next((s for s in summaries if s.phase == "all" and not getattr(s, "tags", {})), None)


def worth_showing(summaries: Sequence[Summary]) -> list[Summary]:
    """Those of the phases, then those by tags where a tag has several values: of one, they would say the same again."""
    values: dict[str, set[str]] = {}
    for summary in summaries:
        for key, value in summary.tags.items():
            values.setdefault(key, set()).add(value)
    plain_ones = [summary for summary in summaries if not summary.tags]
    several = [s for s in summaries if any(len(values[key]) > 1 for key in getattr(s, "tags", {}))]
    return [*plain_ones, *several]


def share(value: float | None) -> str:
    """`99.87 %`; never rounds up to 100 % what is less."""
    if value is None or not math.isfinite(value):
        return "–"  # noqa: RUF001 - an en dash is meant
    if value >= 1 or value <= 0:
        return f"{value * 100:.0f} %"
    return f"{min(value * 100, 99.99):.2f} %"


def rate(value: float | None) -> str:
    """Something per second, three digits; the unit stands in the heading."""
    if value is None or not math.isfinite(value):
        return "–"  # noqa: RUF001 - an en dash is meant
    return f"{value:,.0f}" if abs(value) >= _HUNDRED else _three(value)


def plural(count: int, word: str) -> str:
    """`1 check`, `2 checks`."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def fact(value: Any) -> str:
    """A fact's value on one line: text as it is, anything nested as compact JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if value is None:
        return "–"  # noqa: RUF001 - an en dash is meant
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def asked(values: Mapping[str, Any]) -> str:
    """How a load was asked for, on one line; what it has none of is left out."""
    told = {**values, "stages": [_stage(each) for each in values.get("stages", [])]}
    return ", ".join(f"{key} {fact(value)}" for key, value in told.items() if value not in (None, [], {}, ""))


def _stage(stage: Mapping[str, Any]) -> str:
    rate = f"{stage['rate']:g}/s" if "rate" in stage else f"ramp to {stage['rampTo']:g}/s"
    return f"{rate} for {stage['for']}"


def emulated(facts: dict[str, dict[str, Any]]) -> list[str]:
    """What of the ground was not the real thing: `stack vllm-sim`; so that nobody takes its figures for a product's."""
    told = []
    for about, values in facts.items():
        value = values.get("emulated")
        if value is True:
            told.append(f"{about} {fact(values.get('name', ''))}".strip())
        elif value:
            told.append(f"{about}: {fact(value)}")
    return told


def machine(facts: dict[str, dict[str, Any]]) -> str:
    """Whose figures these are: `2 cores, 15.6 GiB, Linux 6.1 x86_64, engine 27.1`; empty where nobody noted it."""
    host = facts.get("host", {})
    units = {"cores": " core" if host.get("cores") == 1 else " cores", "memory_gib": " GiB", "system": "", "engine": ""}
    told = [f"{fact(host[key])}{unit}" for key, unit in units.items() if host.get(key)]
    return ", ".join(told).partition(" at ")[0]  # where the engine's socket lies stands with the other facts


def moment(stamp: str) -> datetime | None:
    """An ISO 8601 stamp as UTC; None where it is none."""
    try:
        parsed = datetime.fromisoformat(stamp)
    except ValueError:
        return None
    return parsed.astimezone(UTC) if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def urgency(status: Status) -> int:
    """For sorting: what failed first, then what could not be proven, then what held."""
    return _ORDER[status]
