"""Steady-state probes: one function each, registered by name; see `sandbox.probes.base` for the contract."""

from sandbox.probes import kubernetes as _kubernetes  # noqa: F401 - importing registers
from sandbox.probes import openai as _openai  # noqa: F401 - importing registers
from sandbox.probes.base import PROBES, Context, Seen, look
from sandbox.probes.prometheus import STACK

# probe -> the stack it asks, which has to be there
NEEDS = {"prometheus.query": STACK}

__all__ = ["NEEDS", "PROBES", "Context", "Seen", "look"]
