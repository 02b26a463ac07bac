"""What the tool is doing, told on stderr with times; quiet when asked, plain when there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

console = Console(stderr=True, highlight=False, soft_wrap=True)
_started = time.monotonic()


def say(message: str) -> None:
    """Print one line with the seconds since the command started. `message` is plain text, never markup."""
    console.print(f"[{time.monotonic() - _started:7.1f}s] {message}", markup=False)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Say that `title` starts, and how long it took; on an exception say that it failed and let it pass."""
    begun = time.monotonic()
    say(f"{title} …")
    try:
        yield
    except BaseException:
        say(f"{title}: stopped after {time.monotonic() - begun:.1f} s")
        raise
    say(f"{title}: {time.monotonic() - begun:.1f} s")
