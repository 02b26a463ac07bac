"""Pause nodes, and free what a node's own runc left frozen; only cgroup v1 knows these troubles.

With the systemd driver runc freezes a container's cgroup for an instant while it sets its limits. If the node is killed
in that instant the frozen process cannot die, its pid namespace cannot end, and the engine reports for ever that it
"did not receive an exit event".
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from docker.errors import APIError

from sandbox.kube.wait import Seen, wait_for

if TYPE_CHECKING:
    from docker.models.containers import Container

_ROOT = Path("/sys/fs/cgroup/freezer")
_MOVING = "unable to freeze"
_PAUSE_SECONDS = 20.0


def pause(container: Container) -> None:
    """Pause a node; one that starts processes all the time, on a busy machine, needs several attempts.

    Raises:
        APIError: the engine refused for another reason.
        DeadlineExceeded: it could not be frozen.
    """

    def attempt() -> Seen[None]:
        try:
            container.pause()
        except APIError as error:
            if _MOVING not in str(error.explanation):
                raise
            return Seen(False, None, str(error.explanation))
        return Seen(True, None, "")

    wait_for(attempt, within=_PAUSE_SECONDS, what=f"a pause of {container.name}")


def thaw(container: Container) -> int:
    """Thaw every frozen cgroup below a node container; return how many there were.

    Works where the engine runs on this machine and we may write its cgroups; elsewhere it does nothing.
    """
    # by name: a dying process has left its cgroups already, so that /proc/<pid>/cgroup says "/"
    return sum(thaw_below(folder) for folder in _ROOT.glob(f"*/*{container.id}*"))


def thaw_below(folder: Path) -> int:
    """Thaw every frozen cgroup below `folder`, not itself: that one is the engine's, frozen by `docker pause`."""
    thawed = 0
    for state in sorted(folder.glob("*/**/freezer.state")):
        try:
            if state.read_text().strip() != "THAWED":
                state.write_text("THAWED")
                thawed += 1
        except OSError:  # gone meanwhile, or not ours to write
            continue
    return thawed
