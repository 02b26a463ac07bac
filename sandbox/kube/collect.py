"""What happened in a namespace: a digest a person can read, and everything in files."""

from __future__ import annotations

from pathlib import Path

import yaml

from sandbox.errors import ClusterError
from sandbox.kube.client import Kube
from sandbox.kube.conditions import describe, is_ready
from sandbox.kube.resources import Object

_EVENTS = 15
_LINES = 15
_KEPT_LINES = 5000
_KEPT_PODS = 50


def digest(kube: Kube, namespace: str) -> list[str]:
    """Pods that are not well with their containers' last lines, and the latest warnings. Empty when all is well."""
    lines: list[str] = []
    for pod in kube.list("v1", "Pod", namespace):
        troubled = _troubled(pod)
        if not troubled:
            continue
        lines.append(describe(pod))
        for container, restarted in troubled:
            name = pod["metadata"]["name"]
            last = kube.logs(namespace, name, container=container, tail=_LINES, previous=restarted)
            lines += [f"  {container}| {line}" for line in last.splitlines()[-_LINES:]]
    warnings = [event for event in _events(kube, namespace) if event.get("type") == "Warning"]
    return lines + [_line(event) for event in warnings[-_EVENTS:]]


def write(kube: Kube, namespace: str, folder: Path) -> list[Path]:
    """Write pods (YAML), events and every container's log to `folder`; of very many pods some.

    Never raises, for collecting runs while something else is already going wrong: what cannot be had is said in
    `errors.txt`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []

    def keep(name: str, text: str) -> None:
        (folder / name).write_text(text, encoding="utf-8")
        written.append(folder / name)

    try:
        pods = kube.list("v1", "Pod", namespace)
        if len(pods) > _KEPT_PODS:
            pods = sorted(pods, key=is_ready)[:_KEPT_PODS]
            keep("left-out.txt", f"only {_KEPT_PODS} pods are kept here, those that are not ready first\n")
        keep("pods.yaml", yaml.safe_dump_all(pods, sort_keys=False))
        keep("events.txt", "\n".join(_line(event) for event in _events(kube, namespace)) + "\n")
        for pod in pods:
            for name, previous in _containers(pod):
                text = kube.logs(
                    namespace, pod["metadata"]["name"], container=name, tail=_KEPT_LINES, previous=previous
                )
                suffix = ".previous" if previous else ""
                keep(f"{pod['metadata']['name']}.{name}{suffix}.log", text)
    except (ClusterError, OSError) as error:
        keep("errors.txt", f"{error}\n")
    return written


def _events(kube: Kube, namespace: str) -> list[Object]:
    events = kube.list("v1", "Event", namespace)
    return sorted(events, key=lambda event: _when(event) or "")


def _when(event: Object) -> str | None:
    moment = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp")
    return str(moment) if moment else None


def _line(event: Object) -> str:
    about = event.get("involvedObject", {})
    times = f" (x{event['count']})" if event.get("count", 1) > 1 else ""
    what = f"{about.get('kind', '?')}/{about.get('name', '?')}"
    return f"{_when(event)} {event.get('type', '')} {event.get('reason', '')} {what}: {event.get('message', '')}{times}"


def _troubled(pod: Object) -> list[tuple[str, bool]]:
    """Containers worth quoting: (name, whether its previous run says more)."""
    if pod["status"].get("phase") == "Succeeded":
        return []
    found = [
        (each["name"], "waiting" in each.get("state", {}) and each.get("restartCount", 0) > 0)
        for each in pod["status"].get("initContainerStatuses", []) + pod["status"].get("containerStatuses", [])
        if not each.get("ready") and each.get("state", {}).get("terminated", {}).get("exitCode") != 0
    ]
    return found or ([] if is_ready(pod) else [("", False)])


def _containers(pod: Object) -> list[tuple[str, bool]]:
    status = pod["status"]
    names = [each["name"] for each in pod["spec"].get("initContainers", []) + pod["spec"]["containers"]]
    restarted = {each["name"] for each in status.get("containerStatuses", []) if each.get("restartCount", 0) > 0}
    return [(name, False) for name in names] + [(name, True) for name in names if name in restarted]
