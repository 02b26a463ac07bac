"""What the project asks to be installed is what it uses, each in a version that is written down."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME = [Requirement(each).name for each in PROJECT["dependencies"]]
DEVELOPMENT = [Requirement(each).name for each in PROJECT["optional-dependencies"]["dev"]]
# Typed as commands, or read by mypy.
NOT_IMPORTED = {"pytest-xdist", "mypy", "pre-commit", "ruff"}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def imported(folder: str) -> set[str]:
    """The distributions that the Python files below a folder import."""
    modules: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.split(".")[0])
    owners = packages_distributions()
    return {plain(each) for module in modules for each in owners.get(module, [])}


@pytest.mark.parametrize("name", RUNTIME)
def test_every_dependency_is_imported(name: str) -> None:
    assert plain(name) in imported("sandbox")


@pytest.mark.parametrize("name", [each for each in DEVELOPMENT if each not in NOT_IMPORTED and each[:5] != "types"])
def test_every_library_for_development_is_imported_by_a_test(name: str) -> None:
    assert plain(name) in imported("tests")


def test_every_dependency_is_pinned() -> None:
    pinned = {plain(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().split()}
    assert {plain(name) for name in [*RUNTIME, *DEVELOPMENT]} <= pinned
