"""What became of workloads, as a table: the same columns on the terminal, on the page and in a step summary."""

from __future__ import annotations

from collections.abc import Sequence

from sandbox.report.text import rate, seconds
from sandbox.spec.results import WorkloadSummary

COLUMNS = (
    "workload",
    "pods",
    "placed",
    "waiting",
    "running",
    "done",
    "failed",
    "lost",
    "nodes",
    "GPUs",
    "pods/s",
    "p99",
)


def rows(workloads: Sequence[WorkloadSummary]) -> list[list[str]]:
    """One row each, below `COLUMNS`; the last two say how quickly pods got a node."""
    return [
        [
            each.workload,
            f"{each.pods:,}",
            f"{each.scheduled:,}",
            f"{each.pending:,}",
            f"{each.running:,}",
            f"{each.succeeded:,}",
            f"{each.failed + each.refused:,}",
            f"{each.lost:,}",
            f"{each.nodes:,}",
            f"{each.gpus:,}",
            rate(each.scheduling_rate),
            seconds(each.scheduling_seconds.get("p99")),
        ]
        for each in workloads
    ]


def said(workloads: Sequence[WorkloadSummary], most: int) -> list[str]:
    """Why pods wait, failed or were refused, in the words of whoever held them back."""
    return [f"{each.workload}: {text}" for each in workloads for text in each.said[:most]]
