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
from tests.kills.page import Tally, page, read, write
from tests.kills.rounds import rounds, victims
from tests.kills.victims import CYCLE, VICTIMS

PAGE = ROOT / "docs" / "reference" / "kills.md"


def main() -> None:
    """Kill, look, and write down what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=104, help="how many kills (default 104)")
    parser.add_argument("--only", nargs="+", choices=VICTIMS, help="these commands only; nothing is written then")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments; told on the page")
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no further kill after so many")
    parser.add_argument("--record", type=Path, help="a file of what was done; an earlier run's is gone on with")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # an end in order, which leaves nothing
    with tempfile.TemporaryDirectory() as folder:
        record = options.record or Path(folder) / "record"
        _kill(options, record, Path(folder))
        tallies: dict[str, Tally] = {each.name: Tally() for each in VICTIMS.values()}
        for name, tally in read(record):
            tallies.setdefault(name, Tally()).add(tally)
    text = page(tallies, options.seed, options.count)
    if options.only:
        _tell(text)
    else:
        put(PAGE, "kills", text)
    sys.exit(1 if any(each.wrong for each in tallies.values()) else 0)


def _kill(options: argparse.Namespace, record: Path, folder: Path) -> None:
    """Kill as often as is asked for, less what was done already."""
    begun = time.monotonic()
    done = sum(tally.midway + tally.ended for _, tally in read(record))
    with rounds(folder, f"kills-{os.getpid()}", options.seed + done) as all_:
        for number, victim in enumerate(victims(options.only or CYCLE, options.count)[done:], done + 1):
            since = time.monotonic()
            if since - begun > options.minutes * 60:
                break
            came, after = all_.kill(victim)
            came.seconds = time.monotonic() - since
            write(record, victim.name, came)
            how = f"killed after {after:.1f} s" if came.midway else "had ended"
            _tell(f"{number}: {victim.name}: {how}, {came.seconds:.0f} s: {'; '.join(came.wrong) or 'ok'}")
        write(record, "the end", Tally(left=all_.finish()))


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
