"""Probes that ask Kubernetes."""

from __future__ import annotations

from sandbox.kube.conditions import rolled_out
from sandbox.kube.resources import label
from sandbox.probes.base import PROBES, Context, Seen


@PROBES.register("k8s.ready")
def ready(ctx: Context, target: dict[str, str] | None = None) -> Seen:
    """Every Deployment of the stack's namespace that `target` names has all its replicas updated and available.

    No Deployment at all is not ready, nor is one that wants no replica: where nothing can be missing nothing is proven.
    """
    selector = ",".join(f"{key}={value}" for key, value in (target or {}).items())
    deployments = ctx.kube.list("apps/v1", "Deployment", ctx.namespace, label_selector=selector)
    if not deployments:
        return Seen(ok=False, detail=f"no Deployment matches {selector or 'anything'} in {ctx.namespace}")
    looks = {item["metadata"]["name"]: rolled_out(item) for item in deployments}
    lacking = {name: words for name, (done, words) in looks.items() if not done}
    lacking |= {
        item["metadata"]["name"]: f"{label(item)} wants no replica, so none could be missing"
        for item in deployments
        if item["spec"].get("replicas") == 0
    }
    if lacking:
        return Seen(ok=False, detail="; ".join(words.splitlines()[0] for words in lacking.values()), evidence=lacking)
    return Seen(ok=True, detail=f"{', '.join(looks)}: every replica updated and available")
