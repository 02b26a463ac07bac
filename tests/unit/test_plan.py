"""Plans: everything a scenario names is resolved before anything is touched; schemas and catalogue match the code."""

from __future__ import annotations

import json
import re
import textwrap
import typing
from pathlib import Path

import jsonschema
import pytest
import yaml

from sandbox import plan
from sandbox.errors import UsageError
from sandbox.faults import FAULTS
from sandbox.kube import stacks
from sandbox.probes import PROBES
from sandbox.spec import load_text
from sandbox.spec.base import Metadata
from sandbox.spec.cluster import ClusterSpec
from sandbox.spec.profile import Profile
from sandbox.spec.scenario import Load, Scenario
from sandbox.spec.slo import METRICS, TAGS

ROOT = Path(__file__).parents[2]
SCENARIOS = sorted((ROOT / "scenarios").rglob("*.yaml"))
SCHEMAS = ROOT / "docs" / "reference"


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_every_shipped_scenario_is_sound_and_fits_its_schema(path: Path) -> None:
    (loaded,) = plan.load_all([str(path)])
    assert loaded.scenario.metadata.name == path.stem
    assert loaded.scenario.metadata.name in loaded.in_words()
    jsonschema.validate(yaml.safe_load(path.read_text()), plan.models()["scenario"].model_json_schema(by_alias=True))


@pytest.mark.parametrize("kind", sorted(plan.models()))
def test_the_schema_in_the_docs_is_the_one_of_the_code(kind: str) -> None:
    written = json.loads((SCHEMAS / f"{kind}.schema.json").read_text())
    assert written == plan.models()[kind].model_json_schema(by_alias=True), f"sandbox schema {kind} > docs/reference/…"


