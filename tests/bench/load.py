"""Load clients side by side: ours and those of others against a server whose send times are known.

`python -m tests.bench.load --runs 3 --widths 20,200,1000 --tools ours,aiperf`
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from tests.bench.peers import aiperf, bare, guidellm, inference_perf, locusts, ours
from tests.bench.peers.kinds import Client, Width
from tests.bench.peers.once import Result, once

RAW = Path(__file__).resolve().parents[2] / "docs" / "reference" / "benchmarks" / "load"
CLIENTS: dict[str, Client] = {
    "ours": ours.CLIENT,
    "aiperf": aiperf.CLIENT,
    "guidellm": guidellm.CLIENT,
    "inference-perf": inference_perf.CLIENT,
    "locust": locusts.CLIENT,
    "bare": bare.CLIENT,
}
# short answers where few streams are to give requests enough for a p99
TOKENS = {20: 20, 200: 40, 1000: 100}
SECONDS = 30.0
NICE = -10
HEAD = (
    "client", "TTFT reported p50, p99, ms", "server's TTFT p50, p99, ms", "added p50, p99, ms",
    "whole by its count / by the server's / due", "failed, by its count", "streams at once", "tokens",
    "CPU, s: start, load, after", "tokens per CPU second: load, with what follows, with the start",
    "peak memory, MiB: RSS in the load, RSS, PSS", "remarks",
)  # fmt: skip
LEGEND = (
    "Every client is asked for the same: an open loop at a constant rate, Locust for users that come at that rate. "
    "Server: what the golden server logged. Added: reported minus server's. CPU and memory: of the whole process tree; "
    "`start` is until the first request of the load, `load` until its last token, `after` until the exit. "
    "A remark tells of every run that went wrong."
)
Row = tuple[str, ...]


def width(streams: int, seconds: float = SECONDS) -> Width:
    """So many streams, for so long."""
    return Width(streams, TOKENS.get(streams, 40), seconds)


def measure(runs: int, widths: list[Width], tools: list[str], nice: int = NICE) -> list[Result]:
    """Every client at every width, turn and turn about; each result is also written beside the page."""
    RAW.mkdir(parents=True, exist_ok=True)
    found = []
    for stale in [path for tool in tools for wide in widths for path in RAW.glob(f"{tool}-{wide.streams}-*.json")]:
        stale.unlink()
    for wide in widths:
        for run in range(1, runs + 1):
            for tool in tools:
                result = {"run": run, **once(CLIENTS[tool], wide, nice)}
                found.append(result)
                text = json.dumps(result, indent=1) + "\n"
                (RAW / f"{tool}-{wide.streams}-{run}.json").write_text(text)
                sys.stderr.write(f"{tool}, {wide.streams} streams, run {run}: {result['happened']}\n")
    return found


def rows(runs: int) -> list[Row]:
    """The table's rows for all widths; the first column says which."""
    found = measure(runs, [width(each) for each in TOKENS], list(CLIENTS))
    return [(f"{wide}: {row[0]}", *row[1:]) for wide in TOKENS for row in table(found, wide)]


def block(runs: int, found: list[Result] | None = None) -> str:
    """What the page shows: when and where, a table per width, and the commands."""
    found = measure(runs, [width(each) for each in TOKENS], list(CLIENTS)) if found is None else found
    size = psutil.virtual_memory().total / (1 << 30)
    machine = f"{os.cpu_count()} cores, {size:.0f} GiB, {platform.system()} {platform.machine()}"
    versions = {each["client"]: f"{each['version']} (Python {each['python']})" for each in found if each["version"]}
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    parts = [f"{datetime.now(UTC):%Y-%m-%d}, {machine}, {runs} runs of each, medians. {told}.", LEGEND]
    for wide in dict.fromkeys(each["width"]["streams"] for each in found):
        asked = Width(**next(each["width"] for each in found if each["width"]["streams"] == wide))
        parts.append(
            f"{wide} streams: {asked.rate:g} requests a second for {asked.seconds:g} s, {asked.tokens} tokens each, "
            f"{asked.streams * asked.tokens / asked.answer:,.0f} tokens a second."
        )
        lines = [HEAD, ("---",) * len(HEAD), *table(found, wide)]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    commands = {each["client"]: each["command"] for each in reversed(found) if "command" in each}
    parts.append("```text\n" + "\n".join(commands[name] for name in versions | commands if name in commands) + "\n```")
    return "\n\n".join(parts) + "\n"


