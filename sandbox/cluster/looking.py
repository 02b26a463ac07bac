"""How a cluster is doing, by its record, the engine and its API server. Looks only."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from sandbox.cluster import containers, fleet, nodes, ownership, record
from sandbox.cluster.record import Cluster
from sandbox.errors import SandboxError
from sandbox.host.engine import client, engine_url, look
from sandbox.kube import Kube
from sandbox.kube.conditions import is_ready

_NONE: Mapping[str, str] = MappingProxyType({})
State = Literal["ready", "degraded", "stopped", "unreachable", "half-made", "busy", "gone", "elsewhere", "pooled"]


@dataclass(frozen=True)
class NodeStatus:
    """A node: the engine's word (`running`, `paused`, `exited`, `gone`; empty for a foreign one) and Kubernetes's."""

    name: str
    role: str
    address: str
    machine: str
    ready: bool


@dataclass(frozen=True)
class Status:
    """A cluster now.

    `ready`: it answers, is the recorded one, and all nodes are Ready. `degraded`: it answers, and `problems` says what
    is wrong. `stopped`: no node runs. `unreachable`: nodes run and the API server does not answer, or no engine does.
    `half-made`: a create that never ended. `busy`: one that is under way, or being cleared. `gone`: recorded, and not
    there. `elsewhere`: made on another engine than the one that answers. `pooled`: stands still until it is leased.
    """

    name: str
    state: State
    provider: str
    server: str
    version: str
    kubeconfig: str
    created: float
    nodes: tuple[NodeStatus, ...]
    problems: tuple[str, ...]
    in_use: bool = False  # by a run
    words: str = ""  # how it came, for people
    came: str = ""  # `cold`, from a `snapshot`, or from the `pool`; empty for an existing one
    snapshot: str = ""  # the name of the one it came from
    memory: int | None = None  # bytes; see `costs.weighed`
    disk: int | None = None  # bytes
    simulated: tuple[int, int] = (0, 0)  # nodes that are objects only: how many are Ready, of how many


def status(name: str) -> Status:
    """Look at one cluster.

    Raises:
        UsageError: there is no such cluster.
        EnvironmentMissing: the docker context that is asked for does not exist.
    """
    if record.creating(name):
        if record.busy(name):
            return Status(name, "busy", "kind", "", "", "", 0.0, (), ("a command is making it, or clearing it away",))
        problems = ("a create began and never ended", *_engine_problem(name)[1:])
        return Status(name, "half-made", "kind", "", "", "", 0.0, (), problems)
    known = record.get(name)
    if known.provider == "kind" and (away := _engine_problem(name)):
        return replace(_shown(known), state=away[0], problems=away[1:])
    return _of(known)


def list_clusters() -> list[Status]:
    """Look at every cluster of this state folder, those on other engines too.

    Raises:
        EnvironmentMissing: the docker context that is asked for does not exist.
    """
    engine_url()
    return [status(name) for name in record.names() if record.find(name) or record.creating(name)]


def kubeconfig(name: str) -> Path:
    """Return the path of the cluster's own kubeconfig. Raises UsageError when there is no such cluster."""
    return record.get(name).kubeconfig


def current(name: str) -> Cluster:
    """Return the cluster as recorded, with its nodes' addresses as they are now."""
    known = record.get(name)
    if known.provider == "existing":
        return known
    with containers.engine_errors(name):
        return replace(known, nodes=containers.refreshed(client(), known))


def _of(known: Cluster) -> Status:
    machines = nodes.states(known) if known.provider == "kind" else {}
    running = [state for state in machines.values() if state == "running"]
    server, version, ready, problems, simulated = "", "", set[str](), list[str](), (0, 0)
    problems += [f"{node} is {state}" for node, state in machines.items() if state != "running"]
    state: State
    if known.pooled and not running and {*machines.values()} == {"paused"}:
        state, problems = "pooled", []
    elif known.provider == "kind" and not running:
        state = "gone" if all(each == "gone" for each in machines.values()) else "stopped"
    else:
        try:
            kube = Kube.connect(known.kubeconfig, known.context)
            server, version, uid = kube.server, kube.version, kube.uid()
            there = kube.list("v1", "Node", label_selector=fleet.REAL)
            ready = {each["metadata"]["name"] for each in there if is_ready(each)}
            simulated = fleet.count(kube)
        except SandboxError as error:
            problems += [error.what, *_cut_off(known)]
            state = "unreachable"
        else:
            problems += [f"{node.name} is not Ready" for node in known.nodes if node.name not in ready]
            problems += [f"{simulated[0]} of {simulated[1]} simulated nodes are Ready"] * (simulated[0] < simulated[1])
            problems += [f"kube-system has UID {uid}, recorded is {known.uid}"] if uid != known.uid else []
            state = "degraded" if problems else "ready"
    return replace(
        _shown(known, machines, ready),
        state=state,
        server=server,
        version=version,
        problems=tuple(problems),
        simulated=simulated,
    )


def _cut_off(known: Cluster) -> list[str]:
    """Why nothing answers, where the engine tells."""
    if known.provider != "kind":
        return []
    with containers.engine_errors(known.name):
        found = ownership.survey(client(), known.name)
    return [f"{name} is not on the cluster's network" for name in ownership.cut_off(found)]


def _shown(known: Cluster, machines: Mapping[str, str] = _NONE, ready: Collection[str] = ()) -> Status:
    """What is known without asking the cluster."""
    shown = tuple(
        NodeStatus(node.name, node.role, node.address, machines.get(node.name, ""), node.name in ready)
        for node in known.nodes
    )
    return Status(
        name=known.name,
        state="unreachable",
        provider=known.provider,
        server="",
        version="",
        kubeconfig=str(known.kubeconfig),
        created=known.created,
        nodes=shown,
        problems=(),
        in_use=record.leased(known.name),
        words=known.origin.words if known.provider == "kind" else "",
        came=known.origin.way if known.provider == "kind" else "",
        snapshot=known.origin.snapshot,
    )


def _engine_problem(name: str) -> tuple[()] | tuple[State, str]:
    """Why the engine that answers, if one does, cannot be asked about the cluster: a state, and words for it."""
    engine_url()  # `look` takes a context that is not there for an engine that does not answer
    engine = look()
    if engine.state != "running":
        return "unreachable", engine.seen
    with containers.engine_errors(name):
        problem = ownership.elsewhere(client(), name, record.claim(name))
    return ("elsewhere", f"{problem.what}: {problem.fix}") if problem else ()
