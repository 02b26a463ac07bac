"""Run kind. It makes and starts the nodes; what it made is found, proven and removed through the engine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from sandbox.errors import ClusterError
from sandbox.host.engine import engine_url

_NOISE = ("using docker due to KIND_", "WARNING: Overriding docker network", "WARNING: Here be dragons")
_CREATE_SECONDS = 600.0
_STOP_SECONDS = 10.0


def create(
    binary: Path,
    name: str,
    *,
    config: str,
    network: str,
    kubeconfig: Path,
    log: Path,
    started: Callable[[int], None],
) -> None:
    """Run `kind create cluster` and return when it is done. What it says goes to `log`.

    Nodes are kept when it fails, so that their logs can be read. An interrupt ends kind and is passed on; when this
    process is killed kind goes on alone, which is why `started` is told its pid.

    Raises:
        ClusterError: kind failed or took ten minutes; `details` are its last lines.
    """
    command = [
        *(str(binary), "create", "cluster", "--retain"),
        *("--name", name, "--kubeconfig", str(kubeconfig), "--config", "-"),
    ]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=sink, stderr=sink, env=_environment(network), start_new_session=True
        )
        try:
            started(process.pid)
            process.communicate(config.encode(), timeout=_CREATE_SECONDS)
        except subprocess.TimeoutExpired:
            _end(process)
            raise ClusterError(
                f"kind took longer than {_CREATE_SECONDS:.0f} s", where=name, details=last_lines(log)
            ) from None
        except BaseException:
            _end(process)
            raise
    if process.returncode:
        raise ClusterError(
            f"kind failed with code {process.returncode}", where=name, details=last_lines(log), fix=f"read {log}"
        )


def export_logs(binary: Path, name: str, folder: Path) -> None:
    """Collect every node's logs with `kind export logs`; best effort, bounded to two minutes."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "export.log").open("wb") as sink:
        subprocess.run(
            [str(binary), "export", "logs", str(folder), "--name", name],
            stdout=sink,
            stderr=sink,
            env=_environment(""),
            check=False,
            timeout=120,
        )


def last_lines(log: Path, count: int = 12) -> list[str]:
    """Return the last lines of a log that say something; what kind says of our own settings is left out."""
    lines = [line.rstrip() for line in log.read_text(errors="replace").splitlines()]
    return [line for line in lines if line and not line.startswith(_NOISE)][-count:]


def _environment(network: str) -> dict[str, str]:
    """Our environment, without anything that could lead kind to the user's own clusters."""
    kept = {key: value for key, value in os.environ.items() if key != "KUBECONFIG"}
    kept["KIND_EXPERIMENTAL_PROVIDER"] = "docker"
    kept["DOCKER_HOST"] = engine_url()
    if network:
        kept["KIND_EXPERIMENTAL_DOCKER_NETWORK"] = network
    return kept


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