def table(found: list[Result], streams: int) -> list[Row]:
    """A row per client at one width."""
    here = [each for each in found if each["width"]["streams"] == streams]
    return [
        row([each for each in here if each["client"] == name])
        for name in dict.fromkeys(each["client"] for each in here)
    ]


def row(runs: list[Result]) -> Row:
    """One client at one width: medians over its runs, and everything that happened."""

    def median(of: Callable[[Result], float], shape: str = ".1f") -> str:
        values = [value for each in runs if (value := _or_none(of, each)) is not None]
        return format(statistics.median(values), shape) if values else "-"

    def pair(*of: Callable[[Result], float], shape: str = ".1f") -> str:
        return ", ".join(median(each, shape) for each in of)

    due = Width(**runs[0]["width"]).requests
    counts = [median(lambda r: r["reported"]["ok"], ".0f"), median(lambda r: r["server"]["whole"], ".0f"), str(due)]
    version = f" {runs[0]['version']}" if runs[0]["version"] else ""
    return (
        runs[0]["client"] + version,
        pair(lambda r: r["reported"]["ttft_p50"], lambda r: r["reported"]["ttft_p99"]),
        pair(lambda r: r["server"]["ttft_p50"], lambda r: r["server"]["ttft_p99"]),
        pair(lambda r: _added(r, "ttft_p50"), lambda r: _added(r, "ttft_p99")),
        " / ".join(counts),
        median(lambda r: sum(r["reported"]["failed"].values()), ".0f"),
        median(lambda r: r["server"]["streams"], ".0f"),
        median(lambda r: r["server"]["tokens"], ",.0f"),
        pair(lambda r: r["cpu"]["start"], lambda r: r["cpu"]["load"], lambda r: r["cpu"]["after"]),
        " · ".join(median(lambda r, key=key: r["cpu"][key], ",.0f") for key in _RATES),
        pair(lambda r: r["load_rss_mib"], lambda r: r["peak_rss_mib"], lambda r: r["peak_pss_mib"], shape=",.0f"),
        _remarks(runs),
    )


_RATES = ("tokens_per_second_load", "tokens_per_second_load_and_after", "tokens_per_second_whole")
_SERVER_LATE_MS = 10
_OTHERS_SHARE = 0.3


def _added(result: Result, name: str) -> float:
    return float(result["reported"][name] - result["server"][name])


def _remarks(runs: list[Result]) -> str:
    said = [each["happened"] for each in runs if each["happened"] != "ended well"]
    told = [f"{said.count(each)} of {len(runs)} runs: {each}" for each in dict.fromkeys(said)]
    late = [each["server"]["late_p99"] for each in runs if "server" in each]
    if late and statistics.median(late) > _SERVER_LATE_MS:
        told.append(f"server late by p99 {statistics.median(late):.0f} ms")
    if any(each["cpu"]["others_share"] > _OTHERS_SHARE for each in runs if "cpu" in each):
        told.append("other programs were busy")
    return "; ".join(told).replace("|", "/")


def _or_none(of: Callable[[Result], Any], result: Result) -> Any:
    try:
        return of(result)
    except KeyError:
        return None


def main() -> None:
    """Measure, write the raw results, print the block."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="of each client at each width (default 3)")
    parser.add_argument("--widths", default=",".join(map(str, TOKENS)), help="streams at once (default %(default)s)")
    parser.add_argument("--tools", default=",".join(CLIENTS), help="which clients (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long requests start (default %(default)g)")
    parser.add_argument(
        "--nice", type=int, default=NICE, help="priority of clients, where allowed (default %(default)s)"
    )
    options = parser.parse_args()
    tools = options.tools.split(",")
    if wrong := [tool for tool in tools if tool not in CLIENTS]:
        parser.error(f"no such client: {', '.join(wrong)}; there are {', '.join(CLIENTS)}")
    widths = [width(int(each), options.seconds) for each in options.widths.split(",")]
    sys.stdout.write(block(options.runs, measure(options.runs, widths, tools, options.nice)))


if __name__ == "__main__":
    main()
