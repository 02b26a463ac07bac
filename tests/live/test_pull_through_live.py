"""A real cluster whose nodes pull from a local registry what was built: the way of machines that reach no other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import test_images_live

from sandbox import cluster, images, paths
from sandbox.cluster import Cluster, Owner
from sandbox.host.engine import client
from sandbox.images import registry
from sandbox.kube import Kube, namespaces, wait_for
from sandbox.kube.conditions import ready
from sandbox.spec import load
from sandbox.spec.cluster import ClusterSpec

pytestmark = pytest.mark.live

# fixtures of the pull path's own tests
mirror, registry_binary = test_images_live.mirror, test_images_live.registry_binary
NAME = f"live-pull-{os.getpid()}"
SPACE = "pull-through"
SOLO = load(paths.catalogue("clusters")[0] / "solo.yaml", ClusterSpec).model
# ours and kind's later node images say so themselves
READS_HOSTS_TOML = """\
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "/etc/containerd/certs.d"
"""


@pytest.fixture
def host(mirror: int) -> str:
    """The registry as nodes reach it: by the machine's address on the engine's default network."""
    config = client().networks.get("bridge").attrs["IPAM"]["Config"][0]
    address = config.get("Gateway") or next(ip_network(config["Subnet"]).hosts())  # engines do not always say it
    return f"{address}:{mirror}"


@pytest.fixture
def pulling(host: str, tmp_path: Path) -> Iterator[Cluster]:
    folder = tmp_path / "certs.d" / host
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(f'server = "http://{host}"\n')
    mount = {"hostPath": str(tmp_path / "certs.d"), "containerPath": "/etc/containerd/certs.d", "readOnly": True}
    nodes = [{"role": "control-plane", "extraMounts": [mount]}]
    config = {"nodes": nodes, "containerdConfigPatches": [READS_HOSTS_TOML]}
    try:
        yield cluster.up(SOLO.model_copy(update={"kind_config": config}), name=NAME, owner=Owner.me())
    finally:
        cluster.down(NAME)


def pod(image: str) -> dict[str, Any]:
    locked = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    command = {"command": ["sleep", "3600"], "securityContext": locked}
    spec = {
        "terminationGracePeriodSeconds": 0,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "c", "image": image, "imagePullPolicy": "Always", **command}],
    }
    meta = {"name": "pulled", "namespace": SPACE, "labels": {"app": "pulled"}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def test_a_pod_runs_an_image_that_its_node_pulled_from_the_local_registry(
    pulling: Cluster, host: str, mirror: int, tmp_path: Path
) -> None:
    toolbox = images.ensure(["toolbox"])["toolbox"]
    registry.push(toolbox, f"127.0.0.1:{mirror}")
    kube = Kube.connect(pulling.kubeconfig, pulling.context)
    kube.apply([namespaces.make(SPACE), pod(f"{host}/{toolbox.ref}")])
    wait_for(ready(kube, SPACE, "app=pulled"), within=120, what="the pod whose image is pulled")
    asked = [line for line in (tmp_path / "log").read_text().splitlines() if "containerd/" in line]
    assert any("/manifests/" in line for line in asked), "no node's containerd asked the registry"
    namespaces.remove(kube, [SPACE])
