"""A cluster that waits in the pool: its record, what it held, and what the stand-in engine holds of it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

from sandbox.cluster import clean, record
from sandbox.cluster.clean import Clean
from sandbox.cluster.record import Cluster, Node, Origin
from sandbox.kube.inventory import Inventory
from tests.unit.container_engine import FakeContainer, FakeEngine, FakeNetwork, put

KEY = "k1"
HELD, NODE = Inventory({"v1/ConfigMap a/b": "u h"}), "pool-1-control-plane"
CLEAN = Clean("solo with sim", 0.0, HELD, {NODE: ["process kubelet"]})
KUBECONFIG = {
    "clusters": [{"name": "kind-pool-1", "cluster": {"server": "https://127.0.0.1:41"}}],
    "users": [{"name": "kind-pool-1", "user": {}}],
    "contexts": [{"name": "kind-pool-1", "context": {"cluster": "kind-pool-1", "user": "kind-pool-1"}}],
}


def pooled(engine: FakeEngine, name: str = "pool-1", *, since: float = 0.0, **changes: Any) -> Cluster:
    """A cluster that waits in the pool, and what the engine holds of it."""
    node = FakeContainer(engine, f"{name}-control-plane", network=f"sandbox-{name}", cluster=name)
    engine.held.append(node)
    engine.wires.append(FakeNetwork(engine, name=f"sandbox-{name}", id=f"n-{name}", cluster=name))
    held, wires = engine.held, engine.wires
    known = put(engine)
    record.forget("solo")
    engine.held, engine.wires = held, wires
    made: dict[str, Any] = {
        "name": name, "kubeconfig": record.home(name) / "kubeconfig", "context": f"kind-{name}", "pooled": KEY,
        "nodes": (Node("solo-control-plane", "control-plane", "192.0.2.2", node.id),), "containers": (node.id,),
        "origin": Origin("snapshot", "auto-k1", KEY),
    }  # fmt: skip
    cluster = replace(known, **(made | changes))
    record.save(cluster)
    cluster.kubeconfig.write_text(json.dumps(KUBECONFIG))
    clean.write(name, replace(CLEAN, since=since or time.time()))
    return cluster
