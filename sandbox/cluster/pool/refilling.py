"""Fill the pool again in the background, once the command that leased from it has ended: it may measure until then."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from dataclasses import dataclass

from sandbox import paths
from sandbox.cluster.pool import entries
from sandbox.errors import UsageError
from sandbox.host import mark

SWITCH = "SANDBOX_POOL"
_LOG = "pool.log"
_LOG_BYTES = 1 << 20


@dataclass(frozen=True)
class _Wish:
    key: str
    source: str
    size: int


_wishes: set[_Wish] = set()


def size() -> int:
    """How many clusters of a kind the pool is to have, as `SANDBOX_POOL` says; 0 without it.

    Raises:
        UsageError: it says something else.
    """
    told = os.environ.get(SWITCH) or "off"
    if told != "off" and not told.isdecimal():
        raise UsageError(f"is {told!r}", where=SWITCH, fix=f"export {SWITCH}=2, or off, which is what it is without")
    return 0 if told == "off" else int(told)


def at_the_end(key: str, source: str) -> None:
    """When this process ends, fill the pool again, where the setting says so.

    Args:
        key: hash of what is in the clusters of that kind.
        source: what `sandbox pool fill` was asked for; without it nothing is done.
    """
    wish = _Wish(key, source, size())
    if source and wish.size:
        if not _wishes:
            atexit.register(_start)
        _wishes.add(wish)


def _start() -> None:
    """Start a process for each kind that lacks some. It has a reaper of its own, and takes low priority by itself."""
    path = paths.state_dir() / _LOG
    with path.open("wb" if path.exists() and path.stat().st_size > _LOG_BYTES else "ab") as log:
        for wish in _wishes:
            if len(entries.entries(wish.key)) < wish.size:
                subprocess.Popen(
                    [sys.executable, "-m", "sandbox", "pool", "fill", wish.source, "--size", str(wish.size)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # neither Ctrl-C nor the end of a terminal reaches it
                    env=mark.without(),  # it belongs to no command that ends before it
                )
    _wishes.clear()
