"""In a folder every YAML file is run or is an error, in `run` and `lint`; pytest finds ours and nobody else's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sandbox import plan
from sandbox.cli import app
from sandbox.errors import UsageError
from sandbox.spec import catalogue
from sandbox.spec.folder import meant_as, yaml_files

GOOD = """apiVersion: sandbox/v1
kind: Scenario
metadata: {name: NAME, description: A question.}
stack: {name: vllm-sim}
steadyState: [k8s.ready]
"""
OURS = {
    "plain": GOOD,
    "no-version": GOOD.replace("apiVersion: sandbox/v1\n", ""),
    "typo-kind": GOOD.replace("Scenario", "Senario"),
    "small-kind": GOOD.replace("Scenario", "scenario"),
    "other-kind-of-ours": GOOD.replace("Scenario", "Experiment"),
    "typo-version": GOOD.replace("sandbox/v1", "sanbox/v1"),
    "later-version": GOOD.replace("sandbox/v1", "sandbox/v2"),
    "no-group": GOOD.replace("sandbox/v1", "v1"),
    "typo-key": GOOD.replace("kind:", "kid:").replace("apiVersion", "apiversion"),
    "no-kind": GOOD.replace("kind: Scenario\n", ""),
    "neither": GOOD.replace("kind: Scenario\n", "slo: {}\n").replace("apiVersion: sandbox/v1\n", ""),
    "json": json.dumps(yaml.safe_load(GOOD)),
    "indented json": json.dumps(yaml.safe_load(GOOD), indent=4),
    "tag": GOOD.replace("kind: Scenario", "kind: !!str Scenario"),
    "tag of all": "--- !Scenario\n" + GOOD,
    "comment": "# a licence\n" * 500 + GOOD,
    "anchor": GOOD.replace("kind: Scenario", "kind: &kind Scenario"),
    "quoted": GOOD.replace("Scenario", "'Scenario'").replace("apiVersion", '"apiVersion"'),
    "documents": "a: 1\n---\n" + GOOD,
    "broken": GOOD + "load: {{ templated }}\n  x: [\n",
    "broken json": json.dumps(yaml.safe_load(GOOD))[:-1],
    "byte order mark": "\ufeff" + GOOD,
    "control character": GOOD + "# \x07\n",
}
STRANGERS = {
    "empty": "",
    "list": "- a list of kinds",
    "compose": "version: '3'\nservices: {load: {image: x}}\n",
    "manifest": "apiVersion: v1\nkind: Service\nmetadata: {name: sandbox}\n",
    "their scenario": GOOD.replace("sandbox/v1", "litmuschaos.io/v1alpha1"),
    "their sandbox": "apiVersion: sandbox.gke.io/v1\nkind: RuntimeClass\n",
    "agent sandbox": "apiVersion: agents.x-k8s.io/v1alpha1\nkind: Sandbox\n",
    "helm": "apiVersion: {{ .Values.version }}\nkind: {{ .Values.kind }}\n{{- end }}\n",
    "cloudformation": "Resources: {A: !Ref B}\nkind: !Sub x\n",
    "values": "load: 3\nstack: x\n",
    "workflow": "name: tests of scenarios\non: push\njobs: {}\n",
    "binary": "\x00\x01kind",
    "shape": "apiVersion: sandbox/v1\nkind: Cluster\nmetadata: {name: x, description: y}\n",
}


def written(folder: Path, texts: dict[str, str], suffix: str = ".yaml") -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name.replace(' ', '-')}{suffix}" for name in texts]
    for file, (name, text) in zip(files, texts.items(), strict=True):
        file.write_text(text.replace("NAME", name.replace(" ", "-")), encoding="utf-8")
    return files


def linted(*wanted: Path | str) -> str:
    """What is said of them; empty where all are sound."""
    try:
        plan.load_all([str(each) for each in wanted])
    except UsageError as error:
        return str(error)
    return ""


def test_what_is_meant_as_a_scenario_is_known_by_its_words_as_yaml_reads_them(tmp_path: Path) -> None:
    wrong = {file.stem: meant_as(file) for file in written(tmp_path, OURS) if meant_as(file) != "scenario"}
    assert not wrong
    wrong = {file.stem: meant_as(file) for file in written(tmp_path, STRANGERS) if meant_as(file) == "scenario"}
    assert not wrong
    assert meant_as(tmp_path / "shape.yaml") == "another kind"


def test_text_in_another_encoding_is_read_as_yaml_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "wide.yaml"
    file.write_text(GOOD, encoding="utf-16")
    assert meant_as(file) == "scenario"


def test_a_huge_file_is_not_parsed_in_passing_and_still_known(tmp_path: Path) -> None:
    huge, stranger = tmp_path / "huge.yaml", tmp_path / "stranger.yaml"
    rows = "rows:\n" + "- {a: 1, kind: b}\n" * 200_000
    huge.write_text(GOOD + rows)
    stranger.write_text(rows)
    assert (meant_as(huge), meant_as(stranger)) == ("scenario", "something else")


@pytest.mark.parametrize("suffix", [".yml", ".YAML", ".Yml", ".yaml"])
def test_every_ending_that_yaml_has_is_taken(suffix: str, tmp_path: Path) -> None:
    written(tmp_path, {"a": GOOD}, suffix)
    assert [each.scenario.metadata.name for each in plan.load_all([str(tmp_path)])] == ["a"]
    written(tmp_path, {"b": GOOD.replace("Scenario", "Senario")}, suffix)
    assert f"b{suffix}:2:1: kind" in linted(tmp_path)


def test_every_file_of_a_folder_that_is_no_scenario_is_an_error_and_all_are_said_at_once(tmp_path: Path) -> None:
    written(tmp_path / "in", {"sound": GOOD, **STRANGERS, "typo": OURS["typo-kind"], "two": OURS["documents"]})
    (tmp_path / "in" / "lost.yaml").symlink_to(tmp_path / "nowhere")
    (tmp_path / "in" / "text.txt").write_text("no YAML")
    said = linted(tmp_path / "in")
    files = {line.strip().partition(":")[0] for line in said.splitlines()[1:-1]}
    assert {Path(each).stem for each in files} == {*(n.replace(" ", "-") for n in STRANGERS), "typo", "two", "lost"}
    assert "shape.yaml: is of another kind than Scenario; move it out of" in said
    assert "compose.yaml: is no scenario; move it out of" in said
    assert "empty.yaml: is empty" in said
    assert "two.yaml:2:1: holds several documents, and a file is one; make a file of each" in said
    assert "lost.yaml: cannot be read" in said
    result = CliRunner().invoke(app, ["run", "--runs", str(tmp_path / "runs"), str(tmp_path / "in")])
    assert isinstance(result.exception, UsageError)
    assert not (tmp_path / "runs").exists(), "not one of them was run"


def test_links_are_followed_and_one_that_leads_back_ends_nowhere(tmp_path: Path) -> None:
    written(tmp_path / "far", {"a": GOOD})
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "far").symlink_to(tmp_path / "far")
    (tmp_path / "in" / "self").symlink_to(tmp_path / "in")
    written(tmp_path / "in" / "folder.yaml", {"b": GOOD})
    assert [each.stem for each in yaml_files(tmp_path / "in")] == ["a", "b"]
    assert not linted(tmp_path / "in")


def test_a_folder_that_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "in", {"a": GOOD})
    (tmp_path / "in" / "closed").mkdir()
    scandir = os.scandir

    def refused(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert "closed: cannot be read: Permission denied" in linted(tmp_path / "in")


def test_scenarios_of_every_ending_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "scenarios", {"mine": GOOD}, ".yml")
    monkeypatch.chdir(tmp_path)
    assert "mine" in catalogue.names("scenarios")
    assert plan.load_all(["mine"])[0].source.name == "mine.yml"


# pytest


def collected(folder: Path, *args: str) -> tuple[set[str], str]:
    """The stems of the files that are tests, and all that was said."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *args]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert "error" not in said.stdout.lower(), said.stdout
    names = [line.partition("::")[0] for line in said.stdout.splitlines() if "::" in line]
    return {Path(each).stem for each in names}, said.stdout


