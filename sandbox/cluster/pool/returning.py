"""What becomes of a leased cluster when nobody needs it any more: removed, or put back where a setting says so.

`SANDBOX_POOL=2`: a leased cluster is reset and put back, and the pool is filled up to two of its kind when the command
has ended. Without it nothing is put back, and nothing is made that was not asked for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sandbox.cluster import clean, containers, record, teardown
from sandbox.cluster.owner import Owner
from sandbox.cluster.pool import entries, limits, refilling, stillness
from sandbox.cluster.reset.resetting import reset
from sandbox.errors import ClusterError, SandboxError
from sandbox.host.engine import client
from sandbox.kube import stacks
from sandbox.progress import say, step

if TYPE_CHECKING:
    from sandbox.cluster.clean import Clean
    from sandbox.cluster.record import Cluster

_ANSWER_SECONDS = 30.0


def release(name: str) -> list[str]:
    """End a cluster: put it back into the pool where it is from there and the setting says so, else take it down.

    Returns:
        What was removed, or that it was put back.

    Raises:
        SandboxError: as `down`.
    """
    try:
        known = record.find(name)
        wanted = refilling.size() if known is not None and known.origin.way == "pool" and not known.pooled else 0
        before = clean.read(name) if wanted else None
    except ClusterError:  # a record that cannot be read
        known = before = None
    if known is None or before is None:
        return teardown.down(name)
    try:
        with record.locked(name):
            _put_back(known, before, wanted)
    except SandboxError as error:
        say(f"{name}: not put back into the pool: {error}")
        return teardown.down(name)
    return [f"{name}: put back into the pool as {known.engine_name}"]


def _put_back(known: Cluster, before: Clean, wanted: int) -> None:
    """Reset it, see that its stacks answer, and let it stand still; until then it is this process's, and goes with it.

    Raises:
        SandboxError: it is too old, the pool is full, or it could not be proven clean.
    """
    if why := _why_not(known, before, wanted):
        raise ClusterError(why, where=known.engine_name)
    mine = replace(known, owner=Owner.me())
    record.save(mine)
    with step(f"{known.name}: reset for the pool"), containers.engine_errors(known.name):
        done = reset(mine, before)
        for endpoint in before.endpoints:
            stacks.first_answer(f"http://{_host(known)}:{endpoint}", within=_ANSWER_SECONDS)
        clean.write(known.name, done.clean)
        stillness.still(containers.nodes(client(), known.name))
    with entries.locked():
        record.hand_over(known.name, known.engine_name)
        home = record.home(known.engine_name)
        back = replace(mine, name=known.engine_name, held_as="", owner=None, pooled=known.origin.key)
        record.save(replace(back, kubeconfig=home / known.kubeconfig.name))


def _why_not(known: Cluster, before: Clean, wanted: int) -> str:
    if entries.is_stale(before.since):
        return f"it was prepared more than {entries.OLDEST_HOURS:.0f} hours ago"
    if len(entries.entries(known.origin.key)) >= wanted:
        return f"{wanted} of its kind are there, as many as {refilling.SWITCH} says"
    return limits.why_full()


def _host(known: Cluster) -> str:
    address = containers.refreshed(client(), known)[0].address
    return f"[{address}]" if ":" in address else address
