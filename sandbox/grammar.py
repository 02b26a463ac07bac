"""Which timelines this version can read, and what it says of a line that it cannot."""

from __future__ import annotations

import json

from pydantic import ValidationError

KNOWN = 2  # the newest; 1 had no figure for it, and no numbers on its lines
_MISTAKES = 5


def newer(found: int) -> str:
    """What to say of a timeline of a later grammar."""
    return (
        f"the timeline was written by a newer version (grammar {found}, this one knows {KNOWN} and older): "
        "judge it with the version that wrote it"
    )


def strange(line: bytes, error: ValidationError) -> str:
    """Why a line is no event: it is no JSON, or of another grammar."""
    try:
        found = json.loads(line)
    except ValueError:
        return "a broken line: it is not JSON, so it was torn or altered"
    if isinstance(found, dict) and isinstance(said := found.get("grammar"), int) and said > KNOWN:
        return newer(said)
    told = [f"{'.'.join(map(str, each['loc'])) or 'the line'}: {each['msg']}" for each in error.errors()[:_MISTAKES]]
    return f"not an event of a timeline that this version knows: {'; '.join(told)}"