def test_pytest_collects_all_that_is_meant_as_a_scenario_and_nobody_elses_yaml(tmp_path: Path) -> None:
    ours = written(tmp_path / "chaos", OURS, ".yml") + written(tmp_path / "chaos", {"big": GOOD}, ".YAML")
    written(tmp_path / "charts", STRANGERS)
    written(tmp_path / "charts" / "scenarios", {"theirs": STRANGERS["their scenario"], "values": "a: 1\n"})
    assert collected(tmp_path)[0] == {each.stem for each in ours}


def test_pytest_collects_whatever_lies_among_scenarios_in_a_folder_of_that_name(tmp_path: Path) -> None:
    home = tmp_path / "scenarios"
    written(home, {"a": GOOD, **STRANGERS})
    written(home / "deep", {"values": "a: 1\n"})
    (home / "lost.yaml").symlink_to(tmp_path / "nowhere")
    wanted = {"a", "values", "lost", *(name.replace(" ", "-") for name in STRANGERS)}
    assert collected(tmp_path)[0] == wanted
    assert collected(tmp_path, "scenarios/deep")[0] == {"values"}, "a link elsewhere was not asked for"


def test_a_file_with_a_mistake_is_a_test_that_fails_and_says_what_is_wrong(tmp_path: Path) -> None:
    home = tmp_path / "scenarios"
    written(home, {"typo": OURS["typo-kind"], "values": "a: 1\n"})
    (home / "lost.yaml").symlink_to(tmp_path / "nowhere")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "scenarios"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert said.returncode == 1
    assert "3 failed" in said.stdout
    assert "typo.yaml:2:1: kind: Input should be 'Scenario'" in said.stdout
    assert "lost.yaml: cannot be read" in said.stdout
    assert "values.yaml:1:1: a: unknown key" in said.stdout
