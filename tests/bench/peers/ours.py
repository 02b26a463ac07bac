"""Our own client, through its command line."""

from __future__ import annotations

import json
import sys

import yaml

from tests.bench.peers.bodies import MODEL
from tests.bench.peers.kinds import PROMPT, Client, Reported, Task

_PROFILE = "bench"


def command(task: Task) -> list[str]:
    width = task.width
    profile = {
        "apiVersion": "sandbox/v1",
        "kind": "Profile",
        "metadata": {"name": _PROFILE, "description": "The prompt that every client of this benchmark sends."},
        "prompts": [PROMPT],
        "maxTokens": {"kind": "fixed", "tokens": width.tokens},
    }
    folder = task.work / "loadtests" / "profiles"
    folder.mkdir(parents=True)
    (folder / f"{_PROFILE}.yaml").write_text(yaml.safe_dump(profile))
    options = ["--model", MODEL, "--profile", _PROFILE, "--process", "constant", "--rate", str(width.rate)]
    options += ["--for", f"{width.seconds:g}s", "--max-in-flight", str(2 * width.streams + 100)]
    # -P: the working directory is the task's, and a folder called `sandbox` there must not be imported.
    return [sys.executable, "-P", "-m", "sandbox", "load", task.url, *options, "--runs", "runs", "-o", "json"]


def read(task: Task, said: str) -> Reported:
    results = json.loads(said)
    whole = next(each for each in results["summaries"] if each["phase"] == "all")
    ttft = whole["percentiles"]["ttft"]
    outcomes = dict(whole["outcomes"])
    ok = outcomes.pop("ok", 0)
    return Reported(ttft["p50"] * 1000, ttft["p99"] * 1000, ok, {k: n for k, n in outcomes.items() if n})


CLIENT = Client("ours", "", "", command, read)
