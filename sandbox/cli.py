"""The command line. Thin: each command calls one function of the house and shows what it returns."""

from __future__ import annotations

import errno
import json
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sandbox import __version__, paths, reaper
from sandbox.cli_gpu import gpu_app
from sandbox.cli_images import images_app
from sandbox.cli_load import BaselineOption, load
from sandbox.cli_output import Output, OutputOption, out, show_up, table, write_json
from sandbox.cli_pool import pool_app
from sandbox.cli_snapshot import snapshot_app
from sandbox.cli_status import status
from sandbox.errors import EXIT_ENVIRONMENT, EXIT_FAIL, EXIT_INVALID, EnvironmentMissing, SandboxError, UsageError

app = typer.Typer(
    help="A local AI-on-Kubernetes sandbox: a real cluster and model, load, chaos, attacks, and an honest verdict.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 pass, 1 fail, 2 usage or bad spec, 3 invalid, 4 environment missing, 130 interrupted.",
)
app.add_typer(gpu_app, name="gpu")
app.add_typer(images_app, name="images")
app.add_typer(pool_app, name="pool")
app.add_typer(snapshot_app, name="snapshot")
app.command()(load)
app.command()(status)
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FULL_BYTES = 1 << 20
errors_out = Console(stderr=True, highlight=False, soft_wrap=True)
ShapeArgument = Annotated[str, typer.Argument(help="A shape: a name of clusters/, or the path of a file.")]
NameArgument = Annotated[str, typer.Argument(help="A cluster's name.")]
ScenariosArgument = Annotated[list[str], typer.Argument(help="Scenario files, folders, or names.")]
ColdOption = Annotated[bool, typer.Option("--cold", help="Make it anew: use no snapshot, and keep none.")]
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
def prepare(output: OutputOption = Output.text) -> None:
    """Install and start what is missing (as root on an apt machine without an engine); a no-op where all is there."""
    from sandbox.host.preparing import prepare as make_ready

    engine = make_ready()
    if output is Output.json:
        write_json(engine)
    else:
        out.print(f"engine: {engine.state}")


@app.command()
def up(
    shape: ShapeArgument = "solo",
    name: Annotated[str | None, typer.Option(help="Another name than the shape's.")] = None,
    allow_changes: Annotated[bool, typer.Option(help="Leave to change a `provider: existing` cluster.")] = False,
    cold: ColdOption = False,
    output: OutputOption = Output.text,
) -> None:
    """Bring a cluster up, or take the one that runs. It stays until `sandbox down`."""
    from sandbox import cluster
    from sandbox.spec.catalogue import find
    from sandbox.spec.cluster import ClusterSpec

    spec = find("clusters", shape, ClusterSpec, kind="cluster").model
    with reaper.watch():
        made = cluster.up(spec, name=name, allow_changes=allow_changes, cold=cold)
    if output is Output.json:
        write_json(made)
        return
    show_up(made)


@app.command()
def down(
    names: Annotated[list[str] | None, typer.Argument(help="Clusters to remove.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every cluster of this user's sandboxes.")] = False,
    output: OutputOption = Output.text,
) -> None:
    """Remove clusters with everything that belongs to them, and verify that nothing is left."""
    from sandbox import cluster

    if bool(names) == all_:
        raise UsageError("name the clusters to remove, or say --all", fix="sandbox status")
    wanted = [each.name for each in cluster.list_clusters()] if all_ else names or []
    removed: dict[str, list[str]] = {}
    leftovers: list[str] = []
    refused: list[SandboxError] = []  # one that stays keeps no other one up
    with reaper.watch():
        for name in wanted:
            with _kept_for_later(refused), cluster.lease(name):  # not from under a run
                removed[name] = cluster.down(name) if all_ else cluster.release(name)
        if all_:  # what no record speaks of any more
            with _kept_for_later(refused):
                leftovers = cluster.reap(strict=True)
    if output is Output.json:
        write_json({"removed": removed, "leftovers": leftovers})
    else:
        for name, things in removed.items():
            out.print(f"{name} is down: {len(things)} things removed")
        for name in leftovers:
            out.print(f"{name}: removed, a leftover")
    _raise_worst(refused)


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be removed.")] = False,
    output: OutputOption = Output.text,
) -> None:
    """Remove what nobody needs any more: what killed commands left, snapshots over the limit, old pooled clusters."""
    from sandbox.cluster import garbage

    found = garbage.collect(dry_run=dry_run)
    if output is Output.json:
        write_json({"removed": [] if dry_run else found, "would_be_removed": found if dry_run else []})
    elif not found:
        out.print("nothing is left behind")
    else:
        out.print(table(("kind", "would be removed" if dry_run else "removed", "why"), [*map(astuple, found)]))


@app.command()
def reset(name: NameArgument = "solo", output: OutputOption = Output.text) -> None:
    """Bring a cluster back to what it held as it came up, proven by a look at all of it; else make it anew."""
    from sandbox import cluster

    with reaper.watch(), cluster.lease(name):  # not from under a run
        done = cluster.renew(name)
    if output is Output.json:
        write_json(done)
        return
    for line in done.found:
        out.print(f"  {line}", markup=False, soft_wrap=True)
    words = "is as it came up" if done.way == "reset" else "could not be reset, and was made anew"
    out.print(f"{name} {words}; {len(done.found) or 'no'} differences were found")


@contextmanager
def _kept_for_later(refused: list[SandboxError]) -> Iterator[None]:
    try:
        yield
    except SandboxError as error:
        refused.append(error)


def _raise_worst(refused: list[SandboxError]) -> None:
    """Show all; the exit code is 1 where one of them has it, else that of the first."""
    worst = sorted(refused, key=lambda error: error.exit_code != EXIT_FAIL)
    for other in worst[1:]:
        errors_out.print(str(other), markup=False)
    if worst:
        raise worst[0]


