"""Attempts that a tenant makes on the platform, each with its allowed twin: real requests, real packets."""

from sandbox.attacks.catalogue import attempts
from sandbox.attacks.run import AttackResult, make

__all__ = ["AttackResult", "attempts", "make"]
