"""Guardrails: data in sandbox/guardrails/<name>/, applied before the stack they surround, removed without a trace."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sandbox import paths
from sandbox.errors import ClusterError, DeadlineExceeded, SandboxError, UsageError
from sandbox.kube import collect, manifests, namespaces
from sandbox.kube.client import Kube
from sandbox.kube.conditions import Watching, ready
from sandbox.kube.resources import Object, Objects, Selection
from sandbox.kube.wait import Seen, wait_for
from sandbox.spec.guardrail import Guardrail, Neighbour
from sandbox.spec.loader import load as load_spec

GUARDRAIL_LABEL = "ai-k8s-sandbox/guardrail"
_SETTLE_SECONDS = 60.0
_TOOLBOX = "toolbox"


@dataclass(frozen=True)
class Tenant:
    """Whom attempts are made as.

    Attributes:
        namespace: the tenant's own.
        service_account: whose token it uses.
        pod: its pod with a shell.
        platform: the namespace that serves the model.
        neighbour: what proves the network; None where the guardrail brings none.
        image: a small image with a shell that the nodes can run.
    """

    namespace: str
    service_account: str
    pod: str
    platform: str
    neighbour: Neighbour | None
    image: str


@dataclass(frozen=True)
class Applied:
    """A guardrail that is in force. `tenant` is None where it makes none."""

    guardrail: Guardrail
    objects: Objects = field(repr=False)
    tenant: Tenant | None


def names() -> list[str]:
    """The guardrails there are."""
    return sorted(file.parent.name for file in paths.shipped("guardrails").glob("*/guardrail.yaml"))


def load(name: str) -> Guardrail:
    """The guardrail of that name.

    Raises:
        UsageError: there is none; names those there are. Or its guardrail.yaml has mistakes; lists them all.
    """
    if name not in names():
        raise UsageError(f"there is no guardrail {name!r}", where="guardrails", fix=f"use one of: {', '.join(names())}")
    return load_spec(paths.shipped("guardrails") / name / "guardrail.yaml", Guardrail).model


def render(
    guardrail: Guardrail, values: Mapping[str, Any], *, images: Mapping[str, str], pod_cidrs: list[str]
) -> Objects:
    """The objects of a guardrail, namespaces first; see sandbox/kube/manifests.py for what it raises."""
    labels = {**namespaces.MANAGED_BY, GUARDRAIL_LABEL: guardrail.metadata.name}
    objects = manifests.render(guardrail, values, images=images, labels=labels, found={"podCIDRs": pod_cidrs})
    return [namespaces.make(guardrail.platform), *objects]


def apply(kube: Kube, guardrail: Guardrail, values: Mapping[str, Any], *, images: Mapping[str, str]) -> Applied:
    """Apply the rules, then the tenant's and the neighbour's pods, and wait until they run and the rules are in force.

    Raises:
        UsageError: values do not fit; nothing was applied.
        ClusterError: a pod did not come up; `details` says what the pods say, and all is removed again.
            Or a namespace is not ours; nothing was applied.
    """
    objects = render(guardrail, values, images=images, pod_cidrs=_pod_cidrs(kube))
    namespaces.refuse_strangers(kube, [each["metadata"]["name"] for each in objects if each["kind"] == "Namespace"])
    applied = Applied(guardrail, objects, _tenant(guardrail, images))
    try:
        kube.apply(objects)
        _in_force(kube, applied)
    except BaseException:
        with suppress(SandboxError):  # what stopped us is what has to be told
            remove(kube, applied)
        raise
    return applied


def _in_force(kube: Kube, applied: Applied) -> None:
    """Wait until the pods run and the quotas count: until the controller has counted, a quota holds nobody."""

    def spaces(kind: str) -> list[str]:
        return list(dict.fromkeys(each["metadata"]["namespace"] for each in applied.objects if each["kind"] == kind))

    for space in spaces("Pod"):
        own = f"{GUARDRAIL_LABEL}={applied.guardrail.metadata.name}"
        _wait(kube, space, ready(kube, space, own), "pods being ready")
    for space in spaces("ResourceQuota"):
        _wait(kube, space, _counted(kube, space), "quotas being counted")


def remove(kube: Kube, applied: Applied, *, within: float = 90.0) -> None:
    """Remove all the guardrail made, and the platform's namespace if nothing else lives in it; wait until it is gone.

    Raises:
        DeadlineExceeded: something is still there; names what, and what holds it.
    """
    platform = applied.guardrail.platform
    own = [thing["metadata"]["name"] for thing in applied.objects if thing["kind"] == "Namespace"]
    outside = [
        thing
        for thing in applied.objects
        if thing["kind"] != "Namespace" and thing["metadata"].get("namespace") not in set(own) - {platform}
    ]
    kube.delete(outside, within=within)
    empty = not kube.list("v1", "Pod", platform) and not kube.list("apps/v1", "Deployment", platform)
    namespaces.remove(kube, [name for name in own if name != platform or empty], within=within)


def _tenant(guardrail: Guardrail, images: Mapping[str, str]) -> Tenant | None:
    if guardrail.tenant is None:
        return None
    return Tenant(
        namespace=guardrail.tenant.namespace,
        service_account=guardrail.tenant.service_account,
        pod=guardrail.tenant.pod,
        platform=guardrail.platform,
        neighbour=guardrail.neighbour,
        image=images[_TOOLBOX],
    )


def _pod_cidrs(kube: Kube) -> list[str]:
    """The pod network, as the nodes say it. A network that does not take its ranges from them gives none."""
    found: list[str] = []
    for node in kube.list("v1", "Node"):
        found += [cidr for cidr in node["spec"].get("podCIDRs", []) if ":" not in cidr]
    return sorted(set(found))


def _wait(kube: Kube, space: str, condition: Watching[Any], what: str) -> None:
    try:
        wait_for(condition, within=_SETTLE_SECONDS, what=what)
    except DeadlineExceeded as error:
        raise ClusterError(
            error.what,
            where=f"namespace {space}",
            details=[*error.details, *collect.digest(kube, space)],
            fix="read what the pods say above",
        ) from error


def _counted(kube: Kube, space: str) -> Watching[None]:
    def judge(quotas: list[Object]) -> Seen[None]:
        waiting = [
            quota["metadata"]["name"]
            for quota in quotas
            if set(quota["spec"]["hard"]) - set(quota.get("status", {}).get("used", {}))
        ]
        return Seen(bool(quotas) and not waiting, None, f"not counted yet: {', '.join(waiting) or 'no quota there'}")

    return Watching(kube, Selection("v1", "ResourceQuota", space), judge)
