"""One run of one client against a golden server of its own, and all that is known of it afterwards."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from sandbox.load.golden import Golden, GoldenSettings, golden
from tests.bench.peers import venvs
from tests.bench.peers.kinds import FIRST, GAP, Client, Reported, Task, Width
from tests.bench.peers.truth import Truth, truth
from tests.bench.peers.watch import Watched, watch

_WITHIN = 60.0
_SETTLE = 0.5
_SERVER_AHEAD = 9
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
Result = dict[str, Any]


def once(client: Client, width: Width, nice: int) -> Result:
    """Run a client; whatever goes wrong is in the result."""
    head: Result = {"client": client.name, "version": client.version, "width": asdict(width), "happened": "ended well"}
    try:
        home = venvs.home(client)
    except venvs.NotInstalled as error:
        return {**head, "python": "-", "happened": str(error)}
    head["python"] = venvs.python_of(home)
    with tempfile.TemporaryDirectory(prefix="bench-load-") as name:
        folder = Path(name)
        log = folder / "golden.jsonl"
        with golden(GoldenSettings(first=FIRST, gap=GAP, tokens=width.tokens, log=log)) as server:
            _priority(server.pid, nice - _SERVER_AHEAD)
            task = Task(width, server.url, folder / "work", home)
            task.work.mkdir()
            command, watched = _run(client, task, server, nice)
            time.sleep(_SETTLE)  # the server logs a stream that was cut when it sees the connection's end
            told = truth(server.served(), width)
        shown = " ".join(_plain(each, task) for each in command)
        return {**head, "command": shown, **_figures(client, task, watched, told)}


def _run(client: Client, task: Task, server: Golden, nice: int) -> tuple[list[str], Watched]:
    environment = os.environ | client.environment(task) | {"NO_COLOR": "1", "COLUMNS": "200"}
    command = client.command(task)
    with (task.work / "stdout").open("wb") as out, (task.work / "stderr").open("wb") as errors:
        program = subprocess.Popen(
            command, cwd=task.work, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=errors
        )
        _priority(program.pid, nice)
        return command, watch(program, server.pid, task.width.seconds + task.width.answer + _WITHIN)


def _priority(pid: int, nice: int) -> None:
    """Ours takes a higher priority where it may, so the others get it too; and the server is never the slow one."""
    with contextlib.suppress(psutil.AccessDenied, PermissionError):
        psutil.Process(pid).nice(nice)


def _figures(client: Client, task: Task, watched: Watched, told: Truth | None) -> Result:
    found: Result = {"exit": watched.code, "peak_rss_mib": round(watched.rss), "peak_pss_mib": round(watched.pss)}
    if told is not None:
        found["server"] = _rounded(asdict(told) | {"begin": 0, "end": (told.end - told.begin) / 1e9})
        found["cpu"] = _rounded(_cpu(watched, told))
        found["load_rss_mib"] = round(watched.most_held(told.begin, told.end))
    reported, happened = _reported(client, task, watched)
    if reported is not None:
        found["reported"] = _rounded(asdict(reported))
    if happened:
        found["happened"] = happened
    return found


def _cpu(watched: Watched, told: Truth) -> dict[str, float]:
    """CPU seconds to the first request, from there to the last token, and on to the exit; and tokens per CPU second."""
    spans = {
        "start": (watched.at[0], told.begin),
        "load": (told.begin, told.end),
        "after": (told.end, watched.at[-1]),
    }
    taken = {name: watched.between(*span, of=watched.tree) for name, span in spans.items()}
    taken["start"] += watched.tree[0]
    server = watched.between(told.begin, told.end, of=watched.server)
    busy = watched.between(told.begin, told.end, of=watched.busy)
    seconds = (told.end - told.begin) / 1e9
    return taken | {
        "tokens_per_second_load": told.tokens / max(taken["load"], 0.01),
        "tokens_per_second_load_and_after": told.tokens / max(taken["load"] + taken["after"], 0.01),
        "tokens_per_second_whole": told.tokens / max(sum(taken.values()), 0.01),
        "server_share": server / seconds,
        "others_share": max(0.0, busy - server - taken["load"]) / seconds,
    }


def _reported(client: Client, task: Task, watched: Watched) -> tuple[Reported | None, str]:
    """What the client reported, and what went wrong, if anything."""
    wrong = []
    if watched.code is None:
        wrong.append("did not end in time, and was ended")
    elif watched.code:
        wrong.append(f"exit code {watched.code}")
    reported = None
    try:
        reported = client.read(task, (task.work / "stdout").read_text(errors="replace"))
    except Exception as error:  # noqa: BLE001 - a report of any shape may be missing or broken: the row says so
        wrong.append(f"no report ({type(error).__name__})")
        wrong.append(f"last words: {_last_words(task)}")
    return reported, "; ".join(wrong)


def _last_words(task: Task) -> str:
    for name in ("stderr", "stdout"):
        lines = [line.strip() for line in (task.work / name).read_text(errors="replace").splitlines() if line.strip()]
        if lines:
            return _plain(_COLOURS.sub("", lines[-1]), task)[:200]
    return "none"


def _plain(text: str, task: Task) -> str:
    """Without this machine's paths and ports."""
    for real, word in (
        (task.url, "$URL"),
        (str(task.work) + "/", ""),
        (str(task.home / "bin") + "/", ""),
        (str(task.home) + "/", "venv/"),
        (str(venvs.DRIVERS) + "/", "drivers/"),
        (str(venvs.tokenizer_folder()), "tokenizer"),
        (task.url.rpartition(":")[2], "$PORT"),
    ):
        text = text.replace(real, word)
    return f"'{text}'" if text.startswith(("{", "[")) else text


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}
