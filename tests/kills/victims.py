"""The commands that are killed, and what has to be there for each of them to have something to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.kills.ground import SNAPSHOT

if TYPE_CHECKING:
    from tests.kills.ground import Ground

SCENARIO = """\
apiVersion: sandbox/v1
kind: Scenario
metadata: {name: killed, description: A stack that is asked for three seconds.}
cluster: solo
stack: {name: vllm-sim}
steadyState: [k8s.ready]
load:
  profile: chat-tiny
  arrivals: {process: closed, users: 1, seed: 1}
  duration: 3s
  timeout: 20s
slo:
  good_request_fraction: ["rate>=0.5"]
"""


@dataclass(frozen=True)
class Need:
    """Something that has to be so before a command is killed; done only where it is not so already.

    Attributes:
        met: whether it is so.
        words: the command that makes it so; `{cluster}` stands for the cluster's name.
        first: needs of that command.
    """

    met: Callable[[Ground], bool]
    words: Sequence[str]
    first: Sequence[str] = ()


def _automatic(ground: Ground) -> bool:
    return any(each["key"] and each["contents"] == "solo" for each in ground.snapshots.values())


UP = ("up", "solo", "--name", "{cluster}")
SAVE = ("snapshot", "save", SNAPSHOT, "--cluster", "{cluster}")
RESTORE = ("snapshot", "restore", SNAPSHOT, "--cluster", "{cluster}")
NEEDS: Mapping[str, Need] = {
    "up": Need(lambda ground: ground.cluster in ground.records, UP),
    "down": Need(lambda ground: ground.cluster not in ground.records, ("down", "{cluster}")),
    "kept": Need(_automatic, UP, ("down",)),
    "saved": Need(lambda ground: SNAPSHOT in ground.snapshots, SAVE, ("up",)),
    "unsaved": Need(lambda ground: SNAPSHOT not in ground.snapshots, ("snapshot", "remove", SNAPSHOT)),
    "filled": Need(lambda ground: bool(ground.pool), ("pool", "fill", "solo")),
    "drained": Need(lambda ground: not ground.pool, ("pool", "drain")),
}


@dataclass(frozen=True)
class Victim:
    """A command that is killed.

    Attributes:
        name: of its row on the page.
        command: as it is typed; `{cluster}` stands for the cluster's name.
        usual: seconds it takes on a quiet machine, about; the kill comes within.
        needs: before it is started, in this order.
        again: needs before it is typed the second time.
        timed: whether the second time takes as long as the first would have.
    """

    name: str
    command: Sequence[str]
    usual: float
    needs: Sequence[str] = ()
    again: Sequence[str] = ()
    timed: bool = True


VICTIMS: Mapping[str, Victim] = {
    "up-cold": Victim("up, made anew", (*UP, "--cold"), 22, ("down",)),
    "up-snapshot": Victim("up, from a snapshot", UP, 18, ("kept", "drained", "down")),
    "lease": Victim("up, leased from the pool", UP, 6, ("down", "filled"), timed=False),
    "down": Victim("down", ("down", "{cluster}"), 5, ("up",)),
    "save": Victim("snapshot save", SAVE, 5.5, ("up", "unsaved"), ("unsaved",)),
    "restore": Victim("snapshot restore", RESTORE, 18, ("saved", "down"), ("down",)),
    "fill": Victim("pool fill", ("pool", "fill", "solo"), 20, ("kept", "drained")),
    "run": Victim("run", ("run", "killed.yaml", "--cluster-name", "{cluster}"), 32, ("down",)),
}

# What one command leaves in order is what the next one needs, where that can be.
CYCLE = (
    "up-cold", "save", "down", "restore", "save", "down", "up-snapshot", "down", "fill", "lease", "down", "run",
)  # fmt: skip
