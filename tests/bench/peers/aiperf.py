"""NVIDIA's aiperf, with its own defaults for workers and processors."""

from __future__ import annotations

import json

from tests.bench.peers.bodies import MODEL, prompts
from tests.bench.peers.kinds import Client, Reported, Task
from tests.bench.peers.venvs import TOKENIZER, offline


def command(task: Task) -> list[str]:
    width = task.width
    where = ["--model", MODEL, "--url", task.url, "--endpoint-type", "chat", "--streaming"]
    load = ["--request-rate", str(width.rate), "--arrival-pattern", "constant"]
    load += ["--benchmark-duration", f"{width.seconds:g}", "--benchmark-grace-period", "30"]
    data = ["--input-file", str(prompts(task)), "--custom-dataset-type", "single-turn"]
    # the server's own counts: no client is to spend its time on a tokenizer that a made-up server does not have
    data += ["--tokenizer", TOKENIZER, "--use-server-token-count"]
    quiet = ["--artifact-dir", "out", "--export-level", "summary", "--ui", "none"]
    quiet += ["--no-gpu-telemetry", "--no-server-metrics"]
    return [str(task.home / "bin" / "aiperf"), "profile", *where, *load, *data, *quiet]


def read(task: Task, _: str) -> Reported:
    found = json.loads((task.work / "out" / "profile_export_aiperf.json").read_text())
    ttft = found["time_to_first_token"]
    errors = int((found.get("error_request_count") or {}).get("avg", 0))
    failed = {"errors": errors} if errors else {}
    return Reported(ttft["p50"], ttft["p99"], int(found["request_count"]["avg"]), failed)


CLIENT = Client("aiperf", "aiperf", "0.13.0", command, read, environment=lambda task: offline(task.home))
