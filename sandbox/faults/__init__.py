"""Faults: one generator function each, registered by name; see `sandbox.faults.base` for the contract."""

from sandbox.faults import gpu as _gpu  # noqa: F401 - importing registers
from sandbox.faults import pods as _pods  # noqa: F401
from sandbox.faults.base import FAULTS, Context, Evidence, NoTarget, drive

__all__ = ["FAULTS", "Context", "Evidence", "NoTarget", "drive"]
