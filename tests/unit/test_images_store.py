from __future__ import annotations

import threading
from pathlib import Path

import pytest

from sandbox.images import store


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SANDBOX_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_there_is_not_made_again() -> None:
    made: list[Path] = []

    def make(draft: Path) -> None:
        made.append(draft)
        (draft / "file").write_text("whole")

    first = store.produced("thing", "k", make)
    assert store.produced("thing", "k", make) == first
    assert len(made) == 1
    assert (first / "file").read_text() == "whole"


def test_a_failed_make_leaves_nothing_under_the_good_name_and_the_next_one_starts_clean() -> None:
    def fail(draft: Path) -> None:
        (draft / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.produced("thing", "k", fail)
    assert not store.folder("thing", "k").exists()

    def make(draft: Path) -> None:
        assert list(draft.iterdir()) == []
        (draft / "file").write_text("whole")

    assert sorted(path.name for path in store.produced("thing", "k", make).iterdir()) == ["file"]


def test_two_at_once_share_the_work() -> None:
    started, go_on = threading.Event(), threading.Event()
    made: list[int] = []

    def make(draft: Path) -> None:
        started.set()
        assert go_on.wait(10)
        made.append(1)
        (draft / "file").write_text("whole")

    results: list[Path] = []
    threads = [threading.Thread(target=lambda: results.append(store.produced("thing", "k", make))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert started.wait(10)
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert len(made) == 1
    assert results == [store.folder("thing", "k")] * 3


def test_scratch_starts_empty_whatever_a_killed_build_left_and_is_gone_afterwards(cache: Path) -> None:
    (cache / "scratch" / "image-x").mkdir(parents=True)
    (cache / "scratch" / "image-x" / "half").touch()
    with store.scratch("image-x") as folder:
        assert list(folder.iterdir()) == []
    assert not folder.exists()


def test_a_lock_that_is_held_is_said_and_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    held, order = threading.Event(), list[str]()

    def first() -> None:
        with store.locked("x"):
            held.set()
            over.wait(10)
            order.append("first")

    over = threading.Event()
    thread = threading.Thread(target=first)
    thread.start()
    assert held.wait(10)
    threading.Timer(0.2, over.set).start()
    with store.locked("x"):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert "making x: waiting" in capsys.readouterr().err


def test_folders_that_cannot_be_written_are_removed_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "modules" / "inner"
    folder.mkdir(parents=True)
    (folder / "file").write_text("x")
    folder.chmod(0o500)
    store.discard(tmp_path / "modules")
    assert not (tmp_path / "modules").exists()
