"""One kill after the other: a command is started, killed, looked after, and typed again."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from docker.errors import NotFound

from sandbox import images
from sandbox.cluster.ownership import STATE_LABEL
from sandbox.host.engine import client
from tests.kills import leaks
from tests.kills.events import Watcher, watching
from tests.kills.ground import Ground, adopting
from tests.kills.others import Others, others
from tests.kills.page import Tally
from tests.kills.victims import NEEDS, SCENARIO, VICTIMS, Victim

if TYPE_CHECKING:
    import subprocess

    from docker import DockerClient

_EARLIEST = 0.1  # of the time that a command usually takes: before that Python still reads the program
_MOST_PACE = 5.0


@dataclass
class Rounds:
    """All that the rounds share: what one leaves in order is not made again for the next.

    Attributes:
        ground: where commands run.
        docker: its engine.
        watcher: of that engine's events.
        others: whose things nobody may touch.
        chance: of the moments.
        pace: how much slower than a quiet machine this one is at present.
        noted: what was found wrong so far.
    """

    ground: Ground
    docker: DockerClient
    watcher: Watcher
    others: Others
    chance: random.Random
    pace: float = 1.0
    noted: set[str] = field(default_factory=set)

    def kill(self, victim: Victim) -> tuple[Tally, float]:
        """Kill a command once; what came of it, and after how many seconds it was."""
        since = time.monotonic()
        tally = Tally(failed=self.meet(victim.needs))
        before = self.ground.pool
        after = self.chance.uniform(_EARLIEST, 1.0) * victim.usual * self.pace
        words = self.typed(victim.command)
        ended = self.ground.killed(words, after)
        if ended.midway:
            tally.midway = 1
        else:
            tally.ended = 1
            tally.failed += [f"it ended with {ended.code}: {_last(ended.words)}"] if ended.code else []
        self.look(tally)
        lost = before - self.ground.pool - {self.ground.handed}
        tally.failed += self.meet(victim.again)
        begun = time.monotonic()
        tally.failed += self.type(words)
        if ended.midway and victim.timed and not tally.failed:
            self.pace = min(_MOST_PACE, (self.pace + (time.monotonic() - begun) / victim.usual) / 2)
        if self.ground.handed in lost:
            tally.stale.append(f"{self.ground.handed}, half handed over before, was handed out")
        self.look(tally)
        tally.seconds = time.monotonic() - since
        return tally, after

    def look(self, tally: Tally) -> None:
        """Wait for the reaper, and note what is left, or changed; each thing once."""
        tally.left += self._new([*self.ground.settled(), *leaks.left(self.ground, self.docker, self.watcher)])
        tally.stale += self._new(leaks.unclean(self.ground, self.docker, self.watcher))
        tally.others += self._new(self.others.changed())

    def _new(self, found: Sequence[str]) -> list[str]:
        fresh = [each for each in dict.fromkeys(found) if each not in self.noted]
        self.noted.update(fresh)
        return fresh

    def rewatch(self) -> None:
        """Follow the engine's events again, after it was restarted."""
        self.watcher.follow()
        self.others.start_again()

    @property
    def came(self) -> str:
        """Which way the cluster came: `cold`, from a `snapshot`, or from the `pool`."""
        known = self.ground.records.get(self.ground.cluster, {})
        return str(known.get("origin", {}).get("way", "nowhere"))

    def meet(self, needs: Sequence[str]) -> list[str]:
        """Make it so where it is not; what failed."""
        failed = []
        for each in needs:
            need = NEEDS[each]
            if not need.met(self.ground):
                failed += [*self.meet(need.first), *self.type(self.typed(need.words))]
                failed += [] if need.met(self.ground) else [f"{' '.join(need.words)} ended well, and did nothing"]
        return failed

    def type(self, words: Sequence[str]) -> list[str]:
        """Type a command and let it be; what was wrong."""
        ended = self.ground.sandbox(*words)
        return [f"{' '.join(words)} ended with {ended.returncode}: {said(ended)}"] if ended.returncode else []

    def typed(self, words: Sequence[str]) -> list[str]:
        return [word.format(cluster=self.ground.cluster) for word in words]

    def finish(self) -> list[str]:
        """Take everything away as a user would; what is left then."""
        tally = Tally(failed=self.type(["down", "--all"]) + self.type(["pool", "drain"]))
        for name in self.ground.snapshots:
            tally.failed += self.type(["snapshot", "remove", name])
        tally.failed += self.type(["gc"])
        self.look(tally)
        asked = self.ground.sandbox("gc", "--dry-run", "-o", "json")
        found = json.loads(asked.stdout or "{}").get("would_be_removed", [asked.stderr])
        return tally.wrong + [f"gc would still remove {each}" for each in found]


@contextmanager
def rounds(folder: Path, name: str, seed: int, engine: str = "", scenario: str = SCENARIO) -> Iterator[Rounds]:
    """A ground, its engine's events and the things of others, for as long as what happens inside.

    Args:
        folder: for all files.
        name: of the cluster; a word that nobody else uses.
        seed: of the moments.
        engine: its address; empty for the machine's own.
        scenario: what is run.
    """
    docker = client(engine)
    ground = Ground(folder, name, engine)
    (folder / "killed.yaml").write_text(scenario)
    toolbox = images.ensure(["toolbox"])["toolbox"].ref
    chance = random.Random(seed)  # noqa: S311 - moments, not secrets
    with (
        adopting(),
        others(docker, f"{name}-others", folder, toolbox) as theirs,
        watching(docker, str(ground.state)) as watcher,
    ):
        try:
            yield Rounds(ground, docker, watcher, theirs, chance)
        finally:
            _sweep(docker, ground)


def _sweep(docker: DockerClient, ground: Ground) -> None:
    """Remove what belongs to the state folder, which goes: the volume with /var of the node image, and, after an
    interrupt, all else."""
    ours: dict[str, str | list[str] | bool] = {"label": f"{STATE_LABEL}={ground.state}"}
    recorded = [ident for each in ground.records.values() for ident in each["containers"]]
    labelled = [str(each.id) for each in docker.containers.list(all=True, filters=ours)]
    for ident in dict.fromkeys([*recorded, *labelled]):
        with suppress(NotFound):
            docker.containers.get(ident).remove(force=True, v=True)
    for network in docker.networks.list(filters=ours):
        network.remove()
    for volume in docker.volumes.list(filters=ours):
        volume.remove(force=True)
    for image in docker.images.list(filters=ours):
        docker.images.remove(str(image.id), force=True)


def victims(names: Sequence[str], count: int) -> list[Victim]:
    """As many as are asked for, in turn."""
    return [VICTIMS[names[number % len(names)]] for number in range(count)]


def said(ended: subprocess.CompletedProcess[str]) -> str:
    """The last words of a command."""
    return _last(ended.stderr or ended.stdout)


def _last(text: str) -> str:
    return " / ".join(text.strip().splitlines()[-4:])
