"""`sandbox pool …`: clusters prepared beforehand, which `up`, `run` and pytest lease."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Annotated

import typer

from sandbox import reaper
from sandbox.cli_output import Output, OutputOption, out, table, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandbox.cluster.pool.entries import Entry
    from sandbox.kube.preparation import Preparation

_NICE = 10
pool_app = typer.Typer(help="Prepare clusters that stand still until they are leased.", no_args_is_help=True)


@pool_app.command("fill")
def pool_fill(
    what: Annotated[str, typer.Argument(help="A scenario, whose stack and guardrails are in them; or a shape.")],
    size: Annotated[int, typer.Option(help="How many of this kind there are to be.")] = 1,
    output: OutputOption = Output.text,
) -> None:
    """Prepare clusters and let them stand still, at low priority. `up`, `run` and pytest lease them in seconds."""
    from sandbox.cluster.pool import filling

    prepared, source = _preparation(what)
    os.nice(_NICE)
    with reaper.watch():
        filled = filling.fill(prepared, size, source)
    _show(filled, output)


@pool_app.command("list")
def pool_list(output: OutputOption = Output.text) -> None:
    """Show what waits in the pool."""
    from sandbox.cluster.pool import entries

    _show(entries.entries(), output)


@pool_app.command("drain")
def pool_drain(output: OutputOption = Output.text) -> None:
    """Remove what waits in the pool. Clusters that were leased go on."""
    from sandbox.cluster.pool import entries

    with reaper.watch():
        removed = entries.drain()
    if output is Output.json:
        write_json({"removed": removed})
    else:
        out.print(f"{len(removed)} removed")


def _preparation(what: str) -> tuple[Preparation, str]:
    """What is asked for by the name of a shape, or else of a scenario; and words that say so in any folder."""
    from sandbox import plan
    from sandbox.errors import UsageError
    from sandbox.kube.preparation import Preparation
    from sandbox.spec.catalogue import find, names
    from sandbox.spec.cluster import ClusterSpec

    if what in names("clusters"):
        return Preparation(find("clusters", what, ClusterSpec, kind="cluster").model), what
    loaded, *more = plan.load_all([what])
    if more:
        raise UsageError(f"are {len(more) + 1} scenarios", where=what, fix="name one of them")
    if loaded.preparation is None or loaded.preparation.spec.provider != "kind":
        raise UsageError("has no cluster of ours to prepare", where=what, fix="a scenario with a `cluster`, or a shape")
    return loaded.preparation, str(loaded.source.resolve())


def _show(found: Sequence[Entry], output: Output) -> None:
    if output is Output.json:
        write_json(found)
    elif not found:
        out.print("nothing waits in the pool; prepare one: sandbox pool fill solo")
    else:
        rows = [(each.name, each.contents, f"{(time.time() - each.since) / 60:.0f} min") for each in found]
        out.print(table(("cluster", "holds", "for"), rows))
