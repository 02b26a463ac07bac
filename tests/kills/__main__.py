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
from contextlib import ExitStack
from pathlib import Path

from tests.bench.page import put
from tests.kills.disturbances import DISTURBANCES, ON_OWN, ON_SECOND, disturb
from tests.kills.ground import ROOT
from tests.kills.page import END, Tally, disturbances, page, read, write
from tests.kills.rounds import rounds, victims
from tests.kills.second import second, small
from tests.kills.victims import CYCLE, VICTIMS

PAGE = ROOT / "docs" / "reference" / "kills.md"


def main() -> None:
    """Kill, disturb, look, and write down what came of it."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # an end in order, which leaves nothing
    with tempfile.TemporaryDirectory() as folder:
        record = options.record or Path(folder) / "record"
        _kill(options, record, Path(folder))
        _disturb(options, record, Path(folder))
        tallies: dict[str, Tally] = {}
        for name, tally in read(record):
            tallies.setdefault(name, Tally()).add(tally)
    kills = {each.name: tallies.get(each.name, Tally()) for each in VICTIMS.values()}
    texts = {
        "kills": page({**kills, END: tallies.get(END, Tally())}, options.count),
        "disturbances": disturbances({name: tallies[name] for name in DISTURBANCES if name in tallies}),
    }
    for part, text in texts.items():
        if options.only:
            _tell(text)
        else:
            put(PAGE, part, text)
    sys.exit(1 if any(each.wrong for each in tallies.values()) else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=104, help="how many kills (default 104)")
    known = [*VICTIMS, *DISTURBANCES]
    parser.add_argument("--only", nargs="+", choices=known, default=[], help="these only; nothing is written then")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments; told on the page")
    parser.add_argument("--minutes", type=float, default=600.0, help="begin nothing more after so many")
    parser.add_argument("--record", type=Path, help="a file of what was done; an earlier run's is gone on with")
    options = parser.parse_args()
    options.ends = time.monotonic() + options.minutes * 60
    return options


def _kill(options: argparse.Namespace, record: Path, folder: Path) -> None:
    """Kill as often as is asked for, less what was done already."""
    names = [each for each in options.only if each in VICTIMS] if options.only else CYCLE
    done = sum(tally.midway + tally.ended for _, tally in read(record))
    if not names or done >= options.count:
        return
    with rounds(folder / "kills", f"kills-{os.getpid()}", options.seed + done) as all_:
        for number, victim in enumerate(victims(names, options.count)[done:], done + 1):
            if time.monotonic() > options.ends:
                break
            came, after = all_.kill(victim)
            came.seeds = [options.seed + done]
            write(record, victim.name, came)
            how = f"killed after {after:.1f} s" if came.midway else "had ended"
            _tell(f"{number}: {victim.name}: {how}, {came.seconds:.0f} s: {'; '.join(came.wrong) or 'ok'}")
        write(record, END, Tally(left=all_.finish()))


def _disturb(options: argparse.Namespace, record: Path, folder: Path) -> None:
    """Let each disturbance happen that is asked for and was not seen yet."""
    done = {name for name, _ in read(record)}
    wanted = [each for each in DISTURBANCES if each not in done and (not options.only or each in options.only)]
    for place, of in (("own", ON_OWN), ("second", ON_SECOND)):
        names = [each for each in wanted if each in of]
        if not names or time.monotonic() > options.ends:
            continue
        with ExitStack() as stack:
            engine = stack.enter_context(second(folder, ("node", "toolbox"))) if of is ON_SECOND else None
            stack.enter_context(small(folder / place / "state"))
            url = engine.home.url if engine else ""
            all_ = stack.enter_context(rounds(folder / place, f"kills-{os.getpid()}", options.seed, url))
            for name in names:
                came = disturb(all_, name, engine)
                write(record, name, came)
                _tell(f"{name}: {came.seconds:.0f} s: {'; '.join(came.wrong) or 'ok'}")
                _tell("\n".join(f"  {each}" for each in came.words))
            all_.finish()


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
