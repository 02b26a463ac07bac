"""What a cluster carries beside Kubernetes: applied from clusters/addons/, each only where it is not there already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from sandbox import paths
from sandbox.cluster import fleet
from sandbox.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandbox.kube import Kube
    from sandbox.spec.cluster import ClusterSpec

_METRICS = "metrics-server"
_METRICS_API = "v1beta1.metrics.k8s.io"


def images(spec: ClusterSpec) -> list[str]:
    """Names of clusters/images/ that the spec's addons need in the nodes."""
    return [*([fleet.IMAGE] if spec.fleet is not None else []), *(["gpu-emulator"] if spec.gpu else [])]


def apply(kube: Kube, spec: ClusterSpec, refs: Mapping[str, str]) -> list[str]:
    """Apply the addons that the spec asks for and the cluster lacks; does not wait for them.

    NetworkPolicy and storage come with the node image's own manifests, ours as well as kind's.

    Args:
        kube: the cluster, as its administrator.
        spec: the shape.
        refs: name of clusters/images/ -> reference that the nodes can run.

    Returns:
        The names of those applied.
    """
    applied = []
    served = kube.get("apiregistration.k8s.io/v1", "APIService", _METRICS_API)
    if spec.addons.metrics_server and served is None:
        kube.apply(manifests(_METRICS))
        applied.append(_METRICS)
    fleet.apply(kube, spec, manifests(fleet.IMAGE), refs)
    return applied


def manifests(name: str) -> list[dict[str, Any]]:
    """Read clusters/addons/<name>.yaml, the user's own before ours."""
    for folder in paths.catalogue("clusters"):
        path = folder / "addons" / f"{name}.yaml"
        if path.is_file():
            return [document for document in yaml.safe_load_all(path.read_text()) if document]
    raise ClusterError("there are no manifests for this addon", where=name, fix="reinstall this package")
