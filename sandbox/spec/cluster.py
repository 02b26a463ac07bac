"""A cluster shape: our few keys around kind's own configuration, or a cluster that exists already."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from sandbox.spec.base import API_VERSION, Metadata, Name, Strict

_KIND_API = "kind.x-k8s.io/v1alpha4"
_ROLES = ("control-plane", "worker")


class Addons(Strict):
    """What a sandbox cluster carries beside the pod network, policies and storage that its node image brings."""

    metrics_server: bool = Field(default=True, alias="metricsServer", description="The resource metrics API.")


class Existing(Strict):
    """A cluster somebody else runs."""

    kubeconfig: str = Field(min_length=1, description="Path; `~` is expanded, never taken from the environment.")
    context: str = Field(min_length=1, description="Its context there; the current one is never used.")


class ClusterSpec(Strict):
    """One file of clusters/."""

    api_version: Literal["sandbox/v1"] = Field(default=API_VERSION, alias="apiVersion")
    kind: Literal["Cluster"]
    metadata: Metadata
    provider: Literal["kind", "existing"] = "kind"
    kind_config: dict[str, Any] = Field(
        default_factory=dict,
        alias="kindConfig",
        description="kind's own v1alpha4 configuration, passed through untouched; only `name` is ours.",
    )
    existing: Existing | None = Field(default=None, description="For provider: existing.")
    images: list[Name] = Field(default_factory=list, description="Names of clusters/images/ to have in every node.")
    addons: Addons = Field(default_factory=Addons)

    @field_validator("kind_config")
    @classmethod
    def _ours_to_take(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Refuse what would make the cluster somebody else's, or reachable from outside this machine."""
        problems = []
        if "name" in config:
            problems.append("`name` is taken from metadata.name, or --name")
        if config.get("apiVersion", _KIND_API) != _KIND_API or config.get("kind", "Cluster") != "Cluster":
            problems.append(f"only kind: Cluster of {_KIND_API} is known here")
        networking = config.get("networking") or {}
        address = networking.get("apiServerAddress", "127.0.0.1") if isinstance(networking, dict) else None
        if not _loopback(address):
            problems.append(f"networking.apiServerAddress {address!r} is no loopback address")
        problems += _node_problems(config.get("nodes", []))
        if problems:
            raise ValueError("; ".join(problems))
        return config

    @model_validator(mode="after")
    def _one_provider(self) -> ClusterSpec:
        if self.provider == "existing":
            if self.existing is None:
                raise ValueError("provider: existing needs `existing: {kubeconfig: …, context: …}`")
            if self.kind_config:
                raise ValueError("provider: existing takes no `kindConfig`")
        elif self.existing is not None:
            raise ValueError("`existing` needs provider: existing")
        return self

    @property
    def nodes(self) -> list[dict[str, Any]]:
        """The node list of kind; one control plane where the configuration names none."""
        return list(self.kind_config.get("nodes") or [{"role": "control-plane"}])


def _loopback(address: object) -> bool:
    try:
        return ip_address(str(address)).is_loopback
    except ValueError:
        return address == "localhost"


def _node_problems(nodes: object) -> list[str]:
    if not isinstance(nodes, list):
        return ["`nodes` must be a list"]
    problems = []
    for index, node in enumerate(nodes):
        if not isinstance(node, dict):
            problems.append(f"nodes[{index}] must be a mapping with a role")
        elif node.get("role", "control-plane") not in _ROLES:
            problems.append(f"nodes[{index}].role must be one of {', '.join(_ROLES)}")
    if nodes and not problems and not any(node.get("role", "control-plane") == "control-plane" for node in nodes):
        problems.append("no node has the role control-plane")
    return problems
