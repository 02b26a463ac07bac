"""Makes attempts as the tenant: with its own token, from its own pod. Setting up and cleaning up is for the admin."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

from sandbox.attacks.catalogue import build, fill
from sandbox.attacks.denial import denied_by, said
from sandbox.errors import ClusterError, DeadlineExceeded, SandboxError, Unproven
from sandbox.kube import ExecResult, Kube, Object, Response, Seen, wait_for
from sandbox.kube.guardrails import Tenant
from sandbox.spec.attack import ApiCall, Attempt, Create, Packet, Try

Outcome = Literal["denied", "succeeded", "error"]
_ARRIVES_WITHIN = 20.0
_ANSWERS_WITHIN = 5.0  # half of what the twins' own commands wait for an answer
_NOT_RUN = 126  # a shell's own words: 126 and 127 not started, above that killed by a signal
_MODEL = "ai-k8s-sandbox/role=model"


@dataclass(frozen=True)
class AttackResult:
    """What came of one attempt or of its allowed twin.

    Attributes:
        attempt: the attempt's id, such as 1-privileged-pod.
        outcome: denied, succeeded, or error: it could not be made or not be told apart, nothing is proven.
        expected_by: who has to deny the attempt: R, P, Q, N …
        by: who denied it, in the same letters; empty where nobody did or nobody knows.
        message: in the denier's own words, or what arrived.
        seconds: how long it took.
    """

    attempt: str
    title: str
    variant: Literal["attempt", "allowed"]
    outcome: Outcome
    expected_by: str
    by: str
    message: str
    seconds: float

    def event(self) -> dict[str, Any]:
        """As the fields of a timeline's AttackEvent, without its time."""
        return asdict(self)


@dataclass(frozen=True)
class _Answer:
    outcome: Outcome
    by: str
    message: str


@dataclass(frozen=True)
class _Scene:
    """The administrator's and the tenant's connection, and what `$(name)` stands for."""

    admin: Kube
    actor: Kube
    tenant: Tenant
    variables: dict[str, str]


def make(kube: Kube, tenant: Tenant, attempt: Attempt, *, nodes: Sequence[str] = ()) -> Iterator[AttackResult]:
    """Make the attempt, then its allowed twin. Never raises: what could not be made is an `error`.

    Args:
        kube: the cluster as its administrator, for setting up and cleaning up only.
        tenant: whom to be.
        attempt: of the catalogue.
        nodes: addresses of the nodes, for `$(nodeIP)`; asked of the cluster when empty.

    Yields:
        Two results, the attempt's and the twin's.
    """
    variants: tuple[tuple[Literal["attempt", "allowed"], Try], ...] = (
        ("attempt", attempt.attempt),
        ("allowed", attempt.allowed),
    )
    for variant, way in variants:
        begun = time.monotonic()
        try:
            with_setup = attempt.before if variant == "attempt" else None
            scene = _scene(kube, tenant, f"try-{attempt.number}-{variant}", way.model_dump_json(), nodes)
            answer = _try(scene, way, with_setup, variant)
        except SandboxError as error:
            answer = _Answer("error", "", str(error))
        yield AttackResult(
            attempt=attempt.id,
            title=attempt.title,
            variant=variant,
            outcome=answer.outcome,
            expected_by=attempt.expected_by,
            by=answer.by,
            message=answer.message[:1000],
            seconds=round(time.monotonic() - begun, 3),
        )


def _scene(kube: Kube, tenant: Tenant, name: str, text: str, nodes: Sequence[str]) -> _Scene:
    """Credentials and references; what has to be asked for is asked for only where `text` refers to it."""
    actor = kube.as_token(kube.token(tenant.namespace, tenant.service_account))
    variables = {
        "tenant": tenant.namespace,
        "serviceAccount": tenant.service_account,
        "pod": tenant.pod,
        "image": tenant.image,
        "name": f"{name}-{uuid.uuid4().hex[:6]}",
    }
    lazily: tuple[tuple[str, Callable[[], dict[str, str]]], ...] = (
        ("$(nodeIP)", lambda: {"nodeIP": nodes[0] if nodes else _node_address(kube)}),
        ("$(model", lambda: _model_address(kube, tenant)),
        ("$(victimIP)", lambda: {"victimIP": _victim_address(kube, tenant)}),
    )
    for asked, answers in lazily:
        if asked in text:
            variables |= answers()
    return _Scene(kube, actor, tenant, variables)


