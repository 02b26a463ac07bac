"""A second engine that may be killed and whose disk may be filled: on a small disk of its own, beside the machine's."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from sandbox import images
from sandbox.host import preparing
from sandbox.host.engine import Home, recorded_pid
from tests.live.second_engine import second_engine

_DISK_GIB = 12
_END_SECONDS = 60.0
_LEFT_BYTES = 1 << 14


@dataclass(frozen=True)
class Second:
    """The engine: where it lives, and what can be done to it."""

    home: Home

    def restart(self, *, killed: bool) -> None:
        """End it, in order or by SIGKILL, and start it again."""
        process = psutil.Process(recorded_pid(self.home))
        if killed:
            process.kill()
        else:
            process.terminate()
        process.wait(timeout=_END_SECONDS)
        preparing.start(self.home)

    def fill(self) -> None:
        """Take all that is left of its disk, but for some kilobytes."""
        filled(self.home.data_root)

    def free(self) -> None:
        """Give it back."""
        emptied(self.home.data_root)


def filled(folder: Path) -> None:
    """Take all that is left on the disk of this folder, but for some kilobytes."""
    there = os.statvfs(folder)
    size = max(1, there.f_bavail * there.f_frsize - _LEFT_BYTES)
    subprocess.run(["fallocate", "--length", str(size), str(_filler(folder))], check=True)


def emptied(folder: Path) -> None:
    """Give it back."""
    _filler(folder).unlink(missing_ok=True)


def _filler(folder: Path) -> Path:
    return folder / "filler"


@contextmanager
def small(folder: Path) -> Iterator[None]:
    """Have a few megabytes only in this folder."""
    folder.mkdir(mode=0o700, parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=0700", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def second(folder: Path, names: Sequence[str]) -> Iterator[Second]:
    """Have one, with these images of ours."""
    refs = [image.ref for image in images.ensure(names).values()]
    disk = folder / "disk.img"
    with second_engine() as home:
        home.data_root.mkdir()
        with disk.open("wb") as file:
            file.truncate(_DISK_GIB << 30)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", str(disk)], check=True)
        subprocess.run(["mount", "-o", "loop", str(disk), str(home.data_root)], check=True)
        preparing.start(home)
        with subprocess.Popen(["docker", "save", *refs], stdout=subprocess.PIPE) as saved:
            subprocess.run(["docker", "--host", home.url, "load", "--quiet"], stdin=saved.stdout, check=True)
        yield Second(home)
