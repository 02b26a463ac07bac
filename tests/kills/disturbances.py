"""What else happens to a machine, each once: its engine restarts, its disk is full, its clock is off, a network goes.

Each tells how the commands ended that it concerned: well, or with words for a person. Afterwards the next command has
to work, and nothing may be left.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kills.page import Tally
from tests.kills.second import Second, emptied, filled
from tests.kills.victims import SAVE, UP

if TYPE_CHECKING:
    from tests.kills.rounds import Rounds

_BEGUN_SECONDS = 120.0
_ENDS_SECONDS = 300.0
_HOUR = 3600.0
_MOMENT = 6.0
_DEBIAN = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
_TABLES = {"status", "pool"}  # their heads are left out
_WORD_OF_A_BUG = ("Traceback (most recent call last)", "this is a bug")


class Disturbed:
    """One disturbance on its way: what is typed, and what came of it."""

    def __init__(self, all_: Rounds, second: Second | None = None) -> None:
        self.all = all_
        self.tally = Tally()
        self._second = second

    @property
    def second(self) -> Second:
        if self._second is None:
            raise RuntimeError("this one needs a second engine")
        return self._second

    def must(self, *words: str) -> None:
        """Type what has to work."""
        self.tally.failed += self.all.type(self.all.typed(words))

    def need(self, *names: str) -> None:
        self.tally.failed += self.all.meet(names)

    def ask(self, *words: str, **environment: str) -> str:
        """Type what may fail, in words; what it said."""
        ended = self.all.ground.sandbox(*self.all.typed(words), **environment)
        self._note(words, ended.returncode, ended.stderr if ended.returncode else ended.stdout)
        return ended.stdout

    def strike(self, words: Sequence[str], act: Callable[[], object], *, at_once: bool = False) -> None:
        """Start a command, do something once it makes things in the engine, and wait until it has ended by itself."""
        self.all.watcher.began.clear()
        with self.all.ground.started(self.all.typed(words)) as process:
            self.all.watcher.began.wait(_BEGUN_SECONDS)
            if not at_once:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(self.all.chance.uniform(0.0, _MOMENT))
            act()
            try:
                code = process.wait(_ENDS_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                self.tally.failed.append(f"{' '.join(words)} did not end within {_ENDS_SECONDS:.0f} s")
                code = process.wait()
        self._note(words, code, self.all.ground.log.read_text(errors="replace"))

    def _note(self, words: Sequence[str], code: int, text: str) -> None:
        typed = " ".join(self.all.typed(words))
        if code and any(word in text for word in _WORD_OF_A_BUG):
            self.tally.failed.append(f"{typed} ended like a bug: {text[-600:]}")
        lines = [" ".join(line.split()) for line in text.strip().splitlines() if not line.startswith("[")]
        told = lines[:4] if code else lines[1:] if words[0] in _TABLES else []
        self.tally.words.append(f"`{typed}` ended with {code}" + (f": {' / '.join(told)[:400]}" if told else ""))


def engine_restart_up(one: Disturbed) -> None:
    one.need("down", "drained")
    one.strike((*UP, "--cold"), lambda: one.second.restart(killed=True))
    one.all.rewatch()
    one.must(*UP, "--cold")


def engine_restart_restore(one: Disturbed) -> None:
    one.need("kept", "drained", "down")
    one.strike(UP, lambda: one.second.restart(killed=True))
    one.all.rewatch()
    one.must(*UP)


def engine_restart_pool(one: Disturbed) -> None:
    """In order once, by SIGKILL once."""
    for killed in (False, True):
        one.need("down", "filled")
        one.second.restart(killed=killed)
        one.all.rewatch()
        one.ask("pool", "list")
        one.ask("status")
        one.must(*UP)
        one.tally.words.append(f"the cluster came from the {one.all.came}")


def disk_full_up(one: Disturbed) -> None:
    one.need("down", "drained")
    one.strike((*UP, "--cold"), one.second.fill, at_once=True)
    one.ask(*UP, "--cold")
    one.second.free()
    one.must(*UP, "--cold")


def disk_full_save(one: Disturbed) -> None:
    one.need("up", "unsaved")
    one.second.fill()
    one.ask(*SAVE)
    one.ask("status")
    one.second.free()
    one.must(*SAVE)
    one.must(*UP)


def state_full(one: Disturbed) -> None:
    """The state folder's disk, from the moment that a cluster is being made."""
    one.need("down", "drained")
    state = one.all.ground.state
    one.strike((*UP, "--cold"), lambda: filled(state), at_once=True)
    one.ask("status")
    one.ask(*UP)
    one.ask("gc")
    emptied(state)
    one.must(*UP)


