"""Stacks: data in sandbox/stacks/<name>/, deployed until they answer, removed until nothing is left."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from sandbox import paths
from sandbox.errors import ClusterError, DeadlineExceeded, UsageError
from sandbox.kube import collect, manifests, namespaces
from sandbox.kube.client import Kube
from sandbox.kube.conditions import rollout
from sandbox.kube.resources import Object, Objects, label
from sandbox.kube.wait import Seen, wait_for
from sandbox.spec.loader import load as load_spec
from sandbox.spec.stack import Stack
from sandbox.spec.values import resolved

STACK_LABEL = "ai-k8s-sandbox/stack"
_WORKLOADS = {"Deployment", "StatefulSet", "DaemonSet"}
_ONE_TRY_SECONDS = 20.0
_SHOWN = 200


@dataclass(frozen=True)
class Deployed:
    """A stack that answers.

    Attributes:
        stack: its name.
        namespace: where it lives.
        model: the model's name in requests; empty where it serves none.
        url: its endpoint without `/v1`, on the first node, reachable from this machine.
        urls: the same on every node.
    """

    stack: str
    namespace: str
    model: str
    url: str
    urls: tuple[str, ...]


def names() -> list[str]:
    """The stacks there are."""
    return sorted(file.parent.name for file in paths.shipped("stacks").glob("*/stack.yaml"))


def load(name: str) -> Stack:
    """The stack of that name.

    Raises:
        UsageError: there is none; names those there are. Or its stack.yaml has mistakes; lists them all.
    """
    if name not in names():
        raise UsageError(f"there is no stack {name!r}", where="stack", fix=f"use one of: {', '.join(names())}")
    return load_spec(paths.shipped("stacks") / name / "stack.yaml", Stack).model


def ordered(name: str, besides: Sequence[str] = ()) -> list[Stack]:
    """The stack of that name after all that it requires, each once and after what it requires itself.

    Args:
        name: of the stack.
        besides: what it requires besides what its stack.yaml says.

    Raises:
        UsageError: as `load`, for each of them; or they require each other in a circle.
    """
    done: dict[str, Stack] = {}

    def visit(each: str, way: tuple[str, ...]) -> None:
        if each in way:
            circle = " -> ".join([*way[way.index(each) :], each])
            raise UsageError(f"stacks require each other in a circle: {circle}", where="stack", fix="cut it somewhere")
        if each in done:
            return
        stack = load(each)
        for needed in dict.fromkeys([*stack.requires, *(() if way else besides)]):
            visit(needed, (*way, each))
        done[each] = stack

    visit(name, ())
    return list(done.values())


def render(stack: Stack, values: Mapping[str, Any], *, images: Mapping[str, str]) -> Objects:
    """The objects of a stack, namespace first; see sandbox/kube/manifests.py for what it raises."""
    objects = manifests.render(stack, values, images=images, labels=labels(stack))
    for thing in objects:
        if thing["kind"] not in namespaces.CLUSTER_WIDE:
            thing["metadata"]["namespace"] = stack.namespace
    return [namespaces.make(stack.namespace), *objects]


def labels(stack: Stack) -> dict[str, str]:
    """What every object of the stack carries."""
    return {**namespaces.MANAGED_BY, STACK_LABEL: stack.metadata.name}


def deploy(
    kube: Kube,
    stack: Stack,
    values: Mapping[str, Any],
    *,
    images: Mapping[str, str],
    addresses: Sequence[str],
) -> Deployed:
    """Apply the stack and wait until its pods are up and an answer came back through the endpoint.

    The answer is a completion, where the stack serves a model. What it requires has to be there already.

    Args:
        kube: the cluster, as its administrator.
        stack: from `load`.
        values: checked before anything is applied.
        images: name of clusters/images/ -> reference the nodes can run.
        addresses: of the nodes, as this machine reaches them.

    Raises:
        UsageError: values or addresses do not fit; nothing was applied.
        ClusterError: it did not become ready; `details` says what its pods say. Or its namespace is not ours.
    """
    if not addresses:
        raise UsageError("no node address to reach the stack at", where=f"stack {stack.metadata.name}")
    objects = render(stack, values, images=images)
    namespaces.refuse_strangers(kube, [stack.namespace])
    deadline = time.monotonic() + stack.ready.within
    applied = kube.apply(objects)
    node_port = _node_port(applied, stack)
    hosts = [f"[{address}]" if ":" in address else address for address in addresses]
    urls = tuple(f"http://{host}:{node_port}" for host in hosts)
    chosen = resolved(stack.values, values, where=f"stack {stack.metadata.name}")
    model = stack.endpoint.model or str(chosen.get(stack.endpoint.model_value or "", ""))
    try:
        for thing in applied:
            if thing["kind"] in _WORKLOADS:
                wait_for(
                    rollout(kube, thing["kind"], stack.namespace, thing["metadata"]["name"]),
                    within=max(1.0, deadline - time.monotonic()),
                    what=f"{label(thing)} being up",
                )
        left = max(1.0, deadline - time.monotonic())
        if stack.ready.path is None:
            first_completion(urls[0], model, stack, within=left)
        else:
            first_answer(urls[0] + stack.ready.path, within=left)
    except DeadlineExceeded as error:
        raise ClusterError(
            error.what,
            where=f"stack {stack.metadata.name} in namespace {stack.namespace}",
            details=[*error.details, *collect.digest(kube, stack.namespace)],
            fix="read what the pods say above; if the machine is too small, use fewer replicas",
        ) from error
    return Deployed(
        stack=stack.metadata.name,
        namespace=stack.namespace,
        model=model,
        url=urls[0],
        urls=urls,
    )


def first_completion(url: str, model: str, stack: Stack, *, within: float) -> str:
    """Ask for a completion until one with content comes; its text.

    Raises:
        DeadlineExceeded: none came; `details` holds the last answer.
    """
    body = {
        "model": model,
        "max_tokens": stack.ready.max_tokens,
        "messages": [{"role": "user", "content": stack.ready.prompt}],
    }

    def ask() -> Seen[str]:
        try:
            # a proxy of the environment cannot know the way to a node
            answer = httpx.post(
                f"{url}/v1/chat/completions", json=body, timeout=min(within, _ONE_TRY_SECONDS), trust_env=False
            )
        except httpx.TransportError as error:
            return Seen(False, "", f"{type(error).__name__}: {error}")
        if answer.status_code != httpx.codes.OK:
            return Seen(False, "", f"HTTP {answer.status_code}: {answer.text[:_SHOWN]}")
        text = _content(answer)
        return Seen(bool(text), text, f"no content in: {answer.text[:_SHOWN]}")

    return wait_for(ask, within=within, what=f"a completion by {model} at {url}")


def first_answer(url: str, *, within: float) -> None:
    """GET `url` until it answers with 200.

    Raises:
        DeadlineExceeded: it did not; `details` holds the last answer.
    """

    def ask() -> Seen[None]:
        try:
            answer = httpx.get(url, timeout=min(within, _ONE_TRY_SECONDS), trust_env=False)
        except httpx.TransportError as error:
            return Seen(False, None, f"{type(error).__name__}: {error}")
        saw = f"HTTP {answer.status_code}: {answer.text[:_SHOWN]}"
        return Seen(answer.status_code == httpx.codes.OK, None, saw)

    wait_for(ask, within=within, what=f"an answer of {url}")


def undeploy(kube: Kube, stack: Stack, *, within: float = 90.0) -> None:
    """Remove the stack with its namespace and its rights, and wait until all is gone. What is not there is no error.

    Raises:
        ClusterError: the namespace is not ours.
        DeadlineExceeded: something is still there; names what, and what holds it.
    """
    kube.delete(namespaces.rights(kube, labels(stack)), within=within)
    namespaces.remove(kube, [stack.namespace], within=within)


def _node_port(applied: Objects, stack: Stack) -> int:
    for thing in applied:
        if thing["kind"] == "Service" and thing["metadata"]["name"] == stack.endpoint.service:
            ports = [each for each in thing["spec"]["ports"] if each["port"] == stack.endpoint.port]
            if ports and ports[0].get("nodePort"):
                return int(ports[0]["nodePort"])
    raise UsageError(
        f"no Service {stack.endpoint.service} with a node port for {stack.endpoint.port} among the manifests",
        where=f"stack {stack.metadata.name}",
        fix="give that Service `type: NodePort`",
    )


def _content(answer: httpx.Response) -> str:
    try:
        message: Object = answer.json()["choices"][0]["message"]
    except (ValueError, KeyError, IndexError, TypeError):
        return ""
    return str(message.get("content") or message.get("reasoning_content") or "").strip()
