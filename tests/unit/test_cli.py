"""The command line itself: what each command says, in words and as JSON, and the exit code it ends with."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from test_judge import history
from typer.testing import CliRunner
from whole_runs import keep

from sandbox import cli, cli_output, cluster, images, plan
from sandbox.cluster import Cluster, Node, Proof, garbage, nodes, record
from sandbox.errors import (
    EXIT_ENVIRONMENT,
    EXIT_FAIL,
    EXIT_INTERRUPTED,
    EXIT_INVALID,
    EXIT_PASS,
    EXIT_USAGE,
    ClusterError,
    NotOurs,
    SandboxError,
    UsageError,
)
from sandbox.host import preparing
from sandbox.host.engine import Engine
from sandbox.images import Image
from sandbox.spec.cluster import ClusterSpec
from sandbox.spec.slo import METRICS

ROOT = Path(__file__).parents[2]
COMMANDS = {
    **{(each.name or each.callback.__name__,): each for each in cli.app.registered_commands if each.callback},
    **{("images", str(each.name)): each for each in cli.images_app.registered_commands},
    **{("snapshot", str(each.name)): each for each in cli.snapshot_app.registered_commands},
    **{("pool", str(each.name)): each for each in cli.pool_app.registered_commands},
    **{("gpu", str(each.name)): each for each in cli.gpu_app.registered_commands},
}
# One prints JSON and nothing else, the other a single word.
WITHOUT_OUTPUT = {("schema",), ("version",)}
Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> Typed:
    """Type a command, in a state folder of its own; its exit code, and what stands on stdout and stderr."""
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path_factory.mktemp("state")))

    def run(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sandbox", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 4), (errno.EDQUOT, 4), (errno.EIO, 3)])
def test_a_full_disk_is_told_in_words_and_is_no_bug_of_ours(
    typed: Typed, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    def watch() -> None:
        raise OSError(number, os.strerror(number), "/state/reaper.log")

    monkeypatch.setattr(cli.reaper, "watch", watch)
    ended, _, err = typed("up", "solo")
    assert ended == code
    assert ("the disk is full" in err, "this is a bug" in err) == (code == 4, code == 3)
    assert "/state/reaper.log" in err


def test_a_full_disk_that_no_error_names_is_found(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    def watch() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    state = str(cli.paths.state_dir())
    monkeypatch.setattr(cli.reaper, "watch", watch)
    usage = lambda place: SimpleNamespace(free=0 if str(place) == state else 1 << 30)  # noqa: E731
    monkeypatch.setattr(cli.shutil, "disk_usage", usage)
    assert f"{state}: the disk is full" in typed("up", "solo")[2]


@pytest.mark.parametrize(
    "words",
    [
        ("up",), ("down", "solo"), ("run", "first-answer"), ("pool", "drain"),
        ("snapshot", "restore", "mine"), ("snapshot", "remove", "mine"),
    ],
)  # fmt: skip
def test_what_makes_or_removes_things_has_a_reaper(
    typed: Typed, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    def watch() -> None:
        raise UsageError("a reaper was asked for")

    monkeypatch.setattr(cli.reaper, "watch", watch)
    assert typed(*words)[0] == EXIT_USAGE
    assert "a reaper was asked for" in typed(*words)[2]


def options(words: tuple[str, ...]) -> set[str]:
    """Every long option of a command, without its `--no-…` twin."""
    command: Any = typer.main.get_command(cli.app)
    for word in words:
        command = command.commands[word]
    return {name for each in command.params for name in each.opts if name.startswith("--")}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(words: tuple[str, ...]) -> None:
    said = CliRunner().invoke(cli.app, [*words, "--help"])
    assert said.exit_code == 0, said.exception
    assert "Usage" in said.output


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_answers_programs_too(words: tuple[str, ...]) -> None:
    assert ("--output" in options(words)) == (words not in WITHOUT_OUTPUT)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_and_option_is_in_the_reference(words: tuple[str, ...]) -> None:
    text = (ROOT / "docs/reference/cli.md").read_text()
    start = re.compile(rf"\| `{' '.join(words)}[ `]")
    entry = next((line for line in text.splitlines() if start.match(line)), "")
    assert entry, f"docs/reference/cli.md has no line for: sandbox {' '.join(words)}"
    for option in options(words) - {"--output", "--help"}:
        assert option in entry, f"sandbox {' '.join(words)} {option}"


def test_the_reference_has_no_command_that_is_not_there() -> None:
    text = (ROOT / "docs/reference/cli.md").read_text()
    lines = [line.split("`")[1].split() for line in text.splitlines() if line.startswith("| `")]
    told = {
        tuple(words[:2]) if words[0] in {"images", "gpu", "snapshot", "pool"} else (words[0],)
        for words in lines
        if words[0].isalpha()
    }
    assert told == set(COMMANDS)


# errors and exit codes


def test_a_bug_of_ours_does_not_look_like_a_promise_that_did_not_hold(
    typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("whatever")

    monkeypatch.setattr(plan, "load_all", broken)
    code, _, err = typed("lint", "x.yaml")
    assert code == EXIT_INVALID
    assert "a bug in the sandbox" in err


@pytest.mark.parametrize(
    ("error", "code"), [(ClusterError("no"), EXIT_ENVIRONMENT), (KeyboardInterrupt(), EXIT_INTERRUPTED)]
)
def test_what_ends_a_command_decides_its_exit_code(
    error: BaseException, code: int, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(_: object) -> None:
        raise error

    monkeypatch.setattr(plan, "load_all", ends)
    assert typed("run", "x.yaml")[0] == code


def test_what_clusters_say_is_shown_as_it_is() -> None:
    console = cli.Console(width=60)
    with console.capture() as shown:
        console.print(cli_output.table(("name", "problems"), [("solo", "[/red] said [errno 111]")]))
    assert "[/red] said [errno 111]" in shown.get()


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["schema", "nonsense"], "use one of: scenario"),
        (["list", "nonsense"], "use one of: scenarios, clusters"),
        (["lint", "nonsense"], "use one of: "),
        (["run", "--dry-run", "nonsense"], "use one of: "),
        (["judge", "nonsense"], "give the folder of a run"),
        (["report", "nonsense"], "give the folder of a run"),
        (["kubeconfig", "nonsense"], "sandbox up SHAPE --name nonsense"),
        (["prove", "nonsense"], "sandbox up SHAPE --name nonsense"),
        (["down"], "sandbox status"),
        (["down", "solo", "--all"], "sandbox status"),
    ],
)
def test_a_refusal_says_what_to_type(
    words: list[str], fix: str, typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path))
    code, out, err = typed(*words)
    assert (code, out) == (EXIT_USAGE, "")
    assert f"fix: {fix}" in err


@pytest.mark.parametrize("words", [["lint"], ["run", "--nonsense", "x"], ["nonsense"], ["up", "-o", "xml"]])
def test_what_the_parser_refuses_ends_with_2(words: list[str], typed: Typed) -> None:
    assert typed(*words)[0] == EXIT_USAGE


# lint, run --dry-run, list, schema

SCENARIO = """\
apiVersion: sandbox/v1
kind: Scenario
metadata: {name: mine, description: A scenario of my own.}
stack: {name: vllm-sim, values: {replicas: 2}}
steadyState: [k8s.ready]
load: {profile: chat-short, arrivals: {rate: 20}, duration: 60s}
faults:
  - pod.kill: {target: {app: vllm-sim}}
    at: 20s
