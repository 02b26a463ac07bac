"""The steady state: looked at until it holds so often in a row, and judged by every look that was made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_judge import SCENARIO, check, history, scenario

from sandbox import probes, steady
from sandbox.judge import weigh as judge
from sandbox.probes import Seen
from sandbox.spec.scenario import Scenario
from sandbox.timeline import Event, Probed, Timeline, read
from tests.unit.api_server import Answer, ApiServer, serving

LOOKS = {"looks": 3, "every": "10ms"}
Looked = tuple[list[str], list[bool | None]]


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Looked]:
    """What `steady.look` says where the probe answers so in turn, the last answer for ever; and what it wrote down."""

    def through(*answers: bool | None, within: float = 5.0, looks: dict[str, Any] = LOOKS) -> Looked:
        left = list(answers)

        def answer(*_: Any) -> Seen:
            ok = left.pop(0) if len(left) > 1 else left[0]
            return Seen(ok, f"{ok}")

        monkeypatch.setattr(probes, "look", answer)
        run: Any = SimpleNamespace(
            plan=SimpleNamespace(scenario=Scenario.model_validate(scenario(steady=looks))),
            ground=(None, None),
            deployed=None,
            namespace="inference",
            urls={},
            timeline=Timeline(tmp_path / "timeline.jsonl"),
        )
        with run.timeline:
            lacking = steady.look(run, "before", within)
        return lacking, [event.ok for event in read(run.timeline.path) if isinstance(event, Probed)]

    return through


def test_a_state_is_steady_when_it_holds_so_often_in_a_row_and_each_look_is_written_down(
    look: Callable[..., Looked],
) -> None:
    assert look(True) == ([], [True] * 3)
    assert look(True, looks={"looks": 5, "every": "10ms"})[1][3:] == [True] * 5


def test_the_first_yes_after_nine_refusals_is_not_steady(look: Callable[..., Looked]) -> None:
    assert look(*[False] * 9, True, False, True, True, None, True) == (
        [],
        [*[False] * 9, True, False, True, True, None, True, True, True],
    )


def test_a_state_that_comes_and_goes_is_none(look: Callable[..., Looked], monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [True, True, False] * 1000
    lacking, made = look(*answers, within=0.3)
    assert lacking == ["openai.chat: False"]
    assert made[-1] is False
    assert len(made) > 6


def test_a_row_that_began_in_time_is_looked_at_to_its_end(look: Callable[..., Looked]) -> None:
    assert look(True, within=0.0) == ([], [True] * 3)


# judged


def probed(*answers: bool | None, when: Any = "before") -> list[Event]:
    at = 1.0 if when == "before" else 45.0
    return [
        Probed(t=at + n / 10, probe="openai.chat", when=when, ok=ok, detail=f"look {n}") for n, ok in enumerate(answers)
    ]


def judged(before: list[Event], after: list[Event], **changes: Any) -> Any:
    events = [
        event for event in history(spec=scenario(**{"steady": LOOKS, **changes})) if not isinstance(event, Probed)
    ]
    return judge([*events[:1], *before, *events[1:-1], *after, events[-1]])


STEADY, ONCE = (True, True, True), (True,)


def test_a_state_that_held_in_a_row_passes_and_the_check_says_how_often() -> None:
    results = judged(probed(*STEADY), probed(False, None, *STEADY, when="after"))
    assert results.verdict == "pass", results.headline
    found = check(results, "steady-state/after")
    assert found.expected == "holds in 3 looks in a row"
    assert found.observed == "look 4; held in 3 looks in a row, after 2 in which it did not always"
    assert [line.split()[-1] for line in found.evidence] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("looks", [ONCE, (*[False] * 9, True), (True, True), (True, True, True, False, True)])
def test_a_moment_is_not_a_state(looks: tuple[bool, ...]) -> None:
    results = judged(probed(*STEADY), probed(*looks, when="after"))
    assert check(results, "steady-state/after").status == "invalid"
    assert "a moment" in check(results, "steady-state/after").reason
    assert judged(probed(*looks), probed(*STEADY, when="after")).verdict == "invalid"


def test_a_state_that_is_gone_at_the_last_look_fails_however_often_it_held_before() -> None:
    assert check(judged(probed(*STEADY), probed(*STEADY, False, when="after")), "steady-state/after").status == "fail"
    assert check(judged(probed(*STEADY), probed(*STEADY, None, when="after")), "steady-state/after").status == "invalid"


def test_a_run_of_a_version_that_looked_once_is_judged_by_that_and_says_so() -> None:
    assert "steady" not in SCENARIO
    results = judge(history())
    assert results.verdict == "pass"
    assert "looked once" in check(results, "steady-state/after").expected


def test_one_look_cannot_be_asked_for() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        Scenario.model_validate(scenario(steady={"looks": 1}))


# what is looked at

DEPLOYMENTS = "/apis/apps/v1/namespaces/inference/deployments"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[ApiServer, probes.Context]]:
    with serving(tmp_path) as (server, kube):
        kinds = [{"name": "deployments", "kind": "Deployment", "namespaced": True}]
        server.on("GET", "/apis/apps/v1", Answer(200, {"resources": kinds}))
        yield server, probes.Context(kube, "inference", "", "")


def deployment(name: str = "sim", wanted: int = 2, **status: int) -> dict[str, Any]:
    whole = {"replicas": wanted, "updatedReplicas": wanted, "availableReplicas": wanted, "observedGeneration": 1}
    return {
        "metadata": {"name": name, "namespace": "inference", "generation": 1},
        "spec": {"replicas": wanted},
        "status": {**whole, **status},
    }


@pytest.mark.parametrize(
    ("deployments", "ok", "says"),
    [
        ([deployment()], True, "sim: every replica updated and available"),
        ([], False, "no Deployment matches app=sim in inference"),
        ([deployment(wanted=0)], False, "Deployment inference/sim wants no replica, so none could be missing"),
        ([deployment(), deployment("other", availableReplicas=1)], False, "wanted 2, there 2, of the latest template"),
        ([deployment(observedGeneration=0)], False, "wanted 2"),
    ],
)
def test_ready_means_that_there_is_a_deployment_with_replicas_and_all_of_them_are_there(
    server: tuple[ApiServer, probes.Context], deployments: list[dict[str, Any]], ok: bool, says: str
) -> None:
    api, context = server
    api.on("GET", DEPLOYMENTS, Answer(200, {"items": deployments, "metadata": {"resourceVersion": "1"}}))
    seen = probes.look("k8s.ready", context, {"target": {"app": "sim"}})
    assert seen.ok is ok, seen.detail
    assert says in seen.detail
    assert api.seen("GET", DEPLOYMENTS)[0].query["labelSelector"] == ["app=sim"]
