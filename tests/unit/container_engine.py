"""A stand-in for a container engine: holds containers, networks and volumes, filters as one does, and can refuse."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from docker.errors import APIError, NotFound

from sandbox import paths
from sandbox.cluster import bringup, containers, guard, leftovers, looking, nodes, ownership, record, teardown
from sandbox.cluster.record import Cluster, Node
from sandbox.host.engine import Identity
from sandbox.spec.base import Metadata
from sandbox.spec.cluster import ClusterSpec

SPEC = ClusterSpec(kind="Cluster", metadata=Metadata(name="solo", description="For a test."))
ANONYMOUS = "0123456789abcdef" * 4
EARLY, LATE = "2026-01-01T00:00:00.000000001Z", "2026-01-01T02:00:01+01:00"  # engines write both forms


def refusal(words: str) -> APIError:
    return APIError("500 Server Error", explanation=words)


def carries(labels: dict[str, str], asked: str | list[str]) -> bool:
    """Whether they are among the labels: `key=value`, or a key alone."""
    pairs = [each.partition("=") for each in ([asked] if isinstance(asked, str) else asked)]
    return all(key in labels and (not equals or labels[key] == value) for key, equals, value in pairs)


@dataclass
class FakeContainer:
    engine: FakeEngine
    name: str
    network: str = "sandbox-solo"
    status: str = "running"
    refuses: int = 0  # how often it will not go
    cluster: str = "solo"  # of kind's label; empty: none
    role: str = "control-plane"
    created: str = LATE
    volumes: tuple[str, ...] = ()
    binds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.id = f"id-{self.name}"
        self.labels = {ownership.KIND_LABEL: self.cluster, containers.ROLE_LABEL: self.role} if self.cluster else {}
        networks = {self.network: {"IPAddress": "192.0.2.2", "NetworkID": ""}} if self.network else {}
        self.attrs: dict[str, Any] = {
            "Created": self.created,
            "NetworkSettings": {"Networks": networks},
            "Mounts": [{"Type": "volume", "Name": name} for name in self.volumes],
            "HostConfig": {"Binds": [*self.binds], "Mounts": None, "VolumesFrom": None},
        }

    def reload(self) -> None:
        pass

    def start(self) -> None:
        self.status = "running"

    def remove(self, **_: object) -> None:
        if self.refuses:
            self.refuses -= 1
            raise refusal("did not receive an exit event")
        self.engine.held.remove(self)

    def join(self, network: FakeNetwork) -> None:
        self.attrs["NetworkSettings"]["Networks"][network.name] = {"IPAddress": "192.0.2.9", "NetworkID": network.id}


@dataclass
class FakeNetwork:
    engine: FakeEngine
    name: str = "sandbox-solo"
    id: str = "n1"
    run: str = "abc"
    state: str = ""  # its label of a state folder; this one's when empty
    cluster: str = "solo"

    def __post_init__(self) -> None:
        labels = {ownership.CLUSTER_LABEL: self.cluster, ownership.RUN_LABEL: self.run}
        state = {ownership.STATE_LABEL: self.state or str(paths.state_dir())}
        self.attrs = {"Labels": labels | state, "Created": EARLY}

    def remove(self) -> None:
        if any(self.name in each.attrs["NetworkSettings"]["Networks"] for each in self.engine.held):
            raise refusal(f"network {self.name} has active endpoints")
        self.engine.wires.remove(self)


@dataclass
class FakeEngine:
    held: list[FakeContainer] = field(default_factory=list)
    wires: list[FakeNetwork] = field(default_factory=list)
    volumes_held: set[str] = field(default_factory=set)
    labelled: dict[str, dict[str, str]] = field(default_factory=dict)  # volumes of ours among them
    broken: Exception | None = None
    identifier: str = "ENGINE:ONE"
    data: str = "none-1"

    @property
    def containers(self) -> Any:
        return SimpleNamespace(list=self._containers, get=self._get)

    @property
    def networks(self) -> Any:
        return SimpleNamespace(list=self._networks)

    @property
    def volumes(self) -> Any:
        return SimpleNamespace(get=self._volume, list=self._volumes)

    @property
    def api(self) -> Any:
        return SimpleNamespace(base_url="http+docker://localhost")

    def info(self) -> dict[str, str]:
        return {"ID": self._answer(self.identifier)}

    def _answer(self, thing: Any) -> Any:
        if self.broken:
            raise self.broken
        return thing

    def _containers(self, filters: dict[str, Any], **_: object) -> list[FakeContainer]:
        def fits(each: FakeContainer) -> bool:
            if "label" in filters:
                return carries(each.labels, filters["label"])
            there = each.attrs["NetworkSettings"]["Networks"]
            return bool({*filters["network"]} & {*there, *(one["NetworkID"] for one in there.values())})

        return [each for each in self._answer(self.held) if fits(each)]

    def _networks(self, names: Any = None, filters: Any = None) -> list[Any]:
        if names == ["none"]:
            return [SimpleNamespace(id=self._answer(self.data))]
        return [each for each in self._answer(self.wires) if carries(each.attrs["Labels"], filters["label"])]

    def _get(self, identity: str) -> FakeContainer:
        for each in self._answer(self.held):
            if each.id == identity:
                return cast("FakeContainer", each)
        raise NotFound("no such container")

    def _volume(self, name: str) -> Any:
        if name not in self.volumes_held:
            raise NotFound("no such volume")
        labels = {"Labels": self.labelled.get(name)}
        return SimpleNamespace(name=name, attrs=labels, remove=lambda **_: self.volumes_held.remove(name))

    def _volumes(self, filters: dict[str, str]) -> list[Any]:
        held = [name for name in self._answer(self.labelled) if name in self.volumes_held]
        return [self._volume(name) for name in held if carries(self.labelled[name], filters["label"])]

    @property
    def images(self) -> Any:
        return SimpleNamespace(list=lambda **_: [])

    @property
    def identity(self) -> Identity:
        return Identity(self.identifier, self.data, "unix:///var/run/docker.sock")


def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """An engine that is empty, and that every module takes for the machine's own."""
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    made = FakeEngine()
    for module in (bringup, guard, leftovers, looking, nodes, teardown):
        monkeypatch.setattr(module, "client", lambda: made)
    for module in (leftovers, looking, teardown):
        monkeypatch.setattr(module, "look", lambda: SimpleNamespace(state="running"))
    return made


def put(engine: FakeEngine, **changes: Any) -> Cluster:
    """Put a cluster of one node into the engine and the records."""
    node = FakeContainer(engine, "solo-control-plane")
    engine.held, engine.wires = [node], [FakeNetwork(engine)]
    made: dict[str, Any] = {
        "name": "solo",
        "provider": "kind",
        "kubeconfig": record.home("solo") / "kubeconfig",
        "context": "kind-solo",
        "run": "abc",
        "uid": "u-1",
        "shape": record.shape(SPEC),
        "image": "node:1",
        "created": 1.0,
        "nodes": (Node(node.name, "control-plane", "192.0.2.2", node.id),),
        "engine": engine.identity,
        "containers": (node.id,),
    }
    cluster = Cluster(**(made | changes))
    record.save(cluster)
    return cluster
