"""The command line. Thin: each command calls one function of the house and shows what it returns."""

from __future__ import annotations

import json
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sandbox import __version__
from sandbox.errors import EXIT_INVALID, SandboxError, UsageError

if TYPE_CHECKING:
    from sandbox.images import Image

app = typer.Typer(
    help="A local AI-on-Kubernetes sandbox: a real cluster and model, load, chaos, attacks, and an honest verdict.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 pass, 1 fail, 2 usage or bad spec, 3 invalid, 4 environment missing, 130 interrupted.",
)
images_app = typer.Typer(help="Node and app images: built from packages or pulled.", no_args_is_help=True)
app.add_typer(images_app, name="images")
out = Console(highlight=False)


class Output(StrEnum):
    """How a command answers."""

    text = "text"
    json = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="text or json")]
ShapeArgument = Annotated[str, typer.Argument(help="A shape: a name of clusters/, or the path of a file.")]
ScenariosArgument = Annotated[list[str], typer.Argument(help="Scenario files, folders, or names.")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder that holds a folder per run.")]


@app.command()
def doctor(output: OutputOption = Output.text) -> None:
    """Look at this machine, change nothing: what is ok, degraded or missing, and the exact fix."""
    from sandbox.host import checks

    found = checks.doctor()
    if output is Output.json:
        sys.stdout.write(checks.as_json(found) + "\n")
    else:
        out.print(checks.as_table(found))
    raise typer.Exit(checks.exit_code(found))


@app.command()
def prepare() -> None:
    """Install and start what is missing (as root on an apt machine without an engine); a no-op where all is there."""
    from sandbox.host.preparing import prepare as make_ready

    engine = make_ready()
    out.print(f"engine: {engine.state}")


@app.command()
def up(
    shape: ShapeArgument = "solo",
    name: Annotated[str | None, typer.Option(help="Another name than the shape's.")] = None,
    allow_changes: Annotated[bool, typer.Option(help="Leave to change a `provider: existing` cluster.")] = False,
) -> None:
    """Bring a cluster up, or take the one that runs. It stays until `sandbox down`."""
    from sandbox import cluster
    from sandbox.spec.catalogue import find
    from sandbox.spec.cluster import ClusterSpec

    made = cluster.up(
        find("clusters", shape, ClusterSpec, kind="cluster").model, name=name, allow_changes=allow_changes
    )
    out.print(f"{made.name} is up: {', '.join(made.node_names)}")
    out.print(f"  export KUBECONFIG={made.kubeconfig}", soft_wrap=True)
    out.print(f"  sandbox down {made.name}")


@app.command()
def down(
    names: Annotated[list[str] | None, typer.Argument(help="Clusters to remove.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every cluster of this user's sandboxes.")] = False,
) -> None:
    """Remove clusters with everything that belongs to them, and verify that nothing is left."""
    from sandbox import cluster

    if bool(names) == all_:
        raise UsageError("name the clusters to remove, or say --all", fix="sandbox status")
    for name in [each.name for each in cluster.list_clusters()] if all_ else names or []:
        removed = cluster.down(name)
        out.print(f"{name} is down: {len(removed)} things removed")


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="One cluster; all without.")] = None,
    output: OutputOption = Output.text,
) -> None:
    """Say how clusters are doing. Looks only."""
    from sandbox import cluster

    found = [cluster.status(name)] if name else cluster.list_clusters()
    if output is Output.json:
        _json(found)
    elif not found:
        out.print("no cluster; make one: sandbox up")
    else:
        rows = [
            (each.name, each.state, each.version, ", ".join(node.name for node in each.nodes), "; ".join(each.problems))
            for each in found
        ]
        out.print(_table(("cluster", "state", "kubernetes", "nodes", "problems"), rows))


@app.command()
def kubeconfig(name: Annotated[str, typer.Argument(help="A cluster's name.")] = "solo") -> None:
    """Print the path of a cluster's own kubeconfig: `export KUBECONFIG=$(sandbox kubeconfig solo)`."""
    from sandbox import cluster

    sys.stdout.write(f"{cluster.kubeconfig(name)}\n")


@app.command("list")
def list_(
    kind: Annotated[str | None, typer.Argument(help="clusters, scenarios, stacks, guardrails, attacks …")] = None,
    output: OutputOption = Output.text,
) -> None:
    """Show what there is: scenarios, clusters, stacks, guardrails, attacks, profiles, faults, probes, metrics."""
    from sandbox import plan

    found = plan.catalogue()
    if kind is not None and kind not in found:
        raise UsageError(f"there is no {kind!r} to list", fix=f"use one of: {', '.join(found)}")
    chosen = {key: rows for key, rows in found.items() if kind in {None, key}}
    if output is Output.json:
        _json(chosen)
        return
    for key, rows in chosen.items():
        out.print(_table((key, "what it is"), list(rows.items())))


@app.command()
def lint(paths: ScenariosArgument, output: OutputOption = Output.text) -> None:
    """Check scenarios and everything they name; nothing is touched. Every mistake at once."""
    from sandbox import plan

    plans = plan.load_all(paths)
    if output is Output.json:
        _json([{"scenario": each.scenario.metadata.name, "source": str(each.source)} for each in plans])
    else:
        out.print(f"{len(plans)} scenario{'s' if len(plans) != 1 else ''} ok")


