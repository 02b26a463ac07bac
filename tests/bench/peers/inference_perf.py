"""The Kubernetes inference-perf. Its cap of 100 requests a worker is lifted where it would stand in the way."""

from __future__ import annotations

import json

from tests.bench.peers.bodies import MODEL
from tests.bench.peers.kinds import Client, Reported, Task
from tests.bench.peers.venvs import offline, tokenizer_folder


def command(task: Task) -> list[str]:
    width = task.width
    stages = json.dumps([{"rate": width.rate, "duration": int(width.seconds)}])
    options = {
        "api.type": "chat",
        "api.streaming": "true",
        "data.type": "mock",
        "load.type": "constant",
        "load.stages": stages,
        "load.worker_max_concurrency": str(max(100, 2 * width.streams)),
        "server.type": "vllm",
        "server.model_name": MODEL,
        "server.base_url": task.url,
        "server.ignore_eos": "true",
        "tokenizer.pretrained_model_name_or_path": str(tokenizer_folder()),
        "report.request_lifecycle.per_stage": "false",
        "report.request_lifecycle.percentiles": "[50, 99]",
        "storage.local_storage.path": "out",
    }
    given = [part for name, text in options.items() for part in (f"--{name}", text)]
    return [str(task.home / "bin" / "inference-perf"), *given]


def read(task: Task, _: str) -> Reported:
    found = json.loads((task.work / "out" / "summary_lifecycle_metrics.json").read_text())
    ttft = found["successes"]["latency"]["time_to_first_token"]
    failed = {"failures": found["failures"]["count"]} if found["failures"]["count"] else {}
    return Reported(ttft["median"] * 1000, ttft["p99"] * 1000, found["successes"]["count"], failed)


CLIENT = Client(
    "inference-perf", "inference-perf", "0.7.0", command, read, (3, 12), environment=lambda task: offline(task.home)
)
