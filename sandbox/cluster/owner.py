"""The process that a cluster ends with."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Owner:
    """A process; its start time tells it from a later one of the same pid.

    Attributes:
        pid: as the machine counts.
        started: seconds from the machine's boot to its start. Not since the epoch: psutil reckons that from the boot
            time, and the kernel moves the boot time with every step of the clock, so that a living process would look
            like another one. The difference of the two stays.
    """

    pid: int
    started: float

    @classmethod
    def me(cls) -> Owner:
        """This process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Owner:
        """That process, which runs now."""
        boot = psutil.boot_time()  # first: some versions of psutil keep it for create_time()
        return cls(pid, round(psutil.Process(pid).create_time() - boot, 2))

    def alive(self) -> bool:
        """Tell whether it still runs."""
        try:
            same = abs(Owner.of(self.pid).started - self.started) < 1.0
            return same and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