@app.command()
def prove(name: NameArgument = "solo", output: OutputOption = Output.text) -> None:
    """Prove what a running cluster promises, by live packets and volumes; exit code 1 where a promise does not hold."""
    from sandbox import cluster, images
    from sandbox.cluster import nodes

    own = cluster.current(name)
    cluster.prove_ours(own)
    toolbox = images.ensure(["toolbox"])["toolbox"].ref
    with cluster.lease(name):  # a run clears away what it does not know
        nodes.load_images(own, [toolbox])
        proofs = cluster.prove_all(own, toolbox)
    if output is Output.json:
        write_json(proofs)
    else:
        rows = [("holds" if each.ok else "does not hold", each.promise, each.detail) for each in proofs]
        out.print(table(("", "promise", "seen"), rows))
    raise typer.Exit(0 if all(each.ok for each in proofs) else EXIT_FAIL)


@app.command()
def kubeconfig(name: NameArgument = "solo", output: OutputOption = Output.text) -> None:
    """Print the path of a cluster's own kubeconfig: `export KUBECONFIG=$(sandbox kubeconfig solo)`."""
    from sandbox import cluster

    path = cluster.kubeconfig(name)
    if output is Output.json:
        write_json({"name": name, "kubeconfig": path})
    else:
        sys.stdout.write(f"{path}\n")


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
        write_json(chosen)
        return
    for key, rows in chosen.items():
        out.print(table((key, "what it is"), list(rows.items())))


@app.command()
def lint(paths: ScenariosArgument, output: OutputOption = Output.text) -> None:
    """Check scenarios and everything they name; nothing is touched. Every mistake at once."""
    from sandbox import plan

    plans = plan.load_all(paths)
    if output is Output.json:
        write_json([{"scenario": each.scenario.metadata.name, "source": str(each.source)} for each in plans])
    else:
        out.print(f"{len(plans)} scenario{'s' if len(plans) != 1 else ''} ok")


@app.command()
def run(
    paths: ScenariosArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, touch nothing.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave cluster and stack as they are in the end.")] = False,
    cluster_name: Annotated[str | None, typer.Option("--cluster-name", help="Run on a cluster of this name.")] = None,
    allow_changes: Annotated[bool, typer.Option(help="Leave to change a `provider: existing` cluster.")] = False,
    cold: ColdOption = False,
    baseline: BaselineOption = None,
    runs: RunsOption = Path("runs"),
    output: OutputOption = Output.text,
) -> None:
    """Run scenarios to a verdict. The exit code is the worst of them."""
    from sandbox import plan, suite
    from sandbox.run import Options

    plans = plan.load_all(paths)
    if dry_run and output is Output.json:
        write_json([each.as_json() for each in plans])
        return
    if dry_run:
        for each in plans:
            out.print(each.in_words(), markup=False, soft_wrap=True)
        return
    options = Options(
        runs=runs, keep=keep, allow_changes=allow_changes, cluster_name=cluster_name, cold=cold, baseline=baseline
    )
    with reaper.watch():
        outcomes = suite.execute_all(plans, options)
    published = suite.publish(outcomes, runs)
    if output is Output.json:
        write_json([each.results.model_dump(mode="json", by_alias=True) for each in outcomes])
    else:
        suite.show(outcomes, out, runs, published)
    raise typer.Exit(suite.exit_code(outcomes, published))


@app.command()
def judge(
    folder: Annotated[Path, typer.Argument(help="A run's folder, such as runs/<id>.")],
    output: OutputOption = Output.text,
) -> None:
    """Judge a run again from its timeline, without a cluster, and write its report anew."""
    from sandbox import suite

    results, written = suite.replay(folder)
    if output is Output.json:
        write_json(results.model_dump(mode="json", by_alias=True))
    else:
        suite.show_one(results, out, folder)
    if (missed := written.missed(folder)) is not None and results.verdict != "fail":
        raise missed
    raise typer.Exit(suite.VERDICT_CODES[results.verdict])


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A run's folder, such as runs/<id>.")],
    output: OutputOption = Output.text,
) -> None:
    """Write a run's report files anew from its results and timeline, and say where they lie."""
    from sandbox import suite

    written = suite.rewrite(folder)
    if output is Output.json:
        write_json([*written.files.values()])
    for path in written.files.values() if output is Output.text else ():
        out.print(str(path), markup=False, soft_wrap=True)
    if (missed := written.missed(folder)) is not None:
        raise missed


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


@app.command()
def version() -> None:
    """Print the version."""
    sys.stdout.write(f"{__version__}\n")


def main() -> None:
    """Entry point: errors as one readable message, exit codes as documented."""
    try:
        app()
    except SandboxError as error:
        errors_out.print(str(error), markup=False)
        sys.exit(error.exit_code)
    except Exception as error:  # noqa: BLE001 - a bug of ours must not look like exit code 1, a promise that did not hold
        if isinstance(error, OSError) and error.errno in _FULL:
            errors_out.print(str(_no_room(error)), markup=False)
            sys.exit(EXIT_ENVIRONMENT)
        traceback.print_exc()
        errors_out.print("this is a bug in the sandbox; whatever it was asked is not proven")
        sys.exit(EXIT_INVALID)


def _no_room(error: OSError) -> EnvironmentMissing:
    """A disk is full: a write that fails does not say which, so those that are full are named."""
    ours = {paths.state_dir(), paths.cache_dir(), Path(tempfile.gettempdir()), Path.cwd()}
    full = sorted(str(each) for each in ours if shutil.disk_usage(each).free < _FULL_BYTES)
    where = str(error.filename or ", ".join(full))
    return EnvironmentMissing("the disk is full", where=where, fix="make room there, then the same command again")
