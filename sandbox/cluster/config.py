"""What kind is given: the user's configuration, untouched, after what every throw-away cluster gains from."""

from __future__ import annotations

import errno
import socket
from typing import Any

import yaml

from sandbox.errors import EnvironmentMissing
from sandbox.spec.cluster import ClusterSpec

_PATCHES = "kubeadmConfigPatches"


def render(spec: ClusterSpec, *, image: str, cgroup: str) -> str:
    """Return the YAML that kind is given.

    Our patches come first, so that the user's own win. They name no apiVersion: kind then fits them to the kubeadm
    version of the node.

    Args:
        spec: the shape; its `kindConfig` is passed through.
        image: for the nodes that name none themselves.
        cgroup: the engine's cgroup version, `1` or `2`.
    """
    config: dict[str, Any] = {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        **spec.kind_config,
        "nodes": [{"image": image, **node} for node in spec.nodes],
    }
    ours = [yaml.safe_dump(patch) for patch in _patches(cgroup)]
    config[_PATCHES] = ours + list(spec.kind_config.get(_PATCHES) or [])
    return yaml.safe_dump(config, sort_keys=False)


def _patches(cgroup: str) -> list[dict[str, Any]]:
    """What makes a throw-away cluster quicker, and what cgroup v1 needs."""
    # one replica of each: an election is only 15 s of waiting after every restart
    alone = {"extraArgs": {"leader-elect": "false"}}
    # etcd's fsync guards data that nobody keeps
    etcd = {"local": {"extraArgs": {"unsafe-no-fsync": "true"}}}
    patches: list[dict[str, Any]] = [
        {"kind": "ClusterConfiguration", "controllerManager": alone, "scheduler": alone, "etcd": etcd},
    ]
    if cgroup == "1":  # Kubernetes >= 1.35 refuses it otherwise
        patches.append({"kind": "KubeletConfiguration", "failCgroupV1": False})
    return patches


def check_ports(spec: ClusterSpec) -> None:
    """Raise EnvironmentMissing naming every host port of the configuration that is taken, before anything is made."""
    wanted = [
        (mapping.get("listenAddress") or "0.0.0.0", int(mapping.get("hostPort") or 0))  # noqa: S104 - kind's own default
        for node in spec.nodes
        for mapping in node.get("extraPortMappings") or []
        if str(mapping.get("protocol") or "TCP").upper() == "TCP"
    ]
    networking = spec.kind_config.get("networking") or {}
    wanted.append((networking.get("apiServerAddress") or "127.0.0.1", int(networking.get("apiServerPort") or 0)))
    taken = [f"{address}:{port}" for address, port in wanted if port > 0 and not _free(address, port)]
    if taken:
        ports = ", ".join(each.rsplit(":", 1)[1] for each in taken)
        raise EnvironmentMissing(
            f"{', '.join(taken)} is taken",
            where=spec.metadata.name,
            fix=f"ss -ltnp | grep -E '{ports.replace(', ', '|')}'   (or leave the port out: a free one is taken)",
        )


def _free(address: str, port: int) -> bool:
    """Tell whether nothing listens there. That we may not listen there ourselves says nothing: the engine may."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


def ipv6(spec: ClusterSpec) -> bool:
    """Tell whether the nodes need IPv6 addresses."""
    networking = spec.kind_config.get("networking") or {}
    return str(networking.get("ipFamily", "ipv4")).lower() in {"ipv6", "dual"}
