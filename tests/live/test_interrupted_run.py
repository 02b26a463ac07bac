"""A run that is interrupted is judged as far as it got, says so with its exit code, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from sandbox.cluster import Cluster
from sandbox.errors import EXIT_INTERRUPTED
from sandbox.kube import Kube, Seen, wait_for
from sandbox.report.files import read_results

pytestmark = pytest.mark.live


def under_load(runs: Path) -> Seen[Path]:
    found = [path for path in runs.glob("*/timeline.jsonl") if '"load.started"' in path.read_text()]
    return Seen(bool(found), found[0].parent if found else runs, "no load yet")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_judged_and_leaves_nothing(
    number: signal.Signals, sandbox_cluster: Cluster, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "sandbox", "run", "steady-load", "--runs", str(tmp_path)]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as process:
        folder = wait_for(lambda: under_load(tmp_path), within=120, what="the load")
        os.kill(process.pid, number)
        assert process.wait(120) == EXIT_INTERRUPTED
    results = read_results(folder)
    assert results.verdict == "invalid"
    assert any("interrupted" in check.reason for check in results.checks)
    assert (folder / "report.html").is_file()
    kube = Kube.connect(sandbox_cluster.kubeconfig, sandbox_cluster.context)
    assert kube.get("v1", "Namespace", "inference") is None
    assert not [
        each for each in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(each.info["cmdline"] or [])
    ]
