"""Faults that strike pods through the API server."""

from __future__ import annotations

import time
from typing import Annotated

from pydantic import Field

from sandbox.cluster import nodes
from sandbox.errors import DeadlineExceeded, Unproven
from sandbox.faults.base import FAULTS, Context, Evidence, Injection, NoTarget
from sandbox.kube import ApiError, Object, Seen
from sandbox.kube.conditions import Watching, describe, is_ready, ready, rollout
from sandbox.kube.resources import Selection
from sandbox.spec.base import Duration
from sandbox.timeline import wall_now

_RESTARTED_AT = "kubectl.kubernetes.io/restartedAt"
_PROOF_SECONDS = 60.0
_GONE = (404, 409)
_KILL_SECONDS = 5.0  # what SIGKILL may take to be seen; a process that only drains takes longer
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

    Proof from outside the injector: the containers that the nodes' container runtime ran before, where it can be asked,
    had ended before the pods were deleted, and the API server has forgotten the pods, by their UIDs. Healed when as
    many pods as before are ready again.
    """
    selector = _selector(target)
    before = [pod for pod in ctx.kube.list("v1", "Pod", ctx.namespace, label_selector=selector) if _up(pod)]
    if len(before) < count:
        raise NoTarget(f"{len(before)} ready pods carry {selector} in {ctx.namespace}, {count} asked for")
    victims = sorted(before, key=lambda pod: str(pod["metadata"]["name"]))[:count]
    where = _containers(victims) if ctx.cluster.provider == "kind" else {}
    _refuse_dead(ctx, victims, where)
    killed = _sigkill(ctx, where) if not grace else []
    for pod in victims:
        _delete(ctx, pod, grace)
    names = ", ".join(pod["metadata"]["name"] for pod in victims)
    how = f"SIGKILL to {len(killed)} containers, then deleted" if killed else f"deleted with {grace} s of grace"
    uids = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in victims}
    yield Evidence(f"{names}: {how}", {"pods": uids})
    yield _dead(ctx, set(uids.values()), where)
    ctx.wait(
        ready(ctx.kube, ctx.namespace, selector, count=len(before)), within=within, what=f"{len(before)} ready pods"
    )
    return Evidence(f"{len(before)} pods with {selector} are ready again")


@FAULTS.register("rollout.restart")
def restart_rollout(ctx: Context, target: Target, within: Duration = 180.0) -> Injection:
    """Roll every Deployment that carries the labels `target` over to new pods, as `kubectl rollout restart` does.

    Proof from outside the injector: each Deployment has a new generation, and a pod that was not there before and whose
    template carries the stamp of this restart. Healed when no old pod is left and all new ones are available.
    """
    selector = _selector(target)
    deployments = ctx.kube.list("apps/v1", "Deployment", ctx.namespace, label_selector=selector)
    if not deployments:
        raise NoTarget(f"no Deployment carries {selector} in {ctx.namespace}")
    if none := [each["metadata"]["name"] for each in deployments if each["spec"].get("replicas") == 0]:
        raise NoTarget(f"{', '.join(none)} in {ctx.namespace} wants no pod, so none could be new")
    old = {pod["metadata"]["uid"] for pod in ctx.kube.list("v1", "Pod", ctx.namespace)}
    stamp = wall_now()
    generations = {each["metadata"]["name"]: _stamp(ctx, each, stamp) for each in deployments}
    yield Evidence(f"new template for {', '.join(generations)}", {"generations": generations, "stamp": stamp})
    fresh = [
        name
        for each in deployments
        for name in ctx.wait(_begun(ctx, each, old, stamp), within=_PROOF_SECONDS, what="a pod of this restart")
    ]
    yield Evidence(f"{fresh[0]} is of the new template", {"new_pods": fresh})
    deadline = time.monotonic() + within
    for each in deployments:
        name = each["metadata"]["name"]
        what = f"the rollout of {name}"
        finished = rollout(ctx.kube, "Deployment", ctx.namespace, name)
        ctx.wait(finished, within=max(0.1, deadline - time.monotonic()), what=what)
        ctx.wait(_renewed(ctx, each, old), within=max(0.1, deadline - time.monotonic()), what=what)
    return Evidence(f"every pod of {', '.join(generations)} is new and available")


def _pods_of(ctx: Context, deployment: Object) -> Selection:
    return Selection("v1", "Pod", ctx.namespace, _selector(deployment["spec"]["selector"]["matchLabels"]))


def _begun(ctx: Context, deployment: Object, old: set[str], stamp: str) -> Watching[list[str]]:
    """A condition: it has pods that were not there before, of the template with that stamp; their names."""

    def judge(pods: list[Object]) -> Seen[list[str]]:
        new = [
            pod["metadata"]["name"]
            for pod in pods
            if pod["metadata"]["uid"] not in old and pod["metadata"].get("annotations", {}).get(_RESTARTED_AT) == stamp
        ]
        return Seen(bool(new), new, f"{len(pods)} pods, none of them of this restart")

    return Watching(ctx.kube, _pods_of(ctx, deployment), judge)


def _renewed(ctx: Context, deployment: Object, old: set[str]) -> Watching[None]:
    """A condition: of its pods none is from before, but for those that drain, and every other is ready."""

    def judge(pods: list[Object]) -> Seen[None]:
        staying = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
        wrong = [f"{describe(pod)} is from before" for pod in staying if pod["metadata"]["uid"] in old]
        wrong += [f"{describe(pod)} is not ready" for pod in staying if not is_ready(pod)]
        return Seen(bool(staying) and not wrong, None, "\n".join(wrong) or "there is no pod")

    return Watching(ctx.kube, _pods_of(ctx, deployment), judge)


def _stamp(ctx: Context, deployment: Object, stamp: str) -> list[int]:
    """Change the template; the generations before and after.

    Raises:
        Unproven: the API server took the change, and nothing changed.
    """
    meta = deployment["metadata"]
    patch = {"spec": {"template": {"metadata": {"annotations": {_RESTARTED_AT: stamp}}}}}
    after = ctx.kube.patch("apps/v1", "Deployment", meta["name"], patch, meta["namespace"])["metadata"]["generation"]
    if after <= meta["generation"]:
        raise Unproven(f"{meta['name']} is of generation {after} as before: its template did not change")
    return [meta["generation"], after]


def _containers(pods: list[Object]) -> dict[str, str]:
    """Container id -> node."""
    return {
        status["containerID"].rpartition("/")[2]: pod["spec"]["nodeName"]
        for pod in pods
        for status in pod["status"]["containerStatuses"]
    }


def _alive(ctx: Context, where: dict[str, str]) -> list[str]:
    """Those of the containers that the container runtime of their node runs now."""
    up = {each for node in set(where.values()) for each in nodes.running_containers(ctx.cluster, node)}
    return [each for each in where if each in up]


def _refuse_dead(ctx: Context, victims: list[Object], where: dict[str, str]) -> None:
    """Stop before anything is done where a victim is dead already: its end would be no change of ours.

    Raises:
        Unproven: names the pods.
    """
    alive = set(_alive(ctx, where))
    if dead := [pod["metadata"]["name"] for pod in victims if where and not alive.issuperset(_containers([pod]))]:
        raise Unproven(f"{', '.join(dead)} does not run on its node any more, so it cannot be killed")


def _sigkill(ctx: Context, where: dict[str, str]) -> list[str]:
    """Send it, and see that they end by it: whatever the API server does later has no part in that.

    Raises:
        Unproven: one did not get it, or goes on.
    """
    killed = [
        each
        for node in set(where.values())
        for each in nodes.kill_containers(ctx.cluster, node, [one for one, its in where.items() if its == node])
    ]
    if missed := set(where) - set(killed):
        raise Unproven(f"SIGKILL did not reach {', '.join(each[:12] for each in missed)}")

    def look() -> Seen[None]:
        alive = [each[:12] for each in _alive(ctx, where)]
        return Seen(not alive, None, f"still running: {', '.join(alive)}")

    try:
        ctx.wait(look, within=_KILL_SECONDS, what="the end of the containers that got SIGKILL")
    except DeadlineExceeded as error:
        raise Unproven(error.what, details=error.details) from error
    return killed


def _delete(ctx: Context, pod: Object, grace: int) -> None:
    """Ask the API server to; of another pod of that name it is not asked.

    Raises:
        Unproven: the pod is gone already.
    """
    meta = pod["metadata"]
    body = {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": grace}
    answer = ctx.kube.request("DELETE", ctx.kube.path(pod), {**body, "preconditions": {"uid": meta["uid"]}})
    if answer.status in _GONE:
        raise Unproven(f"somebody else has deleted {meta['name']} meanwhile")
    if not answer.ok:
        raise ApiError(f"DELETE {ctx.kube.path(pod)}", answer.status, answer.body, answer.text)


def _dead(ctx: Context, uids: set[str], where: dict[str, str]) -> Evidence:
    """Wait until API server and, where they can be asked, the nodes' container runtimes no longer have them."""

    def look() -> Seen[None]:
        there = ctx.kube.list("v1", "Pod", ctx.namespace)
        left = [pod["metadata"]["name"] for pod in there if pod["metadata"]["uid"] in uids]
        left += [each[:12] for each in _alive(ctx, where)]
        return Seen(not left, None, f"still there: {', '.join(left)}")

    ctx.wait(look, within=_PROOF_SECONDS, what="the end of the killed pods")
    if not where:
        return Evidence("the API server has forgotten them; their nodes are out of reach", {"uids": sorted(uids)})
    shown = {container[:12]: node for container, node in where.items()}
    return Evidence("the API server has forgotten them, and their node runs their containers no more", {"were": shown})


def _selector(target: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in target.items())


def _up(pod: Object) -> bool:
    return is_ready(pod) and not pod["metadata"].get("deletionTimestamp")
