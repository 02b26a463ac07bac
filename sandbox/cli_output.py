"""How commands answer: `-o json` for programs, tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from sandbox.cluster import Cluster

out = Console(highlight=False)


class Output(StrEnum):
    """How a command answers."""

    text = "text"
    json = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="text or json")]


def write_json(value: Any) -> None:
    """One JSON document on stdout; dataclasses become objects, paths text."""
    sys.stdout.write(json.dumps(value, default=_plain, indent=2) + "\n")


def show_up(cluster: Cluster, how: str = "") -> None:
    """Say that a cluster is up, and what to type next."""
    out.print(f"{cluster.name} is up{how}: {', '.join(cluster.node_names)}")
    out.print(f"  export KUBECONFIG={cluster.kubeconfig}", soft_wrap=True)
    out.print(f"  sandbox down {cluster.name}")


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Rows of plain text under bold heads."""
    shown = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    for position, column in enumerate(columns):
        shown.add_column(column, no_wrap=position == 0, overflow="fold")
    for row in rows:
        shown.add_row(*map(Text, row))  # cells hold what clusters and files say: never markup
    return shown
