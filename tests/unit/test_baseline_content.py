"""A baseline is the same load if what is sent is the same, whatever its files are called."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_judge import history
from test_judge_thresholds import quiet
from whole_runs import keep

from sandbox import baseline
from sandbox.errors import UsageError
from sandbox.spec.inputs import inputs_of
from sandbox.spec.loadtest import Load
from sandbox.spec.scenario import Scenario
from sandbox.timeline import RunStarted, read

PROFILE = """apiVersion: sandbox/v1
kind: Profile
metadata: {name: NAME, description: Mine.}
prompts: PROMPTS
maxTokens: 64
"""
LATER = {"ttft": ["p(50)<=baseline+10%"]}
RATE = {"process": "constant", "rate": 10}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a profile, its prompts, a locustfile that imports another file, and a trace."""
    for folder in ("profiles", "prompts", "traces"):
        (tmp_path / "loadtests" / folder).mkdir(parents=True)
    profile(tmp_path)
    (tmp_path / "loadtests/prompts/own.txt").write_text("one\ntwo\n" * 100)
    (tmp_path / "loadtests/traces/own.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n")
    (tmp_path / "users.py").write_text("import locust\nfrom helpers.deep import *\nimport helper\n")
    (tmp_path / "helper.py").write_text("import json\n")
    (tmp_path / "helpers").mkdir()
    (tmp_path / "helpers/deep.py").write_text("x = 1\n")
    (tmp_path / "unused.py").write_text("x = 1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def profile(folder: Path, name: str = "own", **changes: str) -> None:
    text = PROFILE.replace("NAME", name).replace("PROMPTS", "own.txt")
    for key, value in changes.items():
        text = re.sub(rf"^{key}: .*$", f"{key}: {value}", text, flags=re.MULTILINE)
    (folder / "loadtests/profiles" / f"{name}.yaml").write_text(text)


def load(**keys: Any) -> dict[str, Any]:
    return {"profile": "own", "arrivals": RATE, "duration": "30s", **keys}


LOADS: dict[str, dict[str, Any]] = {
    "profile": load(),
    "mix": load(profile=None, mix=[{"profile": "own", "weight": 2}, {"profile": "chat-short"}]),
    "trace": load(arrivals={"process": "trace", "trace": "own.csv"}),
    "locustfile": load(profile=None, locustfile="users.py", arrivals={"process": "closed", "users": 3}),
}


def recorded(folder: Path, wanted: dict[str, Any]) -> Path:
    """A whole run of that load that passed, in a folder of its own."""
    (folder / "run").mkdir(exist_ok=True)
    return keep(folder / "run", history(spec=quiet(load=wanted), faults=[]))


def refusal(run: Path, wanted: dict[str, Any]) -> list[str]:
    try:
        baseline.samples_for(Scenario.model_validate(quiet(load=wanted, slo=LATER)), run)
    except UsageError as error:
        return [error.what, *error.details]
    return []


@pytest.mark.parametrize(
    ("kind", "changed", "said"),
    [
        ("profile", ("loadtests/profiles/own.yaml", "maxTokens: 64", "maxTokens: 192"), "load.profile.maxTokens.*192"),
        (
            "profile",
            ("loadtests/prompts/own.txt", "one", "three"),
            "load.profile.prompts: another text",
        ),
        ("mix", ("loadtests/profiles/own.yaml", "maxTokens: 64", "maxTokens: 65"), r"load.mix\[0\].profile.maxTokens"),
        ("mix", ("loadtests/prompts/own.txt", "two", "2"), r"load.mix\[0\].profile.prompts: another text"),
        ("trace", ("loadtests/traces/own.csv", "TIME", "time"), "load.arrivals.trace.content: another text"),
        ("locustfile", ("users.py", "import locust", "import locust as l"), "load.locustfile.users.py: another text"),
        ("locustfile", ("helper.py", "json", "re"), "load.locustfile.helper.py: another text"),
        ("locustfile", ("helpers/deep.py", "1", "2"), "load.locustfile.helpers/deep.py: another text"),
    ],
)
def test_a_load_whose_files_hold_something_else_is_another_load_under_the_same_name(
    mine: Path, kind: str, changed: tuple[str, str, str], said: str
) -> None:
    run = recorded(mine, LOADS[kind])
    assert refusal(run, LOADS[kind]) == []
    name, old, new = changed
    file = mine / name
    file.write_text(file.read_text().replace(old, new))
    what, *details = refusal(run, LOADS[kind])
    assert what == "is another load, and cannot be compared"
    assert len(details) == 1
    assert re.match(said, details[0]), details


def test_what_does_not_change_the_requests_may_change(mine: Path) -> None:
    run = recorded(mine, LOADS["profile"])
    profile(mine, metadata="{name: own, description: Told in other words.}")
    assert refusal(run, LOADS["profile"]) == []
    run = recorded(mine, LOADS["locustfile"])
    (mine / "unused.py").write_text("y = 2\n")
    assert refusal(run, LOADS["locustfile"]) == []


def test_the_same_content_under_another_name_is_the_same_load(mine: Path) -> None:
    run = recorded(mine, LOADS["profile"])
    profile(mine, "renamed")
    assert refusal(run, load(profile="renamed")) == []
    assert refusal(run, load(profile="chat-short"))[0] == "is another load, and cannot be compared"


def test_loads_of_two_kinds_are_told_apart(mine: Path) -> None:
    run = recorded(mine, LOADS["profile"])
    said = "; ".join(refusal(run, LOADS["locustfile"]))
    assert "load.locustfile" in said
    assert "load.arrivals.process: closed here, constant there" in said


def test_a_baseline_of_an_older_version_says_what_to_do(mine: Path) -> None:
    run = recorded(mine, LOADS["profile"])
    lines = (run / "timeline.jsonl").read_text().splitlines()
    begun = json.loads(lines[0])
    del begun["inputs"]
    (run / "timeline.jsonl").write_text("\n".join([json.dumps(begun), *lines[1:]]) + "\n")
    what, *details = refusal(run, LOADS["profile"])
    assert what == "is another load, and cannot be compared"
    assert "an older version recorded it" in details[0]
    assert "sandbox run demo.yaml" in details[0]


def test_a_run_records_what_its_files_hold(mine: Path) -> None:
    run = recorded(mine, LOADS["profile"])
    begun = next(event for event in read(run / "timeline.jsonl") if isinstance(event, RunStarted))
    assert begun.inputs is not None
    assert begun.inputs["profile own"]["maxTokens"] == '{"kind": "fixed", "tokens": 64}'
    assert begun.inputs["profile own"]["prompts"].startswith("sha256:")
    assert set(inputs_of(Load.model_validate(LOADS["mix"]))) == {"profile own", "profile chat-short"}
    assert set(inputs_of(Load.model_validate(LOADS["trace"]))) == {"profile own", "trace own.csv"}
    assert inputs_of(None) == {}
