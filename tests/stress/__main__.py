"""`nox -s stress`: six users at once lease clusters and give them back for five minutes; is each clean, and one's own?

Each user does as a person at a terminal does: `sandbox up`, looks at the cluster, leaves something on it, `sandbox
down`. Whoever finds what another one left, or a cluster that somebody else has, has found a bug. A seventh fills the
pool meanwhile. The figures go to docs/reference/stress.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from threading import Lock

from sandbox.host import mark
from sandbox.host.engine import client
from sandbox.kube import Kube
from tests.bench.page import put

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "stress.md"
SHAPE = "solo"
MARKED = "left-by-"


@dataclass
class Seen:
    """What the users saw.

    Attributes:
        seconds: of each `up`, by the way the cluster came.
        downs: seconds of each `down`.
        wrong: what must not be, in words.
        held: address of an API server -> who has it now; copies of one snapshot share their UID.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    downs: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    held: dict[str, str] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)


@dataclass(frozen=True)
class User:
    """Somebody at a terminal, with a state folder that all of them share."""

    name: str
    state: Path

    def sandbox(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Type a command."""
        env = {**mark.without(), "SANDBOX_STATE_DIR": str(self.state), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "sandbox", *words]
        return subprocess.run(command, env=env, cwd=self.state.parent, capture_output=True, text=True, check=False)

    def work(self, seen: Seen, until: float) -> None:
        """Lease and give back until that time, of `time.monotonic`."""
        while time.monotonic() < until:
            self._once(seen)

    def _once(self, seen: Seen) -> None:
        begun = time.monotonic()
        up = self.sandbox("up", SHAPE, "--name", self.name, "-o", "json")
        took = time.monotonic() - begun
        if up.returncode:
            seen.wrong.append(f"{self.name}: up ended with {up.returncode}: {up.stderr.strip()[-500:]}")
            return
        told = json.loads(up.stdout)
        with seen.lock:
            seen.seconds.setdefault(told["origin"]["way"], []).append(took)
        kube = Kube.connect(Path(told["kubeconfig"]))
        with seen.lock:
            if other := seen.held.get(kube.server):
                seen.wrong.append(f"{self.name}: {other} has the same cluster")
            seen.held[kube.server] = self.name
        seen.wrong += [f"{self.name}: {each}" for each in self._look(kube, told["uid"])]
        with seen.lock:  # before it goes: the next one may have it at once
            seen.held.pop(kube.server, None)
        begun = time.monotonic()
        down = self.sandbox("down", self.name)
        seen.downs.append(time.monotonic() - begun)
        if down.returncode:
            seen.wrong.append(f"{self.name}: down ended with {down.returncode}: {down.stderr.strip()[-500:]}")

    def _look(self, kube: Kube, uid: str) -> list[str]:
        """Look at a cluster, and leave something on it; what must not be there."""
        maps = [each["metadata"]["name"] for each in kube.list("v1", "ConfigMap", "default")]
        wrong = [f"finds {name}" for name in maps if name.startswith(MARKED)]
        if kube.uid() != uid:
            wrong.append("the kubeconfig leads to another cluster")
        named = {"name": f"{MARKED}{self.name}", "namespace": "default"}
        kube.apply([{"apiVersion": "v1", "kind": "ConfigMap", "metadata": named}])
        return wrong


def main() -> None:
    """Let them work, look at what is left, and write down what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=6)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--no-page", action="store_true", help="only tell, write nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        state.mkdir()
        filler = User("filler", state)
        prepared = filler.sandbox("pool", "fill", SHAPE, "--size", "2")
        seen = Seen(wrong=[prepared.stderr] if prepared.returncode else [])
        until = time.monotonic() + options.minutes * 60
        users = [User(f"user-{number}", state) for number in range(options.users)]
        with ThreadPoolExecutor(max_workers=len(users) + 1) as pool:
            working = [pool.submit(user.work, seen, until) for user in users]
            while time.monotonic() < until:
                filler.sandbox("pool", "fill", SHAPE, "--size", "2")
            for each in working:
                each.result()
        filler.sandbox("pool", "drain")
        seen.wrong += left(filler)
        for base in client().volumes.list(filters={"label": f"ai-k8s-sandbox.state={state}"}):
            base.remove(force=True)
    text = page(seen, options.users, options.minutes)
    if options.no_page:
        sys.stdout.write(text)
    else:
        put(PAGE, "stress", text)
    sys.exit(1 if seen.wrong else 0)


def left(user: User) -> list[str]:
    """What is left of clusters in the end; snapshots go by their command."""
    for name in json.loads(user.sandbox("snapshot", "list", "-o", "json").stdout):
        user.sandbox("snapshot", "remove", name["name"])
    found = [f"left: {each}" for each in json.loads(user.sandbox("gc", "-o", "json").stdout) if each["kind"] != "file"]
    ours = {"label": f"ai-k8s-sandbox.state={user.state}"}
    found += [f"left: container {each.name}" for each in client().containers.list(all=True, filters=ours)]
    return found + [f"left: network {each.name}" for each in client().networks.list(filters=ours)]


def page(seen: Seen, users: int, minutes: float) -> str:
    """What came of it, for the page."""
    ways = Counter({way: len(seconds) for way, seconds in seen.seconds.items()})
    rows = "\n".join(f"| `up`, {way} | {count} | {median(seen.seconds[way]):.1f} |" for way, count in ways.items())
    rows += f"\n| `down` | {len(seen.downs)} | {median(seen.downs):.1f} |" if seen.downs else ""
    well = (
        "No user found what another one had left, none had a cluster of another one, and nothing was left in the end."
    )
    told = "\n".join(f"- {each}" for each in _shortened(seen.wrong)) or well
    head = f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {users} users, {minutes:g} minutes.\n\n"
    return f"{head}| command, how the cluster came | times | seconds (median) |\n|---|---|---|\n{rows}\n\n{told}\n"


def _shortened(wrong: Sequence[str]) -> list[str]:
    return [" ".join(each.split())[:400] for each in wrong]


if __name__ == "__main__":
    main()