BLOCKS = [
    (page, text)
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for text in re.findall(r"^ *```yaml\n(.*?)^ *```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
]
KINDS = {"Scenario": Scenario, "Cluster": ClusterSpec, "Profile": Profile}


@pytest.mark.parametrize(
    ("page", "text"), [pair for pair in BLOCKS if re.search(rf"^ *kind: ({'|'.join(KINDS)})$", pair[1], re.MULTILINE)]
)
def test_every_whole_spec_in_the_docs_is_sound(page: Path, text: str, tmp_path: Path) -> None:
    text = textwrap.dedent(text)
    kind = yaml.safe_load(text)["kind"]
    assert load_text(text, page, KINDS[kind]).model
    if kind == "Scenario":
        (tmp_path / "shown.yaml").write_text(text)
        assert plan.load_all([str(tmp_path / "shown.yaml")])


def test_the_docs_show_specs_of_every_kind() -> None:
    assert all(any(f"kind: {kind}\n" in text for _, text in BLOCKS) for kind in KINDS)


def test_the_reference_names_every_key_metric_probe_and_fault_of_the_code() -> None:
    page = (SCHEMAS / "scenario.md").read_text()
    models = (Scenario, Load, Metadata)
    keys = [field.alias or name for model in models for name, field in model.model_fields.items()]
    limits = typing.get_args(typing.get_args(Load.model_fields["good"].annotation)[0])
    for name in [*keys, *limits, *METRICS, *TAGS]:
        assert f"`{name}`" in page, name
    for registry in (PROBES, FAULTS):
        for name in registry.functions:
            row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
            assert all(f"`{each}`" in row for each in registry.parameters(name).model_fields), row


def test_a_scenario_is_found_by_its_name_and_a_folder_means_all_of_it() -> None:
    assert len(plan.load_all([str(ROOT / "scenarios")])) == len(SCENARIOS)
    assert plan.load_all(["steady-load"])[0].scenario.metadata.name == "steady-load"


def test_all_that_a_scenario_names_wrongly_is_said_at_once(tmp_path: Path) -> None:
    text = (ROOT / "scenarios/chaos/rolling-update-under-load.yaml").read_text()
    for old, new in {
        "cluster: solo": "cluster: sole",
        "replicas: 3": "replicas: many",
        "chat-short": "chat-shrot",
        "- openai.chat": "- openai.chatt",
        "rollout.restart: {target": "rollout.restart: {targte",
    }.items():
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        plan.load_all([str(path)])
    message = str(caught.value)
    for expected in ("'sole'", "values.replicas", "'chat-shrot'", "unknown probe", "unknown parameter"):
        assert expected in message
    assert all(line.startswith(f"{path}:") for line in caught.value.details)


def test_names_are_checked_even_where_a_key_is_wrong(tmp_path: Path) -> None:
    text = (ROOT / "scenarios/chaos/survive-a-lost-replica.yaml").read_text()
    for old, new in {
        "cluster: solo": "cluster: sole\ntypo: 1",
        "name: llama-cpp, values": "name: lama-cpp, values",
        "[tenant]": "[tenent]",
        "[all]": "[al]",
        "chat-tiny": "chat-tony",
        "- k8s.ready": "- k8s.raedy",
        "count: 1}": "cuont: 1}",
    }.items():
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        plan.load_all([str(path)])
    message = str(caught.value)
    expected = (
        "typo: unknown key",
        "'sole'",
        "'lama-cpp'",
        "'tenent'",
        "attacks[0]",
        "'chat-tony'",
        "k8s.raedy",
        "cuont",
    )
    for words in expected:
        assert words in message
    assert len(caught.value.details) == len(expected)


def test_a_cluster_may_be_named_by_its_path(tmp_path: Path) -> None:
    shape, path = tmp_path / "mine.yaml", tmp_path / "scenario.yaml"
    shape.write_text((ROOT / "clusters/solo.yaml").read_text().replace("name: solo", "name: mine"))
    text = (ROOT / "scenarios/serving/steady-load.yaml").read_text()
    path.write_text(text.replace("cluster: solo", f"cluster: {shape}"))
    assert plan.load_all([str(path)])[0].cluster.metadata.name == "mine"


def test_a_folder_that_is_not_there_is_called_a_folder() -> None:
    with pytest.raises(UsageError, match="no such folder"):
        plan.load_all(["no-such-folder/"])


def test_mistakes_of_several_scenarios_are_said_together(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text("kind: Scenario\n")
    with pytest.raises(UsageError, match="2 scenarios"):
        plan.load_all([str(tmp_path)])


def test_names_that_nobody_has_and_files_with_mistakes_are_said_together(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("kind: Scenario\n")
    with pytest.raises(UsageError) as caught:
        plan.load_all(["nope1", "no-such-folder/", "nope2", "steady-load", str(tmp_path / "bad.yaml"), "gone.yaml"])
    message = str(caught.value)
    assert message.startswith("5 scenarios cannot be used")
    for expected in (
        "'nope1'",
        "'nope2'",
        "no-such-folder/: there is no",
        "bad.yaml:1:1: metadata: is missing",
        "gone",
    ):
        assert expected in message
    assert "first-answer" in message


BROKEN = """\
apiVersion: sandbox/v1
kind: Scenario
metadata: {name: mine, description: Everything is wrong with it.}
typo: 1
stack: {name: vllm-sim, values: {replicas: many, zone: a}}
attacks: [1-privileged-pod]
steadyState: [k8s.ready]
load: {profile: chat-short, arrivals: {rate: 1}, duration: 60s}
faults:
  - rollout.restart: {target: {app: vllm-sim}}
    at: 60s
slo:
  ttft{profile:chat-tiny}: ["p(90)<=1s"]
"""


@pytest.mark.parametrize("by", ["path", "name"])
def test_a_wrong_key_hides_no_other_mistake(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scenarios" / "mine.yaml"
    path.parent.mkdir()
    path.write_text(BROKEN)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        plan.load_all([str(path) if by == "path" else "mine"])
    expected = (
        "4:1: typo: unknown key",
        "5:34: stack.values.replicas: 'many' is no integer",
        "5:50: stack.values.zone: unknown value; known:",
        "6:1: attacks: attacks need a guardrail that makes a tenant",
        "11:5: faults[0].at: strikes after the load has ended (60s)",
        "13:3: slo.ttft{profile:chat-tiny}: the load sends no profile 'chat-tiny'",
    )
    assert len(caught.value.details) == len(expected)
    for words in expected:
        assert f"{path}:{words}" in str(caught.value)
    path.write_text(BROKEN.replace("typo: 1\n", ""))
    with pytest.raises(UsageError) as caught:
        plan.load_all(["mine"])
    assert len(caught.value.details) == len(expected) - 1


def test_whatever_stands_where_a_name_should_is_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    for value in ("7", "[7]", "{a: 1}", "[[7], {1: 2}, null, at]", "null", "''", "true"):
        for key in ("cluster", "stack", "guardrails", "attacks", "steadyState", "load", "faults", "slo", "validity"):
            spec = yaml.safe_load(BROKEN) | {key: yaml.safe_load(value)}
            path.write_text(yaml.safe_dump(spec))
            with pytest.raises(UsageError):
                plan.load_all([str(path)])


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(UsageError) as caught:
        plan.load_all(["no-such-scenario"])
    assert "steady-load" in str(caught.value)


def test_a_fault_may_be_written_in_full(tmp_path: Path) -> None:
    text = BROKEN.replace("typo: 1\n", "").replace("{replicas: many, zone: a}", "{}").replace("attacks", "# attacks")
    text = text.replace("at: 60s", "at: 10s").replace("profile:chat-tiny", "profile:chat-short")
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("rollout.restart: {", "name: rollout.restart\n    params: {"))
    (loaded,) = plan.load_all([str(path)])
    assert loaded.faults[0].params == {"target": {"app": "vllm-sim"}}
    path.write_text(text.replace("rollout.restart: {", "name: rollout.restart\n    params: {count: 1, "))
    with pytest.raises(UsageError, match="unknown parameter") as caught:
        plan.load_all([str(path)])
    assert len(caught.value.details) == 1


def test_a_broken_spec_of_ones_own_is_listed_with_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = "apiVersion: sandbox/v1\nkind: Profile\nmetadata: {name: mine, description: X.}\n"
    for folder, text in {
        "loadtests/profiles": head + "promts: [a]\nprompts: [a]\nmaxTokens: {kind: fixed, tokens: 3}\n",
        "clusters": "kind: Cluster\nmetadata: {name: mine}\n",
        "scenarios": "metadata: [",
    }.items():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "mine.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    found = plan.catalogue()
    assert found["profiles"]["mine"].startswith("cannot be used: ")
    assert "mine.yaml:4:1: promts: unknown key" in found["profiles"]["mine"]
    assert "mine.yaml:2:1: metadata.description: is missing" in found["clusters"]["mine"]
    assert "mine.yaml:1:12: " in found["scenarios"]["mine"]
    assert {"chat-short", "chat-tiny"} < found["profiles"].keys()


def test_the_catalogue_describes_everything_in_words() -> None:
    for kind, rows in plan.catalogue().items():
        assert rows, kind
        assert all(text for text in rows.values()), kind


def test_a_guardrails_values_are_checked_like_a_stacks_each_at_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    shipped = next(each for each in SCENARIOS if each.stem == "survive-a-lost-replica")
    text = shipped.read_text().replace("guardrails: [tenant]", "guardrails:\n  - tenant: {gpus: '8'}")
    path.write_text(text)
    (loaded,) = plan.load_all([str(path)])
    ((guardrail, values),) = loaded.guardrails
    assert (guardrail.metadata.name, values) == ("tenant", {"gpus": "8"})
    path.write_text(text.replace("gpus: '8'", "gpus: many, gpu: 1").replace("  - pod.kill", "  - pod.kil"))
    with pytest.raises(UsageError) as refused:
        plan.load_all([str(path)])
    told = "\n".join(refused.value.details)
    assert "guardrails[0].tenant.gpus" in told
    assert "guardrails[0].tenant.gpu:" in told
    assert "pod.kil" in told


WATCHED = """\
apiVersion: sandbox/v1
kind: Scenario
metadata: {name: watched, description: Prometheus watches.}
stack: {name: vllm-sim, requires: [prometheus: {retention: 1h}]}
steadyState:
  - openai.chat
  - prometheus.query: {query: 'up{job="models"}', equals: 1}
load: {profile: chat-short, arrivals: {rate: 2}, duration: 10s}
slo: {ok: ["rate>=0.9"]}
"""


def watched(tmp_path: Path, old: str = "", new: str = "") -> plan.Plan:
    assert old in WATCHED
    path = tmp_path / "watched.yaml"
    path.write_text(WATCHED.replace(old, new) if old else WATCHED)
    return plan.load_all([str(path)])[0]


def test_required_stacks_come_first_with_their_values_and_images_and_are_told(tmp_path: Path) -> None:
    loaded = watched(tmp_path)
    names = [(stack.metadata.name, values) for stack, values in loaded.stacks]
    assert names == [("prometheus", {"retention": "1h"}), ("vllm-sim", {})]
    assert loaded.images == ["prometheus", "vllm-sim"]
    assert loaded.as_json()["requires"] == ["prometheus"]
    lines = loaded.in_words().splitlines()
    place = lines.index("requires      stack prometheus {'retention': '1h'}")
    assert lines[place + 1] == "stack         vllm-sim"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("prometheus: {retention: 1h}", "prometeus", ["stack.requires[0]: there is no stack 'prometeus'; use one"]),
        ("retention: 1h", "retention: long", ["stack.requires[0].prometheus.retention: 'long' is not a duration"]),
        ("{retention: 1h}", "{}, prometheus", ["stack.requires: stands twice: prometheus"]),
        ("prometheus: {retention: 1h}", "vllm-sim", ["circle: vllm-sim -> vllm-sim", "asks stack prometheus"]),
        (", requires: [prometheus: {retention: 1h}]", "", ["steadyState[1]: prometheus.query asks stack prometheus"]),
        (
            "vllm-sim, requires: [prometheus: {retention: 1h}]",
            "prometheus",
            ["load: needs a model, and stack prometheus serves none", "steadyState[0]: openai.chat asks a model"],
        ),
        ("equals: 1", "equal: 1", ["equal: unknown parameter; known: query, at_least, at_most, equals"]),
    ],
)
def test_stacks_that_cannot_stand_together_are_refused_at_their_lines(
    old: str, new: str, expected: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as refused:
        watched(tmp_path, old, new)
    for words in expected:
        assert any(words in line for line in refused.value.details), refused.value.details


def test_a_stack_without_a_model_may_be_watched_for_its_own_sake(tmp_path: Path) -> None:
    text = WATCHED.replace("vllm-sim, requires: [prometheus: {retention: 1h}]", "prometheus")
    kept = [line for line in text.splitlines() if not line.startswith(("load", "slo", "  - openai"))]
    (tmp_path / "watched.yaml").write_text("\n".join(kept))
    (loaded,) = plan.load_all([str(tmp_path / "watched.yaml")])
    assert [stack.metadata.name for stack, _ in loaded.stacks] == ["prometheus"]


def test_the_list_says_what_a_stack_requires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needy = stacks.load("vllm-sim").model_copy(update={"requires": ["prometheus"]})
    monkeypatch.setattr(plan.stacks, "load", lambda name: needy)
    assert plan.catalogue()["stacks"]["vllm-sim"].endswith(" Requires prometheus.")


def test_a_gpu_fault_needs_a_cluster_with_gpus(tmp_path: Path) -> None:
    scenario = (ROOT / "scenarios" / "gpu" / "survive-xid-79.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(scenario.replace("cluster: solo-gpu", "cluster: solo"))
    with pytest.raises(UsageError) as refused:
        plan.load_all([str(tmp_path / "mine.yaml")])
    assert any("cluster solo has no emulated GPUs" in line for line in refused.value.details)
