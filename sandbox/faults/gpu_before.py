"""What a fault of emulated GPUs finds before it strikes: only what is otherwise afterwards can be its doing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sandbox.cluster import signals
from sandbox.gpu import control
from sandbox.gpu.blows import Blow
from sandbox.gpu.control import Device
from sandbox.kube import Kube, Seen


def already(kube: Kube, blow: Blow, devices: Sequence[Device], nodes: Sequence[str], shown: Mapping[str, float]) -> str:
    """Say what is so already that the blow would make so; empty where it changes every device and node.

    Args:
        kube: the cluster, as its administrator.
        blow: what is to be done.
        devices: as they are now.
        nodes: where it strikes.
        shown: UUID -> what monitoring reads of it now, where that is to prove the blow.
    """
    fault = blow.fault
    words = []
    if fault.unhealthy:
        words += [f"{each.label} is unhealthy already ({each.health})" for each in devices if not each.healthy]
    elif fault.xid:
        words += [
            f"{each.label} shows XID {fault.xid} already" for each in devices if shown.get(each.uuid) == fault.xid
        ]
    if fault.throttle:
        words += [f"{each.label} is throttled already ({each.throttle})" for each in devices if each.throttle]
    if fault.plugin_down:
        there = [control.state(kube, node) for node in nodes]
        words += [f"the device plugin of {each.node} is gone already" for each in there if each.plugin_down]
    return "; ".join(words)


def as_before(kube: Kube, devices: Sequence[Device], nodes: Sequence[str]) -> Callable[[], Seen[None]]:
    """A condition: whatever else acts there, nothing is wrong with a device that was in order, nor with its plugin.

    Args:
        kube: the cluster, as its administrator.
        devices: as they were before.
        nodes: those whose device plugin was there before.
    """

    def look() -> Seen[None]:
        there = {node: control.state(kube, node) for node in {*nodes, *(each.node for each in devices)}}
        words = [f"{state.node}: {state.trouble}" for state in there.values() if state.trouble]
        now_of = {each.uuid: each for state in there.values() for each in state.devices}
        for each in devices:
            now = now_of.get(each.uuid)
            words += [f"{each.label} is still unhealthy"] if each.healthy and not (now and now.healthy) else []
            words += [f"{each.label} is still throttled"] if now and now.throttle and not each.throttle else []
        words += [f"the device plugin of {node} is still gone" for node in nodes if there[node].plugin_down]
        return Seen(not words, None, "\n".join(words))

    return look


def still(letters: Mapping[str, str]) -> dict[str, float]:
    """Of each server the share of looks in which its processes stood still; 0 where it has none any more."""
    return {label: round(text.count(signals.STOPPED) / max(1, len(text)), 2) for label, text in letters.items()}
