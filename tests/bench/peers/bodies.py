"""The request that every client is to send, where it lets one choose, and the files that carry it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.bench.peers.kinds import PROMPT, Task, Width

MODEL = "golden"


def body(width: Width) -> dict[str, Any]:
    """A chat that streams."""
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": width.tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def prompts(task: Task) -> Path:
    """A file with a prompt for every request that is due, one JSON object a line."""
    path = task.work / "prompts.jsonl"
    line = json.dumps({"text": PROMPT})
    path.write_text((line + "\n") * (task.width.requests + 100))
    return path
