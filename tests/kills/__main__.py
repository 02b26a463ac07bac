"""`nox -s kills`: commands killed at random moments; then the next one has to work, and nothing may be left.

Each round starts a command as a user types it, sends it SIGKILL at a random moment of the time it usually takes, waits
for its reaper, and looks: at the engine, at the processes of this machine, at the state folder, and at what others own.
Then the same command has to work. The figures go to docs/reference/kills.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil

from sandbox.host.engine import client
from sandbox.host.mark import MARK
from tests.bench.page import put

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "kills.md"
SCENARIO = "scenarios/serving/first-answer.yaml"
_REAPED_SECONDS = 180.0
_SETTLE_SECONDS = 3.0


@dataclass(frozen=True)
class Victim:
    """A command that is killed.

    Attributes:
        name: of the row it has on the page.
        command: as it is typed.
        before: what has to be done for it to have something to do.
        usual: seconds it takes when it is let be, about; the kill comes within.
    """

    name: str
    command: Sequence[str]
    before: Sequence[Sequence[str]] = ()
    usual: float = 15.0


VICTIMS = (
    Victim("up, made anew", ("up", "solo", "--cold"), usual=20),
    Victim("up, from a snapshot", ("up", "solo"), (("up", "solo"), ("down", "solo")), usual=14),
    Victim("down", ("down", "solo"), (("up", "solo"),), usual=4),
    Victim("snapshot save", ("snapshot", "save", "mine"), (("up", "solo"),), usual=5),
    Victim("snapshot restore", ("snapshot", "restore", "mine", "--cluster", "copy"),
           (("up", "solo"), ("snapshot", "save", "mine"), ("down", "solo")), usual=14),
    Victim("pool fill", ("pool", "fill", "solo"), (("up", "solo"), ("down", "solo")), usual=16),
    Victim("lease", ("up", "solo"), (("pool", "fill", "solo"),), usual=5),
    Victim("run", ("run", SCENARIO), usual=45),
)  # fmt: skip


@dataclass
class Ground:
    """Where the commands run: a state folder of their own, and things of others beside them."""

    state: Path
    decoys: dict[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        """For commands; no mark of this process."""
        kept = {key: value for key, value in os.environ.items() if key != MARK}
        return {**kept, "SANDBOX_STATE_DIR": str(self.state), "PYTHONPATH": str(ROOT)}

    def sandbox(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command that is let be; how it ended."""
        command = [sys.executable, "-m", "sandbox", *words]
        return subprocess.run(command, env=self.env, cwd=self.state.parent, capture_output=True, text=True, check=False)

    def killed(self, words: Sequence[str], after: float) -> bool:
        """Start a command and send it SIGKILL after so many seconds; whether it was still there."""
        command = [sys.executable, "-m", "sandbox", *words]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, env=self.env, cwd=self.state.parent, stdout=quiet, stderr=quiet) as process:
            try:
                process.wait(timeout=after)
            except subprocess.TimeoutExpired:
                process.kill()
                return True
            return False

    def settled(self) -> None:
        """Wait until every reaper of ours has ended: they carry the state folder in their environment."""
        deadline = time.monotonic() + _REAPED_SECONDS
        while time.monotonic() < deadline:
            if not any(self._is_ours(each) for each in psutil.process_iter()):
                return
            time.sleep(0.2)

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("SANDBOX_STATE_DIR") == str(self.state)
        except (psutil.Error, OSError):
            return False

    def left(self) -> list[str]:
        """What carries our labels or our mark and belongs to no cluster, pool or snapshot that is recorded."""
        docker = client()
        ours = {"label": f"ai-k8s-sandbox.state={self.state}"}
        clusters = {each.name for each in (self.state / "clusters").iterdir() if (each / "record.json").is_file()}
        engine = clusters | {held for name in clusters if (held := _held_as(self.state / "clusters" / name))}
        snapshots = {each.stem for each in (self.state / "snapshots").glob("*.json")} if self.state.exists() else set()
        things = [(f"container {each.name}", each.labels) for each in docker.containers.list(all=True, filters=ours)]
        things += [(f"network {each.name}", each.attrs["Labels"]) for each in docker.networks.list(filters=ours)]
        things += [(f"volume {each.name}", each.attrs["Labels"]) for each in docker.volumes.list(filters=ours)]
        things += [(f"image {each.tags}", each.labels) for each in docker.images.list(filters=ours)]
        found = [
            what
            for what, labels in things
            if labels.get("ai-k8s-sandbox.cluster") not in engine
            and labels.get("ai-k8s-sandbox.snapshot") not in snapshots
            and "ai-k8s-sandbox.base" not in labels
        ]
        found += [f"process {each.pid} {each.name()}" for each in psutil.process_iter() if self._is_ours(each)]
        found += [f"half-made {each.parent.name}" for each in (self.state / "clusters").glob("*/creating.json")]
        return found + [f"file {each.name}" for each in self.state.rglob("*.new")]

    def changed(self) -> list[str]:
        """What of the others' things is not as it was."""
        return [name for name, text in self.decoys.items() if _look(name) != text]