@app.command()
def run(
    paths: ScenariosArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, touch nothing.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave cluster and stack as they are in the end.")] = False,
    cluster_name: Annotated[str | None, typer.Option("--cluster-name", help="Run on a cluster of this name.")] = None,
    allow_changes: Annotated[bool, typer.Option(help="Leave to change a `provider: existing` cluster.")] = False,
    runs: RunsOption = Path("runs"),
    output: OutputOption = Output.text,
) -> None:
    """Run scenarios to a verdict. The exit code is the worst of them."""
    from sandbox import plan, suite
    from sandbox.run import Options

    plans = plan.load_all(paths)
    if dry_run:
        for each in plans:
            out.print(each.in_words(), markup=False, soft_wrap=True)
        return
    options = Options(runs=runs, keep=keep, allow_changes=allow_changes, cluster_name=cluster_name)
    outcomes = suite.execute_all(plans, options)
    if output is Output.json:
        _json([each.results.model_dump(mode="json", by_alias=True) for each in outcomes])
    else:
        suite.show(outcomes, out, runs)
    suite.publish(outcomes, runs)
    raise typer.Exit(suite.exit_code(outcomes))


@app.command()
def judge(
    folder: Annotated[Path, typer.Argument(help="A run's folder, such as runs/<id>.")],
    output: OutputOption = Output.text,
) -> None:
    """Judge a run again from its timeline, without a cluster, and write its report anew."""
    from sandbox import suite

    results = suite.replay(folder)
    if output is Output.json:
        _json(results.model_dump(mode="json", by_alias=True))
    else:
        suite.show_one(results, out, folder)
    raise typer.Exit(suite.VERDICT_CODES[results.verdict])


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A run's folder, such as runs/<id>.")]) -> None:
    """Write a run's report files anew from its results and timeline, and say where they lie."""
    from sandbox import suite

    for path in suite.rewrite(folder):
        out.print(str(path), soft_wrap=True)


@app.command()
def schema(
    kind: Annotated[str, typer.Argument(help="scenario, cluster, stack, guardrail, attempt, profile or results")],
) -> None:
    """Print the JSON Schema of a spec, for editors."""
    from sandbox import plan

    models = plan.models()
    if kind not in models:
        raise UsageError(f"there is no schema {kind!r}", fix=f"use one of: {', '.join(models)}")
    sys.stdout.write(json.dumps(models[kind].model_json_schema(by_alias=True), indent=2) + "\n")


ImagesArgument = Annotated[list[str] | None, typer.Argument(help="Images of clusters/images/; all without.")]


@images_app.command("list")
def images_list(output: OutputOption = Output.text) -> None:
    """Show every image, whether the engine has it, and what its SPDX document counts."""
    from sandbox import images

    found = images.list_images()
    if output is Output.json:
        _json(found)
        return
    rows = [
        (
            each.name,
            each.version,
            f"{each.image.source}, {each.image.size / 1e6:.0f} MB" if each.image else "not here",
            f"{each.packages} ({each.licences_unknown} without a known licence)" if each.sbom else "",
            str(each.sbom or ""),
        )
        for each in found
    ]
    out.print(_table(("image", "version", "here", "packages", "SPDX"), rows))


@images_app.command("ensure")
def images_ensure(names: ImagesArgument = None) -> None:
    """Have images, as every command does: there already, else pulled where a registry answers, else built."""
    from sandbox import images

    _had(images.ensure(names or [each.name for each in images.list_images()]))


@images_app.command("build")
def images_build(
    names: ImagesArgument = None,
    fresh: Annotated[bool, typer.Option(help="With today's versions of the Debian packages.")] = False,
) -> None:
    """Build images from Debian, Go and PyPI packages; what is there already is left as it is."""
    from sandbox import images

    _had(images.build(names or [], fresh=fresh))


@images_app.command("pull")
def images_pull(names: ImagesArgument = None) -> None:
    """Pull images by their pinned digest, or from the mirror named in SANDBOX_REGISTRY."""
    from sandbox import images

    _had(images.pull(names or []))


@images_app.command("push")
def images_push(
    registry: Annotated[str, typer.Argument(help="<host:port> or <host:port>/<prefix>")], names: ImagesArgument = None
) -> None:
    """Give built images to a registry, for machines that name it in SANDBOX_REGISTRY."""
    from sandbox import images

    for name, digest in images.push(registry, names or []).items():
        out.print(f"{name}: {digest}", soft_wrap=True)


@images_app.command("trim")
def images_trim() -> None:
    """Remove the caches that only building needs; what was built stays."""
    from sandbox import images

    out.print(f"{images.trim() / 1e9:.1f} GB freed")


def _had(images: Mapping[str, Image]) -> None:
    for image in images.values():
        out.print(f"{image.name}: {image.ref} ({image.source}, {image.size / 1e6:.0f} MB)", soft_wrap=True)


@app.command()
def version() -> None:
    """Print the version."""
    sys.stdout.write(f"{__version__}\n")


def _json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, default=_plain, indent=2) + "\n")


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    for position, column in enumerate(columns):
        table.add_column(column, no_wrap=position == 0, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # cells hold what clusters and files say: never markup
    return table


def main() -> None:
    """Entry point: errors as one readable message, exit codes as documented."""
    signal.signal(signal.SIGTERM, _interrupt)
    errors_out = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        app()
    except SandboxError as error:
        errors_out.print(str(error), markup=False)
        sys.exit(error.exit_code)
    except Exception:  # noqa: BLE001 - a bug of ours must not look like exit code 1, a promise that did not hold
        traceback.print_exc()
        errors_out.print("this is a bug in the sandbox; whatever it was asked is not proven")
        sys.exit(EXIT_INVALID)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """A polite end asked for by a CI system is handled as Ctrl-C: everything is unwound."""
    del number, frame
    raise KeyboardInterrupt