def _try(scene: _Scene, way: Try, before: Create | None, variant: str) -> _Answer:
    made = build(before, scene.variables) if before else None
    if made:
        scene.admin.apply([made])
    try:
        if way.create:
            return _create(scene, way.create)
        if way.request:
            return _request(scene, way.request)
        if way.packet:
            return (_packet if variant == "attempt" else _allowed_packet)(scene, way.packet)
        raise Unproven("the attempt says nothing to try")
    finally:
        if made:
            with suppress(SandboxError):  # as where the tenant's own is undone
                scene.admin.delete([made], within=10)


def _create(scene: _Scene, create: Create) -> _Answer:
    thing = build(create, scene.variables)
    path = scene.admin.path(thing, collection=True)
    answer = scene.actor.request("POST", path, thing)
    if answer.ok:
        # The answer is the result, whatever becomes of the undoing: what stays is labelled and goes with its namespace.
        with suppress(SandboxError):
            scene.admin.request("DELETE", f"{path}/{thing['metadata']['name']}", {"gracePeriodSeconds": 0})
    return _judged(answer, f"{thing['kind']} {thing['metadata']['name']} was created")


def _request(scene: _Scene, call: ApiCall) -> _Answer:
    where = urlsplit(fill(call.path, scene.variables))
    answer = scene.actor.request(
        call.method,
        where.path,
        fill(call.body, scene.variables),
        fill(call.headers, scene.variables),
        parse_qsl(where.query),
    )
    return _judged(answer, f"{call.method} {where.path} was answered with {answer.status}")


def _judged(answer: Response, success: str) -> _Answer:
    if answer.ok:
        return _Answer("succeeded", "", success)
    by = denied_by(answer)
    return _Answer("denied" if by else "error", by or "", said(answer))


def _packet(scene: _Scene, packet: Packet) -> _Answer:
    """The attempt's packet: denied by the network only if the same packet would have arrived without a policy.

    One that does not arrive may be lost, or the machine be slow. So it counts only after the free pod's did arrive, is
    then sent once more, and the free pod's has to arrive after it too, at the first try.

    Raises:
        Unproven: one of the controls did not hold.
    """
    command = fill(packet.command, scene.variables)
    tenant = scene.tenant
    if tenant.neighbour is None:
        raise Unproven("no neighbour to prove by that the target answers and policies are enforced")
    space, free, locked = tenant.neighbour.namespace, tenant.neighbour.free, tenant.neighbour.locked
    sent = _exec(scene.actor, tenant.namespace, tenant.pod, command)
    lost = _ran(sent) and sent.code != 0
    if lost and (problem := _never_arrives(scene.admin, space, free, command)):
        raise Unproven(f"nor from {space}/{free}, which is free to: {problem}")
    with ThreadPoolExecutor() as pool:  # where it is stopped, each takes its seconds to say so
        held = pool.submit(_exec, scene.admin, space, locked, command)
        if lost:
            sent = _exec(scene.actor, tenant.namespace, tenant.pod, command)
    stopped = held.result()
    for pod, result in ((f"{tenant.namespace}/{tenant.pod}", sent), (f"{space}/{locked}", stopped)):
        if not _ran(result):
            raise Unproven(f"the command could not be run in {pod}: {_words(result)}")
    if stopped.code == 0:
        why = "nothing enforces policies on the way there"
        raise Unproven(f"a packet of {space}/{locked}, which may send none, arrived: {why}")
    if sent.code == 0:
        return _Answer("succeeded", "", f"`{' '.join(command)}` arrived from pod {tenant.namespace}/{tenant.pod}")
    after = _exec(scene.admin, space, free, command)
    if after.code != 0:
        why = "so the target is too slow to tell"
        raise Unproven(f"nor did the next from {space}/{free}, which is free to: {_words(after)}, {why}")
    return _Answer("denied", "N", f"{_words(sent)}; the same from {space}/{free}, which no policy selects, arrived")


def _never_arrives(kube: Kube, namespace: str, pod: str, command: Sequence[str]) -> str:
    """Why the packet does not arrive from there; empty when it does."""
    try:
        sent = _arrived(kube, namespace, pod, command)
    except DeadlineExceeded as error:
        return "; ".join(error.details or [error.what])
    return "" if sent.code == 0 else _words(sent)


