"""What one event, or a whole answer, of OpenAI's API says."""

from __future__ import annotations

import json
from typing import Any

BLOCKED_CODES = frozenset({"content_filter", "content_policy_violation", "guardrail_violation"})
_TEXT_KEYS = ("content", "reasoning_content", "reasoning", "text")
_NO_TEXT_KEYS = frozenset({"role", "id", "type"})


def json_object(data: bytes) -> dict[str, Any] | None:
    """The object that `data` is; None: it is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def is_error(event: dict[str, Any]) -> bool:
    """It reports an error."""
    return bool(event.get("error")) or event.get("object") == "error"


def is_blocked(event: dict[str, Any]) -> bool:
    """It reports that a guardrail would not have it."""
    error = event.get("error", event)
    return isinstance(error, dict) and any(str(error.get(key)) in BLOCKED_CODES for key in ("code", "type"))


def first_choice(event: dict[str, Any]) -> tuple[str, str, str]:
    """Key and text of the first choice's content, and its finish_reason; empty where there is none."""
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    holder = choice.get("delta") or choice.get("message") or choice
    reason = choice.get("finish_reason")
    for key in _TEXT_KEYS:
        text = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(text, str) and text:
            return key, text, reason if isinstance(reason, str) else ""
    return "", "", reason if isinstance(reason, str) else ""


def tool_calls(event: dict[str, Any]) -> list[dict[str, Any]]:
    """The tool calls, or pieces of them, of the first choice."""
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    holder = choice.get("delta") or choice.get("message")
    calls = holder.get("tool_calls") if isinstance(holder, dict) else None
    return [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []


def size_of_text(event: dict[str, Any]) -> int:
    """UTF-8 bytes of what the choices of an event say, under whatever key: rather too many than too few."""
    choices = event.get("choices")
    found = [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    return sum(_size(choice.get("delta") or choice.get("message") or {"text": choice.get("text")}) for choice in found)


def _size(said: Any) -> int:
    if isinstance(said, str):
        return len(said) if said.isascii() else len(said.encode(errors="replace"))
    if isinstance(said, dict):
        return sum(_size(value) for key, value in said.items() if key not in _NO_TEXT_KEYS)
    return sum(map(_size, said)) if isinstance(said, list) else 0
