"""How a run's load begins: where it goes, who sends it, and the look at it before the first measured request."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sandbox import cluster, images
from sandbox.cluster import nodes
from sandbox.errors import Unproven, UsageError
from sandbox.kube import Kube
from sandbox.load import check, keys, runner
from sandbox.load.golden import beside, golden
from sandbox.load.plan import plan_for, shares_for
from sandbox.loadpods import inside, start_pods
from sandbox.progress import say
from sandbox.spec.loadtest import Endpoint, Load, Workers, variables_in
from sandbox.spec.locustfile import locate

if TYPE_CHECKING:
    from sandbox.run import Run

IMAGE = "load-worker"


class Sending(Protocol):
    """A load under way, in a process here or in pods."""

    started_at: float
    log: Path

    def wait(self, within: float) -> int:
        """Wait for the end; the exit code."""

    def end(self) -> None:
        """Ask for an early end."""

    def stop(self) -> int:
        """End it early; the exit code."""


def check_load(wanted: Load) -> None:
    """See what can be seen of a load before anything is set up for it.

    Raises:
        UsageError: a variable for an API key is not set, or the locustfile does not exist or load.
    """
    for sent in (wanted.endpoint, *wanted.shares):
        if sent:
            keys.api_keys(sent.api_key_env or "", *variables_in(sent.headers))
    if wanted.locustfile is not None:
        runner.check_locustfile(locate(wanted.locustfile))


def start_load(run: Run, wanted: Load, halt: ExitStack) -> Sending:
    """Start the load, after requests that are not measured, with streams of known send times beside it."""
    url, model = _target(run, wanted)
    say(f"load: {run.plan.load_in_words()}")
    if wanted.workers.pods is not None:
        return _in_pods(run, wanted, (url, model), wanted.workers.pods, halt)
    known = halt.enter_context(golden(beside(run.folder / "golden.jsonl")))
    return runner.start(plan_for(wanted, run.timeline, url=url, model=model, golden=known.url), run.timeline)


def _in_pods(run: Run, wanted: Load, target: tuple[str, str], pods: int, halt: ExitStack) -> Sending:
    """The same from pods, of the tested cluster or of another one; each is calibrated where it runs."""
    url, model = target
    kube, image = _cluster_of(run, wanted.workers, halt)
    stack = run.plan.stack
    if wanted.endpoint is None and wanted.workers.cluster is None and stack and stack.endpoint and run.deployed:
        url = inside(stack.endpoint.service, run.deployed.namespace, stack.endpoint.port)
    planned = plan_for(wanted, run.timeline, url=url, model=model, golden="in each pod")
    return start_pods(kube, planned, image, pods, run.timeline)


def _cluster_of(run: Run, workers: Workers, halt: ExitStack) -> tuple[Kube, str]:
    """The cluster that sends, and the image its nodes have for it."""
    if workers.cluster is None:
        return run.ground[1], run.images[IMAGE]
    halt.enter_context(cluster.lease(workers.cluster))
    other = cluster.current(workers.cluster)
    cluster.prove_ours(other)
    if other.provider == "existing":
        image = images.mirrored([IMAGE])[IMAGE]
    else:
        image = images.ensure([IMAGE])[IMAGE].ref
        nodes.load_images(other, [image])
    return Kube.connect(other.kubeconfig, other.context), image


def _target(run: Run, wanted: Load) -> tuple[str, str]:
    """Where the load goes and which model it asks for, seen to answer: an endpoint's, else the stack's."""
    if wanted.endpoint is not None:
        return wanted.endpoint.url, look_at(wanted, wanted.endpoint)
    _, _, deployed = run.live
    try:
        check.check_shares(deployed.url, shares_for(wanted, deployed.model))
    except UsageError as error:  # the stack's doing, not a mistake in what the user wrote
        raise Unproven(error.what, where=error.where, fix=error.fix, details=error.details) from error
    return deployed.url, deployed.model


def look_at(wanted: Load, endpoint: Endpoint) -> str:
    """Prove that an endpoint answers what a load sends; returns the model that is asked for.

    Raises:
        UsageError: it is not OpenAI-compatible, refuses the key, or does not serve the model.
        EnvironmentMissing: nothing answers there, or it is not ready.
    """
    named = [share.model for share in wanted.shares]
    model = endpoint.model or (named[0] if named and all(named) else None)
    if model is None:
        variable = endpoint.api_key_env or ""
        key = keys.api_keys(variable)[variable]
        model = check.only_model(
            endpoint.url, check.Access(api_key=key, headers=keys.filled(endpoint.headers), ca_file=endpoint.ca_file)
        )
    check.check_shares(endpoint.url, shares_for(wanted, model), endpoint.ca_file)
    return model