slo:
  time_to_recover: ["value<=15s"]
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(SCENARIO)
    return path


def test_lint_says_how_many_are_ok(typed: Typed, mine: Path) -> None:
    assert typed("lint", mine) == (EXIT_PASS, "1 scenario ok\n", "")
    assert typed("lint", mine, "steady-load")[1] == "2 scenarios ok\n"
    found = json.loads(typed("lint", mine, "steady-load", "-o", "json")[1])
    assert [each["scenario"] for each in found] == ["mine", "steady-load"]
    assert found[0]["source"] == str(mine)


def test_three_mistakes_in_two_files_are_said_at_once_with_file_and_line(
    typed: Typed, mine: Path, tmp_path: Path
) -> None:
    mine.write_text(SCENARIO.replace("duration: 60s", "duration: 60").replace("replicas: 2", "replicas: 0"))
    other = tmp_path / "other.yaml"
    other.write_text(SCENARIO.replace("time_to_recover", "time_to_recoverr"))
    code, out, err = typed("lint", mine, other)
    assert (code, out) == (EXIT_USAGE, "")
    known = ", ".join(sorted(METRICS))
    assert err.splitlines() == [
        "2 scenarios cannot be used",
        f"  {mine}: 2 problems in this Scenario",
        f"  {mine}:6:51: load.duration: 60 is not a duration; write it with its unit, such as 500ms, 60s or 2m",
        f"  {mine}:4:34: stack.values.replicas: 0 is out of bounds; valid: an integer from 1 to 64",
        f"  {other}: 1 problem in this Scenario",
        f"  {other}:11:3: slo.time_to_recoverr: unknown metric 'time_to_recoverr'; known: {known}",
        "  fix: mend the lines named",
    ]


