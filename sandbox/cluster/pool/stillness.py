"""Let a cluster stand still, and go on, so that nobody in it notices.

The controller-manager takes a node whose lease was not renewed for a broken one. It would wake before the kubelets have
renewed theirs, so it is stopped first and let go last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from sandbox.cluster import containers
from sandbox.cluster.freezer import pause
from sandbox.errors import ClusterError, DeadlineExceeded
from sandbox.kube import Kube, Seen, wait_for
from sandbox.kube.conditions import renewed

if TYPE_CHECKING:
    from docker.models.containers import Container

_MANAGER = "kube-controller-manager"
_LEASE_SECONDS = 30.0
_MANAGER_SECONDS = 60.0  # the kubelet's back-off, on a busy machine
_FRESH_SECONDS = 15.0  # a lease is renewed every 10 s, and counts as lost after 40: one this old need not be waited for


def still(nodes: Sequence[Container]) -> None:
    """Stop the controller-manager, then pause every node.

    Raises:
        ClusterError: a node did not take it.
    """
    _signal(nodes, "STOP")
    _each(nodes, pause)


def awake(nodes: Sequence[Container]) -> None:
    """Let every node go on, the controller-manager not yet: see `complete`."""
    _each(nodes, _unpause)


def complete(kube: Kube, nodes: Sequence[Container], names: Sequence[str], *, since: float) -> None:
    """Wait until no kubelet's lease looks old any more, then let the controller-manager go on.

    Args:
        kube: the cluster.
        nodes: its containers.
        names: what Kubernetes calls them.
        since: when the nodes went on, in seconds since the epoch.

    Raises:
        DeadlineExceeded: a kubelet gave no word.
    """
    wait_for(renewed(kube, names, since=since - _FRESH_SECONDS), within=_LEASE_SECONDS, what="word from every kubelet")
    _signal(nodes, "CONT")


def _signal(nodes: Sequence[Container], signal: str) -> None:
    """Signal the controller-manager of every control plane; one that is just being started again is waited for."""
    planes = [node for node in nodes if node.labels.get(containers.ROLE_LABEL) == "control-plane"]
    for plane in planes:
        send = partial(_sent, plane, signal)
        try:
            if not send().done:
                wait_for(send, within=_MANAGER_SECONDS, what=f"a {_MANAGER} that takes {signal}")
        except DeadlineExceeded as error:
            what = f"{_MANAGER} did not take {signal}"
            raise ClusterError(what, where=str(plane.name), details=error.details) from error


def _sent(plane: Container, signal: str) -> Seen[None]:
    code, said = containers.run(plane, ["pkill", f"-{signal}", "-f", f"^{_MANAGER} "])
    return Seen(code == 0, None, said or "it does not run")


def _unpause(node: Container) -> None:
    node.reload()
    if node.status == "paused":
        node.unpause()


def _each(nodes: Sequence[Container], act: Callable[[Container], object]) -> None:
    with ThreadPoolExecutor(max_workers=max(1, len(nodes))) as pool:
        for done in [pool.submit(act, node) for node in nodes]:
            done.result()
