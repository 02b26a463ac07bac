"""What a cluster carries beside Kubernetes, and when it is ready for its users."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.cluster import addons, fleet, gpus
from sandbox.kube import Kube, wait_for
from sandbox.kube.conditions import nodes_ready, rollout

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandbox.spec.cluster import ClusterSpec

READY_SECONDS = 180.0


def furnish(kube: Kube, spec: ClusterSpec, count: int, refs: Mapping[str, str]) -> None:
    """Apply the addons, and wait for what every user of the cluster needs: its nodes, its DNS, its GPUs, its fleet.

    Args:
        kube: the cluster, as its administrator.
        spec: the shape.
        count: nodes that are machines.
        refs: of the images that are in the nodes.
    """
    addons.apply(kube, spec, refs)
    wait_for(nodes_ready(kube, count, selector=fleet.REAL), within=READY_SECONDS, what="all nodes Ready")
    machines = gpus.in_order(kube, spec) if spec.gpu else []
    has_gpus = gpus.apply(kube, spec, machines, refs.get(gpus.IMAGE, ""))
    wait_for(rollout(kube, "Deployment", "kube-system", "coredns"), within=READY_SECONDS, what="cluster DNS")
    if has_gpus:
        gpus.wait(kube, spec, machines)
    if spec.fleet is not None:
        fleet.wait(kube, spec.fleet)
