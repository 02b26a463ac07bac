"""`nox -s mutate`: do the tests see it when the product is wrong? Two halves, each with its kill rate.

Named sabotages: every one has to be killed. Mutants of the judge and its figures: 95 % of them. Who survives is named.
The figures of a whole run go to docs/reference/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import UTC, datetime

from tests.bench.page import write
from tests.mutate import mutants, named

_LEAST = 0.95


def main() -> int:
    """Run one half or both; the exit code: 1 where too much survives, or a sabotage is not true any more."""
    parser = argparse.ArgumentParser(prog="nox -s mutate --", description=__doc__)
    parser.add_argument("--only", choices=("named", "mutants"), help="one half, instead of both")
    parser.add_argument("--workers", type=int, default=2, help="how many at once (default 2)")
    parser.add_argument("-k", metavar="TEXT", default="", help="only sabotages with this in their name or file")
    parser.add_argument("--match", nargs="*", default=[], help="only mutants such as 'sandbox.judge.attacks*'")
    options = parser.parse_args()
    rows, good = [], True
    if options.only in {None, "named"}:
        chosen = [each for each in named.sabotages() if options.k in each.name or options.k in each.file]
        outcomes = named.run(chosen, options.workers)
        good = _tell_named(outcomes)
        killed = sum(each.state == "killed" for each in outcomes)
        rows.append(("named sabotages", killed, len(outcomes)))
    if options.only in {None, "mutants"}:
        found = mutants.run(options.workers, options.match)
        for name, change in sorted(found.alive.items()):
            sys.stdout.write(f"survived: {name}\n{change}\n")
        good = good and found.rate >= _LEAST
        rest = f", of which {found.untried:,} were not tried in an hour" if found.untried else ""
        rows.append((f"mutants of judge and metrics{rest}", found.killed, found.total))
    table = "\n".join(f"| kill rate of {what} | {share(killed, total)} % |" for what, killed, total in rows)
    sys.stdout.write(f"\n{table}\n")
    if not (options.only or options.k or options.match):
        counts = ", ".join(f"{total:,} of {what}" for what, _, total in rows)
        head = f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores: {counts}.\n\n| what | figure |\n|---|---|\n"
        write("mutate", head + table + "\n")
    return 0 if good else 1


def share(killed: int, total: int) -> str:
    """In per cent, never rounded up: one survivor of a thousand is not 100."""
    tenths = killed * 1000 // total if total else 0
    return f"{tenths / 10:g}"


def _tell_named(outcomes: list[named.Outcome]) -> bool:
    """A table of all; whether every one was killed."""
    width = max(len(each.sabotage.name) for each in outcomes)
    for each in sorted(outcomes, key=lambda each: (each.state, each.sabotage.file)):
        sys.stdout.write(f"{each.state:8}  {each.sabotage.name:{width}}  {each.sabotage.file}  {each.detail}\n")
    return all(each.state == "killed" for each in outcomes)


if __name__ == "__main__":
    sys.exit(main())
