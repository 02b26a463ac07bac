"""Timelines as a run would write them, built without a cluster; the same arguments give the same events."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from sandbox.spec.results import Check, Results
from sandbox.timeline import (
    AttackEvent,
    ClientBeat,
    Event,
    Fact,
    FaultEvent,
    LoadFinished,
    LoadStarted,
    Note,
    PhaseChanged,
    Probed,
    Request,
    RunStarted,
)

HOSTILE = '<script>alert("owned")</script><img src=x onerror=alert(1)>\x1b[31;5mred\x07\x00\x9b2J\u202egnp.exe\ufffe]]>'
_PHASES = ("preflight", "up", "deploy", "verify", "exercise", "recover")
_LOAD_AT = 41.0


@dataclass(frozen=True)
class Shape:
    """What the timeline tells. Seconds; `struck` None: no fault."""

    seconds: float = 60.0
    rate: float = 20.0
    struck: float | None = 20.0
    healed: float = 31.0
    lost: int = 6
    slowed: float = 3.0
    recovers: bool = True
    proven: bool = True
    breach: bool = False
    detail: str = "connection reset by peer"
    seed: int = 7


def scenario(shape: Shape) -> dict[str, Any]:
    """The scenario by alias, as `run.started` carries it."""
    faults = [
        {"name": "pod.kill", "params": {"target": {"app": "vllm-sim"}, "count": 1}, "at": f"{shape.struck or 0:g}s"}
    ]
    return {
        "apiVersion": "sandbox/v1",
        "kind": "Scenario",
        "metadata": {
            "name": "survive-a-lost-replica",
            "description": "One of three replicas dies under load; users must not notice.",
        },
        "cluster": "trio",
        "stack": {"name": "vllm-sim", "values": {"replicas": 3}},
        "guardrails": ["tenant"],
        "attacks": ["1-privileged-pod", "33-foreign-secrets"],
        "steadyState": ["openai.chat"],
        "load": {
            "profile": "chat-short",
            "arrivals": {"process": "constant", "rate": shape.rate},
            "duration": f"{shape.seconds:g}s",
        },
        "faults": faults if shape.struck is not None else [],
        "slo": {
            "ttft_intended": ["p(95)<=900ms"],
            "good_request_fraction": ["value>=0.99"],
            "truncated": ["count<=10"],
        },
    }


def events(shape: Shape = Shape()) -> list[Event]:
    """A whole run: set-up, load with one fault and two attacks, recovery."""
    found: list[Event] = [
        RunStarted(
            t=0.0,
            run_id="20260412-091500-survive-a-lost-replica",
            wall="2026-04-12T09:15:00.000+00:00",
            scenario=scenario(shape),
            source="scenarios/chaos/survive-a-lost-replica.yaml",
            versions={"sandbox": "0.1.0", "python": "3.11.2"},
        ),
        Fact(
            t=3.0,
            about="cluster",
            values={"name": "trio", "kubernetes": "v1.34.2", "nodes": 3, "cni": "kindnet", "gpus": "none"},
        ),
        Fact(t=4.0, about="images", values={"node": "sha256:8b1f03c4de", "vllm-sim": "sha256:77e1aa90b2"}),
        Fact(t=9.0, about="stack", values={"name": "vllm-sim", "replicas": 3, "model": "sim-8b", "emulated": True}),
        Fact(t=40.9, about="attacks", values={"planned": ["1-privileged-pod", "33-foreign-secrets"]}),
        Note(t=9.5, level="info", message="clusters/trio.yaml of the working directory shadows the shipped one"),
    ]
    found += _phases(shape)
    found.append(Probed(t=39.0, probe="openai.chat", when="before", ok=True, detail="answered 12 tokens in 0.21 s"))
    end = _LOAD_AT + shape.seconds
    found.append(
        LoadStarted(
            t=_LOAD_AT,
            url="http://172.18.0.3:30080/v1",
            model="sim-8b",
            profile="chat-short",
            asked={"process": "constant", "rate": shape.rate, "duration": f"{shape.seconds:g}s", "seed": 1},
        )
    )
    found += _requests(shape)
    found += [
        ClientBeat(t=_LOAD_AT + second + 1, lag=[0.0012, 0.0008, 0.0005], beats=100, cpu=0.31, in_flight=9)
        for second in range(int(shape.seconds))
    ]
    found += _fault(shape)
    found += _attacks(shape)
    found.append(LoadFinished(t=end + 0.8, attempted=int(shape.seconds * shape.rate)))
    found.append(
        Probed(
            t=end + 2.0,
            probe="openai.chat",
            when="after",
            ok=shape.recovers,
            detail="answered 12 tokens in 0.19 s" if shape.recovers else "HTTP 503: no healthy upstream",
        )
    )
    return sorted(found, key=lambda event: event.t)


def hostile_results() -> Results:
    """Every text a stranger could have written is an attack on the page, the terminal or the XML."""
    statuses = (("pass", "slo"), ("fail", "attack"), ("invalid", "validity"))
    return Results(
        run_id="20260412-hostile",
        scenario=f"hostile {HOSTILE}",
        description=HOSTILE,
        started=HOSTILE,
        duration=12.0,
        verdict="fail",
        headline=f"::error::{HOSTILE}\n::set-output name=x::y",
        checks=[
            Check(
                id=f"{group}/{HOSTILE}",
                group=group,  # type: ignore[arg-type]
                title=HOSTILE,
                status=status,  # type: ignore[arg-type]
                observed=HOSTILE,
                expected=HOSTILE,
                reason=f"{HOSTILE} | pipe `tick` [link](http://example.invalid) @all",
                evidence=[HOSTILE],
            )
            for status, group in statuses
        ],
        facts={HOSTILE: {HOSTILE: HOSTILE}},
        notes=[HOSTILE],
    )


def _phases(shape: Shape) -> list[Event]:
    starts = (0.2, 1.0, 12.0, 38.0, 40.5, 40.5 + shape.seconds + 1.0)
    ends = (*starts[1:], starts[-1] + 2.5)
    found: list[Event] = []
    for name, start, end in zip(_PHASES, starts, ends, strict=True):
        found.append(PhaseChanged(t=start, name=name, status="started"))
        found.append(PhaseChanged(t=end, name=name, status="ok"))
    return found


def _requests(shape: Shape) -> list[Event]:
    chance = random.Random(shape.seed)  # noqa: S311 - a fixed picture, not a secret
    found: list[Event] = []
    lost = 0
    total = int(shape.seconds * shape.rate)
    for index in range(total):
        at = index / shape.rate
        hit = shape.struck is not None and shape.struck <= at < shape.healed
        if hit and lost < shape.lost and index % 5 == 0:
            lost += 1
            found.append(_broken(at, lost, shape.detail))
            continue
        slow = shape.slowed if hit else (2.5 if shape.breach else 1.0)
        wait = 0.14 * slow * chance.lognormvariate(0, 0.28)
        gaps = [0.018 * chance.lognormvariate(0, 0.3) for _ in range(11)]
        sent = _LOAD_AT + at + 0.0006
        first = sent + wait
        last = first + sum(gaps)
        found.append(
            Request(
                t=last + 0.002,
                scheduled=_LOAD_AT + at,
                sent=sent,
                first=first,
                last=last,
                chunks=12,
                tokens=12,
                gaps=gaps,
                outcome="ok",
                status=200,
                server=f"vllm-sim-{index % 3}",
                tags={"tenant": "red"},
            )
        )
    return found


def _broken(at: float, number: int, detail: str) -> Request:
    sent = _LOAD_AT + at + 0.0006
    if number % 3:
        first = sent + 0.16
        return Request(
            t=first + 0.09, scheduled=_LOAD_AT + at, sent=sent, first=first, last=first + 0.07, chunks=4,
            gaps=[0.02, 0.02, 0.03], outcome="truncated", status=200, detail=detail, server="vllm-sim-1",
        )  # fmt: skip
    return Request(
        t=sent + 0.03,
        scheduled=_LOAD_AT + at,
        sent=sent,
        outcome="http_error",
        status=503,
        detail="no healthy upstream",
    )


def _fault(shape: Shape) -> list[Event]:
    if shape.struck is None:
        return []
    at = _LOAD_AT + shape.struck
    if not shape.proven:
        return [
            FaultEvent(t=at, fault="pod.kill", index=0, state="started"),
            FaultEvent(t=at + 0.1, fault="pod.kill", index=0, state="no_target", detail="no pod has app=vllm-simm"),
        ]
    life = [
        ("started", at, "", {}),
        ("injected", at + 0.05, "deleted vllm-sim-5d9c-x2x7q, grace 0", {"uid": "0b7a"}),
        ("proven", at + 0.4, "the pod's container is gone on trio-worker2", {"pid": 41233}),
    ]
    if shape.recovers:
        life.append(("healed", _LOAD_AT + shape.healed, "3 of 3 replicas ready", {"ready": 3}))
    return [
        FaultEvent(t=t, fault="pod.kill", index=0, state=state, detail=detail, evidence=evidence)  # type: ignore[arg-type]
        for state, t, detail, evidence in life
    ]


def _attacks(shape: Shape) -> list[Event]:
    at = _LOAD_AT + shape.seconds / 2
    told = (
        ("1-privileged-pod", "start a privileged pod", "P", 'pods "x" is forbidden: violates PodSecurity "restricted"'),
        ("33-foreign-secrets", "read another namespace's Secrets", "R", 'secrets is forbidden: User "red" cannot list'),
    )
    found: list[Event] = []
    for position, (attempt, title, by, message) in enumerate(told):
        leak = shape.breach and by == "R"
        found += [
            AttackEvent(
                t=at + position,
                attempt=attempt,
                title=title,
                variant="attempt",
                outcome="succeeded" if leak else "denied",
                expected_by=by,
                by="" if leak else by,
                message="200 OK, 4 secrets" if leak else message,
                seconds=0.041,
            ),
            AttackEvent(
                t=at + position + 0.3,
                attempt=attempt,
                title=title,
                variant="allowed",
                outcome="succeeded",
                expected_by=by,
                message="created" if by == "P" else "200 OK",
                seconds=0.032,
            ),
        ]
    return found
