"""The administrator's kubeconfig of a cluster of ours: one file, 0600, with one context."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, text: str, *, cluster: str, server: str = "") -> str:
    """Write a kubeconfig anew, for a cluster of another name or at another place.

    Args:
        path: where to.
        text: of the kubeconfig that kind wrote.
        cluster: the cluster's name.
        server: of its API server; as in `text` when not given.

    Returns:
        The name of its context.
    """
    context = f"kind-{cluster}"
    content = yaml.safe_load(text)
    if server:
        content["clusters"][0]["cluster"]["server"] = server
    for kind in ("clusters", "users", "contexts"):
        content[kind][0]["name"] = context
    content["contexts"][0]["context"] |= {"cluster": context, "user": context}
    content["current-context"] = context
    fresh = path.with_name(f"{path.name}.new")
    fresh.touch(mode=0o600)
    fresh.write_text(yaml.safe_dump(content), encoding="utf-8")
    fresh.replace(path)
    return context