def _arrived(kube: Kube, namespace: str, pod: str, command: Sequence[str]) -> ExecResult:
    """Send until it arrives or turns out never to start: a busy machine, or a fault at work, may make it slow.

    Raises:
        DeadlineExceeded: it did not arrive in time; `details` says what the command said.
    """

    def send() -> Seen[ExecResult]:
        sent = _exec(kube, namespace, pod, command)
        return Seen(sent.code == 0 or not _ran(sent), sent, _words(sent))

    return wait_for(send, within=_ARRIVES_WITHIN, what=f"`{' '.join(command)}` from {namespace}/{pod}")


def _allowed_packet(scene: _Scene, packet: Packet) -> _Answer:
    """The twin's packet has to arrive; denied by the network only where the model answers us and the packet is lost.

    On a busy machine both are slow. So the model is asked before and after the packet that decides, and a command that
    was too slow to come to its end decides nothing.

    Raises:
        Unproven: the model did not answer us either.
    """
    command = fill(packet.command, scene.variables)
    tenant = scene.tenant
    try:
        sent = _arrived(scene.actor, tenant.namespace, tenant.pod, command)
    except DeadlineExceeded as error:
        why = f"{error.what}: {'; '.join(error.details)}"
        before = _model_answers(scene)
        sent = _exec(scene.actor, tenant.namespace, tenant.pod, command)
        if _ran(sent) and sent.code != 0:
            if before and _model_answers(scene):
                return _Answer("denied", "N", why)
            silent = f"nor did the model answer the administrator within {_ANSWERS_WITHIN:g} s"
            raise Unproven(f"{why} ({silent}, so this says nothing about the network)") from error
    if not _ran(sent):
        return _Answer("error", "", f"the command could not be run: {_words(sent)}")
    return _Answer("succeeded", "", f"`{' '.join(command)}` arrived")


def _model_answers(scene: _Scene) -> bool:
    """Ask the model through the API server's proxy, which the tenant's policies do not select."""
    service = _model_service(scene.admin, scene.tenant)
    name, port = service["metadata"]["name"], service["spec"]["ports"][0]["port"]
    path = f"/api/v1/namespaces/{scene.tenant.platform}/services/http:{name}:{port}/proxy/v1/models"
    begun = time.monotonic()
    with suppress(SandboxError):
        return scene.admin.request("GET", path).ok and time.monotonic() - begun <= _ANSWERS_WITHIN
    return False


def _ran(result: ExecResult) -> bool:
    """Whether the command came to an end of its own: it was started, found, and not killed by a signal."""
    return 0 <= result.code < _NOT_RUN


def _words(result: ExecResult) -> str:
    return result.stderr.strip() or result.stdout.strip() or f"exit status {result.code}"


def _exec(kube: Kube, namespace: str, pod: str, command: Sequence[str]) -> ExecResult:
    return kube.exec(namespace, pod, command, within=_ARRIVES_WITHIN)


def _node_address(kube: Kube) -> str:
    for node in kube.list("v1", "Node"):
        for address in node["status"]["addresses"]:
            if address["type"] == "InternalIP":
                return str(address["address"])
    raise ClusterError("no node has an InternalIP", fix="sandbox status")


def _model_service(kube: Kube, tenant: Tenant) -> Object:
    services = kube.list("v1", "Service", tenant.platform, label_selector=_MODEL)
    if not services:
        raise Unproven(f"no Service with {_MODEL} in {tenant.platform}", fix="deploy a stack there first")
    return services[0]


def _model_address(kube: Kube, tenant: Tenant) -> dict[str, str]:
    service = _model_service(kube, tenant)
    meta, spec = service["metadata"], service["spec"]
    return {
        "modelHost": f"{meta['name']}.{meta['namespace']}.svc.cluster.local",
        "modelIP": str(spec["clusterIP"]),
        "modelPort": str(spec["ports"][0]["port"]),
    }


def _victim_address(kube: Kube, tenant: Tenant) -> str:
    if tenant.neighbour is None:
        raise Unproven("this guardrail brings no neighbour to reach")
    pod: Object | None = kube.get("v1", "Pod", tenant.neighbour.victim, tenant.neighbour.namespace)
    address = (pod or {}).get("status", {}).get("podIP", "")
    if not address:
        raise Unproven(f"pod {tenant.neighbour.namespace}/{tenant.neighbour.victim} has no address")
    return str(address)
