"""Plans: everything a scenario names is resolved before anything is touched; schemas and catalogue match the code."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from sandbox import plan
from sandbox.errors import UsageError

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


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(UsageError) as caught:
        plan.load_all(["no-such-scenario"])
    assert "steady-load" in str(caught.value)


def test_the_catalogue_describes_everything_in_words() -> None:
    for kind, rows in plan.catalogue().items():
        assert rows, kind
        assert all(text for text in rows.values()), kind
