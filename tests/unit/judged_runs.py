"""Runs written by hand, and what the judge made of them: every check, figure and word.

What is kept of each in tests/data/judged/ is what the judge said when somebody last looked at it. A change of the judge
that changes any of it shows up as a change of these files: `python -m tests.unit.judged_runs` writes them anew, and the
difference is read like code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timelines
from test_judge import GOOD, LOAD_AT, fault, history, request, scenario
from test_workloads import closed

from sandbox import metrics
from sandbox.judge import judge, weigh
from sandbox.spec.scenario import Scenario
from sandbox.spec.slo import METRICS, WHOLE_RUN, parse_expression, parse_selector
from sandbox.timeline import (
    AttackEvent,
    BaselineSamples,
    ClientBeat,
    Event,
    Fact,
    FaultEvent,
    GpuNodes,
    LoadAborted,
    LoadFinished,
    Note,
    PhaseChanged,
    PodEvent,
    Request,
    RunStarted,
    WorkloadFinished,
    WorkloadStarted,
)
from tests.unit.whole_runs import whole

FOLDER = Path(__file__).parents[1] / "data" / "judged"
Runs = dict[str, Callable[[], list[Event]]]
_EXPRESSIONS = {
    "trend": ("p(50)<=1s", "p(99)<=1s", "avg<=1s", "min<=1s", "max<=1s", "med<=1s", "count>=1"),
    "rate": ("rate>=0.5",),
    "count": ("count>=1", "rate>=0.5"),
    "value": ("value>=1",),
}
_DIGITS = 9  # of a figure: the last ones differ from one numpy to the next


def _shape(**changes: Any) -> timelines.Shape:
    return timelines.Shape(**{"seconds": 40, "rate": 6, **changes})


def of_shapes() -> Runs:
    """Whole runs with their phases, a fault and attacks, as a timeline has them."""
    shapes = {
        "held": _shape(),
        "broken-promises": _shape(breach=True),
        "not-healed": _shape(recovers=False),
        "fault-without-target": _shape(proven=False),
        "no-fault": _shape(struck=None),
        "many-lost": _shape(lost=40),
    }
    return {name: lambda shape=shape: whole(timelines.events(shape)) for name, shape in shapes.items()}


EVERY_AGGREGATION = {
    "ttft": ["p(50)<=100ms", "p(90)<=300ms", "p(99)<=1s", "avg<=300ms", "min<=100ms", "max<=2s", "med<=1ms"],
    "ttft_intended{phase:fault}": ["p(50)<=1s", "p(99)<=1s"],
    "tpot": ["med<=100ms", "avg>=1ms"],
    "icl": ["p(50)<=50ms", "max<=150ms", "max<=40ms"],
    "ntpot": ["p(90)<=200ms"],
    "e2e": ["p(90)<=600ms", "max>=1s"],
    "sched_lag": ["max<=10ms"],
    "good_request_fraction": ["rate>=0.9", "value>=0.99"],
    "good_request_fraction{phase:baseline}": ["rate>=1"],
    "request_rate": ["value>=9", "value>=50"],
    "token_rate{phase:recovery}": ["value>=10"],
    "requests": ["count>=300", "count>=301"],
    "http_error": ["count<=5", "rate<=0.01"],
    "truncated{phase:fault}": ["count<=1"],
    "timeout": ["count<=3"],
    "dropped": ["count<=1", "rate<=0.5"],
    "guardrail_blocked": ["count<=1"],
    "time_to_recover": ["value<=5s", "value<=1s"],
}
MIXED = [
    *GOOD[:90],
    *(request(LOAD_AT + 9 + n / 10, "http_error", 0.05, status=503, detail="no upstream") for n in range(4)),
    *(request(LOAD_AT + 9.5 + n / 10, "truncated", 0.3, detail="cut") for n in range(20)),
    request(LOAD_AT + 12, "timeout", 5.0, status=200, detail="silent for 2 s"),
    request(LOAD_AT + 12.1, "connect_error", 0.01).model_copy(update={"sent": None}),
    request(LOAD_AT + 12.2, "dropped", 0.0).model_copy(update={"sent": None}),
    request(LOAD_AT + 12.3, "inband_error", 0.2),
    request(LOAD_AT + 12.4, "guardrail_blocked", 0.2),
    *(
        request(LOAD_AT + 13 + n / 10, took=0.5 + n % 7 / 10, ttft=0.1 + n % 5 / 20, tags={"tenant": "red"}).model_copy(
            update={"gaps": [0.05, 0.01 * (n % 9), 0.2], "prompt_tokens": 7 + n % 2}
        )
        for n in range(170)
    ),
]


def of_loads() -> Runs:
    """Loads that ended one way or another, each held against thresholds of every kind."""
    sent = scenario(slo=EVERY_AGGREGATION, load={**scenario()["load"], "good": {"e2e": "900ms"}})
    earlier = [
        BaselineSamples(t=0, run_id="r0", source="runs/r0", selector=name, samples=samples)
        for name, samples in (
            ("ttft", [0.1 + n % 10 / 1000 for n in range(300)]),
            ("e2e", [0.4 + n % 10 / 1000 for n in range(300)]),
            ("tpot", [0.2] * 5),
            ("good_request_fraction", [1.0] * 300),
            ("good_request_fraction{phase:fault}", [float(n % 10 > 0) for n in range(300)]),
            ("ntpot", [0.0] * 300),
        )
    ]
    against: dict[str, Any] = {
        "ttft": ["p(50)<=baseline+10%", "avg<=baseline+500%", "med>=baseline-50%"],
        "e2e": ["med<=baseline+10%"],
        "tpot": ["med<=baseline+10%"],
        "ntpot": ["med<=baseline+10%"],
        "good_request_fraction": ["rate>=baseline-1%", "rate>=baseline-30%"],
        "good_request_fraction{phase:fault}": ["rate>=baseline-5%"],
    }
    aborting = LoadAborted(t=35, threshold="slo/http_error/count<=5", observed="6")
    beats = [
        ClientBeat(
            t=LOAD_AT + n, lag=[0.001 * n] * 20, beats=100, cpu=0.3 + n / 60, in_flight=n, worker=f"{n % 2 + 1}/2",
            added=[0.0005 * n] * 20, calibrated=50,
        )
        for n in range(1, 31)
    ]  # fmt: skip
    tags = [
        request(LOAD_AT + n / 10, took=0.2 + n / 999, tags={"tenant": f"t{n % 25}", "model": "ab"[n % 2]})
        for n in range(300)
    ]
    mix = [{"profile": "chat-short", "tenant": f"t{number}", "weight": 1 + number} for number in range(3)]
    shared = {key: value for key, value in scenario()["load"].items() if key != "profile"} | {"mix": mix}
    tagged = scenario(load=shared, slo={"ttft{tenant:t1}": ["p(50)<=150ms"], "e2e{tenant:t0,phase:fault}": ["max<=1s"]})
    never = [request(20 + n / 10, "timeout") for n in range(190)]
    silent = [each.model_copy(update={"detail": "the answer is whole, and says nothing"}) for each in GOOD[:9]]
    return {
        "every-aggregation": lambda: history(spec=sent, requests=MIXED),
        "every-aggregation-cut-short": lambda: history(spec=sent, requests=MIXED, aborted="stopped"),
        "nothing-was-sent": lambda: history(spec=sent, requests=[]),
        "client-died": lambda: history(requests=MIXED, finished=False),
        "client-lost-records": lambda: history(attempted=310),
        "client-late": lambda: history(lag=0.2),
        "client-of-two-processes": lambda: history(extra=[*beats]),
        "ended-by-a-threshold": lambda: history(spec=sent, requests=MIXED, extra=[aborting], aborted="abortOnFail"),
        "against-an-earlier-run": lambda: history(spec=scenario(slo=against), requests=MIXED, extra=[*earlier]),
        "against-nothing": lambda: history(spec=scenario(slo=against), requests=MIXED),
        "never-recovered": lambda: history(requests=[*GOOD[:100], *never]),
        "recovered-late": lambda: history(requests=[*GOOD[:90], *MIXED[94:114], *GOOD[200:]]),
        "tags": lambda: history(spec=tagged, requests=tags),
        "answers-that-say-nothing": lambda: history(requests=[*silent, *GOOD[9:]]),
        "no-load-at-all": lambda: history(spec=scenario(load=None, slo={}, faults=[]), requests=[], faults=[]),
    }


def _unsure(each: Request, number: int) -> Request:
    """As of a client that was late by something else each time, at times by half a second."""
    late = (0.0, 0.004, 0.03, 0.45)
    bounds = [late[(number + chunk) % 4] for chunk in range(each.chunks)]
    return each.model_copy(
        update={
            "sent": None if each.sent is None else each.sent + (0.0, 0.002, 0.0, 0.3)[number % 4],
            "first": None if each.first is None else each.first + 0.31,
            "last": None if each.last is None else each.last + 0.31,
            "t": each.t + 0.31,
            "gaps": [(each.last - each.first) / (each.chunks - 1)] * (each.chunks - 1)
            if each.first is not None and each.last is not None and each.chunks > 1
            else [],
            "connect_uncertainty": late[number % 3],
            "uncertainty": bounds,
            "end_uncertainty": late[(number + 2) % 4],
            "content_bytes": (3 + number % 4) * each.chunks,
            "first_bytes": 3 + number % 4,
            "tokens": each.tokens and each.tokens + 9 * (number % 5 == 0),
        }
    )


def _healed_unsure() -> list[FaultEvent]:
    return [
        each.model_copy(update={"uncertainty": 0.7 if each.state == "healed" else None})
        for each in fault("started", "injected", "proven", "healed")
    ]


def of_late_clients() -> Runs:
    """Loads whose client says of each reading how late it may be: figures are intervals."""
    sent = scenario(slo=EVERY_AGGREGATION, load={**scenario()["load"], "good": {"e2e": "1s", "tpot": "120ms"}})
    mixed = [_unsure(each, number) for number, each in enumerate(MIXED)]
    good = [_unsure(each, number) for number, each in enumerate(GOOD)]
    behind = [
        each.model_copy(update={"sent": each.scheduled + 1.5, "t": each.t + 2}) if 120 <= n < 170 else each
        for n, each in enumerate(good)
    ]
    whole = [
        each.model_copy(
            update={
                "chunks": 1,
                "gaps": [],
                "uncertainty": each.uncertainty[:1] if each.uncertainty else None,
                "tokens": 900,
                "last": each.first,
            }
        )
        for each in good
    ]
    silent = [good[n] for n in range(300) if not 100 <= n < 130]
    stalled = [
        ClientBeat(
            t=LOAD_AT + n,
            lag=[0.3] * 20,
            beats=100,
            cpu=0.99,
            machine=0.8,
            in_flight=3,
            checked=50,
            uncovered=n % 2,
            uncovered_by=0.02 * (n % 2),
            stalls=[(LOAD_AT + n - 0.5, 0.3)],
        )
        for n in range(1, 31)
    ]
    closed = {"profile": "chat-short", "arrivals": {"process": "closed", "users": 5}, "duration": "30s"}
    tight = {
        "ttft": ["p(50)<=400ms", "p(50)<=350ms", "p(99)<=900ms", "max<=390ms"],
        "e2e": ["p(90)<=700ms", "med<=820ms"],
        "request_rate": ["value>=9.9"],
        "token_rate": ["value>=40"],
        "tpot": ["p(90)<=101ms", "p(90)<=500ms"],
    }
    return {
        "late-mixed": lambda: history(spec=sent, requests=mixed, faults=_healed_unsure()),
        "late-good": lambda: history(spec=scenario(slo=tight), requests=good, faults=_healed_unsure()),
        "late-no-fault": lambda: history(spec=scenario(slo=tight, faults=[]), requests=good, faults=[]),
        "late-sending": lambda: history(spec=sent, requests=behind),
        "late-silent-while-struck": lambda: history(requests=silent),
        "late-whole-answers": lambda: history(spec=scenario(slo=tight), requests=whole),
        "late-stalled": lambda: history(spec=sent, requests=mixed, extra=[*stalled]),
        "late-closed-loop": lambda: history(spec=scenario(load=closed, slo=tight, faults=[]), requests=good, faults=[]),
        "late-cut-short": lambda: history(spec=sent, requests=mixed[:200], aborted="stopped"),
    }  # fmt: skip


def of_users() -> Runs:
    """Loads of users and locustfiles: who came, and whom they asked."""
    url = "http://127.0.0.1:1"
    own = {"locustfile": "own.py", "arrivals": {"process": "closed", "users": 50}, "duration": "30s"}

    def run(**told: Any) -> list[Event]:
        spec = scenario(load=own, faults=[], slo={"good_request_fraction": ["rate>=0.99"]})
        return [
            each.model_copy(update=told if isinstance(each, LoadFinished) else {})
            for each in history(spec=spec, faults=[])
        ]

    return {
        "users-all-came": lambda: run(users=50, users_asked=50, targets={url: 300}),
        "users-few-came": lambda: run(users=3, users_asked=50, targets={url: 300}),
        "users-ask-another": lambda: run(users=50, users_asked=50, targets={"http://a:1": 9, "http://b:2": 200, "": 3}),
        "users-ask-both": lambda: run(users=49, users_asked=50, targets={url: 290, "http://a:1": 10}),
    }


def of_faults_and_phases() -> Runs:
    """Faults that lived halfway, steady states that did not hold, runs that stopped early."""
    stopped = [
        RunStarted(t=0, run_id="r1", wall="2026-01-01T00:00:00.000Z", scenario=scenario(), source="demo.yaml"),
        Fact(t=0.5, about="host", values={"cores": 2}),
        Note(t=0.6, level="warning", message="the disk is nearly full"),
        PhaseChanged(t=1, name="up", status="started"),
        PhaseChanged(t=2, name="up", status="failed", detail="no node came up"),
    ]
    lives = {
        "never-struck": [],
        "not-proven": fault("started", "injected", "failed"),
        "not-injected": fault("started", "failed"),
        "not-seen-to-heal": fault("started", "injected", "proven"),
        "harness-broke-while-healing": fault("started", "injected", "proven", "failed"),
        "no-target": fault("started", "no_target"),
        "not-healed-in-time": fault("started", "injected", "proven", "not_healed"),
    }
    states = {
        "not-before": (False, True),
        "not-after": (True, False),
        "unknown-before": (None, True),
        "both": (None, None),
    }
    return {
        "stopped-on-the-way-up": lambda: [*stopped],
        "stopped-half-way": lambda: history(complete=False),
        "failed-while-exercising": lambda: history(
            extra=[PhaseChanged(t=9, name="exercise", status="started"),
                   PhaseChanged(t=41, name="exercise", status="failed", detail="the load client ended with 3")],
        ),
        **{f"fault-{name}": lambda life=life: history(faults=life) for name, life in lives.items()},
        **{
            f"steady-state-{name}": lambda before=before, after=after: history(before=before, after=after)
            for name, (before, after) in states.items()
        },
    }  # fmt: skip


def of_attacks() -> Runs:
    """Attempts and their twins, whatever came of them."""

    def tried(name: str, variant: str, outcome: str, by: str, *, expected: str = "P") -> AttackEvent:
        return AttackEvent(
            t=20, attempt=name, title=f"try {name}", variant=variant, outcome=outcome, expected_by=expected, by=by,  # type: ignore[arg-type]
            message=f"{name} was {outcome}", seconds=0.2,
        )  # fmt: skip

    pairs = {
        "1-held": (("denied", "P"), ("succeeded", "")),
        "2-succeeded": (("succeeded", ""), ("succeeded", "")),
        "3-wrong-layer": (("denied", "R"), ("succeeded", "")),
        "4-twin-denied": (("denied", "P"), ("denied", "Q")),
        "5-error": (("error", ""), ("succeeded", "")),
        "6-twin-error": (("denied", "P"), ("error", "")),
        "7-by-nobody": (("denied", "?"), ("succeeded", "")),
    }
    made = [
        tried(name, variant, outcome, by)
        for name, both in pairs.items()
        for variant, (outcome, by) in zip(("attempt", "allowed"), both, strict=True)
    ]
    half = [tried("8-no-twin", "attempt", "denied", "P"), tried("9-no-attempt", "allowed", "succeeded", "")]
    planned = Fact(t=19, about="attacks", values={"planned": [*pairs, "8-no-twin", "10-never-made"]})
    guarded = scenario(attacks=["all"], guardrails=["tenant"])
    return {
        "attacks": lambda: history(spec=guarded, extra=[planned, *made, *half]),
        "attacks-never-begun": lambda: history(spec=guarded),
    }


WAITS = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
SLO_OF_PODS = {
    **{f"pods_{name}": ["value==1", "rate<=0.5"] for name in ("created", "refused", "scheduled", "pending", "running")},
    **{f"pods_{name}": ["value<=1"] for name in ("succeeded", "failed", "lost", "printing", "because")},
    "scheduling_seconds": ["max<=1s", "p(50)<=400ms"],
    "scheduling_rate": ["value>=2"],
    "nodes_used": ["value<=1"],
    "gpus_allocated{workload:trainers}": ["value>=3", "value==5"],
    "gpu_nodes_free": ["value>=1"],
    "gpu_fragmentation": ["rate<=0.2"],
}


def of_workloads() -> Runs:
    """Pods of workloads: each way that one can go, and watches that were cut short."""

    def pod(number: int, *states: str, workload: str = "trainers", at: float = 10.0, **said: str) -> Iterator[PodEvent]:
        for step, state in enumerate(states):
            yield PodEvent(
                t=at + step / 2, workload=workload, pod=f"{workload}-{number}", state=state,  # type: ignore[arg-type]
                node=f"node-{number % 2}" if state == "scheduled" else "",
                message=said.get(state, WAITS if state == "waiting" else ""),
                devices=["gpu.nvidia.com/n/gpu-0"] * 2 if state == "allocated" else [],
            )  # fmt: skip

    lives = [
        *pod(1, "created", "scheduled", "allocated", "running", "succeeded", "printed", printed="GPU 0: NVIDIA H100"),
        *pod(2, "created", "scheduled", "running", "failed", "silent", at=11, failed="exit 1", silent="no devices"),
        *pod(3, "created", "waiting", "scheduled", "running", "lost", at=12, lost="preempted"),
        *pod(4, "created", "scheduled", "running", at=13),
        *pod(5, "created", "waiting", at=14),
        *pod(6, "refused", at=14, refused="exceeded quota"),
    ]
    well = ("created", "scheduled", "running", "printed")
    good = [event for n in range(1, 7) for event in pod(n, *well, printed="NVIDIA H100")]
    waiting = [event for n in range(1, 7) for event in pod(n, "created", "waiting")]
    unsaid = [*waiting[:-1]]
    groups = [(8, 0, 3), (8, 6, 4), (8, 8, 5)]
    spec: dict[str, Any] = {
        "apiVersion": "sandbox/v1",
        "kind": "Scenario",
        "metadata": {"name": "pods", "description": "Pods without a load."},
        "workloads": [
            {"name": "trainers", "pods": 6, "resources": {"nvidia.com/gpu": 1}, "command": ["x"],
             "prints": "NVIDIA H100", "because": "Insufficient nvidia"}
        ],
        "slo": SLO_OF_PODS,
    }  # fmt: skip

    def run(pods: list[PodEvent], *, created: int = 6, why: str = "settled", whole: bool = True) -> list[Event]:
        end: list[Event] = [
            WorkloadFinished(t=40, workload="trainers", created=created, refused=6 - created, why=why),  # type: ignore[arg-type]
            closed(pods).model_copy(update={"t": 43}),
            GpuNodes(t=44, groups=groups),
        ]
        return [
            RunStarted(t=0, run_id="r1", wall="2026-01-01T00:00:00Z", scenario=spec, source="pods.yaml"),
            PhaseChanged(t=9, name="exercise", status="started"),
            WorkloadStarted(t=9.9, workload="trainers", pods=6, gpus=1),
            *pods,
            *(end if whole else []),
            PhaseChanged(t=46, name="recover", status="ok"),
        ]

    return {
        "pods-every-way": lambda: run(lives, created=5),
        "pods-all-well": lambda: run(good, why="ended"),
        "pods-all-waiting": lambda: run(waiting),
        "pods-nobody-said-why": lambda: run(unsaid, why="time is out"),
        "pods-not-watched": lambda: run(lives, whole=False),
        "pods-lost-from-the-timeline": lambda: run(good[:-4]),
        "pods-never-begun": lambda: [event for event in run([], whole=False) if not isinstance(event, WorkloadStarted)],
        "pods-fewer-made": lambda: run(good[:-4], created=5)[:-3] + run(good, created=5)[-1:],
    }


def of_timelines() -> Runs:
    """Whole timelines that something is wrong with."""
    events = whole(timelines.events(timelines.Shape(seconds=20, struck=5, healed=9)))
    begun = events[0]
    requests = [position for position, event in enumerate(events) if event.type == "request"]
    late = events[requests[3]].model_copy(update={"first": 0.0})
    return {
        "timeline-without-its-end": lambda: events[:-1],
        "timeline-with-a-line-missing": lambda: [*events[: requests[9]], *events[requests[9] + 1 :]],
        "timeline-with-a-line-twice": lambda: [*events[: requests[9]], events[requests[9]], *events[requests[9] :]],
        "timeline-begun-twice": lambda: [begun, *events],
        "timeline-that-cannot-be": lambda: [late if event is events[requests[3]] else event for event in events],
        "timeline-of-an-older-version": lambda: timelines.events(timelines.Shape(seconds=20, struck=5, healed=9)),
    }


RUNS: Runs = {
    **of_shapes(), **of_loads(), **of_late_clients(), **of_users(), **of_faults_and_phases(), **of_attacks(),
    **of_workloads(), **of_timelines(),
}  # fmt: skip
_NUMBERED = {*of_shapes(), *of_timelines()}
_WITH_INTERVALS = {"late-mixed", "late-good", "late-whole-answers", "late-sending", "late-closed-loop"}
_WITH_FIGURES = {"held", "many-lost", "no-fault", "nothing-was-sent", "every-aggregation", "never-recovered", "tags"}


def judged(name: str) -> Any:
    """What the judge makes of that run, as JSON, figures to nine digits."""
    events = RUNS[name]()
    results = judge(events) if name in _NUMBERED else weigh(events)
    left_out = set() if name in _WITH_FIGURES else {"summaries", "facts"}
    found = results.model_dump(mode="json", exclude=left_out)
    return _rounded(found | ({"figures": figures(events)} if name in _WITH_INTERVALS else {}))


def figures(events: list[Event]) -> dict[str, str]:
    """Of each figure of requests, over all and in each phase: as measured, least, greatest, and of how many samples."""
    begun = next(event for event in events if isinstance(event, RunStarted))
    wanted = Scenario.model_validate(begun.scenario)
    limits = {str(name): limit for name, limit in wanted.load.good.items()} if wanted.load else {}
    rec = metrics.record(events, limits, rules=metrics.Rules.of(wanted.load))
    found: dict[str, str] = {}
    for metric, known in METRICS.items():
        if known.of != "requests":
            continue
        for text in ["value>=1s"] if metric == "time_to_recover" else _EXPRESSIONS[known.kind]:
            for phase in ("", "{phase:baseline}", "{phase:fault}", "{phase:recovery}"):
                if phase and metric in WHOLE_RUN:
                    continue
                seen = metrics.observe(rec, parse_selector(f"{metric}{phase}"), parse_expression(text, metric))
                ends = "" if seen.low == seen.value == seen.high else f" in {_digits(seen.low)} to {_digits(seen.high)}"
                found[f"{metric}{phase} {text}"] = f"{_digits(seen.value)}{ends} of {seen.samples}"
    return found


def _digits(value: Any) -> str:
    return "none" if value is None else f"{float(value):.{_DIGITS}g}"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def kept(name: str) -> Any:
    """What is kept of it; None where nothing is."""
    file = FOLDER / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def main() -> None:
    """Write what the judge says now of every run."""
    FOLDER.mkdir(exist_ok=True)
    for file in FOLDER.glob("*.json"):
        file.unlink()
    for name in RUNS:
        text = json.dumps(judged(name), indent=1, ensure_ascii=False)
        (FOLDER / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