def clock(one: Disturbed) -> None:
    """Commands whose clock is an hour ahead, then behind; and what was put into the pool at such an hour."""
    one.need("up", "saved", "filled")
    for offset in ("+3600", "-3600"):
        env = faked(offset)
        for words in (("status",), ("pool", "list"), ("gc", "--dry-run")):
            one.ask(*words, **env)
        one.ask("gc", **env)
        one.ask(*UP, **env)
        one.tally.failed += [] if one.all.ground.pool else ["a clock that is off emptied the pool"]
    for hours in (-1, 1):
        one.need("down", "filled")
        for name in one.all.ground.pool:
            _shift(one.all.ground.state / "clusters" / name / "clean.json", hours * _HOUR)
        one.must(*UP)
        one.tally.words.append(f"with a note {hours:+d} h off it came from the {one.all.came}")


def network_gone(one: Disturbed) -> None:
    """Of a cluster that runs, then of one that waits in the pool."""
    one.need("kept", "up")
    _disconnect(one, one.all.ground.cluster)
    one.ask("status")
    one.ask(*UP)
    one.must("down", "{cluster}")
    one.must(*UP)
    one.need("down", "filled")
    (waits,) = one.all.ground.pool
    _disconnect(one, waits)
    one.ask("status")
    one.must(*UP)
    one.tally.words.append(f"the cluster came from the {one.all.came}")
    one.need("down", "filled")
    for name in one.all.ground.pool:
        _disconnect(one, name)
    one.must("pool", "drain")


ON_SECOND: Mapping[str, Callable[[Disturbed], None]] = {
    "engine-restart-up": engine_restart_up,
    "engine-restart-restore": engine_restart_restore,
    "engine-restart-pool": engine_restart_pool,
    "disk-full-up": disk_full_up,
    "disk-full-save": disk_full_save,
}
ON_OWN: Mapping[str, Callable[[Disturbed], None]] = {
    "state-full": state_full,
    "clock": clock,
    "network-gone": network_gone,
}
DISTURBANCES = {**ON_SECOND, **ON_OWN}


def disturb(all_: Rounds, name: str, second: Second | None = None) -> Tally:
    """Let one happen, then take everything away and look; what came of it."""
    since = time.monotonic()
    one = Disturbed(all_, second)
    DISTURBANCES[name](one)
    for words in (("down", "--all"), ("pool", "drain"), ("gc",)):
        one.must(*words)
    all_.look(one.tally)
    one.tally.seconds = time.monotonic() - since
    return one.tally


def faked(offset: str) -> dict[str, str]:
    """An environment in which a command's clock is so many seconds off; its waits take as long as ever."""
    found = find_spec("libfaketime")
    folders = (found.submodule_search_locations if found else None) or []
    places = [*(Path(each) / "vendor/libfaketime/src/libfaketime.so.1" for each in folders), _DEBIAN]
    library = next((each for each in places if each.is_file()), None)
    if library is None:
        raise RuntimeError("libfaketime is not there: pip install libfaketime, or apt-get install faketime")
    return {"LD_PRELOAD": str(library), "FAKETIME": offset, "FAKETIME_NO_CACHE": "1", "DONT_FAKE_MONOTONIC": "1"}


def _shift(file: Path, seconds: float) -> None:
    data = json.loads(file.read_text())
    file.write_text(json.dumps({**data, "since": data["since"] + seconds}))


def _disconnect(one: Disturbed, name: str) -> None:
    """Take every node of a cluster off its network, as `docker network disconnect` does."""
    known = one.all.ground.records[name]
    network = f"sandbox-{known.get('held_as') or name}"
    for ident in known["containers"]:
        one.all.docker.networks.get(network).disconnect(ident, force=True)
