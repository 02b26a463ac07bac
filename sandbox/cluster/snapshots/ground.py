"""What a snapshot needs to find again: engine, kernel, machine and time. Said in words where it does not."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from typing import TYPE_CHECKING

from docker.errors import ImageNotFound

from sandbox.cluster import volumes
from sandbox.host.engine import identity

if TYPE_CHECKING:
    from docker import DockerClient

    from sandbox.cluster.snapshots.store import Snapshot

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_OLDEST_DAYS = 300.0  # its certificates are good for a year
_SLACK = 60.0  # seconds that a clock may have gone back


def ground(docker: DockerClient) -> dict[str, str]:
    """What of this engine and machine a node depends on, by name."""
    here, about = identity(docker), docker.info()
    proxies = "\n".join(os.environ.get(name) or os.environ.get(name.lower()) or "" for name in _PROXIES)
    return {
        "engine": f"{here.id} {here.data}",
        "cgroup version": str(about.get("CgroupVersion", "1")),
        "cgroup driver": str(about.get("CgroupDriver", "")),
        "storage driver": str(about.get("Driver", "")),
        "container runtime": str(about.get("DefaultRuntime", "")),
        "kernel": str(about.get("KernelVersion", "")),
        "architecture": platform.machine(),
        "proxy settings": hashlib.sha256(proxies.encode()).hexdigest()[:12],
    }


def elsewhere(docker: DockerClient, snapshot: Snapshot) -> str:
    """What is not here as it was where the snapshot was made; empty where all is. It may fit again later."""
    here = ground(docker)
    for name, then in snapshot.ground.items():
        if here.get(name) != then:
            now = here.get(name, "unknown")
            told = name in {"engine", "proxy settings"}
            return f"it was made with other {name}" if told else f"it was made with {name} {then}, here is {now}"
    return ""


def misfit(docker: DockerClient, snapshot: Snapshot) -> str:
    """Why a snapshot cannot be restored here and now; empty where it can."""
    if why := elsewhere(docker, snapshot):
        return why
    age = time.time() - snapshot.created
    if age > _OLDEST_DAYS * 86400:
        return f"it is {age / 86400:.0f} days old, and its certificates end soon"
    if age < -_SLACK:
        return "it was made later than now, by the clock: its certificates do not count yet"
    for node in snapshot.nodes:
        found = volumes.find(docker, node.volume)
        if found is None or volumes.serial(found) != node.serial:
            return f"its volume {node.volume} is gone"
        try:
            docker.images.get(node.image)
        except ImageNotFound:
            return f"its image {node.image[:19]} is gone"
    return ""
