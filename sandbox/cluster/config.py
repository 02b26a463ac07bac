"""What kind is given: the user's configuration, untouched, after what every throw-away cluster gains from."""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from typing import Any

import yaml

from sandbox.cluster import record
from sandbox.errors import EnvironmentMissing
from sandbox.spec.cluster import FLEET_CLIENT, ClusterSpec

_PATCHES = "kubeadmConfigPatches"
_SCHEDULER = "/etc/ai-k8s-sandbox/scheduler.yaml"  # in the node


def render(spec: ClusterSpec, *, image: str, cgroup: str, scheduler: Path | None = None) -> str:
    """Return the YAML that kind is given.

    Our patches come first, so that the user's own win. They name no apiVersion: kind then fits them to the kubeadm
    version of the node.

    Args:
        spec: the shape; its `kindConfig` is passed through.
        image: for the nodes that name none themselves.
        cgroup: the engine's cgroup version, `1` or `2`.
        scheduler: the file on this machine with the configuration of kube-scheduler, where it has one.
    """
    config: dict[str, Any] = {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        **spec.kind_config,
        "nodes": [{"image": image, **_mounted(node, scheduler)} for node in spec.nodes],
    }
    patches = _patches(alone=spec.control_planes == 1, fleet=spec.fleet is not None, scheduler=scheduler is not None)
    if kubelet := _kubelet(cgroup, gpus=bool(spec.gpu_nodes)):
        patches.append({"kind": "KubeletConfiguration", **kubelet})
    ours = [yaml.safe_dump(patch) for patch in patches]
    config[_PATCHES] = ours + list(spec.kind_config.get(_PATCHES) or [])
    return yaml.safe_dump(config, sort_keys=False)


def scheduler_file(spec: ClusterSpec, name: str) -> Path | None:
    """Write what kube-scheduler of that cluster is given into the cluster's folder; None where its flags do."""
    if spec.scheduler_config is None:
        return None
    path = record.home(name) / "scheduler.yaml"
    path.write_text(yaml.safe_dump(spec.scheduler_config, sort_keys=False), encoding="utf-8")
    return path


def _mounted(node: dict[str, Any], scheduler: Path | None) -> dict[str, Any]:
    """A node with the scheduler's file in it, where a scheduler may run on it."""
    if scheduler is None or node.get("role", "control-plane") != "control-plane":
        return node
    mount = {"hostPath": str(scheduler), "containerPath": _SCHEDULER, "readOnly": True}
    return {**node, "extraMounts": [*(node.get("extraMounts") or []), mount]}


def _kubelet(cgroup: str, *, gpus: bool) -> dict[str, Any]:
    """What kubelets need of their own accord."""
    needed: dict[str, Any] = {}
    if cgroup == "1":  # Kubernetes >= 1.35 refuses it otherwise
        needed["failCgroupV1"] = False
    if gpus:  # a device that fails is told of within a second, and not at the next of the usual ten
        needed |= {"nodeStatusUpdateFrequency": "1s", "nodeStatusReportFrequency": "10s"}
    return needed


def _patches(*, alone: bool, fleet: bool, scheduler: bool) -> list[dict[str, Any]]:
    """What makes a throw-away cluster quicker, and what thousands of nodes need. `alone`: with one control plane."""
    # etcd's fsync guards data that nobody keeps
    etcd = {"local": {"extraArgs": {"unsafe-no-fsync": "true"}}}
    patches: list[dict[str, Any]] = [{"kind": "ClusterConfiguration", "etcd": etcd}]
    if alone:  # an election is only 15 s of waiting after every restart; without one, two would act at once
        unelected: dict[str, Any] = {"extraArgs": {"leader-elect": "false"}}
        patches[0] |= {"controllerManager": unelected, "scheduler": unelected}
    if scheduler:
        volume = {"name": "sandbox-scheduler", "hostPath": _SCHEDULER, "mountPath": _SCHEDULER, "pathType": "File"}
        change = {"extraArgs": {"config": _SCHEDULER}, "extraVolumes": [{**volume, "readOnly": True}]}
        patches.append({"kind": "ClusterConfiguration", "scheduler": change})
    if fleet:
        quick = {"kube-api-qps": str(FLEET_CLIENT["qps"]), "kube-api-burst": str(FLEET_CLIENT["burst"])}
        # a fifth of the API server's time went into collecting garbage
        lazy = {"extraEnvs": [{"name": "GOGC", "value": "300"}]}
        change = {"apiServer": lazy, "controllerManager": {"extraArgs": quick}, "etcd": {"local": lazy}}
        patches.append({"kind": "ClusterConfiguration", **change})
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
