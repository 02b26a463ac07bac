"""One fault of emulated GPUs from its first look to the last: what is struck, what proves it, what ends it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from sandbox.cluster import nodes, signals
from sandbox.errors import SandboxError, Unproven
from sandbox.faults.base import Context, Evidence, Injection
from sandbox.faults.gpu_before import already, as_before, still
from sandbox.gpu import control, strike, witness
from sandbox.gpu.blows import Blow
from sandbox.gpu.control import Device
from sandbox.gpu.emulator.devices import Fault
from sandbox.gpu.strike import Server
from sandbox.kube import Seen, wait_for
from sandbox.progress import say

T = TypeVar("T")
MARGIN = 90.0  # seconds after which a fault that nobody ends is over by itself
_PROOF_SECONDS = 60.0
_HEARD_SECONDS = 15.0
_UNDO_SECONDS = 15.0
_LOOKS = 20
_FEW_LOOKS = 6  # at a process that must not stand still: a slowed one does in a period of 0.2 s
_KILLED = "exit code 137"  # as the kubelet tells of SIGKILL


@dataclass
class Case:
    """A fault that is under way.

    Attributes:
        name: of the fault, such as gpu.xid.
        nodes: where it strikes.
        devices: what it strikes; none where it strikes the node.
        struck: the servers on these devices.
        back: a condition: the pods that were ready before are so again.
        replace: delete the struck pods once it is proven.
    """

    ctx: Context
    name: str
    blow: Blow
    nodes: Sequence[str]
    devices: Sequence[Device]
    struck: Sequence[Server]
    back: Callable[[], Seen[Any]]
    hold: float
    within: float
    replace: bool = False
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    tag: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    units: dict[str, witness.Units] = field(default_factory=dict)
    before: dict[str, dict[str, int]] = field(default_factory=dict)
    latencies: dict[str, dict[str, float]] = field(default_factory=dict)
    counted: dict[str, float] = field(default_factory=dict)
    injected: float = 0.0
    lasted: float = 0.0
    undone: bool = True

    def life(self) -> Injection:
        """The fault, as `drive` wants it; nothing of it is left wherever it ends."""
        self.look()
        try:
            yield self.inject()
            yield self.prove()
            replaced = self.delete_pods() if self.replace else []
            self.ctx.stop.wait(max(0.0, self.injected + self.hold - time.monotonic()))
            self.undo()
        finally:
            self.give_up()
        return self.recover(replaced)

    def look(self) -> None:
        """Everything that proof needs to know of the time before. Refuses what cannot be done, or is so already."""
        kube = self.ctx.kube
        slow = self.blow.process == "slow"
        found = {each.id: witness.latencies(kube, each) for each in self.struck} if slow else {}
        self.latencies = {server: known for server, known in found.items() if known}
        strike.refuse(
            self.ctx.cluster, self.blow.process, self.by_signal(), instead="`process: none`, or a cluster of ours"
        )
        for server in self.struck:
            if server.id in self.latencies and not any(self.latencies[server.id].values()):
                raise Unproven(f"{server.label} answers in no time: nothing it does could take longer")
        if name := self.metric():
            self.counted = {each.uuid: self.shown(each, name) for each in self.devices}
        if so := already(kube, self.blow, self.devices, self.nodes, self.counted):
            raise Unproven(f"{so}: nothing that this fault does could be seen")
        self.units = {node: witness.offered(kube, node) for node in self.nodes}
        if self._withholds:
            self._look_at_offers()
        if self.blow.process in {"hang", "slow"}:
            stopped = [label for label, share in still(self._letters(looks=_FEW_LOOKS)).items() if share]
            if stopped:
                raise Unproven(f"{', '.join(stopped)} stands still already: nothing that this fault does could be seen")

    def _look_at_offers(self) -> None:
        """Wait until all that is healthy is offered: what others have not heard of yet would look like our doing."""
        kube = self.ctx.kube
        for node in filter(self.units.get, self.nodes):
            whole = witness.allocatable(kube, node, self.units[node])
            self.before[node] = self.wait(whole, _HEARD_SECONDS, f"the kubelet of {node} offering what is healthy")
        for each in self.devices:
            if each.offered_by == "dra":
                self.wait(witness.untainted(kube, each), _HEARD_SECONDS, f"{each.label} without a taint")
        for node in self._with_slices() if self.blow.fault.plugin_down else ():
            self.wait(witness.published(kube, node, there=True), _HEARD_SECONDS, f"the ResourceSlices of {node}")

    def inject(self) -> Evidence:
        """Strike the devices first, then what runs on them: a server that is started again must meet the fault."""
        until = time.time() + self.hold + MARGIN
        places: list[tuple[str, int | None]] = [(each.node, each.index) for each in self.devices]
        for node, gpu in places or [(node, None) for node in self.nodes]:
            ident = f"{self.name}-{uuid.uuid4().hex[:8]}"
            self.faults.setdefault(node, []).append(self.blow.on(gpu, ident=ident, until=until))
        self.undone = False
        control.inject(self.ctx.kube, self.faults)
        self.injected = time.monotonic()
        self.wait(control.acting(self.ctx.kube, self.faults), _HEARD_SECONDS, "the emulator taking the fault over")
        done = strike.strike(
            self.ctx.cluster,
            self.blow.process,
            self.by_signal(),
            tag=self.tag,
            seconds=self.hold + MARGIN,
            clock=self.blow.fault.clock,
        )
        where = ", ".join(each.label for each in self.devices) or ", ".join(self.nodes)
        values: dict[str, Any] = {
            "emulated": True,
            "faults": self.ids,
            "ends_at_latest": datetime.fromtimestamp(until, UTC).isoformat(timespec="seconds"),
        }
        if self.devices:
            values["devices"] = {each.label: each.uuid for each in self.devices}
            values["held_by"] = [each.label for each in self.struck]
        return Evidence(f"{self.blow.words} on {where}; {done}", values)

    def prove(self) -> Evidence:
        """See it from outside: what the kubelet, the API server, the node's kernel and the servers say."""
        seen: list[Evidence] = []
        if self._withholds:
            seen += self._withheld()
        if self.struck and self.blow.process == "crash":
            seen.append(self.wait(self._ended, _PROOF_SECONDS, "the end of the struck containers"))
        if self.struck and self.blow.process == "hang":
            seen.append(self.wait(self._stopped, _PROOF_SECONDS, "the struck processes standing still"))
        if self.blow.process == "slow":
            seen += self._slow()
        if self.metric():
            seen.append(self.wait(self._monitored, _PROOF_SECONDS, "the fault in the monitoring of the GPUs"))
        if not seen:
            raise Unproven("nothing but the injector could be asked whether it happened")
        values: dict[str, Any] = {}
        for each in seen:
            values |= each.values
        return Evidence("; ".join(each.detail for each in seen), values)

    def delete_pods(self) -> list[str]:
        """Do what an operator does with pods on a broken GPU; their owners make new ones."""
        for server in self.struck:
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": server.pod, "namespace": server.namespace}}
            precondition = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": server.uid}}
            self.ctx.kube.request("DELETE", self.ctx.kube.path(pod), precondition)
        return [each.label for each in self.struck]

    def undo(self) -> None:
        """Heal the devices and let the processes go. Raises what keeps it from being done."""
        control.heal(self.ctx.kube, self.ids)
        if self.blow.process in {"hang", "slow"} and self.by_signal():
            strike.release(self.ctx.cluster, {each.node for each in self.by_signal()}, self.tag)
        self.undone = True
        self.lasted = self.since()

    def give_up(self) -> None:
        """After whatever happened: what was not undone is undone; if that fails too it is said, and ends by itself."""
        if self.undone:
            return

        def attempt() -> Seen[None]:
            self.undo()
            return Seen(True, None, "")

        try:
            wait_for(attempt, within=_UNDO_SECONDS, what=f"the end of {self.name}")
        except SandboxError as error:
            say(
                f"fault {self.name} could not be ended, and ends by itself in {self.hold + MARGIN:g} s at most: {error}"
            )

    def recover(self, replaced: Sequence[str]) -> Evidence:
        """Wait until kubelet, API server and pods are as before. Their not coming back is the system's failure."""
        began = time.monotonic()
        values: dict[str, Any] = {"lasted_s": self.lasted, **({"replaced": replaced} if replaced else {})}

        def come(condition: Callable[[], Seen[T]], what: str) -> T:
            return self.wait(condition, max(0.1, began + self.within - time.monotonic()), what)

        kube = self.ctx.kube
        come(control.ended(kube, self.faults), "the end of the fault in the emulator")
        down = self.nodes if self.blow.fault.plugin_down else ()
        come(as_before(kube, self.devices, down), "devices that are as before")
        for node in self.nodes:
            come(witness.allocatable(kube, node, self.units[node]), f"the GPUs of {node} at its kubelet")
        for each in self.devices:
            if each.offered_by == "dra" and each.healthy:
                come(witness.untainted(kube, each), f"{each.label} without a taint")
        if self.blow.fault.plugin_down:
            for node in self._with_slices():
                come(witness.published(kube, node, there=True), f"the ResourceSlices of {node}")
        values["devices_after_s"] = round(time.monotonic() - began, 2)
        if self.latencies:
            come(self._quick, "the servers being as quick as before")
        if self.blow.process in {"hang", "slow"}:
            come(self._moving, "the struck processes going on")
        come(self.back, "the pods that were ready before")
        values["recovered_after_s"] = round(time.monotonic() - began, 2)
        return Evidence(f"it lasted {self.lasted:.0f} s; devices and pods are as before", values)

    @property
    def _withholds(self) -> bool:
        return self.blow.fault.unhealthy or self.blow.fault.plugin_down

    @property
    def ids(self) -> list[str]:
        """Of the faults as the emulator knows them."""
        return [each.id for every in self.faults.values() for each in every]

    def wait(self, condition: Callable[[], Seen[T]], within: float, what: str) -> T:
        """As `ctx.wait`."""
        return self.ctx.wait(condition, within=within, what=what)

    def by_signal(self) -> list[Server]:
        """The servers that get signals: the emulator itself slows those that can be told to be slow."""
        return [each for each in self.struck if each.id not in self.latencies] if self.blow.process != "none" else []

    def metric(self) -> str:
        """What monitoring shows of a fault that leaves the device healthy; empty for one that needs no such proof."""
        fault = self.blow.fault
        if fault.unhealthy or fault.throttle or fault.plugin_down:
            return ""
        return "DCGM_FI_DEV_XID_ERRORS" if fault.xid else "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL"

    def shown(self, device: Device, name: str) -> float:
        """What monitoring reads of a device now."""
        return witness.shown(self.ctx.kube, control.state(self.ctx.kube, device.node), name, device)

    def since(self) -> float:
        """Seconds since the emulator was told."""
        return round(time.monotonic() - self.injected, 2)

    def _with_slices(self) -> list[str]:
        there = {each.node: each for each in control.states(self.ctx.kube)}
        return [node for node in self.nodes if any(each.offered_by == "dra" for each in there[node].devices)]

    def _withheld(self) -> list[Evidence]:
        """The kubelet offers fewer, and the devices of the DRA driver are tainted or not published any more."""
        kube, found = self.ctx.kube, list[Evidence]()
        down = self.blow.fault.plugin_down
        by_plugin = {each.node for each in self.devices if each.offered_by != "dra"}
        for node in self.nodes if down else sorted(by_plugin):
            if self.units[node]:
                condition = witness.allocatable(kube, node, self.units[node])
                now = self.wait(condition, _PROOF_SECONDS, f"the kubelet of {node} withholding it")
                found.append(self._dropped(node, now))
        for each in self.devices:
            if each.offered_by == "dra":
                marks = self.wait(witness.tainted(kube, each), _PROOF_SECONDS, f"the taint of {each.label}")
                values = {"taints": {each.label: marks}, "tainted_after_s": self.since()}
                found.append(Evidence(f"{each.label} is tainted {', '.join(marks)}", values))
        for node in self._with_slices() if down else ():
            self.wait(witness.published(kube, node, there=False), _PROOF_SECONDS, f"the end of {node}'s ResourceSlices")
            values = {"unpublished_after_s": self.since()}
            found.append(Evidence(f"{node} has no ResourceSlice any more", values))
        return found

    def _dropped(self, node: str, now: Mapping[str, int]) -> Evidence:
        before = self.before[node]
        words = [f"{name} {before[name]} -> {now[name]}" for name in now if now[name] != before[name]]
        values = {"allocatable_after_s": self.since(), "allocatable": {node: dict(now)}, "allocatable_before": before}
        return Evidence(f"allocatable of {node}: {', '.join(words) or 'as few as before'}", values)

    def _ended(self) -> Seen[Evidence]:
        ends: dict[str, str] = {}
        alive = []
        for server in self.struck:
            pod = self.ctx.kube.get("v1", "Pod", server.pod, server.namespace)
            status = strike.status_of(pod, server.container) if pod else {}
            end = _end(status, server.id)
            if pod is None or pod["metadata"]["uid"] != server.uid:  # evicted by the taint, or deleted by others
                if server.id in nodes.running_containers(self.ctx.cluster, server.node):
                    alive.append(f"{server.label} (its pod is gone, and it runs on)")
                else:
                    ends[server.label] = "its pod is gone, and its node runs it no more"
            elif end == _KILLED:
                ends[server.label] = f"{end}, restart count {status.get('restartCount', 0)}"
            else:
                alive.append(f"{server.label} ({end or 'running'})")
        detail = "the kubelet reports " + ", ".join(f"{label}: {end}" for label, end in ends.items())
        return Seen(not alive, Evidence(detail, {"ended": ends}), f"not ended by SIGKILL: {', '.join(alive)}")

    def _stopped(self) -> Seen[Evidence]:
        seen = self._letters(looks=1)
        moving = [server for server, letters in seen.items() if not letters or set(letters) != {signals.STOPPED}]
        detail = f"in the node's /proc every process of {', '.join(seen)} is stopped (T)"
        return Seen(not moving, Evidence(detail, {"states": seen}), f"not stopped: {', '.join(moving)}; states {seen}")

    def _moving(self) -> Seen[None]:
        stopped = [label for label, share in still(self._letters(looks=_FEW_LOOKS)).items() if share]
        return Seen(not stopped, None, f"still stopped: {', '.join(stopped)}")

    def _letters(self, *, looks: int) -> dict[str, str]:
        found: dict[str, str] = {}
        for node in {each.node for each in self.by_signal()}:
            those = {each.id: each.label for each in self.by_signal() if each.node == node}
            letters = signals.states(self.ctx.cluster, node, [*those], looks=looks)
            found |= {those[ident]: text for ident, text in letters.items()}
        return found

    def _slow(self) -> list[Evidence]:
        found = []
        if self.latencies:
            found.append(self.wait(self._told_slower, _PROOF_SECONDS, "the servers' own word that they are slow"))
        if self.by_signal():
            looks: dict[str, str] = {}

            def seen_slow() -> Seen[Evidence]:
                for label, letters in self._letters(looks=_LOOKS).items():
                    looks[label] = looks.get(label, "") + letters
                shares = still(looks)
                wanted = (1 - self.blow.fault.clock) / 2
                detail = f"in the node's /proc they stand still {shares} of the time"
                met = all(share >= wanted for share in shares.values())
                return Seen(met, Evidence(detail, {"stopped_share": shares}), f"stopped: {shares}, wanted {wanted:.2f}")

            found.append(self.wait(seen_slow, _PROOF_SECONDS, "the struck processes being slow"))
        return found

    def _told_slower(self) -> Seen[Evidence]:
        quick, after = [], {}
        for server in self.struck:
            if before := self.latencies.get(server.id):
                now = witness.latencies(self.ctx.kube, server) or {}
                after[server.label] = now
                if not witness.longer(before, now, 1 / self.blow.fault.clock):
                    quick.append(f"{server.label}: {now}")
        names = {each.id: each.label for each in self.struck}
        first = {names[key]: told for key, told in self.latencies.items()}
        values = {"latencies_before": first, "latencies": after, "slowed_after_s": self.since()}
        detail = f"by their own word {', '.join(after)} take {1 / self.blow.fault.clock:.2g} times as long"
        return Seen(not quick, Evidence(detail, values), f"not slower: {'; '.join(quick)}; {self._why()}")

    def _why(self) -> str:
        """The emulator's word on servers that it could not slow."""
        there = [each for node in self.nodes for each in control.state(self.ctx.kube, node).not_slowed]
        return (
            ", ".join(f"{each.namespace}/{each.pod}: {each.why}" for each in there) or "the emulator says nothing of it"
        )

    def _quick(self) -> Seen[None]:
        slow = []
        for server in self.struck:
            before = self.latencies.get(server.id)
            pod = self.ctx.kube.get("v1", "Pod", server.pod, server.namespace) if before else None
            if before and pod and _end(strike.status_of(pod, server.container), server.id) == "":
                now = witness.latencies(self.ctx.kube, server)
                slow += [server.label] if now is None or witness.longer(before, now, 1.05) else []
        return Seen(not slow, None, f"still slow: {', '.join(slow)}")

    def _monitored(self) -> Seen[Evidence]:
        name, fault = self.metric(), self.blow.fault
        now = {each.uuid: self.shown(each, name) for each in self.devices}
        met = all(
            value == fault.xid if fault.xid else value >= self.counted[key] + fault.sbe for key, value in now.items()
        )
        labels = {each.label: now[each.uuid] for each in self.devices}
        return Seen(met, Evidence(f"monitoring shows {name} {labels}", {name: labels}), f"{name} is {labels}")


def _end(status: Mapping[str, Any], ident: str) -> str:
    """How that run of a container ended, as the kubelet tells it; empty while it runs, and while nothing is told."""
    for state in ("state", "lastState"):
        past = status.get(state, {}).get("terminated", {})
        if str(past.get("containerID", "")).rpartition("/")[2] == ident:
            return f"exit code {past.get('exitCode')}"
    other = str(status.get("containerID", "")).rpartition("/")[2]
    return "replaced by another" if other and other != ident else ""
