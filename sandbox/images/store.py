"""The cache: folders by content key, whole or not there at all, made once however many ask."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sandbox import paths
from sandbox.errors import EnvironmentMissing
from sandbox.images import crew
from sandbox.progress import say

_LOOK = 0.5  # seconds between two looks whether a wait is of use still
_FULL = re.compile(r"no space left|enough free space|quota exceeded", re.IGNORECASE)
_NOTHING_LEFT = 64 << 20  # bytes; not every program says what stopped it


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


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold a lock over all processes that share the cache; says so when it has to wait."""
    lock = FileLock(_locks() / f"{name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        say(f"another sandbox is making {name}: waiting for it")
        _wait(lock)
    try:
        yield
    finally:
        lock.release()


def _wait(lock: FileLock) -> None:
    while True:
        crew.check()
        try:
            lock.acquire(timeout=_LOOK)
        except Timeout:
            continue
        return


@contextmanager
def all_locked() -> Iterator[None]:
    """Hold every lock there is, so that nothing is being made meanwhile.

    Raises:
        EnvironmentMissing: something is.
    """
    with ExitStack() as held:
        for path in sorted(_locks().glob("*.lock")):
            lock = FileLock(path)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                raise EnvironmentMissing(
                    f"another sandbox is making {path.stem}", where=str(path), fix="run this again when it is done"
                ) from None
            held.callback(lock.release)
        yield


def _locks() -> Path:
    locks = paths.cache_dir() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    return locks


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """An empty folder for what only assembling `name` needs. Whoever uses it holds a lock of that name."""
    place = folder("scratch", name)
    discard(place)  # a killed build's
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        discard(place)


def remains() -> list[Path]:
    """What killed makers left. Sure to be that only while `all_locked` holds."""
    root = paths.cache_dir()
    return [*root.glob("scratch/*"), *root.glob("*/.*.draft")]


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


def remedy(said: str, otherwise: str) -> str:
    """The fix for a failure that was told in those words: room, where a disk is full, else `otherwise`."""
    if not _FULL.search(said) and shutil.disk_usage(paths.cache_dir()).free > _NOTHING_LEFT:
        return otherwise
    return "a disk is full: sandbox images trim; docker system prune; or SANDBOX_CACHE_DIR=<a roomier folder>"
