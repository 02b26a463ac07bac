"""Hand a prepared cluster over: taken under the pool's lock, let go on, and looked at before anybody has it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from sandbox.cluster import clean, containers, guard, kubeconfigs, record, traces
from sandbox.cluster.pool import entries, refilling, stillness
from sandbox.errors import ClusterError, SandboxError
from sandbox.kube import Kube, inventory
from sandbox.progress import say, step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from docker.models.containers import Container

    from sandbox.cluster.making import Order
    from sandbox.cluster.record import Cluster


def lease(order: Order, key: str) -> Cluster | None:
    """Lease a cluster that has `key` in it, as the one that was ordered; one that is not as it was is removed.

    Returns:
        It; None where the pool has none.
    """
    while (taken := entries.take(key, order.name)) is not None:
        try:
            with step(f"{order.name}: lease {taken.held_as} from the pool"), containers.engine_errors(taken.held_as):
                return _handed_over(order, taken, key)
        except SandboxError as error:
            say(f"{order.name}: {taken.held_as} is not handed out, and removed: {error}")
            _throw_away(order)
    return None


def _handed_over(order: Order, taken: Cluster, key: str) -> Cluster:
    """Let it go on, see that it is as it was, and write down whose it is."""
    name = order.name
    nodes = containers.nodes(order.docker, name)
    _refuse_dead(taken, nodes)
    since = time.time()
    stillness.awake(nodes)
    context = kubeconfigs.write(taken.kubeconfig, taken.kubeconfig.read_text(encoding="utf-8"), cluster=name)
    mine = replace(
        taken,
        context=context,
        owner=order.owner,
        created=since,
        nodes=containers.refreshed(order.docker, taken),
        origin=replace(taken.origin, way="pool", key=key),
    )
    kube = Kube.connect(mine.kubeconfig, context)
    with ThreadPoolExecutor(max_workers=2) as pool:
        held = pool.submit(inventory.everything, kube)
        guard.prove_ours(mine)
        stillness.complete(kube, nodes, mine.node_names, since=since)
        there = pool.submit(traces.take, nodes).result()
        now = held.result()
    before = clean.read(name)
    if dirty := clean.difference(before, now, there):
        raise ClusterError("it is not as it was put into the pool", where=taken.held_as, details=dirty)
    record.save(mine)
    refilling.at_the_end(key, before.source)
    return mine


def _refuse_dead(taken: Cluster, nodes: Sequence[Container]) -> None:
    """Check that every node is there to go on: no use in waiting for the API server of one that died."""
    found = {str(each.id): str(each.status) for each in nodes}
    states = {each.name: found.get(each.container, "gone") for each in taken.nodes}
    if dead := [f"{name} is {state}" for name, state in states.items() if state not in {"paused", "running"}]:
        raise ClusterError("it died in the pool", where=taken.held_as, details=dead)


def _throw_away(order: Order) -> None:
    try:
        with containers.engine_errors(order.name):
            containers.remove(order.docker, order.name)
        record.forget(order.name)
    except SandboxError as error:  # its owner is this process: the next command removes it
        say(str(error))
        raise
