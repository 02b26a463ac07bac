"""What kind is given: the user's configuration, untouched, after what every throw-away cluster gains from."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sandbox.cluster import inner, node_files
from sandbox.errors import EnvironmentMissing
from sandbox.spec.cluster import FLEET_CLIENT, ClusterSpec

_PATCHES = "kubeadmConfigPatches"
# the controller-manager's own 20 a second: it asks for a token for each of its controllers before any of them works
_CLIENT = {"qps": 200, "burst": 400}


def render(spec: ClusterSpec, *, image: str, cgroup: str, volumes: Sequence[str] = ()) -> str:
    """Return the YAML that kind is given.

    Our patches come first, so that the user's own win. They name no apiVersion: kind then fits them to the kubeadm
    version of the node.

    Args:
        spec: the shape; its `kindConfig` is passed through.
        image: for the nodes that name none themselves.
        cgroup: the engine's cgroup version, `1` or `2`.
        volumes: where the engine keeps /var of each node, filled, with our files in it.
    """
    nodes = [{"image": image, **node} for node in spec.nodes]
    config: dict[str, Any] = {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        **spec.kind_config,
        "nodes": [_grounded(spec, node, position, volumes[position]) for position, node in enumerate(nodes)]
        if volumes
        else nodes,
    }
    patches = _patches(spec)
    if kubelet := _kubelet(cgroup, gpus=bool(spec.gpu_nodes)):
        patches.append({"kind": "KubeletConfiguration", **kubelet})
    if volumes:
        patches += _fixed(spec)
    ours = [yaml.safe_dump(patch) for patch in patches]
    config[_PATCHES] = ours + list(spec.kind_config.get(_PATCHES) or [])
    return yaml.safe_dump(config, sort_keys=False)


def _grounded(spec: ClusterSpec, node: dict[str, Any], position: int, volume: str) -> dict[str, Any]:
    """A node on its volume; one with an inner address knows itself by it."""
    mounts: list[dict[str, Any]] = [{"hostPath": volume, "containerPath": "/var"}]
    if inner.why_not(spec):
        return {**node, "extraMounts": [*mounts, *(node.get("extraMounts") or [])]}
    folder = f"{volume}/{node_files.FOLDER}/{Path(node_files.DROP_IN).name}"
    mounts.append({"hostPath": folder, "containerPath": node_files.DROP_IN, "readOnly": True})
    own: dict[str, Any] = {
        "kind": "JoinConfiguration",
        "nodeRegistration": {
            "name": inner.names(spec)[position],
            "kubeletExtraArgs": {"node-ip": inner.address(position)},
        },
    }
    if node.get("role", "control-plane") == "control-plane":
        own |= {"kind": "InitConfiguration", "localAPIEndpoint": {"advertiseAddress": inner.address(position)}}
    return {
        **node,
        "extraMounts": [*mounts, *(node.get("extraMounts") or [])],
        _PATCHES: [yaml.safe_dump(own), *(node.get(_PATCHES) or [])],
    }


def _fixed(spec: ClusterSpec) -> list[dict[str, Any]]:
    """What needs our files in the nodes, kubeadm's own patches, and what goes with inner addresses."""
    mode = str((spec.kind_config.get("networking") or {}).get("kubeProxyMode", "")).lower()
    # kind's own skips come along, since a list replaces a list. A kubelet that starts anew for a certificate that it
    # changes once a year is gone for seconds just when all wait for it.
    skipped = ["preflight", *(["addon/kube-proxy"] if mode == "none" else []), "kubelet-finalize"]
    patches: list[dict[str, Any]] = [
        {"kind": "InitConfiguration", "skipPhases": skipped, "patches": {"directory": node_files.PATCHES}}
    ]
    if not inner.why_not(spec) and mode == "nftables":
        # it serves node ports at the node's own address only, which this machine cannot reach
        patches.append({"kind": "KubeProxyConfiguration", "nodePortAddresses": ["0.0.0.0/0"]})
    return patches


def _kubelet(cgroup: str, *, gpus: bool) -> dict[str, Any]:
    """What kubelets need of their own accord."""
    needed: dict[str, Any] = {}
    if cgroup == "1":  # Kubernetes >= 1.35 refuses it otherwise
        needed["failCgroupV1"] = False
    if gpus:  # a device that fails is told of within a second, and not at the next of the usual ten
        needed |= {"nodeStatusUpdateFrequency": "1s", "nodeStatusReportFrequency": "10s"}
    return needed


def _patches(spec: ClusterSpec) -> list[dict[str, Any]]:
    """What makes a throw-away cluster quicker, and what thousands of nodes need."""
    # etcd's fsync guards data that nobody keeps
    etcd = {"local": {"extraArgs": {"unsafe-no-fsync": "true"}}}
    rates = FLEET_CLIENT if spec.fleet is not None else _CLIENT
    manager = {"kube-api-qps": str(rates["qps"]), "kube-api-burst": str(rates["burst"])}
    ours: dict[str, Any] = {"kind": "ClusterConfiguration", "etcd": etcd, "controllerManager": {"extraArgs": manager}}
    if spec.control_planes == 1:  # an election is 15 s of waiting after every restart; without one, two would act
        manager["leader-elect"] = "false"
        ours["scheduler"] = {"extraArgs": {"leader-elect": "false"}}
    patches = [ours]
    if spec.scheduler_config is not None:
        file = node_files.SCHEDULER
        volume = {"name": "sandbox-scheduler", "hostPath": file, "mountPath": file, "pathType": "File"}
        change = {"extraArgs": {"config": file}, "extraVolumes": [{**volume, "readOnly": True}]}
        patches.append({"kind": "ClusterConfiguration", "scheduler": change})
    if spec.fleet is not None:
        # a fifth of the API server's time went into collecting garbage
        lazy = {"extraEnvs": [{"name": "GOGC", "value": "300"}]}
        patches.append({"kind": "ClusterConfiguration", "apiServer": lazy, "etcd": {"local": lazy}})
    return patches


def check_ports(spec: ClusterSpec) -> None:
    """Raise EnvironmentMissing naming every host port of the configuration that is taken, before anything is made."""
    taken = [f"{address}:{port}" for address, port in host_ports(spec) if not _free(address, port)]
    if taken:
        ports = ", ".join(each.rsplit(":", 1)[1] for each in taken)
        raise EnvironmentMissing(
            f"{', '.join(taken)} is taken",
            where=spec.metadata.name,
            fix=f"ss -ltnp | grep -E '{ports.replace(', ', '|')}'   (or leave the port out: a free one is taken)",
        )


def host_ports(spec: ClusterSpec) -> list[tuple[str, int]]:
    """The addresses and TCP ports of this machine that the configuration names; those left to chance are not."""
    wanted = [
        (mapping.get("listenAddress") or "0.0.0.0", int(mapping.get("hostPort") or 0))  # noqa: S104 - kind's own default
        for node in spec.nodes
        for mapping in node.get("extraPortMappings") or []
        if str(mapping.get("protocol") or "TCP").upper() == "TCP"
    ]
    networking = spec.kind_config.get("networking") or {}
    wanted.append((networking.get("apiServerAddress") or "127.0.0.1", int(networking.get("apiServerPort") or 0)))
    return [(address, port) for address, port in wanted if port > 0]


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
