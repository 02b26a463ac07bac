"""`nox -s kills`: commands killed at random moments; then the next one has to work, and nothing may be left.

Each round starts a command as a user types it, sends it SIGKILL at a random moment of the time it usually takes, waits
for its reaper, and looks: at the engine, at the processes and the packet filter of this machine, at the state folder,
and at what others own. Then the same command has to work. The figures go to docs/reference/kills.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.page import put
from tests.kills.ground import ROOT
from tests.kills.page import Tally, page
from tests.kills.rounds import rounds, victims
from tests.kills.victims import CYCLE, VICTIMS

PAGE = ROOT / "docs" / "reference" / "kills.md"


def main() -> None:
    """Kill, look, and write down what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=104, help="how many kills (default 104)")
    parser.add_argument("--only", nargs="+", choices=VICTIMS, help="these commands only; nothing is written then")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments; told on the page")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # an end in order, which leaves nothing
    begun = time.monotonic()
    tallies: dict[str, Tally] = {each.name: Tally() for each in VICTIMS.values()}
    with tempfile.TemporaryDirectory() as folder, rounds(Path(folder), f"kills-{os.getpid()}", options.seed) as all_:
        for number, victim in enumerate(victims(options.only or CYCLE, options.count), 1):
            since = time.monotonic()
            came, after = all_.kill(victim)
            tallies[victim.name].add(came)
            how = f"killed after {after:.1f} s" if came.midway else "had ended"
            _tell(f"{number}: {victim.name}: {how}, {time.monotonic() - since:.0f} s: {'; '.join(came.wrong) or 'ok'}")
        tallies["the end"] = Tally(left=all_.finish())
    text = page(tallies, options.seed, (time.monotonic() - begun) / 60)
    if options.only:
        _tell(text)
    else:
        put(PAGE, "kills", text)
    sys.exit(1 if any(each.wrong for each in tallies.values()) else 0)


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
