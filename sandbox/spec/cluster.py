"""A cluster shape: our few keys around kind's own configuration, or a cluster that exists already."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from sandbox.spec import gpu as gpus
from sandbox.spec.base import API_VERSION, KeyPath, Metadata, Mistakes, Name, Strict
from sandbox.spec.fleet import Fleet

# calls per second that a controller may make; its own default, 50 at most, would be what a fleet's figures measure
FLEET_CLIENT = {"qps": 1000, "burst": 2000}
_KIND_API = "kind.x-k8s.io/v1alpha4"
_ROLES = ("control-plane", "worker")
_LAST_PORT = 65535
_PORTS = f"must be a whole number up to {_LAST_PORT}; -1, as no port at all, lets one be chosen"


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
    gpu: gpus.Groups = Field(
        default_factory=list, description="Emulated GPUs: one group of nodes that have the same, or a list of groups."
    )
    fleet: Fleet | None = Field(default=None, description="Simulated nodes beside the real ones, by kwok.")
    scheduler: dict[str, Any] | None = Field(
        default=None,
        description="A KubeSchedulerConfiguration for kube-scheduler: `profiles` and what else it takes.",
    )

    @field_validator("kind_config")
    @classmethod
    def _ours_to_take(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Refuse what would make the cluster somebody else's, or reachable from outside this machine."""
        problems: list[tuple[KeyPath, str]] = []
        if "name" in config:
            problems.append((("name",), "`name` is taken from metadata.name, or --name"))
        for key, known in (("apiVersion", _KIND_API), ("kind", "Cluster")):
            if config.get(key, known) != known:
                problems.append(((key,), f"only kind: Cluster of {_KIND_API} is known here"))
        if not isinstance(config.get("kubeadmConfigPatches", []), list | None):
            problems.append((("kubeadmConfigPatches",), "must be a list of patches, each a text"))
        problems += _networking_problems(config.get("networking")) + _node_problems(config.get("nodes"))
        if problems:
            raise Mistakes(problems)
        return config

    @model_validator(mode="after")
    def _one_provider(self) -> ClusterSpec:
        if self.provider == "existing":
            if self.existing is None:
                raise Mistakes([(("provider",), "provider: existing needs `existing: {kubeconfig: …, context: …}`")])
            if self.kind_config:
                raise Mistakes([(("kindConfig",), "provider: existing takes no `kindConfig`")])
            if given := [key for key in ("fleet", "scheduler") if getattr(self, key) is not None]:
                raise Mistakes([((key,), f"provider: existing takes no `{key}`: we do not make it") for key in given])
        elif self.existing is not None:
            raise Mistakes([(("existing",), "`existing` needs provider: existing")])
        return self

    @property
    def scheduler_config(self) -> dict[str, Any] | None:
        """What kube-scheduler is given as its file; None where its flags do."""
        if self.fleet is None and self.scheduler is None:
            return None
        given = self.scheduler or {}
        client = {"kubeconfig": "/etc/kubernetes/scheduler.conf", **(FLEET_CLIENT if self.fleet else {})}
        return {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            **given,
            "clientConnection": {**client, **(given.get("clientConnection") or {})},
            "leaderElection": {"leaderElect": self.control_planes > 1, **(given.get("leaderElection") or {})},
        }

    @model_validator(mode="after")
    def _gpus_have_their_nodes(self) -> ClusterSpec:
        if problems := self.contradictions(self.model_dump(mode="json", by_alias=True)):
            raise Mistakes(problems)
        return self

    @staticmethod
    def contradictions(raw: Any) -> list[tuple[KeyPath, str]]:
        """What in a cluster's document cannot be true together; `raw` is read as far as it can be."""
        return gpus.contradictions(raw)

    @property
    def gpu_nodes(self) -> dict[int, gpus.GpuGroup]:
        """Position in `nodes` -> the group whose GPUs that node has."""
        return gpus.gpu_nodes(self.gpu, [str(node.get("role", "control-plane")) for node in self.nodes])

    @property
    def nodes(self) -> list[dict[str, Any]]:
        """The node list of kind; one control plane where the configuration names none."""
        return list(self.kind_config.get("nodes") or [{"role": "control-plane"}])

    @property
    def control_planes(self) -> int:
        """How many nodes run a controller-manager and a scheduler each."""
        return sum(node.get("role", "control-plane") == "control-plane" for node in self.nodes)


def _loopback(address: object) -> bool:
    try:
        return ip_address(str(address)).is_loopback
    except ValueError:
        return address == "localhost"


def _networking_problems(networking: object) -> list[tuple[KeyPath, str]]:
    if networking is None:
        return []
    if not isinstance(networking, dict):
        return [(("networking",), "must be a mapping")]
    problems: list[tuple[KeyPath, str]] = []
    address = networking.get("apiServerAddress", "127.0.0.1")
    if not _loopback(address):
        problems.append((("networking", "apiServerAddress"), f"{address!r} is no loopback address"))
    if not _port(networking.get("apiServerPort", 0)):
        problems.append((("networking", "apiServerPort"), _PORTS))
    return problems


def _node_problems(nodes: object) -> list[tuple[KeyPath, str]]:
    if nodes is None:
        return []
    if not isinstance(nodes, list):
        return [(("nodes",), "`nodes` must be a list")]
    problems: list[tuple[KeyPath, str]] = []
    for index, node in enumerate(nodes):
        here: KeyPath = ("nodes", index)
        if not isinstance(node, dict):
            problems.append((here, "must be a mapping with a role"))
            continue
        if node.get("role", "control-plane") not in _ROLES:
            problems.append(((*here, "role"), f"must be one of {', '.join(_ROLES)}"))
        problems += [((*here, *keys), words) for keys, words in _mapping_problems(node.get("extraPortMappings"))]
    if nodes and not problems and not any(node.get("role", "control-plane") == "control-plane" for node in nodes):
        problems.append((("nodes",), "no node has the role control-plane"))
    return problems


def _mapping_problems(mappings: object) -> list[tuple[KeyPath, str]]:
    """What is wrong with the host ports of one node; they are looked at before kind is."""
    here: KeyPath = ("extraPortMappings",)
    if mappings is None:
        return []
    if not isinstance(mappings, list):
        return [(here, "must be a list of {containerPort: …, hostPort: …}")]
    problems: list[tuple[KeyPath, str]] = []
    for index, mapping in enumerate(mappings):
        if not isinstance(mapping, dict):
            problems.append(((*here, index), "must be a mapping with containerPort and hostPort"))
            continue
        ports = [key for key in ("containerPort", "hostPort") if not _port(mapping.get(key, 0))]
        problems += [((*here, index, key), _PORTS) for key in ports]
        if not isinstance(mapping.get("listenAddress", ""), str):
            problems.append(((*here, index, "listenAddress"), "must be an address, such as 127.0.0.1"))
    return problems


def _port(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -1 <= value <= _LAST_PORT
