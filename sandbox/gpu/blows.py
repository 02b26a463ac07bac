"""What can happen to a GPU: what its device shows then, and what becomes of the server on it. XIDs are in xids.yaml."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import yaml
from pydantic import Field

from sandbox import paths
from sandbox.gpu.emulator.devices import Fault
from sandbox.spec.base import Strict

Process = Literal["none", "crash", "hang", "slow"]
Effect = Literal["none", "crash", "hang"]
Ecc = Literal["uncorrectable", "uncontained", "contained", "corrected"]
Reason = Literal["thermal", "power"]
LOST = 79
_ECC: dict[str, int] = {"uncorrectable": 48, "uncontained": 95, "contained": 94}


class Xid(Strict):
    """One row of xids.yaml, which says what its keys mean."""

    text: str
    application: bool = False
    lost: bool = False
    corrected: int = Field(default=0, ge=0)
    uncorrected: int = Field(default=0, ge=0)
    process: Effect

    @property
    def unhealthy(self) -> bool:
        """Whether the device may not be given to anybody until it is healed."""
        return not self.application


@dataclass(frozen=True)
class Blow:
    """What is done to a device.

    Attributes:
        words: what it is, for people.
        fault: what the emulator is told; `id`, `until` and `gpu` are filled in for each device.
        process: what becomes of the processes on it.
    """

    words: str
    fault: Fault
    process: Process

    def on(self, gpu: int | None, *, ident: str, until: float) -> Fault:
        """The fault of one device; of the node without `gpu`."""
        return replace(self.fault, id=ident, until=until, gpu=gpu)


@cache
def xids() -> dict[int, Xid]:
    """The XIDs that are known here."""
    raw: dict[int, Any] = yaml.safe_load((paths.shipped("gpu") / "xids.yaml").read_text(encoding="utf-8"))
    return {code: Xid.model_validate(row) for code, row in raw.items()}


def known(code: int) -> int:
    """The code itself. Raises ValueError, naming those there are, where it is not one of them."""
    if code not in xids():
        raise ValueError(f"XID {code} is none that is known here; known: {', '.join(map(str, xids()))}")
    return code


def xid(code: int, process: Effect | None = None) -> Blow:
    """An XID, with what it does to the process on the device, or `process` instead. Raises ValueError for others."""
    row = xids()[known(code)]
    fault = Fault(
        id="",
        until=0.0,
        xid=code,
        unhealthy=row.unhealthy,
        lost=row.lost,
        dbe=row.uncorrected,
        sbe=row.corrected,
    )
    return Blow(f"XID {code} ({row.text})", fault, process or row.process)


def lost(process: Effect | None = None) -> Blow:
    """The GPU has fallen off the bus."""
    return xid(LOST, process)


def ecc(kind: Ecc, errors: int = 1, process: Effect | None = None) -> Blow:
    """So many memory errors: `corrected` ones are only counted, the others come with their XID."""
    if kind == "corrected":
        return Blow(f"{errors} corrected ECC errors", Fault(id="", until=0.0, sbe=errors), process or "none")
    blow = xid(_ECC[kind], process)
    return replace(blow, fault=replace(blow.fault, dbe=errors))


def throttle(reason: Reason, clock: float) -> Blow:
    """The GPU runs at that share of its clock, and so does the server on it."""
    words = f"{reason} throttling to {clock:.0%} of its clock"
    return Blow(words, Fault(id="", until=0.0, throttle=reason, clock=clock), "slow")


def plugin_down() -> Blow:
    """Device plugin and DRA driver are gone from a node."""
    return Blow("device plugin and DRA driver gone", Fault(id="", until=0.0, plugin_down=True), "none")
