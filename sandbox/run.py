"""One run: the phases, top to bottom. Everything else in this tool is called from here."""

from __future__ import annotations

import os
import platform
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from sandbox import __version__, baseline, cluster, errors, grammar, images, loading, remains, steady, workloads
from sandbox.cluster import Cluster, Owner
from sandbox.errors import ClusterError, SandboxError, Unproven
from sandbox.exercise import exercise
from sandbox.gpu import strike
from sandbox.host import prepare, require
from sandbox.judge import judge as judged
from sandbox.kube import Kube, collect, guardrails, inventory, namespaces, stacks
from sandbox.plan import Plan
from sandbox.progress import say, step
from sandbox.report.files import make_folder
from sandbox.report.write import Written, write_all
from sandbox.spec.inputs import inputs_of
from sandbox.spec.results import Results
from sandbox.timeline import BaselineSamples, Fact, PhaseChanged, RunStarted, Timeline, read, wall_now

_STEADY_SECONDS = 30.0
_GIB = 1 << 30


@dataclass(frozen=True)
class Options:
    """How to run, beside what to run.

    Attributes:
        runs: the folder that holds a folder per run.
        keep: leave cluster and stack as they are in the end.
        keep_cluster: leave the cluster: somebody else takes it down.
        allow_changes: leave to change a `provider: existing` cluster.
        cluster_name: another name for the cluster than its shape's, so that runs can be side by side.
        cold: make the cluster anew, and keep no snapshot.
        html: write the page for people too; it takes three seconds, and can be written later from the timeline.
        baseline: the folder of an earlier run, for thresholds that are held against it.
    """

    runs: Path = Path("runs")
    keep: bool = False
    keep_cluster: bool = False
    allow_changes: bool = False
    cluster_name: str | None = None
    cold: bool = False
    html: bool = True
    baseline: Path | None = None


@dataclass
class Run:
    """What the phases hand on to each other. `undo` unwinds it all, last thing first."""

    plan: Plan
    options: Options
    folder: Path
    timeline: Timeline
    undo: ExitStack
    stop: threading.Event = field(default_factory=threading.Event)
    cluster: Cluster | None = None
    cluster_goes: bool = False  # with the run; what is on it goes along
    untouched: bool = False  # the cluster is new, and nothing was on it but what this run asks for
    kube: Kube | None = None
    images: dict[str, str] = field(default_factory=dict)  # name -> reference, of all the plan names
    deployed: stacks.Deployed | None = None
    urls: dict[str, str] = field(default_factory=dict)  # stack -> where it answers, of those it requires too
    tenant: guardrails.Tenant | None = None
    results: Results | None = None
    written: Written | None = None

    def fact(self, about: str, **values: Any) -> None:
        """Record something about the ground this run stands on."""
        self.timeline.append(Fact(t=self.timeline.now(), about=about, values=values))

    @property
    def live(self) -> tuple[Cluster, Kube, stacks.Deployed]:
        """The cluster, its API and the stack on it, for the phases after `deploy`."""
        own, kube = self.ground
        if self.deployed is None:
            raise Unproven("nothing is deployed")
        return own, kube, self.deployed

    @property
    def ground(self) -> tuple[Cluster, Kube]:
        """The cluster and its API, whatever is on it."""
        if self.cluster is None or self.kube is None:
            raise Unproven("there is no cluster")
        return self.cluster, self.kube

    @property
    def namespace(self) -> str:
        """Where what is tested lives: the stack, or the workloads where there is none."""
        return self.deployed.namespace if self.deployed else workloads.NAMESPACE


def preflight(run: Run) -> None:
    """The load can be sent, and this machine can carry it: an engine that answers, memory, disk, kernel."""
    if run.plan.scenario.load:
        loading.check_load(run.plan.scenario.load)
    engine = ""
    if run.plan.cluster and run.plan.cluster.provider == "kind":
        ready = prepare()
        require(ready)
        engine = ready.seen
    elif run.plan.cluster:
        _references(run.plan)
    run.fact(
        "host",
        cores=os.cpu_count(),
        memory_gib=round(psutil.virtual_memory().total / _GIB, 1),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        engine=engine,
    )


