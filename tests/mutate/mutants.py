"""Mutants of the judge and of its figures: mutmut changes one thing after the other, and the unit tests must see it.

What is mutated, which tests are asked and what is left out stands in pyproject.toml, `[tool.mutmut]`. It works in a
copy of the tree.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.mutate.named import copied, environment

_SECONDS = 3600.0
_STATS = Path("mutants/mutmut-cicd-stats.json")


@dataclass(frozen=True)
class Killed:
    """What became of the mutants.

    Attributes:
        total: that were tried.
        killed: of these.
        alive: what the others change: name -> the change as a diff.
        untried: for which there was no time.
    """

    total: int
    killed: int
    alive: dict[str, str]
    untried: int

    @property
    def rate(self) -> float:
        """Killed ones of those that were tried, as a share."""
        return self.killed / self.total if self.total else 0.0


def run(workers: int, chosen: list[str]) -> Killed:
    """Try every mutant, or those whose names match `chosen`, for an hour at the most.

    Raises:
        CalledProcessError: the tests are red without any mutant, or mutmut broke.
    """
    with TemporaryDirectory(prefix="mutate-") as folder:
        tree = copied(Path(folder))
        mutmut, where = [sys.executable, "-m", "mutmut"], {"cwd": tree, "env": environment(tree)}

        def said(*arguments: str) -> str:
            return subprocess.run([*mutmut, *arguments], **where, check=True, stdout=subprocess.PIPE, text=True).stdout

        _tried([*mutmut, "run", "--max-children", str(workers), *chosen], **where)
        said("export-cicd-stats")
        stats = json.loads((tree / _STATS).read_text(encoding="utf-8"))
        states = dict(line.strip().split(": ") for line in said("results").splitlines() if ": " in line)
        alive = {name: said("show", name) for name, state in states.items() if state not in {"timeout", "not checked"}}
    untried = 0 if chosen else sum(state == "not checked" for state in states.values())
    total = stats["total"] - stats["skipped"] - sum(state == "not checked" for state in states.values())
    return Killed(total, total - len(alive), alive, untried)


def _tried(command: list[str], **where: Any) -> None:
    """Run mutmut, which shows how far it is; when time is out it ends, with all that it began."""
    with subprocess.Popen(command, start_new_session=True, **where) as process:
        try:
            code = process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            return
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if code:
        raise subprocess.CalledProcessError(code, command)