def test_a_dry_run_prints_the_plan_and_touches_nothing(
    typed: Typed, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = typed("run", "--dry-run", mine)
    assert (code, err) == (EXIT_PASS, "")
    for line in (
        f"scenario      mine ({mine})",
        "images        vllm-sim",
        "load          chat-short, 20/s poisson, for 60 s",
        "fault         at 20 s: pod.kill(target={'app': 'vllm-sim'})",
        "slo           time_to_recover value<=15s",
    ):
        assert line in out.splitlines()
    (found,) = json.loads(typed("run", "--dry-run", "-o", "json", mine)[1])
    assert (found["source"], found["images"]) == (str(mine), ["vllm-sim"])
    assert (found["load"]["duration"], found["faults"][0]["at"]) == ("60s", "20s")
    assert list(tmp_path.iterdir()) == [mine]


def test_a_bad_scenario_is_not_run(typed: Typed, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine.write_text(SCENARIO.replace("20s", "20"))
    for words in (["run", mine], ["run", "--dry-run", mine]):
        code, _, err = typed(*words)
        assert code == EXIT_USAGE
        assert f"{mine}:9:5: faults[0].at: 20 is not a duration" in err
    assert list(tmp_path.iterdir()) == [mine]


def test_list_shows_everything_that_can_be_named(typed: Typed) -> None:
    code, out, _ = typed("list")
    assert code == EXIT_PASS
    for name in ("steady-load", "solo", "vllm-sim", "tenant", "1-privileged-pod", "chat-tiny", "pod.kill", "k8s.ready"):
        assert name in out
    assert "time_to_recover" not in typed("list", "faults")[1]
    found = json.loads(typed("list", "metrics", "-o", "json")[1])
    assert found.keys() == {"metrics"}
    assert found["metrics"].keys() == METRICS.keys()


@pytest.mark.parametrize("kind", sorted(plan.models()))
def test_schema_prints_one_document(kind: str, typed: Typed) -> None:
    code, out, _ = typed("schema", kind)
    assert code == EXIT_PASS
    assert json.loads(out) == plan.models()[kind].model_json_schema(by_alias=True)


# judge, report


def recorded(folder: Path, **changes: Any) -> Path:
    return keep(folder, history(**changes))


@pytest.mark.parametrize(
    ("changes", "verdict", "code"),
    [({}, "pass", EXIT_PASS), ({"after": False}, "fail", EXIT_FAIL), ({"faults": []}, "invalid", EXIT_INVALID)],
)
def test_judge_ends_with_the_code_of_the_verdict(
    changes: dict[str, Any], verdict: str, code: int, typed: Typed, tmp_path: Path
) -> None:
    recorded(tmp_path, **changes)
    ended, out, _ = typed("judge", tmp_path)
    assert ended == code
    assert verdict in out.lower()
    ended, out, _ = typed("judge", tmp_path, "-o", "json")
    assert (ended, json.loads(out)["verdict"]) == (code, verdict)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(out)


def test_report_writes_the_files_anew_and_says_where(typed: Typed, tmp_path: Path) -> None:
    recorded(tmp_path, after=False)
    code, out, _ = typed("report", tmp_path)
    assert code == EXIT_PASS, "a report of a failure is no failure"
    files = [tmp_path / name for name in ("results.json", "junit.xml", "report.html", "metrics.om", "load.json")]
    assert set(out.split()) == set(map(str, files))
    for file in files:
        assert file.stat().st_size
        file.unlink()
    assert set(json.loads(typed("report", tmp_path, "-o", "json")[1])) == set(map(str, files))
    assert all(file.is_file() for file in files)


def test_what_is_no_timeline_is_refused(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "timeline.jsonl").write_text("not an event\n")
    for command in ("judge", "report"):
        code, _, err = typed(command, tmp_path)
        assert code == EXIT_USAGE
        assert "cannot be judged" in err


# what acts on clusters and images, which are stood in for

SOLO = Cluster(
    name="solo", provider="kind", kubeconfig=Path("/state/solo/kubeconfig"), context="kind-solo", run="r1", uid="u1",
    shape="s1", image="node:1", created=1.0, nodes=(Node("solo-control-plane", "control-plane", "172.18.0.2"),),
)  # fmt: skip
TOOLBOX = Image("toolbox", "ai-k8s-sandbox/toolbox:1", "sha256:1", 21_000_000, "built")


def test_gc_tells_what_went_or_would_go(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [garbage.Garbage("process", "41 locust", "the command 7 that started it is gone")]
    monkeypatch.setattr(garbage, "collect", lambda *, dry_run: left if dry_run else [])
    assert typed("gc") == (EXIT_PASS, "nothing is left behind\n", "")
    code, said, _ = typed("gc", "--dry-run")
    assert (code, "41 locust" in said, "would be removed" in said) == (EXIT_PASS, True, True)
    assert json.loads(typed("gc", "--dry-run", "-o", "json")[1])["would_be_removed"][0]["name"] == "41 locust"


def test_up_says_what_to_type_next_and_programs_get_the_whole_cluster(
    typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def up(spec: ClusterSpec, *, name: str | None, allow_changes: bool, cold: bool) -> Cluster:
        return SOLO

    monkeypatch.setattr(cluster, "up", up)
    assert typed("up") == (
        EXIT_PASS,
        "solo is up: solo-control-plane\n  export KUBECONFIG=/state/solo/kubeconfig\n  sandbox down solo\n",
        "",
    )
    found = json.loads(typed("up", "-o", "json")[1])
    assert (found["kubeconfig"], found["nodes"][0]["address"]) == ("/state/solo/kubeconfig", "172.18.0.2")


def test_kubeconfig_is_a_bare_path_for_shells(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "kubeconfig", lambda name: Path(f"/state/{name}/kubeconfig"))
    assert typed("kubeconfig")[:2] == (EXIT_PASS, "/state/solo/kubeconfig\n")
    assert json.loads(typed("kubeconfig", "trio", "-o", "json")[1]) == {
        "name": "trio",
        "kubeconfig": "/state/trio/kubeconfig",
    }


def test_down_removes_what_is_named_and_all_takes_leftovers_too(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "list_clusters", lambda: [SOLO])
    for end in ("down", "release"):
        monkeypatch.setattr(cluster, end, lambda name: [f"record {name}"])
    monkeypatch.setattr(cluster, "reap", lambda *, strict: ["half-made"] * strict)
    assert typed("down", "trio")[:2] == (EXIT_PASS, "trio is down: 1 things removed\n")
    assert typed("down", "--all")[1] == "solo is down: 1 things removed\nhalf-made: removed, a leftover\n"
    assert json.loads(typed("down", "--all", "-o", "json")[1]) == {
        "removed": {"solo": ["record solo"]},
        "leftovers": ["half-made"],
    }
    assert json.loads(typed("down", "trio", "-o", "json")[1])["leftovers"] == []


def test_prepare_says_how_the_engine_is(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "prepare", lambda: Engine("running", "unix:///x", "engine 27"))
    assert typed("prepare")[1] == "engine: running\n"
    assert json.loads(typed("prepare", "-o", "json")[1])["state"] == "running"


@pytest.mark.parametrize("holds", [True, False])
def test_prove_says_of_each_promise_whether_it_holds(
    holds: bool, typed: Typed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done: list[str] = []

    def prove_all(own: Cluster, toolbox: str) -> list[Proof]:
        assert done == ["ours", "loaded"], "nothing is tried on a cluster that is not ours, nor without its image"
        return [
            Proof("NetworkPolicies are enforced", ok=True, detail="packets were dropped"),
            Proof("the metrics API answers", ok=holds, detail="status 503, 0 of 1 nodes"),
        ]

    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(cluster, "current", lambda name: SOLO)
    monkeypatch.setattr(cluster, "prove_ours", lambda own: done.append("ours"))
    monkeypatch.setattr(images, "ensure", lambda names: {"toolbox": TOOLBOX})
    monkeypatch.setattr(nodes, "load_images", lambda own, refs: done.append("loaded"))
    monkeypatch.setattr(cluster, "prove_all", prove_all)
    expected = EXIT_PASS if holds else EXIT_FAIL
    code, out, _ = typed("prove")
    assert code == expected
    assert "holds" in out
    assert ("does not hold" in out) == (not holds)
    assert "status 503, 0 of 1 nodes" in out
    done.clear()
    code, out, _ = typed("prove", "solo", "-o", "json")
    assert code == expected
    assert [each["ok"] for each in json.loads(out)] == [True, holds]


def test_images_answer_programs(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    had = {"toolbox": TOOLBOX}
    monkeypatch.setattr(images, "ensure", lambda names: had)
    monkeypatch.setattr(images, "build", lambda names, *, fresh: had)
    monkeypatch.setattr(images, "pull", lambda names: had)
    monkeypatch.setattr(images, "push", lambda registry, names: {"toolbox": f"{registry}/toolbox@sha256:2"})
    monkeypatch.setattr(images, "trim", lambda: 5_000_000_000)
    for command in ("ensure", "build", "pull"):
        assert typed("images", command, "toolbox")[1] == "toolbox: ai-k8s-sandbox/toolbox:1 (built, 21 MB)\n"
        found = json.loads(typed("images", command, "toolbox", "-o", "json")[1])
        assert found["toolbox"]["ref"] == "ai-k8s-sandbox/toolbox:1"
    assert typed("images", "push", "r:5000")[1] == "toolbox: r:5000/toolbox@sha256:2\n"
    assert json.loads(typed("images", "push", "r:5000", "-o", "json")[1]) == {"toolbox": "r:5000/toolbox@sha256:2"}
    assert typed("images", "trim")[1] == "5.0 GB freed\n"
    assert json.loads(typed("images", "trim", "-o", "json")[1]) == {"freed": 5_000_000_000}


def test_down_of_several_goes_on_after_one_that_stays_and_its_exit_code_tells(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path))
    stays: dict[str, SandboxError] = {
        "away": ClusterError("made on another engine", where="away"),
        "shared": NotOurs("something is on its network", where="shared", fix="docker network disconnect x db"),
    }

    def down(name: str) -> list[str]:
        if name in stays:
            raise stays[name]
        return [f"record {name}"]

    for end in ("down", "release"):
        monkeypatch.setattr(cluster, end, down)
    monkeypatch.setattr(cluster, "list_clusters", lambda: [SimpleNamespace(name=each) for each in (*stays, "trio")])
    monkeypatch.setattr(cluster, "reap", lambda *, strict: [])
    code, said, err = typed("down", "--all")
    assert (code, said) == (EXIT_FAIL, "trio is down: 1 things removed\n")
    assert "made on another engine" in err
    assert "docker network disconnect x db" in err
    assert typed("down", "away")[0] == EXIT_ENVIRONMENT
    code, said, _ = typed("down", "shared", "trio", "-o", "json")
    assert (code, json.loads(said)["removed"]) == (EXIT_FAIL, {"trio": ["record trio"]})


def test_a_cluster_is_not_taken_down_from_under_a_run(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path))
    with record.lease("mine"):
        code, _, err = typed("down", "mine")
    assert code == EXIT_ENVIRONMENT
    assert "another run uses this cluster" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_the_command_line_loads_ends_with_the_code_of_an_interrupt(number: signal.Signals) -> None:
    """Loading takes a while: this one interrupts itself at the first module that the command line imports."""
    script = f"""
import os, sys
class Interrupted:
    def find_spec(self, name, *_):
        if name == "sandbox.cli":
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Interrupted())
from sandbox.__main__ import main
main()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == EXIT_INTERRUPTED
    assert "Traceback" not in ended.stderr
