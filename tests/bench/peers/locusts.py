"""Plain Locust. It has no open loop: as many users as streams come at the common rate, and then go round."""

from __future__ import annotations

import json

from tests.bench.peers.bodies import body
from tests.bench.peers.kinds import Client, Reported, Task
from tests.bench.peers.venvs import DRIVERS


def command(task: Task) -> list[str]:
    width = task.width
    load = ["--users", str(width.streams), "--spawn-rate", str(width.rate), "--run-time", f"{width.seconds:g}s"]
    files = ["--locustfile", str(DRIVERS / "locustfile.py"), "--json", "--host", task.url]
    quiet = ["--headless", "--stop-timeout", "30", "--only-summary", "--loglevel", "WARNING"]
    return [str(task.home / "bin" / "locust"), *files, *load, *quiet]


def environment(task: Task) -> dict[str, str]:
    return {"BENCH_BODY": json.dumps(body(task.width))}


def read(_: Task, said: str) -> Reported:
    entries = {entry["name"]: entry for entry in json.loads(said)}  # its CSV lacks the last second
    ttft = entries["ttft"]
    failed = sum(entry["num_failures"] for entry in entries.values())
    counts = {float(value): int(count) for value, count in ttft["response_times"].items()}
    counted = {"failed": failed} if failed else {}
    return Reported(_percentile(counts, 0.5), _percentile(counts, 0.99), ttft["num_requests"], counted)


def _percentile(counts: dict[float, int], part: float) -> float:
    """As Locust does it, over its response times, which it has rounded to two digits."""
    left = sum(counts.values()) * (1 - part)
    for value in sorted(counts, reverse=True):
        left -= counts[value]
        if left < 0:
            return value
    return min(counts)


CLIENT = Client("Locust", "locust", "2.47.0", command, read, environment=environment)
