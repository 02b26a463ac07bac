"""Which metrics a PromQL expression names. Good enough for expressions of ours and of dashboards; no parser."""

from __future__ import annotations

import re

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_BRACES = re.compile(r"\{[^}]*\}|\[[^\]]*\]")
_LISTS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_NAME = re.compile(r"(?<![\w.])[A-Za-z_:][\w:]*\b(?!\s*\()")
_WORDS = {"and", "or", "unless", "bool", "offset", "by", "without", "on", "ignoring", "group_left", "group_right"}


def metrics_of(expression: str) -> set[str]:
    """The names in it that are neither functions, labels, operators nor numbers."""
    bare = _LISTS.sub(" ", _BRACES.sub(" ", _QUOTED.sub("", expression)))
    bare = re.sub(r"\b\d[\w.]*", " ", bare)
    aggregations = re.compile(r"\b[a-z_]+(?=\s+\()")  # `sum by (x) (…)`, whose list of labels is gone by now
    return set(_NAME.findall(aggregations.sub(" ", bare))) - _WORDS


def filled(expression: str, **variables: str) -> str:
    """With Grafana's variables filled in: every node and GPU, the last minutes."""
    for name, value in {"node": ".*", "gpu": ".*", "__range": "5m", "__rate_interval": "1m", **variables}.items():
        expression = re.sub(rf"\${name}\b|\$\{{{name}\}}", lambda _, value=value: value, expression)  # type: ignore[misc]
    return expression
