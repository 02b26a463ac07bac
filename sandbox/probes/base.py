"""What a probe is: a look at the system that says whether it holds, and what was seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sandbox.kube import Kube
from sandbox.spec.registry import Registry


@dataclass(frozen=True)
class Seen:
    """The answer of one look. `ok` None: the probe itself could not be made, nothing is known."""

    ok: bool | None
    detail: str
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What a probe looks at.

    Attributes:
        kube: the API, as the cluster's administrator.
        namespace: where the stack under test lives.
        url: the stack's OpenAI-compatible endpoint, without `/v1`.
        model: the model it serves.
        urls: name of a stack -> its endpoint, of the stack under test and of those it requires.
    """

    kube: Kube
    namespace: str
    url: str
    model: str
    urls: Mapping[str, str] = field(default_factory=dict)


PROBES: Registry[Callable[..., Seen]] = Registry("probe")


def look(name: str, context: Context, params: dict[str, Any]) -> Seen:
    """Make one probe. A probe that errors is unknown, never a pass and never a fail."""
    try:
        seen = PROBES.call(name, context, params)
    except Exception as error:  # noqa: BLE001 - any failure of the probe itself is an answer: unknown
        return Seen(None, f"{type(error).__name__}: {error}")
    if not isinstance(seen, Seen):
        raise TypeError(f"probe {name} answered {type(seen).__name__}, not Seen")
    return seen
