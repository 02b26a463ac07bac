"""Faults of emulated GPUs: told to the emulator on the node, felt by the server that holds the device.

Each lasts for `hold`, is healed, and then has `within` to be over: the kubelet or the ResourceSlices offer the device
again, and as many pods as before are ready. Nothing of it outlives a harness that is killed: see
sandbox/gpu/control.py and sandbox/cluster/signals.py.

A crashed server cannot start on a device that is lost, and the kubelet tries again only 10, 20, 40, 80, 160 and then
every 300 s after the crash: after a hold of 20 s it may take 20 s more. On any other unhealthy device the server starts
again at once, for a device plugin moves nobody. With `replace` the pod is deleted once the fault is proven, as an
operator or a remediation controller does, and the scheduler looks for another device; it is off by default, since
Kubernetes alone does not do it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from sandbox.errors import DeadlineExceeded
from sandbox.faults.base import FAULTS, Context, Injection, NoTarget
from sandbox.faults.gpu_case import Case
from sandbox.gpu import blows, control, strike
from sandbox.gpu.blows import Blow
from sandbox.gpu.control import Device, NodeState
from sandbox.gpu.strike import Server
from sandbox.kube import Kube, Object, Seen
from sandbox.kube.conditions import Watching, describe, is_ready
from sandbox.kube.resources import Selection
from sandbox.spec.base import Duration
from sandbox.spec.registry import Problems

Target = Annotated[dict[str, str], Field(min_length=1)] | None
Count = Annotated[int, Field(ge=1, le=64)]
Index = Annotated[int, Field(ge=0)] | None
Hold = Annotated[Duration, Field(gt=0, le=3600)]
Code = Annotated[int, AfterValidator(blows.known)]
Errors = Annotated[int, Field(ge=1, le=1_000_000)]
Clock = Annotated[float, Field(ge=0.1, le=0.95)]
_HOLD, _WITHIN = 20.0, 180.0
_LAG_SECONDS = 3.0  # the emulator asks the kubelet once a second who holds what


def _place(params: dict[str, Any]) -> Problems:
    """Which devices: those of pods, or one that is named."""
    target, node, gpu = params["target"], params["node"], params["gpu"]
    if (target is None) == (node is None and gpu is None):
        yield (), "needs either `target` (labels of pods: a device that one of them holds), or `gpu` and its `node`"
    elif target is None and gpu is None:
        yield (), "needs `gpu` too: a device is named by its node and its index there"
    elif target is None and params["count"] != 1:
        yield ("count",), "goes with `target`; `node` and `gpu` name one device"


def _node(params: dict[str, Any]) -> Problems:
    """Which nodes: those of pods, or one that is named."""
    if (params["target"] is None) == (params["node"] is None):
        yield (), "needs either `target` (labels of pods: the node of one of them), or `node`"
    elif params["target"] is None and params["count"] != 1:
        yield ("count",), "goes with `target`; `node` names one"


@FAULTS.register("gpu.xid", check=_place)
def xid(
    ctx: Context,
    *,
    code: Code = blows.LOST,
    target: Target = None,
    node: str | None = None,
    gpu: Index = None,
    count: Count = 1,
    hold: Hold = _HOLD,
    within: Duration = _WITHIN,
    process: blows.Effect | None = None,
    replace: bool = False,
) -> Injection:
    """An XID on `count` devices that pods with the labels `target` hold, or on GPU `gpu` of `node` (of the only one).

    What it does to the device and to the server on it stands in sandbox/gpu/xids.yaml (`sandbox gpu xids`); `process`
    overrides the latter.

    Proof from outside the injector: the kubelet offers the device no more, or its ResourceSlice has it tainted; of an
    application's XID, which leaves the device healthy, the XID in the GPUs' metrics; and of the server the end of its
    container as the kubelet reports it, or its state in the node's /proc.
    """
    chosen = _choose(ctx, target, node, gpu, count)
    return _case(ctx, "gpu.xid", blows.xid(code, process), chosen, hold=hold, within=within, replace=replace).life()


@FAULTS.register("gpu.lost", check=_place)
def lost(
    ctx: Context,
    *,
    target: Target = None,
    node: str | None = None,
    gpu: Index = None,
    count: Count = 1,
    hold: Hold = _HOLD,
    within: Duration = _WITHIN,
    process: blows.Effect | None = None,
    replace: bool = False,
) -> Injection:
    """GPUs fall off the bus (XID 79): their servers crash, and no container that holds one starts until it is back."""
    chosen = _choose(ctx, target, node, gpu, count)
    return _case(ctx, "gpu.lost", blows.lost(process), chosen, hold=hold, within=within, replace=replace).life()


@FAULTS.register("gpu.ecc", check=_place)
def ecc(
    ctx: Context,
    *,
    kind: blows.Ecc = "uncorrectable",
    errors: Errors = 1,
    target: Target = None,
    node: str | None = None,
    gpu: Index = None,
    count: Count = 1,
    hold: Hold = _HOLD,
    within: Duration = _WITHIN,
    process: blows.Effect | None = None,
    replace: bool = False,
) -> Injection:
    """Memory errors: `uncorrectable` (XID 48), `uncontained` (XID 95), `contained` (XID 94), or `corrected` ones.

    Corrected errors are only counted: the device stays healthy, and the metrics of the GPUs prove them.
    """
    chosen = _choose(ctx, target, node, gpu, count)
    return _case(
        ctx, "gpu.ecc", blows.ecc(kind, errors, process), chosen, hold=hold, within=within, replace=replace
    ).life()


@FAULTS.register("gpu.throttle", check=_place)
def throttle(
    ctx: Context,
    *,
    reason: blows.Reason = "thermal",
    clock: Clock = 0.5,
    target: Target = None,
    node: str | None = None,
    gpu: Index = None,
    count: Count = 1,
    hold: Hold = _HOLD,
    within: Duration = _WITHIN,
) -> Injection:
    """GPUs run at `clock` of their speed, and the servers on them answer that much more slowly.

    The vLLM simulator is told to by the emulator; any other server is stopped and let go five times a second.

    Proof from outside the injector: what the simulator itself says of its latencies, or how often the processes of the
    server stand still in the node's /proc.
    """
    chosen = _choose(ctx, target, node, gpu, count)
    case = _case(ctx, "gpu.throttle", blows.throttle(reason, clock), chosen, hold=hold, within=within)
    if not case.struck:
        raise NoTarget(f"nobody holds {', '.join(each.label for each in case.devices)}: nothing there could be slow")
    return case.life()


@FAULTS.register("gpu.plugin-down", check=_node)
def plugin_down(
    ctx: Context,
    *,
    target: Target = None,
    node: str | None = None,
    count: Count = 1,
    hold: Hold = _HOLD,
    within: Duration = _WITHIN,
) -> Injection:
    """Device plugin and DRA driver are gone from `count` nodes where such pods hold a device, or from `node`.

    What runs goes on; nothing new gets a device. Proof from outside the injector: the kubelet offers none of the node's
    GPUs, and the ResourceSlices of a DRA driver are gone, which takes the kubelet half a minute.
    """
    if target is None:
        chosen, back = [control.state(ctx.kube, node or "").node], _held(ctx.kube, [])
    else:
        pods, held = _held_by(ctx, target, count, each="node")
        chosen, back = [each.node for each in held[:count]], _serving(ctx, target, len(pods))
    blow = blows.plugin_down()
    return Case(ctx, "gpu.plugin-down", blow, chosen, [], [], back=back, hold=hold, within=within).life()


Chosen = tuple[list[Device], Callable[[], Seen[None]] | None]
Held = tuple[list[str], list[Device]]


def _case(
    ctx: Context, name: str, blow: Blow, chosen: Chosen, *, hold: float, within: float, replace: bool = False
) -> Case:
    devices, back = chosen
    struck = strike.servers(ctx.kube, devices)
    return Case(
        ctx,
        name,
        blow,
        nodes=list(dict.fromkeys(each.node for each in devices)),
        devices=devices,
        struck=struck,
        back=back or _held(ctx.kube, struck),
        hold=hold,
        within=within,
        replace=replace,
    )


def _choose(ctx: Context, target: dict[str, str] | None, node: str | None, gpu: int | None, count: int) -> Chosen:
    """The devices to strike, and the condition that as many pods as now are ready; None where no pods were named.

    Raises:
        NoTarget: too few ready pods with these labels hold a device.
        UsageError: there is no such device, or no emulated GPU at all; names those there are.
    """
    if target is None:
        there = control.states(ctx.kube)
        return [control.device(there, control.only(there, node), gpu or 0)], None
    pods, held = _held_by(ctx, target, count)
    return held[:count], _serving(ctx, target, len(pods))


def _held_by(ctx: Context, target: dict[str, str], count: int, *, each: str = "uuid") -> Held:
    """The ready pods with these labels, and `count` or more devices that they hold, each of another `each`."""
    last: Held = ([], [])
    silent: list[str] = []

    def look() -> Seen[None]:
        nonlocal last
        pods, there, found = _ready(ctx, target), control.states(ctx.kube), dict[str, Device]()
        for device in _holding(there, ctx.namespace, pods):
            found.setdefault(getattr(device, each), device)
        last = (pods, [*found.values()])
        silent[:] = [f"{now.node}: {now.trouble}" for now in there if now.trouble]
        return Seen(len(found) >= count, None, "")

    try:
        ctx.wait(look, within=_LAG_SECONDS, what="a device in their hands")
    except DeadlineExceeded as error:
        where = "on a node of its own " if each == "node" else ""
        raise NoTarget(
            f"{len(last[0])} ready pods with {_selector(target)} in {ctx.namespace} hold {len(last[1])} GPUs {where}"
            f"({count} asked for)",
            details=silent,
            fix="let the stack ask for GPUs, such as `stack: {name: vllm-sim, values: {gpus: 1}}`",
        ) from error
    return last


def _ready(ctx: Context, target: dict[str, str]) -> list[str]:
    pods = ctx.kube.list("v1", "Pod", ctx.namespace, label_selector=_selector(target))
    return sorted(
        pod["metadata"]["name"] for pod in pods if is_ready(pod) and not pod["metadata"].get("deletionTimestamp")
    )


def _holding(there: list[NodeState], namespace: str, pods: list[str]) -> list[Device]:
    """The devices of these pods, in the order of their names; those that nothing is wrong with come first."""
    found: dict[str, Device] = {}
    for name in pods:
        for device in (each for now in there for each in now.devices):
            if any((each.namespace, each.pod) == (namespace, name) for each in device.holders):
                found.setdefault(device.uuid, device)
    return sorted(found.values(), key=lambda each: bool(each.faults))


def _serving(ctx: Context, target: dict[str, str], count: int) -> Watching[None]:
    """At least `count` pods Ready, and none on its way there; one that a node refused stays, Failed, and is no such."""
    selector = _selector(target)

    def judge(pods: list[Object]) -> Seen[None]:
        staying = [
            pod
            for pod in pods
            if not pod["metadata"].get("deletionTimestamp")
            and pod.get("status", {}).get("phase") not in {"Failed", "Succeeded"}
        ]
        waiting = [describe(pod) for pod in staying if not is_ready(pod)]
        good = len(staying) - len(waiting)
        saw = [f"{good} of {len(staying)} pods with {selector} in {ctx.namespace} ready, wanted {count}", *waiting]
        return Seen(good >= count and not waiting, None, "\n".join(saw))

    return Watching(ctx.kube, Selection("v1", "Pod", ctx.namespace, selector), judge)


def _held(kube: Kube, struck: list[Server]) -> Callable[[], Seen[None]]:
    """A condition: the pods of these servers, where they are still there, are ready."""
    return partial(_all_ready, kube, struck)


def _all_ready(kube: Kube, struck: list[Server]) -> Seen[None]:
    found = [(each, kube.get("v1", "Pod", each.pod, each.namespace)) for each in struck]
    waiting = [
        describe(pod)
        for each, pod in found
        if pod
        and pod["metadata"]["uid"] == each.uid
        and not pod["metadata"].get("deletionTimestamp")
        and not is_ready(pod)
    ]
    return Seen(not waiting, None, "\n".join(waiting))


def _selector(target: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in target.items())
