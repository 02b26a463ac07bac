"""vLLM's guidellm, with its own defaults for processes and the rest."""

from __future__ import annotations

import json

from tests.bench.peers.bodies import MODEL, prompts
from tests.bench.peers.kinds import Client, Reported, Task
from tests.bench.peers.venvs import offline


def command(task: Task) -> list[str]:
    width = task.width
    # it would ask for /health first, which is no part of the OpenAI interface
    backend = f"kind=openai_http,target={task.url},model={MODEL},max_tokens={width.tokens},validate_backend=false"
    load = ["--profile", f"kind=constant,rate={width.rate}"]
    load += ["--constraint", f"kind=max_requests,count={width.requests}"]
    load += ["--constraint", f"kind=max_duration,seconds={width.seconds + width.answer + 10:g}"]
    data = ["--data", f"kind=json_file,path={prompts(task)}"]
    out = ["--output", "kind=json,path=out.json", "--metrics", "kind=generative,sample_size=0"]
    return [
        str(task.home / "bin" / "guidellm"), "run", "--backend", backend, *load, *data, *out,
        "--disable-console-interactive",
    ]  # fmt: skip


def read(task: Task, _: str) -> Reported:
    (found,) = json.loads((task.work / "out.json").read_text())["benchmarks"]
    totals = found["metrics"]["request_totals"]
    ttft = found["metrics"]["time_to_first_token_ms"]["successful"]["percentiles"]
    failed = {name: totals[name] for name in ("errored", "incomplete") if totals[name]}
    return Reported(ttft["p50"], ttft["p99"], totals["successful"], failed)


CLIENT = Client("guidellm", "guidellm", "0.8.1", command, read, environment=lambda task: offline(task.home))
