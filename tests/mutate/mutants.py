"""Mutants of the judge and of its figures: mutmut changes one thing after the other, and the unit tests must see it.

What is mutated, which tests are asked and what is left out stands in pyproject.toml, `[tool.mutmut]`. It works in a
copy of the tree.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.mutate.named import copied, environment

_SECONDS = 3600.0
_STATS = Path("mutants/mutmut-cicd-stats.json")


@dataclass(frozen=True)
class Killed:
    """How many mutants there were and were killed, and what the others change: name -> the change as a diff."""

    total: int
    killed: int
    alive: dict[str, str]

    @property
    def rate(self) -> float:
        """Killed ones of all, as a share."""
        return self.killed / self.total if self.total else 0.0


def run(workers: int, chosen: list[str]) -> Killed:
    """Try every mutant, or those whose names match `chosen`.

    Raises:
        CalledProcessError: the tests are red without any mutant, or mutmut broke.
        TimeoutExpired: it took more than an hour.
    """
    with TemporaryDirectory(prefix="mutate-") as folder:
        tree = copied(Path(folder))

        def mutmut(*arguments: str) -> str:
            command = [sys.executable, "-m", "mutmut", *arguments]
            done = subprocess.run(
                command,
                cwd=tree,
                env=environment(tree),
                check=True,
                timeout=_SECONDS,
                stdout=subprocess.PIPE,
                text=True,
            )
            return done.stdout

        mutmut("run", "--max-children", str(workers), *chosen)
        mutmut("export-cicd-stats")
        stats = json.loads((tree / _STATS).read_text(encoding="utf-8"))
        states = dict(line.strip().split(": ") for line in mutmut("results").splitlines() if ": " in line)
        names = [name for name, state in states.items() if state not in {"timeout", "not checked"}]
        alive = {name: mutmut("show", name) for name in names}
    total = stats["total"] - stats["skipped"] - sum(state == "not checked" for state in states.values())
    return Killed(total, total - len(alive), alive)