def up(run: Run) -> None:
    """A cluster of the right shape, this run's alone: taken if it runs, else made; one made goes away with the run."""
    spec, name = run.plan.cluster, run.options.cluster_name or run.plan.shape
    if spec is None:
        return
    begun = time.time()
    run.images = _references(run.plan)
    run.cluster = cluster.up(
        spec,
        name=name,
        app_images=run.plan.images,
        owner=None if run.options.keep else Owner.me(),
        allow_changes=run.options.allow_changes,
        deployed=_wanted(run.plan, run.images),
        cold=run.options.cold,
    )
    if run.cluster.owner == Owner.me() and not run.options.keep_cluster:
        run.undo.callback(cluster.release, name)
        run.cluster_goes = True
    run.untouched = run.cluster.created >= begun
    cluster.prove_ours(run.cluster)
    run.kube = Kube.connect(run.cluster.kubeconfig, run.cluster.context)
    run.fact(
        "cluster",
        name=name,
        provider=run.cluster.provider,
        kubernetes=run.kube.version,
        nodes=run.cluster.node_names,
        image=run.cluster.image,
        came=run.cluster.origin.words,
    )
    if groups := spec.gpu_nodes:
        kinds = [f"{group.count} x {group.profile} ({group.mode})" for group in groups.values()]
        run.fact("gpus", nodes=len(groups), emulated=", ".join(kinds))
    if (fleet := spec.fleet) is not None:
        gpus = f"{fleet.gpu.count} x {fleet.gpu.profile}" if fleet.gpu else "none"
        run.fact("fleet", nodes=fleet.nodes, gpus=gpus, zones=fleet.zones, emulated="simulated nodes, by kwok")


def deploy(run: Run) -> None:
    """Guardrails first, then the stack inside them after those it requires; ready means that each answered."""
    if run.plan.cluster is None:
        return
    own, kube = run.ground
    run.images = run.images or _references(run.plan)
    if not run.untouched:
        _clear(run)
    if not (run.options.keep or run.cluster_goes):
        if own.provider == "kind":  # in another's cluster others make things too
            run.undo.callback(remains.refuse_objects, kube, inventory.take(kube))
        run.undo.callback(namespaces.clear, kube)
        run.undo.callback(workloads.clear, kube)
    run.undo.callback(_collect, run)
    for guardrail, values in run.plan.guardrails:
        with step(f"guardrail {guardrail.metadata.name}"):
            applied = guardrails.apply(kube, guardrail, values, images=run.images)
            run.tenant = applied.tenant or run.tenant
    for stack, values in run.plan.stacks:
        with step(f"stack {stack.metadata.name}"):
            made = stacks.deploy(kube, stack, values, images=run.images, addresses=own.node_addresses)
        run.urls[made.stack] = made.url
        told: dict[str, Any] = {"values": values, "url": made.url, "emulated": stack.emulated}
        told |= {"model": made.model} if made.model else {}
        if stack is run.plan.stack:
            run.deployed = made
            run.fact("stack", name=made.stack, images=run.images, **told)
        else:
            run.fact(f"stack {made.stack}", images={name: run.images[name] for name in stack.images}, **told)
    if run.untouched and not run.options.cold and (wanted := _wanted(run.plan, run.images)):
        cluster.keep(own, run.plan.cluster, wanted)
    if run.plan.scenario.workloads:
        namespaces.refuse_strangers(kube, [workloads.NAMESPACE])
        kube.apply([namespaces.make(workloads.NAMESPACE)])


def _clear(run: Run) -> None:
    """Remove what others have left on a cluster that was there before."""
    own, kube = run.ground
    if run.plan.cluster and run.plan.cluster.gpu_nodes:
        for ident in strike.clear(own, kube)[0]:
            say(f"ended {ident}, a fault of a run that was killed, or one put there by hand")
    workloads.clear(kube)
    if left := namespaces.clear(kube):
        say(f"removed what a run that was killed or kept has left: {', '.join(left)}")


def _wanted(plan: Plan, refs: Mapping[str, str]) -> dict[str, Any]:
    """All that `deploy` will put on the cluster: name -> its objects."""
    return plan.preparation.objects(refs) if plan.preparation else {}


def verify(run: Run) -> None:
    """The steady state holds before anything is done to it."""
    lacking = steady.look(run, "before", _STEADY_SECONDS)
    if lacking:
        raise Unproven(f"the steady state did not hold before the start: {'; '.join(lacking)}")


def recover(run: Run) -> None:
    """The steady state comes back after load and faults."""
    steady.look(run, "after", run.plan.scenario.recover.within)


def judge(run: Run) -> None:
    """Timeline and SLOs make the verdict."""
    run.results = judged([*read(run.timeline.path), run.timeline.finished()])  # cleaning up comes before its last line


def report(run: Run) -> None:
    """Everything a person or a CI job reads of this run."""
    if run.results is not None:
        run.written = write_all(run.results, read(run.timeline.path), run.folder, html=run.options.html)


PHASES: tuple[Callable[[Run], None], ...] = (preflight, up, deploy, verify, exercise, recover, judge, report)
_ALWAYS = (judge, report)
_OF_A_CLUSTER = ("up", "deploy", "verify", "recover")


