"""Faults that strike pods through the API server."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sandbox.cluster import nodes
from sandbox.faults.base import FAULTS, Context, Evidence, Injection, NoTarget
from sandbox.kube import Object, Seen
from sandbox.kube.conditions import Watching, is_ready, ready, rollout
from sandbox.kube.resources import Selection
from sandbox.spec.base import Duration
from sandbox.timeline import wall_now

_RESTARTED_AT = "kubectl.kubernetes.io/restartedAt"
_TEMPLATE = "pod-template-hash"
_PROOF_SECONDS = 60.0
Target = Annotated[dict[str, str], Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]


@FAULTS.register("pod.kill")
def kill_pods(
    ctx: Context,
    target: Target,
    count: Count = 1,
    grace: Annotated[int, Field(ge=0, le=3600)] = 0,
    within: Duration = 120.0,
) -> Injection:
    """Kill `count` ready pods that carry the labels `target`, as a crash would: the streams they hold are cut.

    Their processes get SIGKILL on the node, and the pods are deleted. With `grace` they are only deleted, with so
    many seconds to drain. On a cluster whose nodes are out of reach they are deleted with no grace; kubelets
    then still give them two seconds.

    Proof from outside the injector: the API server has forgotten the pods, and the container runtime of their
    nodes, where it can be asked, no longer runs their containers. Healed when as many pods as before are ready again.
    """
    selector = _selector(target)
    before = [pod for pod in ctx.kube.list("v1", "Pod", ctx.namespace, label_selector=selector) if _up(pod)]
    if len(before) < count:
        raise NoTarget(f"{len(before)} ready pods carry {selector} in {ctx.namespace}, {count} asked for")
    victims = sorted(before, key=lambda pod: str(pod["metadata"]["name"]))[:count]
    names = ", ".join(pod["metadata"]["name"] for pod in victims)
    killed = [] if grace or ctx.cluster.provider != "kind" else _sigkill(ctx, victims)
    ctx.kube.delete(victims, grace=grace, within=_PROOF_SECONDS)
    how = f"SIGKILL to {len(killed)} containers, then deleted" if killed else f"deleted with {grace} s of grace"
    uids = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in victims}
    yield Evidence(f"{names}: {how}", {"pods": uids})
    yield _dead(ctx, victims)
    ctx.wait(
        ready(ctx.kube, ctx.namespace, selector, count=len(before)), within=within, what=f"{len(before)} ready pods"
    )
    return Evidence(f"{len(before)} pods with {selector} are ready again")


@FAULTS.register("rollout.restart")
def restart_rollout(ctx: Context, target: Target, within: Duration = 180.0) -> Injection:
    """Roll every Deployment that carries the labels `target` over to new pods, as `kubectl rollout restart` does.

    Proof from outside the injector: there is a pod of another template revision. Healed when no old pod is left and
    all new ones are available.
    """
    selector = _selector(target)
    deployments = ctx.kube.list("apps/v1", "Deployment", ctx.namespace, label_selector=selector)
    if not deployments:
        raise NoTarget(f"no Deployment carries {selector} in {ctx.namespace}")
    old = {_revision(pod) for pod in ctx.kube.list("v1", "Pod", ctx.namespace, label_selector=selector)}
    for deployment in deployments:
        _stamp(ctx, deployment)
    names = [deployment["metadata"]["name"] for deployment in deployments]
    yield Evidence(f"new template for {', '.join(names)}", {"old_revisions": sorted(old)})

    def begun(pods: list[Object]) -> Seen[list[str]]:
        new = [pod["metadata"]["name"] for pod in pods if _revision(pod) not in old]
        return Seen(bool(new), new, f"{len(pods)} pods, none of a new template")

    seen = Watching(ctx.kube, Selection("v1", "Pod", ctx.namespace, selector), begun)
    fresh = ctx.wait(seen, within=_PROOF_SECONDS, what="a pod of the new template")
    yield Evidence(f"{fresh[0]} is of the new template", {"new_pods": fresh})
    for name in names:
        ctx.wait(rollout(ctx.kube, "Deployment", ctx.namespace, name), within=within, what=f"the rollout of {name}")
    return Evidence(f"every pod of {', '.join(names)} is new and available")


def _revision(pod: Object) -> str:
    return str(pod["metadata"].get("labels", {}).get(_TEMPLATE, ""))


def _stamp(ctx: Context, deployment: Object) -> None:
    meta = deployment["metadata"]
    patch = {"spec": {"template": {"metadata": {"annotations": {_RESTARTED_AT: wall_now()}}}}}
    ctx.kube.patch("apps/v1", "Deployment", meta["name"], patch, meta["namespace"])


def _containers(pods: list[Object]) -> dict[str, str]:
    """Container id -> node."""
    return {
        status["containerID"].rpartition("/")[2]: pod["spec"]["nodeName"]
        for pod in pods
        for status in pod["status"]["containerStatuses"]
    }


def _sigkill(ctx: Context, victims: list[Object]) -> list[str]:
    where = _containers(victims)
    return [
        killed
        for node in set(where.values())
        for killed in nodes.kill_containers(ctx.cluster, node, [each for each, its in where.items() if its == node])
    ]


def _dead(ctx: Context, victims: list[Object]) -> Evidence:
    """Wait until API server and, where they can be asked, the nodes' container runtimes no longer have them."""
    uids = {pod["metadata"]["uid"] for pod in victims}
    where = _containers(victims) if ctx.cluster.provider == "kind" else {}

    def look() -> Seen[None]:
        left = [
            pod["metadata"]["name"]
            for pod in ctx.kube.list("v1", "Pod", ctx.namespace)
            if pod["metadata"]["uid"] in uids
        ]
        up = {each for node in set(where.values()) for each in nodes.running_containers(ctx.cluster, node)}
        alive = [each[:12] for each in where if each in up]
        return Seen(not left and not alive, None, f"still there: {', '.join(left + alive)}")

    ctx.wait(look, within=_PROOF_SECONDS, what="the end of the killed pods")
    if not where:
        return Evidence("the API server has forgotten them; their nodes are out of reach", {"uids": sorted(uids)})
    shown = {container[:12]: node for container, node in where.items()}
    return Evidence("the API server has forgotten them, and their node runs their containers no more", {"were": shown})


def _selector(target: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in target.items())


def _up(pod: Object) -> bool:
    return is_ready(pod) and not pod["metadata"].get("deletionTimestamp")
