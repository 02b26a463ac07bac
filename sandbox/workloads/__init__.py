"""Workloads of a scenario on a cluster: pods made in a namespace of their own, and followed by one watch."""

from sandbox.workloads.board import Board
from sandbox.workloads.drive import Ground, clear, close, drive
from sandbox.workloads.objects import NAMESPACE, WORKLOAD_LABEL

__all__ = ["NAMESPACE", "WORKLOAD_LABEL", "Board", "Ground", "clear", "close", "drive"]
