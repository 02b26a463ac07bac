"""When a cluster does not come up: its logs are kept, and what failed is named in a few lines."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docker.errors import DockerException

from sandbox import paths
from sandbox.cluster import containers, kind
from sandbox.errors import ClusterError, SandboxError
from sandbox.progress import say

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

_CRICTL = "crictl"


def explain(client: DockerClient, binary: Path, cluster: str, log: Path, cause: Exception) -> ClusterError:
    """Collect the logs of a failed create and return the error that tells of it.

    Looking into the wreck never hides the cause: whatever goes wrong here is only said.
    """
    folder = paths.state_dir() / "logs" / f"{cluster}-{time.strftime('%Y%m%dT%H%M%S')}"
    details = [f"{type(cause).__name__}: {cause}"]
    if isinstance(cause, SandboxError):
        details = [cause.what, *cause.details]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if log.is_file():
            shutil.copy(log, folder / "create.log")
        nodes = containers.nodes(client, cluster)
        if nodes:
            kind.export_logs(binary, cluster, folder)
        for node in nodes:
            details += digest(node)
    except (SandboxError, DockerException, OSError, subprocess.SubprocessError, ValueError) as error:
        say(f"collecting logs: {error}")
    fix = f"read {folder}/digest.txt and the logs beside it, then run the same command again"
    try:
        (folder / "digest.txt").write_text("\n".join(details) + "\n")
    except OSError as error:
        say(f"keeping logs: {error}")
        fix = f"make room where {folder} lies, then run the same command again"
    what = "the cluster did not come up; its logs are kept and it is removed"
    return ClusterError(what, where=cluster, details=details, fix=fix)


def digest(node: Container) -> list[str]:
    """Say what is wrong in a node: itself if stopped, its failing containers and their last lines, else the kubelet."""
    node.reload()
    if node.status != "running":
        state: dict[str, Any] = node.attrs["State"]
        head = f"{node.name} is {node.status}, exit code {state.get('ExitCode')} {state.get('Error', '')}".rstrip()
        return [head] + [f"  {line}" for line in node.logs(tail=5).decode(errors="replace").splitlines()]
    lines = []
    code, output = containers.run(node, [_CRICTL, "ps", "--all", "--output", "json"])
    stopped = failing(output) if code == 0 else []
    for identity, name, word in stopped[:4]:
        lines.append(f"{node.name}: container {name} is {word}")
        _, text = containers.run(node, [_CRICTL, "logs", "--tail", "4", identity])
        lines += [f"  {line}" for line in text.splitlines()[-4:]]
    if not stopped:
        _, text = containers.run(
            node, ["journalctl", "--unit", "kubelet", "--no-pager", "--lines", "4", "--output", "cat"]
        )
        lines.append(f"{node.name}: kubelet says")
        lines += [f"  {line[:300]}" for line in text.splitlines()[-4:]]
    return lines


def failing(listing: str) -> list[tuple[str, str, str]]:
    """Return (id, name, state) of each container that does not run, the newest attempt of each name."""
    try:
        items = json.loads(listing)["containers"]
    except (ValueError, KeyError):
        return []
    latest: dict[str, dict[str, Any]] = {}
    for item in sorted(items, key=lambda each: int(each["createdAt"])):
        latest[item["metadata"]["name"]] = item
    return [
        (item["id"], name, item["state"].removeprefix("CONTAINER_").lower())
        for name, item in latest.items()
        if item["state"] != "CONTAINER_RUNNING"
    ]
