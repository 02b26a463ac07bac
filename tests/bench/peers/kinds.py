"""What a load client under measurement is, what it is asked for, and what it says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

FIRST = 0.1
GAP = 0.05
PROMPT = "How late are you?"


@dataclass(frozen=True)
class Width:
    """So many streams at once, held for `seconds` by requests at a constant rate. Times in seconds."""

    streams: int
    tokens: int
    seconds: float

    @property
    def answer(self) -> float:
        """How long the server takes for one answer: it ends a gap after its last token."""
        return FIRST + self.tokens * GAP

    @property
    def rate(self) -> float:
        """Requests per second that keep `streams` open."""
        return round(self.streams / self.answer, 3)

    @property
    def requests(self) -> int:
        """Due in all."""
        return int(self.rate * self.seconds)


@dataclass(frozen=True)
class Task:
    """One run of one client: against `url`, writing into the empty folder `work`. `home` holds its environment."""

    width: Width
    url: str
    work: Path
    home: Path


@dataclass(frozen=True)
class Reported:
    """What a client says of its own run. Times in milliseconds.

    Attributes:
        ok: answers it counts as whole.
        failed: everything else it tells of, drops included, in its own words.
    """

    ttft_p50: float
    ttft_p99: float
    ok: int
    failed: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Client:
    """A load client.

    Attributes:
        package: what is installed, and pinned, for it; "" for one that runs in this environment.
        version: its exact version.
        least: the oldest Python (major, minor) it runs on.
        command: the command line for a task; writes what files it needs into the task's folder.
        read: what it reported, from the files it left or from its standard output.
        environment: variables it wants.
    """

    name: str
    package: str
    version: str
    command: Callable[[Task], list[str]]
    read: Callable[[Task, str], Reported]
    least: tuple[int, int] = (3, 11)
    environment: Callable[[Task], dict[str, str]] = lambda _: {}