def _held_as(home: Path) -> str:
    data = json.loads((home / "record.json").read_text())
    return str(data.get("held_as") or data["name"])


def _look(decoy: str) -> str:
    kind, _, name = decoy.partition(" ")
    if kind == "file":
        return Path(name).read_text() if Path(name).exists() else "gone"
    docker = client()
    try:
        if kind == "container":
            found = docker.containers.get(name)
            return f"{found.id} {found.status} {found.attrs['State']['StartedAt']}"
        return str(docker.volumes.get(name).attrs["Labels"] if kind == "volume" else docker.networks.get(name).id)
    except Exception as error:  # noqa: BLE001 - gone is a finding, whatever the engine calls it
        return f"gone: {error}"


@contextmanager
def others(folder: Path) -> Iterator[dict[str, str]]:
    """Things of others, as like ours as can be: a container, a volume and a network with our label, and a file."""
    docker = client()
    label = {"ai-k8s-sandbox.state": "/somebody/else", "ai-k8s-sandbox.cluster": "another"}
    image = next(tag for each in docker.images.list(name="ai-k8s-sandbox/toolbox") for tag in each.tags)
    network = docker.networks.create("kills-others", labels=label)
    volume = docker.volumes.create("kills-others", labels=label)
    container = docker.containers.run(
        image, ["sleep", "86400"], name="kills-others", labels=label, network="kills-others", detach=True,
        volumes={"kills-others": {"bind": "/kept", "mode": "rw"}},
    )  # fmt: skip
    file = folder / "kubeconfig"
    file.write_text("current-context: production\n")
    names = ["container kills-others", "volume kills-others", "network kills-others", f"file {file}"]
    try:
        yield {name: _look(name) for name in names}
    finally:
        container.remove(force=True)
        volume.remove()
        network.remove()


def main() -> None:
    """Kill, look, and write down what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=104, help="how many kills (default 104)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments; told on the page")
    parser.add_argument("--no-page", action="store_true", help="only tell, write nothing")
    options = parser.parse_args()
    chance = random.Random(options.seed)  # noqa: S311 - moments, not secrets
    done: Counter[str] = Counter()
    late: Counter[str] = Counter()
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder, others(Path(folder)) as decoys:
        state = Path(folder) / "state"
        state.mkdir()
        ground = Ground(state, decoys)
        for number in range(options.count):
            victim = VICTIMS[number % len(VICTIMS)]
            after = chance.uniform(0.3, victim.usual)
            wrong = one(ground, victim, after, late)
            done[victim.name] += 1
            failed += [f"{victim.name} after {after:.1f} s: {each}" for each in wrong]
            sys.stdout.write(f"{number + 1}: {victim.name} killed after {after:.1f} s: {'; '.join(wrong) or 'ok'}\n")
            sys.stdout.flush()
        ground.sandbox("down", "--all")
        ground.sandbox("pool", "drain")
        for name in [each.stem for each in (state / "snapshots").glob("*.json")]:
            ground.sandbox("snapshot", "remove", name)
        for base in client().volumes.list(filters={"label": f"ai-k8s-sandbox.state={state}"}):
            base.remove(force=True)
    if not options.no_page:
        put(PAGE, "kills", page(done, late, failed, options.seed))
    sys.exit(1 if failed else 0)


def one(ground: Ground, victim: Victim, after: float, late: Counter[str]) -> list[str]:
    """One kill; what was wrong afterwards, nothing where all was well."""
    for words in victim.before:
        ground.sandbox(*words)
    if not ground.killed(victim.command, after):
        late[victim.name] += 1
    time.sleep(_SETTLE_SECONDS)
    ground.settled()
    wrong = [f"left: {each}" for each in ground.left()] + [f"others': {each}" for each in ground.changed()]
    again = list(victim.command)
    if victim.name == "snapshot save":
        ground.sandbox("snapshot", "remove", "mine")
        ground.sandbox("up", "solo")
    if victim.name == "snapshot restore":
        ground.sandbox("down", "copy")
    ended = ground.sandbox(*again)
    if ended.returncode:
        wrong.append(f"the next one ended with {ended.returncode}: {ended.stderr.strip().splitlines()[-3:]}")
    for words in (("down", "--all"), ("pool", "drain"), ("snapshot", "remove", "mine")):
        ground.sandbox(*words)
    ground.settled()
    wrong += [f"left in the end: {each}" for each in ground.left()]
    return wrong + [f"others' in the end: {each}" for each in ground.changed()]


def page(done: Counter[str], late: Counter[str], failed: Sequence[str], seed: int) -> str:
    """What came of it, for the page."""
    rows = "\n".join(f"| {name} | {count} | {late[name]} |" for name, count in done.items())
    well = "Nothing was left, nothing of others was touched, every next command worked."
    told = "\n".join(f"- {each}" for each in failed) or well
    total = sum(done.values())
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {total} kills, seed {seed}.\n\n"
        f"| command | killed | had ended before |\n|---|---|---|\n{rows}\n\n{told}\n"
    )


if __name__ == "__main__":
    main()
