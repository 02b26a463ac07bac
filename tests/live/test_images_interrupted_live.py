"""Ctrl-C in the middle of a build: it ends at once with all it started, and the next build goes on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

import sandbox
from sandbox.errors import EXIT_INTERRUPTED
from sandbox.host.engine import client
from sandbox.images import engine, recipe
from sandbox.kube.wait import Seen, wait_for

pytestmark = pytest.mark.live

OWN = "toolbox-of-the-interrupt-test"
COMMAND = [sys.executable, "-m", "sandbox", "images", "build", OWN]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a recipe of its own, and an empty cache of its own."""
    folder = tmp_path / "clusters/images" / OWN
    shutil.copytree(recipe.recipe("toolbox").folder, folder)
    spec = yaml.safe_load((folder / "image.yaml").read_text())
    spec["metadata"]["name"] = OWN
    (folder / "image.yaml").write_text(yaml.safe_dump(spec))
    monkeypatch.setenv("SANDBOX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(sandbox.__file__).parents[1]))
    monkeypatch.chdir(tmp_path)
    ref = recipe.recipe(OWN).ref
    yield tmp_path
    engine.untag(ref)


def tree_containers(build: psutil.Process) -> list[str]:
    """Those of this build: others build images beside this test."""
    there = client().containers.list(all=True, ignore_removed=True)
    return [each.name or "" for each in there if f"sandbox-tree-{build.pid}-" in (each.name or "")]


def installing(build: psutil.Process) -> Seen[list[str]]:
    """As root with debootstrap packages are installed by a program, else in a container. The value: the programs."""
    names = [each.name() for each in build.children(recursive=True)]
    return Seen("debootstrap" in names or bool(tree_containers(build)), names, f"the build runs {names}")


def of_build(place: Path) -> list[str]:
    lines = (" ".join(each.info["cmdline"] or []) for each in psutil.process_iter(["cmdline"]))
    return [line for line in lines if str(place) in line]


def test_an_interrupted_build_ends_at_once_and_the_next_one_goes_on(place: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        with subprocess.Popen(COMMAND, start_new_session=True, stderr=subprocess.DEVNULL) as build:
            process = psutil.Process(build.pid)
            wait_for(lambda asked=process: installing(asked), within=120, what="Debian packages being installed")
            interrupted = time.monotonic()
            os.kill(build.pid, number)  # it alone, not its children: as a CI system does
            assert build.wait(60) == EXIT_INTERRUPTED
        assert time.monotonic() - interrupted < 30
        assert of_build(place) == []
        assert tree_containers(process) == []
        assert not [part for part in psutil.disk_partitions(all=True) if part.mountpoint.startswith(str(place))]
    subprocess.run(COMMAND, check=True, timeout=400, stdout=subprocess.DEVNULL)
    assert engine.find(OWN, recipe.recipe(OWN).ref, "built") is not None
