"""The reference: what reading these streams costs in Python at the least."""

from __future__ import annotations

import json
import statistics
import sys
from urllib.parse import urlsplit

from tests.bench.peers.bodies import body
from tests.bench.peers.kinds import Client, Reported, Task
from tests.bench.peers.venvs import DRIVERS


def command(task: Task) -> list[str]:
    where = urlsplit(task.url)
    wanted = [str(where.hostname), str(where.port), str(task.width.rate), str(task.width.requests)]
    return [sys.executable, str(DRIVERS / "bare.py"), *wanted, json.dumps(body(task.width))]


def read(task: Task, said: str) -> Reported:
    found = json.loads(said)
    cuts = statistics.quantiles(found["ttft"], n=100, method="inclusive")
    return Reported(cuts[49], cuts[98], len(found["ttft"]), {"failed": found["failed"]} if found["failed"] else {})


CLIENT = Client("bare socket", "", "", command, read)
