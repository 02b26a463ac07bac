"""`sandbox snapshot …`: a prepared cluster kept, and copies of it started."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import typer

from sandbox import reaper
from sandbox.cli_output import Output, OutputOption, out, show_up, table, write_json

snapshot_app = typer.Typer(help="Keep a prepared cluster, and start copies of it.", no_args_is_help=True)
NameArgument = Annotated[str, typer.Argument(help="The snapshot's name.")]


@snapshot_app.command("save")
def snapshot_save(
    name: NameArgument,
    cluster: Annotated[str, typer.Option(help="The cluster to keep, as it is now.")] = "solo",
    output: OutputOption = Output.text,
) -> None:
    """Keep a cluster that runs, with all that is in it. It stands still for two or three seconds."""
    from sandbox import cluster as clusters
    from sandbox.cluster import snapshots

    own = clusters.current(cluster)
    with reaper.watch(), clusters.lease(cluster):  # not in the middle of a run, whose figures would show it
        saved = snapshots.save(own, name)
    if output is Output.json:
        write_json(_shown(name))
        return
    out.print(f"{saved.name} keeps {cluster} as it is now")
    out.print(f"  sandbox snapshot restore {saved.name} --cluster another")


@snapshot_app.command("restore")
def snapshot_restore(
    name: NameArgument,
    cluster: Annotated[str | None, typer.Option(help="The copy's name; without, as the one that was saved.")] = None,
    output: OutputOption = Output.text,
) -> None:
    """Start a copy of a snapshot. Any number of them run side by side. It stays until `sandbox down`."""
    from sandbox import cluster as clusters

    with reaper.watch():
        made = clusters.restore(name, cluster)
    if output is Output.json:
        write_json(made)
        return
    show_up(made, f", {made.origin.words}")


@snapshot_app.command("list")
def snapshot_list(output: OutputOption = Output.text) -> None:
    """Show the snapshots there are: what is in each, since when, and what is wrong with one."""
    from sandbox.cluster import snapshots

    found = [_shown(name) for name in snapshots.names()]
    if output is Output.json:
        write_json(found)
    elif not found:
        out.print("no snapshot; keep a cluster: sandbox snapshot save NAME")
    else:
        rows = [
            (each.name, each.contents, each.since, "automatic" if each.automatic else "", each.problem)
            for each in found
        ]
        out.print(table(("snapshot", "holds", "since", "", "problem"), rows))


@snapshot_app.command("remove")
def snapshot_remove(
    names: Annotated[list[str], typer.Argument(help="Snapshots to remove.")], output: OutputOption = Output.text
) -> None:
    """Remove snapshots. Clusters that were restored from them go on."""
    from sandbox.cluster import snapshots

    with reaper.watch():
        removed = {name: snapshots.remove(name) for name in names}
    if output is Output.json:
        write_json({"removed": removed})
        return
    for name, things in removed.items():
        out.print(f"{name}: {len(things)} things removed" if things else f"{name}: there is nothing to remove")


@dataclass(frozen=True)
class Shown:
    """One snapshot as it is listed; `problem` says why one cannot be read."""

    name: str
    contents: str = ""
    since: str = ""
    automatic: bool = False
    problem: str = ""


def _shown(name: str) -> Shown:
    from sandbox.cluster import snapshots
    from sandbox.errors import SandboxError

    try:
        each = snapshots.load(name)
    except SandboxError as error:
        return Shown(name, problem=error.what)
    since = datetime.fromtimestamp(each.created, UTC).isoformat(timespec="seconds")
    return Shown(name, each.contents, since, each.automatic)
