"""What clusters cost: memory that cannot be taken back, and disk that goes when they go."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from sandbox import paths
from sandbox.cluster import containers, record, volumes
from sandbox.cluster.ownership import CLUSTER_LABEL, STATE_LABEL
from sandbox.cluster.snapshots import store
from sandbox.host.engine import client, look

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

    from sandbox.cluster.looking import Status

_HERE = {"ready", "degraded", "stopped", "pooled"}


class Volume(NamedTuple):
    """What an engine tells of a volume; its size is 0 where the engine did not count."""

    labels: dict[str, str]
    size: int


def weighed(statuses: Sequence[Status]) -> list[Status]:
    """The same with `memory` and `disk` of those that the engine holds, in bytes. Takes about a second.

    Memory is what the nodes hold, without files that the kernel may drop from its cache. Disk is what /var of the nodes
    holds beyond what it shares: with the snapshot it came from, or with the node image.

    Raises:
        ClusterError: the engine refused.
        EnvironmentMissing: it does not answer any more.
    """
    there = {each.name for each in statuses if each.provider == "kind" and each.state in _HERE}
    if not there or look().state != "running":
        return [*statuses]
    with containers.engine_errors(), ThreadPoolExecutor() as pool:
        docker = client()
        told = pool.submit(_volumes, docker)
        held = {name: pool.submit(memory, containers.nodes(docker, name)) for name in there}
        return [
            replace(each, memory=held[each.name].result(), disk=_disk(told.result(), each))
            if each.name in there
            else each
            for each in statuses
        ]


def memory(nodes: Sequence[Container]) -> int:
    """Bytes that the cgroups of these nodes hold without the page cache that the kernel gives back at need."""
    return sum(_used(cast("dict[str, Any]", each.stats(stream=False, one_shot=True))) for each in nodes)


def _used(stats: dict[str, Any]) -> int:
    """Bytes in use by one container; one that stopped has none."""
    told = stats.get("memory_stats") or {}
    details = told.get("stats") or {}
    # cgroup v1 has both, and only the total counts what is nested, which in a node is everything
    return int(told.get("usage", 0)) - int(details.get("total_inactive_file", details.get("inactive_file", 0)))


def _volumes(docker: DockerClient) -> list[Volume]:
    """Every volume of this state folder, with its size."""
    url = f"{docker.api.base_url}/v{docker.api.api_version}/system/df"
    told = docker.api.get(url, params={"type": "volume"}).json().get("Volumes") or []
    found = [Volume(each.get("Labels") or {}, max(0, (each.get("UsageData") or {}).get("Size", 0))) for each in told]
    return [each for each in found if each.labels.get(STATE_LABEL) == str(paths.state_dir())]


def _disk(there: Sequence[Volume], status: Status) -> int:
    name = record.get(status.name).engine_name
    own = [each.size for each in there if each.labels.get(CLUSTER_LABEL) == name]
    shared = sum(each.size for each in there if status.snapshot and each.labels.get(store.LABEL) == status.snapshot)
    of_image = max((each.size for each in there if volumes.BASE_LABEL in each.labels), default=0)
    return max(0, sum(own) - (shared or of_image * len(own)))
