"""The cache: folders by content key, whole or not there at all, made once however many ask."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from sandbox import paths
from sandbox.progress import say


def folder(kind: str, key: str) -> Path:
    """Where the artefact of that kind and key lies, made or not."""
    return paths.cache_dir() / kind / key


def produced(kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """Return the folder of an artefact; `make` fills an empty one where it is not there yet.

    A second caller, in this process or another, waits for the first. What an interrupted or failed `make` left is
    removed by the next call, never taken for whole.
    """
    target = folder(kind, key)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(f"{kind}-{key}"):
        if not target.is_dir():
            draft = target.with_name(f".{key}.draft")
            discard(draft)
            draft.mkdir()
            make(draft)
            draft.rename(target)
    return target


def locked(name: str) -> FileLock:
    """A lock over all processes that share the cache; says so when it has to wait."""
    locks = paths.cache_dir() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{name}.lock")
    try:
        lock.acquire(blocking=False)
        lock.release()
    except Timeout:
        say(f"another sandbox is making {name}: waiting for it")
    return lock


def discard(path: Path) -> None:
    """Remove a folder that may hold what is not writable, as Go's module cache and Debian trees do."""

    def unlock(function: Callable[..., object], where: str, _: object) -> None:
        Path(where).parent.chmod(0o700)
        function(where)

    if path.exists():
        shutil.rmtree(path, onerror=unlock)


def size(path: Path) -> int:
    """Bytes below a folder."""
    return sum(
        (Path(root) / name).lstat().st_size for root, _, names in os.walk(path) for name in names
    )  # lstat: links count as links
