"""`sandbox gpu …`: the emulated GPUs of a cluster looked at, and faults put on them by hand."""

from __future__ import annotations

import time
import uuid
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sandbox.cli_output import Output, OutputOption, out, table, write_json
from sandbox.errors import UsageError

if TYPE_CHECKING:
    from sandbox.cluster import Cluster
    from sandbox.gpu.blows import Blow
    from sandbox.gpu.control import Device
    from sandbox.gpu.strike import Server
    from sandbox.kube import Kube

gpu_app = typer.Typer(help="Emulated GPUs: who holds them, how they are, and faults by hand.", no_args_is_help=True)
ClusterOption = Annotated[str, typer.Option("--cluster", help="A cluster's name.")]
NAMES = ("xid", "lost", "ecc", "throttle", "plugin-down")
_LONGEST = 3600.0
_HEARD_SECONDS = 15.0
# option -> the faults it belongs to
_BELONGS = {
    "--gpu": ("xid", "lost", "ecc", "throttle"),
    "--xid": ("xid",),
    "--kind": ("ecc",),
    "--errors": ("ecc",),
    "--clock": ("throttle",),
    "--reason": ("throttle",),
    "--process": ("xid", "lost", "ecc"),
}


@dataclass(frozen=True)
class Injected:
    """What a command has done: the fault, where, until when, and to whom."""

    fault: str
    id: str
    where: str
    until: float
    process: str
    held_by: tuple[str, ...]


@gpu_app.command("status")
def gpu_status(
    cluster: Annotated[str, typer.Argument(help="A cluster's name.")] = "solo-gpu",
    output: OutputOption = Output.text,
) -> None:
    """Show every emulated GPU: its health, who offers and who holds it, and what its sensors say. Looks only."""
    from sandbox.gpu import control

    found = control.states(_connect(_current(cluster)))
    if output is Output.json:
        write_json([each.model_dump(mode="json", by_alias=True) for each in found])
        return
    for now in found:
        product = now.trouble or f"{now.devices[0].name}, emulated"
        out.print(
            f"{now.node}: {product}{', device plugin and DRA driver gone' if now.plugin_down else ''}", markup=False
        )
        columns = ("GPU", "health", "by", "held by", "util %", "MiB", "°C", "W")
        if now.devices:
            out.print(table(columns, [_row(each) for each in now.devices]))


@gpu_app.command("xids")
def gpu_xids(output: OutputOption = Output.text) -> None:
    """Show the XIDs that can be injected, and what each does to the device and to the server on it."""
    from sandbox.gpu import blows

    known = blows.xids()
    if output is Output.json:
        write_json({code: {**row.model_dump(), "unhealthy": row.unhealthy} for code, row in known.items()})
        return
    rows = []
    for code, row in known.items():
        device = "lost" if row.lost else "unhealthy" if row.unhealthy else "stays healthy"
        counted = [f"{row.corrected} corrected"] if row.corrected else []
        counted += [f"{row.uncorrected} uncorrected"] if row.uncorrected else []
        rows.append((str(code), row.text, device, row.process, ", ".join(counted)))
    out.print(table(("XID", "what it is", "device", "server on it", "ECC errors"), rows))


