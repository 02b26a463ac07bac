"""Bring a whole cluster back to what it held when it was clean, and prove it."""

from sandbox.cluster.reset.resetting import Proven, Unclean, reset

__all__ = ["Proven", "Unclean", "reset"]