@dataclass(frozen=True)
class Outcome:
    """What came of a run: its verdict, where it lies, and what stopped it, if anything did."""

    results: Results
    folder: Path
    error: BaseException | None

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 3 invalid, 4 environment missing (or a report's file), 130 interrupted."""
        if isinstance(self.error, KeyboardInterrupt):
            return errors.EXIT_INTERRUPTED
        if self.results.verdict == "fail":
            return errors.EXIT_FAIL
        if isinstance(self.error, SandboxError):  # NotOurs has the code of a `fail`, and is no verdict
            return errors.EXIT_ENVIRONMENT if isinstance(self.error, ClusterError) else self.error.exit_code
        return errors.EXIT_PASS if self.results.verdict == "pass" else errors.EXIT_INVALID


def execute(plan: Plan, options: Options) -> Outcome:
    """Run a plan to its verdict and leave nothing behind, on success, failure and Ctrl-C alike.

    Raises:
        ClusterError: another run uses the cluster; there is no run then.
        UsageError: the baseline cannot be compared; there is no run then.
    """
    earlier = baseline.samples_for(plan.scenario, options.baseline) if options.baseline else []
    with cluster.lease(options.cluster_name or plan.shape) if plan.cluster else nullcontext():
        return _execute(plan, options, earlier)


def _execute(plan: Plan, options: Options, earlier: list[BaselineSamples]) -> Outcome:
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{plan.scenario.metadata.name}-{uuid.uuid4().hex[:4]}"
    folder = make_folder(options.runs / run_id)
    with Timeline(folder / "timeline.jsonl") as log, ExitStack() as undo:
        run = Run(plan, options, folder, timeline=log, undo=undo)
        before = remains.processes()
        log.append(_beginning(run, run_id))
        for samples in earlier:
            log.append(samples)
        error = _through(run)
        if (
            left := _unwound(run, before)
        ) is not None:  # a run that could not clean up after itself is no pass, in every file of it
            error = error or left
            for phase in _ALWAYS:
                phase(run)
        log.append(log.finished())
    if run.results is None or run.written is None:
        raise Unproven("the run was not judged", where=str(folder), fix=f"sandbox judge {folder}")
    if missed := run.written.missed(folder):
        say(str(missed))
    return Outcome(run.results, folder, error or missed)


def _through(run: Run) -> BaseException | None:
    """Go through the phases; after one that stopped only those that always run. What stopped it, if anything."""
    error: BaseException | None = None
    for phase in PHASES:
        if error is not None and phase not in _ALWAYS:
            continue
        try:
            with _phase(run, phase.__name__):
                phase(run)
        except (Exception, KeyboardInterrupt) as stopped:  # noqa: BLE001 - any end of a phase is judged
            error = error or stopped
            if not isinstance(stopped, SandboxError | KeyboardInterrupt):
                (run.folder / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
                say(f"this is a bug in the sandbox; see {run.folder / 'traceback.txt'}")
    return error


def _unwound(run: Run, before: Collection[psutil.Process]) -> BaseException | None:
    """Collect, undeploy, down: last thing first. What could not be removed, or is left, is said: the run's error."""
    try:
        run.undo.close()
        remains.refuse_processes(before)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the run's verdict must be told all the same
        say(f"not all of it is removed: {error or 'interrupted'}")
        words = errors.told(error) if isinstance(error, Exception) else ["interrupted"]
        run.timeline.append(
            PhaseChanged(t=run.timeline.now(), name="clean up", status="failed", detail="; ".join(words))
        )
        return error
    return None


@contextmanager
def _phase(run: Run, name: str) -> Iterator[None]:
    quiet = run.plan.cluster is None and name in _OF_A_CLUSTER  # there is nothing to do, and nothing to say

    def write(status: Any, detail: str = "") -> None:
        run.timeline.append(PhaseChanged(t=run.timeline.now(), name=name, status=status, detail=detail))

    write("started")
    try:
        with nullcontext() if quiet else step(name):
            yield
    except KeyboardInterrupt:
        write("failed", "interrupted")
        raise
    except Exception as error:
        write("failed", "; ".join(errors.told(error)))
        raise
    write("ok")


def _references(plan: Plan) -> dict[str, str]:
    """Image name -> what the cluster's nodes call it: loaded into ours, pulled from the mirror by others'."""
    if plan.cluster and plan.cluster.provider == "existing":
        return images.mirrored(plan.images)
    return {name: image.ref for name, image in images.ensure(plan.images).items()}


def _beginning(run: Run, run_id: str) -> RunStarted:
    return RunStarted(
        t=run.timeline.now(),
        run_id=run_id,
        wall=wall_now(),
        scenario=run.plan.scenario.model_dump(mode="json", by_alias=True),
        source=str(run.plan.source),
        versions={"sandbox": __version__},
        grammar=grammar.KNOWN,
        inputs=inputs_of(run.plan.scenario.load),
    )


def _collect(run: Run) -> None:
    """Keep logs and events of a run that did not pass, before its objects are gone."""
    if run.results is not None and run.results.verdict == "pass":
        return
    if run.kube is None:
        return
    spaces = [stack.namespace for stack, _ in run.plan.stacks]
    spaces += [run.tenant.namespace] if run.tenant else []
    spaces += [workloads.NAMESPACE] if run.plan.scenario.workloads else []
    for namespace in dict.fromkeys(spaces):
        collect.write(run.kube, namespace, run.folder / "logs" / namespace)
    say(f"logs and events are in {run.folder / 'logs'}")