@gpu_app.command("fault")
def gpu_fault(
    name: Annotated[str, typer.Argument(help=f"What happens: {', '.join(NAMES)}.")],
    cluster: ClusterOption = "solo-gpu",
    node: Annotated[
        str | None, typer.Option("--node", help="The node; may be left out where only one has GPUs.")
    ] = None,
    gpu: Annotated[int | None, typer.Option("--gpu", help="Index of the GPU, as status shows it.")] = None,
    xid: Annotated[int | None, typer.Option("--xid", help="Of xid: its code, see `sandbox gpu xids` (79).")] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="Of ecc: uncorrectable (default), uncontained, contained or corrected.")
    ] = None,
    errors: Annotated[int | None, typer.Option("--errors", help="Of ecc: how many errors (1).")] = None,
    clock: Annotated[
        float | None, typer.Option("--clock", help="Of throttle: share of its speed, 0.1 to 0.95 (0.5).")
    ] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Of throttle: thermal (default) or power.")] = None,
    process: Annotated[
        str | None,
        typer.Option("--process", help="What becomes of the server on it: none, crash or hang, not as the XID has it."),
    ] = None,
    for_: Annotated[str, typer.Option("--for", help="How long, such as 60s or 5m; 1h at most.")] = "60s",
    output: OutputOption = Output.text,
) -> None:
    """Put a fault on an emulated GPU, or a node, by hand. It ends by itself; `sandbox gpu heal` ends it at once."""
    from sandbox import cluster as clusters
    from sandbox.gpu import control, strike

    given = {"--gpu": gpu, "--xid": xid, "--kind": kind, "--errors": errors, "--clock": clock, "--reason": reason}
    given = {key: value for key, value in {**given, "--process": process}.items() if value is not None}
    blow, seconds = _blow(name, given), _seconds(for_)
    own = _current(cluster)
    kube = _connect(own)
    there = control.states(kube)
    chosen = control.only(there, node)
    device = None
    if name != "plugin-down":
        if gpu is None:
            indices = ", ".join(str(each.index) for now in there if now.node == chosen for each in now.devices)
            raise UsageError("say which GPU: --gpu", where=chosen, fix=f"use one of: {indices}")
        device = control.device(there, chosen, gpu)
    struck = strike.servers(kube, [device]) if device else []
    if blow.process in {"crash", "hang"}:
        strike.refuse(own, blow.process, struck, instead="--process none")
    clusters.prove_ours(own)
    with clusters.lease(cluster):  # a run is not to be disturbed
        done = _inject(own, kube, blow, chosen, device, struck, seconds)
    if output is Output.json:
        write_json(asdict(done))
        return
    end = datetime.fromtimestamp(done.until).astimezone().isoformat(timespec="seconds")
    out.print(f"{done.fault} on {done.where}; {done.process}", markup=False, soft_wrap=True)
    out.print(f"  {done.id}, ends by itself at {end}; before: sandbox gpu heal --cluster {cluster}", soft_wrap=True)


@gpu_app.command("heal")
def gpu_heal(cluster: ClusterOption = "solo-gpu", output: OutputOption = Output.text) -> None:
    """End every fault of a cluster's emulated GPUs, and let go every process that one of them holds up."""
    from sandbox import cluster as clusters
    from sandbox.gpu import strike

    own = _current(cluster)
    kube = _connect(own)
    clusters.prove_ours(own)
    with clusters.lease(cluster):
        healed, released = strike.clear(own, kube)
    if output is Output.json:
        write_json({"healed": healed, "released": released})
        return
    for ident in healed:
        out.print(f"{ident} is over", markup=False)
    for node in released:
        out.print(f"{node}: its processes go on")
    if not healed and not released:
        out.print("there was no fault")


def _current(name: str) -> Cluster:
    from sandbox import cluster as clusters

    return clusters.current(name)


def _connect(own: Cluster) -> Kube:
    from sandbox.kube import Kube

    return Kube.connect(own.kubeconfig, own.context)


