"""The phases as a pipeline: what stops a run, what runs all the same, and what is undone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from test_judge import history

from sandbox import probes, remains, run, suite
from sandbox.cluster import Owner
from sandbox.errors import EXIT_ENVIRONMENT, ClusterError, DeadlineExceeded, NotOurs
from sandbox.exercise import attack_moments
from sandbox.host.mark import MARK
from sandbox.judge import weigh as judge
from sandbox.judge.consistency import PHASES
from sandbox.kube import inventory, stacks
from sandbox.plan import Plan, load_all
from sandbox.run import Options, Outcome, Run, execute
from sandbox.spec.results import Results
from sandbox.timeline import Probed

Phase = Callable[[Run], None]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def plan() -> Plan:
    return load_all(["first-answer"])[0]


@pytest.fixture
def executed(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    def through(*phases: Phase) -> Outcome:
        monkeypatch.setattr(run, "PHASES", (*phases, run.judge, run.report))
        return execute(plan, Options(runs=tmp_path, cluster_name=f"unit-{os.getpid()}"))

    return through


def written(outcome: Outcome) -> Results:
    return Results.model_validate(json.loads((outcome.folder / "results.json").read_text()))


def test_a_phase_that_stops_ends_the_run_which_is_judged_reported_and_undone(
    executed: Callable[..., Outcome],
) -> None:
    done: list[str] = []

    def up(run: Run) -> None:
        run.undo.callback(done.append, "cluster down")
        run.undo.callback(done.append, "stack gone")
        raise ClusterError("no node came up", fix="sandbox doctor")

    def deploy(run: Run) -> None:
        done.append("deployed")

    outcome = executed(up, deploy)
    assert done == ["stack gone", "cluster down"]
    assert outcome.exit_code == 4
    assert written(outcome).verdict == "invalid"
    assert "no node came up" in written(outcome).headline
    assert (outcome.folder / "report.html").is_file()


def test_what_cannot_be_sent_ends_the_run_before_a_cluster_is_made(
    tmp_path: Path,
) -> None:
    own = tmp_path / "users.py"
    own.write_text("import locust\nnonsense()\n")
    scenario = yaml.safe_load((ROOT / "scenarios/serving/own-locustfile.yaml").read_text())
    scenario["load"]["locustfile"] = str(own)
    scenario["slo"] = {"http_error": ["count==0"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(scenario))
    outcome = execute(load_all([str(tmp_path / "mine.yaml")])[0], Options(runs=tmp_path / "runs"))
    assert outcome.exit_code == 2
    assert written(outcome).verdict == "invalid"
    assert f"{own}:2" in str(outcome.error)
    assert "nonsense" in str(outcome.error)
    events = (outcome.folder / "timeline.jsonl").read_text()
    assert '"preflight"' in events
    assert '"up"' not in events


def test_a_bug_is_invalid_and_leaves_its_traceback(executed: Callable[..., Outcome]) -> None:
    def up(run: Run) -> None:
        raise KeyError("a bug")

    outcome = executed(up)
    assert outcome.exit_code == 3
    assert "a bug" in (outcome.folder / "traceback.txt").read_text()


def test_an_interrupt_ends_with_130_after_everything_is_undone(executed: Callable[..., Outcome]) -> None:
    done: list[str] = []

    def up(run: Run) -> None:
        run.undo.callback(done.append, "down")
        raise KeyboardInterrupt

    assert executed(up).exit_code == 130
    assert done == ["down"]


def test_a_run_whose_cluster_stays_since_others_are_on_its_network_is_no_fail_and_no_pass(
    executed: Callable[..., Outcome],
) -> None:
    def up(run: Run) -> None:
        def refuse() -> None:
            raise NotOurs("something is on its network", where="solo", fix="docker network disconnect sandbox-solo db")

        run.undo.callback(refuse)

    outcome = executed(up)
    assert outcome.results.verdict == "invalid"
    assert outcome.exit_code == EXIT_ENVIRONMENT
    assert "docker network disconnect" in (outcome.folder / "timeline.jsonl").read_text()


def looked(run: Run, when: Any) -> None:
    """All that first-answer asks for: only the steady state is looked at in this test."""
    for position, use in enumerate(run.plan.scenario.steady_state * run.plan.scenario.steady.looks):
        index = position % len(run.plan.scenario.steady_state)
        now = run.timeline.now()
        run.timeline.append(Probed(t=now, probe=use.name, index=index, when=when, ok=True, detail="ok"))


def phases(**others: Phase) -> list[Phase]:
    """The six of a run, which do nothing but look at the steady state."""
    found: dict[str, Phase] = {name: lambda _: None for name in ("preflight", "up", "deploy", "exercise")}
    found |= {"verify": lambda run: looked(run, "before"), "recover": lambda run: looked(run, "after"), **others}
    for name, phase in found.items():
        phase.__name__ = name  # type: ignore[attr-defined]
    return [found[name] for name in PHASES if name in found]


@pytest.mark.parametrize("problem", [ClusterError("a container is left"), OSError("the engine is gone")])
def test_a_run_that_cannot_clean_up_is_no_pass_in_any_of_its_files(
    plan: Plan, executed: Callable[..., Outcome], problem: Exception
) -> None:
    object.__setattr__(plan, "scenario", plan.scenario.model_copy(update={"load": None, "slo": {}}))

    def stuck() -> None:
        raise problem

    good = executed(*phases())
    assert good.exit_code == 0, good.results.headline
    assert suite.replay(good.folder)[0] == good.results, "judged again, with what came after"
    outcome = executed(*phases(up=lambda run: run.undo.callback(stuck)))
    assert outcome.exit_code in {3, 4}
    results = written(outcome)
    assert results.verdict == "invalid"
    assert str(problem) in results.headline
    assert "<error" in (outcome.folder / "junit.xml").read_text()
    assert suite.replay(outcome.folder)[0] == results
    timeline = outcome.folder / "timeline.jsonl"
    *rest, failed, last = timeline.read_text().splitlines(keepends=True)
    assert '"clean up"' in failed
    for lost in ([*rest, last], [*rest, failed], rest):
        timeline.write_text("".join(lost))
        assert suite.replay(outcome.folder)[0].verdict == "invalid", "the line that tells of it cannot be lost"


SLEEPER = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]


@pytest.mark.parametrize("command", [SLEEPER, ["sh", "-c", '"$0" "$@" &', *SLEEPER]], ids=["its child", "an orphan"])
def test_a_run_that_leaves_a_process_is_no_pass_and_the_process_is_ended(
    plan: Plan, executed: Callable[..., Outcome], command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    object.__setattr__(plan, "scenario", plan.scenario.model_copy(update={"load": None, "slo": {}}))
    monkeypatch.setenv(MARK, f"{os.getpid()} 1.0 {uuid.uuid4()}")
    monkeypatch.setattr(remains, "_END_SECONDS", 0.2)
    found: list[psutil.Process] = []
    started: list[subprocess.Popen[bytes]] = []

    def leave(_: Run) -> None:
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        assert started[0].stdout is not None
        found.append(psutil.Process(int(started[0].stdout.readline())))
        started[0].stdout.close()

    outcome = executed(*phases(exercise=leave))
    started[0].wait()
    assert outcome.exit_code == 3
    assert "left processes behind" in written(outcome).headline
    assert not found[0].is_running() or found[0].status() == psutil.STATUS_ZOMBIE


class Served:
    """A cluster that holds these objects, one set for each look."""

    server = "https://127.0.0.1:1"

    def __init__(self, *looks: list[str]) -> None:
        self.looks = [*looks]

    def take(self, _: object) -> inventory.Inventory:
        return inventory.Inventory(dict.fromkeys(self.looks.pop(0) if len(self.looks) > 1 else self.looks[0], "uid"))


def test_what_a_run_leaves_on_a_cluster_that_stays_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    kube = Served(["v1/Node a", "v1/PersistentVolume b"], ["v1/Node a"])
    monkeypatch.setattr(inventory, "take", kube.take)
    before = inventory.Inventory({"v1/Node a": "uid", "v1/ConfigMap gone": "uid"})
    remains.refuse_objects(kube, before)  # type: ignore[arg-type]  # the volume went by itself
    monkeypatch.setattr(remains, "_GONE_SECONDS", 0.1)
    kube.looks = [["v1/Node a", "apiextensions.k8s.io/v1/CustomResourceDefinition left.example.com"]]
    with pytest.raises(ClusterError, match="left objects on the cluster") as refused:
        remains.refuse_objects(kube, before)  # type: ignore[arg-type]
    assert refused.value.details == ["apiextensions.k8s.io/v1/CustomResourceDefinition left.example.com"]


def test_attempts_are_spread_over_the_load_and_one_is_made_as_each_fault_strikes() -> None:
    moments = attack_moments(10, 60.0, [20.0, 21.0])
    assert len(moments) == 10
    assert moments == sorted(moments)
    assert {20.0, 21.0} <= {*moments}
    assert moments[0] == 0
    assert 30 < moments[-1] < 60


def outcome(error: BaseException | None = None) -> Outcome:
    return Outcome(judge(history()), Path("runs/x"), error)


class Recorded:
    """A record as `release` reads it."""

    def __init__(self, owner: Owner | None) -> None:
        self.owner = owner


@pytest.mark.parametrize(("owner", "removed"), [(Owner.me(), True), (None, False), (Owner(1, 0.0), False)])
def test_only_a_cluster_that_this_process_made_is_taken_down(
    owner: Owner | None, removed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    downs: list[str] = []
    monkeypatch.setattr(suite.record, "find", lambda name: Recorded(owner))
    monkeypatch.setattr(suite.cluster, "release", downs.append)
    suite.release("solo")
    assert bool(downs) == removed


def test_scenarios_of_one_shape_share_a_cluster_and_the_last_takes_it_down(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bool] = []
    released: list[str] = []

    def fake(plan: Plan, options: Options) -> Outcome:
        kept.append(options.keep_cluster)
        return outcome()

    monkeypatch.setattr(suite, "execute", fake)
    monkeypatch.setattr(suite, "release", released.append)
    assert len(suite.execute_all([plan, plan, plan], Options())) == 3
    assert kept == [True, True, False]
    assert set(released) == {"solo"}


def test_a_cluster_that_stays_hides_no_verdict_of_the_suite(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(name: str) -> None:
        raise NotOurs("something is on its network", where=name, fix="docker network disconnect sandbox-solo db")

    monkeypatch.setattr(suite, "execute", lambda *_: outcome())
    monkeypatch.setattr(suite, "release", refuse)
    assert len(suite.execute_all([plan, plan], Options())) == 2
    assert "docker network disconnect sandbox-solo db" in capsys.readouterr().err


def test_an_interrupt_ends_the_suite_after_the_run_it_struck(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []

    def fake(plan: Plan, options: Options) -> Outcome:
        ran.append(plan)
        return outcome(KeyboardInterrupt() if len(ran) == 2 else None)

    monkeypatch.setattr(suite, "execute", fake)
    monkeypatch.setattr(suite, "release", lambda name: None)
    assert suite.exit_code(suite.execute_all([plan] * 4, Options())) == 130
    assert len(ran) == 2


def test_a_run_out_of_time_is_invalid(executed: Callable[..., Outcome]) -> None:
    def up(run: Run) -> None:
        raise DeadlineExceeded("the node did not come", details=["node: NotReady"])

    result = executed(up)
    assert result.exit_code == 3
    assert "NotReady" in written(result).headline


def test_required_stacks_are_deployed_first_told_apart_and_looked_at_by_probes(
    plan: Plan, executed: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing: Any = None
    done: list[tuple[str, dict[str, Any]]] = []
    seen: list[probes.Context] = []

    def fake(kube: Any, stack: Any, values: dict[str, Any], **_: Any) -> stacks.Deployed:
        name = stack.metadata.name
        done.append((name, values))
        return stacks.Deployed(name, stack.namespace, "m" if stack.serves_model else "", f"http://{name}", ())

    def look(name: str, context: probes.Context, params: dict[str, Any]) -> probes.Seen:
        seen.append(context)
        return probes.Seen(True, "ok")

    def ground(run: Run) -> None:
        object.__setattr__(run.plan, "required", [(stacks.load("prometheus"), {"retention": "1h"})])
        run.kube, run.cluster = nothing, nothing
        monkeypatch.setattr(Run, "ground", (Node(), nothing))

    monkeypatch.setattr(run.stacks, "deploy", fake)
    monkeypatch.setattr(probes, "look", look)
    monkeypatch.setattr(inventory, "take", lambda kube: inventory.Inventory({}))
    monkeypatch.setattr(run.namespaces, "clear", lambda kube: [])
    monkeypatch.setattr(run.workloads, "clear", lambda kube: None)
    monkeypatch.setattr(run, "_references", lambda plan: dict.fromkeys(plan.images, "ref"))
    outcome = executed(ground, run.deploy, run.verify)
    assert done == [("prometheus", {"retention": "1h"}), ("llama-cpp", {"replicas": 1})]
    facts = written(outcome).facts
    assert facts["stack"]["name"] == "llama-cpp"
    assert facts["stack prometheus"] == {
        "values": {"retention": "1h"},
        "url": "http://prometheus",
        "emulated": False,
        "images": {"prometheus": "ref"},
    }
    assert seen[0].urls == {"prometheus": "http://prometheus", "llama-cpp": "http://llama-cpp"}
    assert seen[0].url == "http://llama-cpp"


class Node:
    """A cluster, as far as a stack's endpoint goes."""

    provider = "kind"
    node_addresses = ("192.0.2.1",)
