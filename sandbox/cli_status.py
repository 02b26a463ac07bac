"""`sandbox status`: how clusters are doing, how they came, and what they cost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from sandbox.cli_output import Output, OutputOption, out, table, write_json

if TYPE_CHECKING:
    from sandbox.cluster import Status

_MIB, _GIB = 1 << 20, 1 << 30
_TWO_HOURS = 120  # minutes


def status(
    name: Annotated[str | None, typer.Argument(help="One cluster; all without.")] = None,
    output: OutputOption = Output.text,
) -> None:
    """Say how clusters are doing. Looks only."""
    from sandbox import cluster

    found = cluster.weighed([cluster.status(name)] if name else cluster.list_clusters())
    if output is Output.json:
        write_json(found)
    elif not found:
        out.print("no cluster; make one: sandbox up")
    else:
        rows = [
            (
                each.name,
                f"{each.state}, in use" if each.in_use else each.state,
                each.version,
                ", ".join(
                    [node.name for node in each.nodes] + ([f"{each.simulated[1]} simulated"] * any(each.simulated))
                ),
                _since(each),
                each.words,
                _size(each.memory),
                _size(each.disk),
                "; ".join(each.problems),
            )
            for each in found
        ]
        out.print(
            table(("cluster", "state", "kubernetes", "nodes", "since", "came", "memory", "disk", "problems"), rows)
        )


def _size(size: int | None) -> str:
    """Bytes for people; empty where they are not known."""
    return "" if size is None else f"{size / _GIB:.1f} GiB" if size >= _GIB else f"{size / _MIB:.0f} MiB"


def _since(status: Status) -> str:
    """Since when a cluster is there."""
    if not status.created:
        return ""
    minutes = (time.time() - status.created) / 60
    return f"{minutes:.0f} min" if minutes < _TWO_HOURS else f"{minutes / 60:.0f} h"
