"""A cluster somebody else runs: its kubeconfig is copied, down to one context; nothing else of it is touched."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

import yaml

from sandbox.cluster import fleet, record
from sandbox.cluster.record import Cluster, Node
from sandbox.errors import UsageError
from sandbox.kube import Kube
from sandbox.progress import say
from sandbox.spec.cluster import ClusterSpec, Existing

_FILES = {
    "cluster": ("certificate-authority",),
    "user": ("client-certificate", "client-key", "tokenFile"),
}
_ROLE = "node-role.kubernetes.io/control-plane"


def adopt(spec: ClusterSpec, name: str, *, allow_changes: bool) -> Cluster:
    """Record an existing cluster under `name`; it must answer. Changing it later needs `allow_changes`.

    Raises:
        UsageError: the kubeconfig has no such context, or a kind cluster has that name.
        ClusterError: it does not answer.
    """
    if spec.existing is None:
        raise UsageError("provider: existing needs `existing`", where=spec.metadata.name)
    known = record.find(name)
    if known is not None and known.provider != "existing":
        raise UsageError("is a cluster of this machine", where=name, fix=f"sandbox down {name}, or another --name")
    text = yaml.safe_dump(only_context(spec.existing))
    folder = record.home(name)
    folder.mkdir(mode=0o700, exist_ok=True)
    kubeconfig = folder / "kubeconfig"
    kubeconfig.touch(mode=0o600)
    kubeconfig.write_text(text)
    kube = Kube.connect(kubeconfig, spec.existing.context)
    try:
        cluster = Cluster(
            name=name,
            provider="existing",
            kubeconfig=kubeconfig,
            context=spec.existing.context,
            run=uuid.uuid4().hex[:12],
            uid=kube.uid(),
            shape=record.shape(spec),
            image="",
            created=time.time(),
            nodes=_nodes(kube),
            allow_changes=allow_changes,
        )
    except BaseException:
        record.forget(name)
        raise
    record.save(cluster)
    say(f"{name}: existing cluster at {kube.server}, {'may be changed' if allow_changes else 'read only'}")
    return cluster


def only_context(existing: Existing) -> dict[str, Any]:
    """Return a kubeconfig with that one context; relative file names are made absolute."""
    path = Path(existing.kubeconfig).expanduser().resolve()
    try:
        config = yaml.safe_load(path.read_text())
        contexts = {each["name"]: each["context"] for each in config["contexts"]}
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UsageError(f"this kubeconfig cannot be read: {error}", where=str(path)) from error
    context = contexts.get(existing.context)
    if context is None:
        raise UsageError(
            f"there is no context {existing.context}",
            where=str(path),
            fix=f"choose one of: {', '.join(sorted(contexts)) or 'none there'}",
        )
    parts: dict[str, Any] = {"apiVersion": "v1", "kind": "Config", "current-context": existing.context}
    parts["contexts"] = [{"name": existing.context, "context": context}]
    for key in ("cluster", "user"):
        entries = {each["name"]: dict(each[key] or {}) for each in config.get(f"{key}s") or []}
        entry = entries.get(context[key])
        if entry is None:
            raise UsageError(f"context {existing.context} names {key} {context[key]}, not there", where=str(path))
        for name in _FILES[key]:
            if name in entry:
                entry[name] = str((path.parent / entry[name]).resolve())
        parts[f"{key}s"] = [{"name": context[key], key: entry}]
    return parts


def _nodes(kube: Kube) -> tuple[Node, ...]:
    nodes = []
    for each in kube.list("v1", "Node", label_selector=fleet.REAL):  # kwok's nodes have no address to reach
        kinds = {address["type"]: address["address"] for address in each["status"].get("addresses", [])}
        role = "control-plane" if _ROLE in each["metadata"].get("labels", {}) else "worker"
        address = kinds.get("ExternalIP") or kinds.get("InternalIP") or ""
        nodes.append(Node(each["metadata"]["name"], role, address))
    return tuple(nodes)