def _blow(name: str, given: dict[str, Any]) -> Blow:
    """What the command line asks for. Raises UsageError with what would be valid; nothing was touched."""
    from sandbox.gpu import blows

    if name not in NAMES:
        raise UsageError(f"there is no fault {name!r}", fix=f"use one of: {', '.join(NAMES)}")
    for option in given:
        if name not in _BELONGS[option]:
            raise UsageError(f"{option} goes with {' or '.join(_BELONGS[option])}, not with {name}", fix="leave it out")
    process = _one_of("--process", given.get("--process"), ("none", "crash", "hang"))
    if name == "xid":
        code = given.get("--xid", blows.LOST)
        if code not in blows.xids():
            known = ", ".join(map(str, blows.xids()))
            raise UsageError(f"XID {code} is none that is known here", fix=f"use one of: {known} (sandbox gpu xids)")
        return blows.xid(code, process)
    if name == "lost":
        return blows.lost(process)
    if name == "ecc":
        kinds = ("uncorrectable", "uncontained", "contained", "corrected")
        kind = _one_of("--kind", given.get("--kind", "uncorrectable"), kinds)
        return blows.ecc(kind, _within("--errors", given.get("--errors", 1), 1, 1_000_000), process)
    if name == "throttle":
        reason = _one_of("--reason", given.get("--reason", "thermal"), ("thermal", "power"))
        return blows.throttle(reason, _within("--clock", given.get("--clock", 0.5), 0.1, 0.95))
    return blows.plugin_down()


def _one_of(option: str, given: str | None, valid: tuple[str, ...]) -> Any:
    if given is not None and given not in valid:
        raise UsageError(f"{option}: {given!r} is not one of them", fix=f"use one of: {', '.join(valid)}")
    return given


def _within(option: str, given: Any, least: float, most: float) -> Any:
    if not least <= given <= most:
        raise UsageError(f"{option}: {given:g} is out of bounds", fix=f"use {least:g} to {most:g}")
    return given


def _seconds(text: str) -> float:
    from sandbox.spec.base import seconds

    try:
        found = seconds(text)
    except ValueError as error:
        raise UsageError(f"--for: {error}", fix="write it with its unit, such as 60s or 5m") from error
    return float(_within("--for", found, 1.0, _LONGEST))


def _inject(
    own: Cluster, kube: Kube, blow: Blow, node: str, device: Device | None, struck: list[Server], seconds: float
) -> Injected:
    from sandbox.gpu import control
    from sandbox.kube import wait_for

    tag = uuid.uuid4().hex[:8]
    until = time.time() + seconds
    fault = blow.on(device.index if device else None, ident=f"by-hand-{tag}", until=until)
    control.inject(kube, {node: [fault]})
    try:
        wait_for(control.acting(kube, {node: [fault]}), within=_HEARD_SECONDS, what="the emulator taking it over")
        done = _felt(own, kube, blow, struck, tag=tag, seconds=seconds)
    except BaseException:  # whatever it is: a fault of which half is done is none
        control.heal(kube, [fault.id])
        raise
    where = device.label if device else node
    return Injected(blow.words, fault.id, where, until, done, tuple(each.label for each in struck))


def _felt(own: Cluster, kube: Kube, blow: Blow, struck: list[Server], *, tag: str, seconds: float) -> str:
    """What becomes of the servers; those that the emulator can slow itself need no signal."""
    from sandbox.gpu import strike, witness

    if blow.process != "slow":
        return strike.strike(own, blow.process, struck, tag=tag, seconds=seconds)
    told = [each for each in struck if witness.latencies(kube, each) is not None]
    others = [each for each in struck if each not in told]
    strike.refuse(own, "slow", others, instead="a cluster of ours")
    done = strike.strike(own, "slow", others, tag=tag, seconds=seconds, clock=blow.fault.clock)
    names = ", ".join(each.label for each in told)
    return "; ".join([*([f"told to be slower: {names}"] if told else []), *([done] if others or not told else [])])


def _row(each: Device) -> tuple[str, ...]:
    return (
        str(each.index),
        ", ".join([each.health, *([f"{each.throttle} throttling"] if each.throttle else [])]),
        "plugin" if each.offered_by == "device-plugin" else each.offered_by,
        ", ".join(dict.fromkeys(f"{holder.namespace}/{holder.pod}" for holder in each.holders)),
        f"{each.utilization_gpu:.0f}",
        f"{each.memory_used:.0f}/{each.memory_total:.0f}",
        f"{each.temperature_gpu:.0f}",
        f"{each.power_draw:.0f}/{each.power_limit:.0f}",
    )
