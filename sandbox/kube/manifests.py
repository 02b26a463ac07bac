"""Manifests as data: loaded, changed by pointer, named after resolved images; never put together as text."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sandbox import paths
from sandbox.errors import UsageError
from sandbox.kube.resources import Object, Objects, label
from sandbox.spec.guardrail import Guardrail
from sandbox.spec.stack import Stack
from sandbox.spec.values import Setting, resolved


def render(
    spec: Stack | Guardrail,
    values: Mapping[str, Any],
    *,
    images: Mapping[str, str],
    labels: Mapping[str, str],
    found: Mapping[str, Any] | None = None,
) -> Objects:
    """The objects beside a stack.yaml or guardrail.yaml, as they would be applied. Touches nothing.

    Args:
        spec: whose manifests.
        values: as the user gave them.
        images: name of clusters/images/ -> reference the nodes can run.
        labels: added to every object's.
        found: values nobody gives, which the cluster itself says.

    Raises:
        UsageError: values, image names or settings do not fit; lists every problem with a value.
    """
    kind, name = spec.kind.lower(), spec.metadata.name
    where = f"{kind} {name}"
    chosen = {**resolved(spec.values, values, where=where), **(found or {})}
    objects = load(paths.shipped(f"{kind}s") / name / "manifests")
    objects = with_images(fill(objects, spec.set, chosen, where=where), images, where=where)
    for thing in objects:
        thing["metadata"].setdefault("labels", {}).update(labels)
    return objects


def load(folder: Path) -> Objects:
    """Every object of every `*.yaml` in `folder`, in the order of file names.

    Raises:
        UsageError: there is none, or one is no Kubernetes object; names the file.
    """
    objects: Objects = []
    for file in sorted(folder.glob("*.yaml")):
        try:
            documents = list(yaml.safe_load_all(file.read_text(encoding="utf-8")))
        except (OSError, yaml.YAMLError) as error:
            raise UsageError(f"cannot be read: {error}", where=str(file)) from error
        for document in filter(None, documents):
            if not isinstance(document, dict) or not {"apiVersion", "kind", "metadata"} <= set(document):
                raise UsageError("holds something that is no Kubernetes object", where=str(file))
            objects.append(document)
    if not objects:
        raise UsageError("there are no manifests here", where=str(folder))
    return objects


def fill(objects: Sequence[Object], settings: Sequence[Setting], values: Mapping[str, Any], *, where: str) -> Objects:
    """Copies of `objects` with every setting's value in its place.

    Raises:
        UsageError: a setting's target or place does not exist; names it.
    """
    filled = copy.deepcopy(list(objects))
    for setting in settings:
        target = _find(filled, setting.target, where)
        value = values[setting.value]
        if setting.unless is not None and value == setting.unless:
            continue
        if setting.present:
            if not value:
                filled.remove(target)
        elif setting.pointer is not None:
            put(target, setting.pointer, value, where=f"{where}, {label(target)}")
        else:
            _tell(_first_container(target, where), setting, value)
    return filled


def put(document: Any, pointer: str, value: Any, *, where: str) -> None:
    """Set what RFC 6901 `pointer` names in `document`; maps on the way are made, `-` appends to a list.

    A pointer that goes on below a string goes on in the YAML that it holds: a configuration file in a ConfigMap.

    Raises:
        UsageError: the pointer leads through something that is neither a map nor a list.
    """
    *way, last = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
    here = document
    for index, part in enumerate(way):
        if isinstance(here, dict) and isinstance(here.get(part), str):
            here[part] = _put_inside(here[part], "/" + "/".join(pointer.split("/")[index + 2 :]), value, where)
            return
        if isinstance(here, dict):
            here = here.setdefault(part, {})
        elif isinstance(here, list) and part.isdigit() and int(part) < len(here):
            here = here[int(part)]
        else:
            raise UsageError(f"{pointer} leads nowhere at {part!r}", where=where)
    if isinstance(here, dict):
        here[last] = copy.deepcopy(value)
    elif isinstance(here, list) and last == "-":
        here.append(copy.deepcopy(value))
    elif isinstance(here, list) and last.isdigit() and int(last) < len(here):
        here[int(last)] = copy.deepcopy(value)
    else:
        raise UsageError(f"{pointer} leads nowhere at {last!r}", where=where)


def _put_inside(text: str, pointer: str, value: Any, where: str) -> str:
    try:
        inner = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{pointer} leads nowhere: it goes on in a string that is no YAML", where=where) from error
    put(inner, pointer, value, where=where)
    return yaml.safe_dump(inner, sort_keys=False)


def with_images(objects: Sequence[Object], images: Mapping[str, str], *, where: str) -> Objects:
    """Copies of `objects` whose containers' images, names of clusters/images/, are replaced by what `images` says.

    Raises:
        UsageError: a manifest names an image that was not resolved.
    """
    named = copy.deepcopy(list(objects))
    missing = set()
    for container in (each for thing in named for each in _containers(thing)):
        if container["image"] in images:
            container["image"] = images[container["image"]]
        else:
            missing.add(container["image"])
    if missing:
        raise UsageError(
            f"the manifests use images that were not resolved: {', '.join(sorted(missing))}",
            where=where,
            fix="list them under `images:`",
        )
    return named


def _containers(thing: Object) -> list[Object]:
    spec = thing.get("spec", {})
    if thing["kind"] != "Pod":
        spec = spec.get("template", {}).get("spec", {})
    return [*spec.get("initContainers", []), *spec.get("containers", [])]


def _first_container(thing: Object, where: str) -> Object:
    containers = _containers(thing)
    if not containers:
        raise UsageError("has no container to give an argument or variable to", where=f"{where}, {label(thing)}")
    return containers[-1]


def _tell(container: Object, setting: Setting, value: Any) -> None:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if setting.arg is not None:
        others = [each for each in container.get("args", []) if each.split("=", 1)[0] != setting.arg]
        container["args"] = [*others, f"{setting.arg}={text}"]
    else:
        rest = [each for each in container.get("env", []) if each["name"] != setting.env]
        container["env"] = [*rest, {"name": setting.env, "value": text}]


def _find(objects: Objects, target: str, where: str) -> Object:
    kind, *space, name = target.split("/")
    found = [
        each
        for each in objects
        if each["kind"] == kind
        and each["metadata"]["name"] == name
        and (not space or each["metadata"].get("namespace") == space[0])
    ]
    if len(found) != 1:
        there = ", ".join(label(each) for each in objects)
        raise UsageError(f"set: {target} names {len(found)} manifests; there are: {there}", where=where)
    return found[0]
