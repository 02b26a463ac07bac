"""Timelines that real runs wrote, of every kind of run: see tests/data/timelines/README.md."""

from __future__ import annotations

import gzip
import tempfile
from functools import cache
from pathlib import Path

from sandbox.timeline import Event, read

FOLDER = Path(__file__).parents[1] / "data" / "timelines"
NAMES = sorted(path.name.removesuffix(".jsonl.gz") for path in FOLDER.glob("*.jsonl.gz"))


def text(name: str) -> str:
    """A recorded timeline as it was written."""
    return gzip.decompress((FOLDER / f"{name}.jsonl.gz").read_bytes()).decode()


@cache
def recorded(name: str) -> tuple[Event, ...]:
    """The events of a recorded timeline."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "timeline.jsonl"
        path.write_text(text(name), encoding="utf-8")
        return tuple(read(path))
