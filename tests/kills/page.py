"""What came of the kills, in words: for the terminal and for docs/reference/kills.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

END = "the end"


@dataclass
class Tally:
    """What came of one command's kills."""

    midway: int = 0
    ended: int = 0
    seconds: float = 0.0
    seeds: list[int] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> list[str]:
        return [
            *(f"left: {each}" for each in self.left),
            *(f"of others: {each}" for each in self.others),
            *(f"pool: {each}" for each in self.stale),
            *(f"next: {each}" for each in self.failed),
        ]

    def add(self, other: Tally) -> None:
        self.midway += other.midway
        self.ended += other.ended
        self.seconds += other.seconds
        self.seeds += [each for each in other.seeds if each not in self.seeds]
        self.left += other.left
        self.others += other.others
        self.stale += other.stale
        self.failed += other.failed
        self.words += other.words


def write(path: Path, name: str, tally: Tally) -> None:
    """Add what came of one kill to a file, so that a run that was stopped can go on."""
    with path.open("a", encoding="utf-8") as sink:
        sink.write(json.dumps({"name": name, **asdict(tally)}) + "\n")


def read(path: Path) -> list[tuple[str, Tally]]:
    """What came of all kills in the file: name of the command, and its tally."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    return [(row.pop("name"), Tally(**row)) for row in rows]


def page(tallies: dict[str, Tally], asked: int) -> str:
    """A table of all commands, and each thing that was wrong.

    Args:
        tallies: name of a command -> what came of it.
        asked: how many kills were asked for.
    """
    total = Tally()
    for each in tallies.values():
        total.add(each)
    rows = [_row(name, each) for name, each in tallies.items()]
    told = "\n".join(f"- {name}: {each}" for name, tally in tallies.items() for each in tally.wrong)
    well = "Nothing was left, nothing of others changed, no stale lease was handed out, every next command worked."
    head = ("command", "killed midway", "had ended before", "left", "of others", "stale leases", "next failed")
    done = f"{total.midway + total.ended} of {asked} kills in {total.seconds / 60:.0f} minutes"
    return "\n".join(
        [
            f"{datetime.now(UTC):%Y-%m-%d}: {done}, seed {', '.join(map(str, total.seeds))}.",
            "",
            f"| {' | '.join(head)} |",
            f"|{'---|' * len(head)}",
            *rows,
            _row("all", total),
            "",
            told or well,
        ]
    )


def disturbances(tallies: dict[str, Tally]) -> str:
    """What each disturbance did, how each command ended that it concerned, and what was wrong then."""
    lines = []
    for name, tally in tallies.items():
        lines += [
            "",
            f"**{name}**, {tally.seconds:.0f} s: {'; '.join(tally.wrong) or 'nothing was left, the next worked'}",
            "",
        ]
        lines += [f"- {words}" for words in tally.words]
    return "\n".join([f"{datetime.now(UTC):%Y-%m-%d}.", *lines])


def _row(name: str, tally: Tally) -> str:
    counts: Sequence[int] = (
        tally.midway, tally.ended, *map(len, (tally.left, tally.others, tally.stale, tally.failed))
    )  # fmt: skip
    return f"| {name} | {' | '.join(map(str, counts))} |"
