"""Work beside the main thread: what of it fails or is interrupted ends the rest of it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from docker.errors import DockerException

from sandbox.errors import ImageUnavailable
from sandbox.images import assemble, container_tree, crew, debian, golang, recipe, store
from sandbox.kube.wait import Seen, wait_for


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SANDBOX_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def mark() -> str:
    """A word by which this test's programs are known among all that run."""
    return f"crew-test-{os.getpid()}-{time.monotonic_ns()}"


def _sleepers(mark: str) -> list[psutil.Process]:
    return [each for each in psutil.process_iter(["cmdline"]) if mark in " ".join(each.info["cmdline"] or [])]


def _slow(mark: str) -> None:
    """A program whose child does the waiting; both name `mark`."""
    crew.run(["sh", "-c", f"sh -c 'sleep 60; : {mark}'; : {mark}"])


def _both_run(mark: str) -> None:
    def look() -> Seen[None]:
        found = _sleepers(mark)
        return Seen(len(found) == 2, None, str(found))

    wait_for(look, within=10, what="the program and its child")


@pytest.mark.parametrize("trouble", [ImageUnavailable("no such package"), KeyboardInterrupt()])
def test_a_failure_or_an_interrupt_ends_programs_with_their_children_and_starts_no_more(
    mark: str, trouble: BaseException
) -> None:
    later = threading.Event()

    def work() -> None:
        with crew.at_work(1) as beside:
            beside.submit(_slow, mark)
            beside.submit(later.set)
            _both_run(mark)
            raise trouble

    started = time.monotonic()
    with pytest.raises(type(trouble)):
        work()
    assert time.monotonic() - started < 15
    assert not later.is_set()
    assert _sleepers(mark) == []


def test_work_that_was_given_up_begins_nothing_and_waits_for_no_lock() -> None:
    told: list[str] = []
    waiting = threading.Event()

    def late() -> None:
        waiting.set()
        for attempt in (lambda: store.produced("thing", "k", lambda _: None), lambda: crew.run(["true"])):
            try:
                attempt()
            except ImageUnavailable as error:
                told.append(error.what)

    def work() -> None:
        with crew.at_work(1) as beside:
            beside.submit(late)
            assert waiting.wait(10)
            raise KeyError

    with store.locked("thing-k"), pytest.raises(KeyError):
        work()
    assert len(told) == 2
    assert "was given up" in told[0]


def test_in_the_main_thread_programs_run_as_ever() -> None:
    done = crew.run(["sh", "-c", "cat; echo oh >&2; exit 3"], text="said")
    assert (done.returncode, done.stdout, done.stderr) == (3, "said", "oh\n")


def test_a_tree_that_fails_ends_the_build_while_modules_still_compile(
    monkeypatch: pytest.MonkeyPatch, mark: str
) -> None:
    def tree(_: object) -> None:
        _both_run(mark)
        raise ImageUnavailable("no such Debian package")

    monkeypatch.setattr(debian, "build", tree)
    monkeypatch.setattr(golang, "download", lambda *_: None)
    monkeypatch.setattr(golang, "build", lambda *_: _slow(mark))
    started = time.monotonic()
    with pytest.raises(ImageUnavailable, match="no such Debian package"):
        assemble.prepare(recipe.recipe("node"))
    assert time.monotonic() - started < 15
    assert _sleepers(mark) == []


def test_the_container_of_a_tree_is_removed_when_its_build_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    running, removed = threading.Event(), threading.Event()

    def execute(*_: object) -> None:
        running.set()
        assert removed.wait(20), "the container was left running"
        raise DockerException("no such container")

    container = SimpleNamespace(remove=lambda **_: removed.set())
    containers = SimpleNamespace(run=lambda *_, **__: container, get=lambda _: container)
    monkeypatch.setattr(container_tree, "client", lambda **_: SimpleNamespace(containers=containers))
    for name in ("_same_architecture", "_put"):
        monkeypatch.setattr(container_tree, name, lambda *_: None)
    monkeypatch.setattr(container_tree, "_present", lambda *_: "debian:x")
    monkeypatch.setattr(container_tree, "_execute", execute)

    def work() -> None:
        with crew.at_work(1) as beside:
            beside.submit(container_tree.make, "bookworm", ["a"], tmp_path / "tree.tar")
            assert running.wait(10)
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        work()
    assert removed.is_set()
    assert time.monotonic() - started < 10


def test_an_image_without_compiled_modules_is_prepared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(assemble.debian, "build", made.append)
    toolbox = recipe.recipe("toolbox")
    assemble.prepare(toolbox)
    assert made == list(toolbox.spec.debian.values())
    assert not toolbox.spec.go
