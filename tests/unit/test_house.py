"""The rules of the house: imports point one way, modules and functions stay small."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sandbox"
# what protoc generates is not ours to keep small
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if not path.stem.endswith("_pb2"))
LEAVES = {"errors", "progress", "paths", "__init__"}
# room -> the rooms it may import; `errors`, `progress` and `paths` are open to all.
ALLOWED: dict[str, set[str]] = {
    "spec": set(),
    "grammar": set(),
    "timeline": {"grammar"},
    "metrics": {"spec", "timeline"},
    "judge": {"spec", "timeline", "metrics"},
    "report": {"spec", "timeline"},
    "host": {"spec"},
    "images": {"spec", "host"},
    "kube": {"spec"},
    "cluster": {"spec", "host", "images", "kube"},
    "gpu": {"spec", "timeline", "host", "images", "cluster", "kube"},
    "faults": {"spec", "timeline", "host", "images", "cluster", "kube", "gpu"},
    "probes": {"spec", "timeline", "host", "images", "cluster", "kube"},
    "attacks": {"spec", "timeline", "host", "images", "cluster", "kube"},
    "load": {"spec", "timeline"},
    "loadpods": {"spec", "timeline", "load", "kube"},
    "workloads": {"spec", "timeline", "kube"},
    "search": {"spec"},
}
ALLOWED["watch"] = ALLOWED["recorded"] = {"spec", "timeline", "metrics", "judge"}
ALLOWED["baseline"] = {*ALLOWED["recorded"], "recorded"}
ALLOWED["plan"] = {*ALLOWED}
ALLOWED["loading"] = {*ALLOWED, "run"}  # `run` for its type only
ALLOWED["exercise"] = {*ALLOWED, "run"}  # `run` for its type only
ALLOWED["steady"] = {*ALLOWED, "run"}  # `run` for its type only
ALLOWED["remains"] = {"host", "kube"}
ALLOWED["run"] = {*ALLOWED}
LIBRARIES = {
    "kubernetes": {"kube"},
    "grpc": {"gpu"},
    "docker": {"images", "cluster", "host", "faults"},
    "locust": {"load"},
    "gevent": {"load"},
    "pytest_kubernetes": {"pytest_k8s"},
}
MOST_LINES, MOST_FUNCTION_LINES = 400, 60


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def wrong_imports(path: Path, source: str) -> list[str]:
    own = room(path)
    found = []
    for name in imported(ast.parse(source)):
        parts = name.split(".")
        if parts[0] == "sandbox" and len(parts) > 1 and parts[1] not in LEAVES and own in ALLOWED:
            exists = (PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").exists()
            if exists and parts[1] != own and parts[1] not in ALLOWED[own]:
                found.append(f"{own} imports {name}")
        elif parts[0] in LIBRARIES and own not in LIBRARIES[parts[0]]:
            found.append(f"{own} imports {name}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    assert not wrong_imports(path, path.read_text())


def test_an_import_the_wrong_way_is_seen() -> None:
    assert wrong_imports(PACKAGE / "judge.py", "from sandbox.kube import Kube\nimport docker\n")
    assert wrong_imports(PACKAGE / "spec" / "x.py", "from sandbox import metrics\n")


EMULATOR = sorted((PACKAGE / "gpu" / "emulator").rglob("*.py"))
IN_ITS_IMAGE = {"sandbox", "grpc", "google", "prometheus_client", *sys.stdlib_module_names}


@pytest.mark.parametrize("path", EMULATOR, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_emulator_imports_only_what_its_image_has(path: Path) -> None:
    names = imported(ast.parse(path.read_text()))
    assert {name.split(".")[0] for name in names} <= IN_ITS_IMAGE
    assert not [name for name in names if name.startswith("sandbox.") and not name.startswith("sandbox.gpu.emulator")]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_stay_small(path: Path) -> None:
    source = path.read_text()
    assert source.count("\n") <= MOST_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno <= MOST_FUNCTION_LINES, node.name
