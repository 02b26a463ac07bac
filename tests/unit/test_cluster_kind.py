"""kind as it is run: with what it needs, and with nothing that leads it to the user's own clusters."""

from __future__ import annotations

import _thread
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox.cluster import kind
from sandbox.errors import ClusterError

Create = Callable[..., dict[str, str]]


@pytest.fixture
def create(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Create:
    """Run a program in the place of kind; what it was given, by name, and under `args` and `config`."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "the-users-own"))
    monkeypatch.setenv("KIND_EXPERIMENTAL_DOCKER_NETWORK", "the-users-own")
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:1")
    monkeypatch.setattr(kind, "engine_url", lambda: "unix:///the/right.sock")

    def through(then: str = "", started: Callable[[int], None] = lambda pid: None) -> dict[str, str]:
        binary = tmp_path / "kind"
        binary.write_text(
            f'#!/bin/sh\nenv > {tmp_path}/env\necho "$@" > {tmp_path}/args\ncat > {tmp_path}/config\n{then}\n'
        )
        binary.chmod(0o755)
        kind.create(
            binary, "demo", config="kind: Cluster", network="sandbox-demo", kubeconfig=tmp_path / "ours",
            log=tmp_path / "log", started=started,
        )  # fmt: skip
        found = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if "=" in line)
        return {**found, **{name: (tmp_path / name).read_text().strip() for name in ("args", "config")}}

    return through


def test_kind_never_sees_the_users_kubeconfig_and_writes_ours(create: Create, tmp_path: Path) -> None:
    given = create()
    assert "KUBECONFIG" not in given
    assert given["args"] == f"create cluster --retain --name demo --kubeconfig {tmp_path / 'ours'} --config -"
    assert given["config"] == "kind: Cluster"


def test_kind_talks_to_our_engine_and_makes_its_nodes_on_our_network(create: Create) -> None:
    given = create()
    assert given["DOCKER_HOST"] == "unix:///the/right.sock"
    assert given["KIND_EXPERIMENTAL_PROVIDER"] == "docker"
    assert given["KIND_EXPERIMENTAL_DOCKER_NETWORK"] == "sandbox-demo"
    assert given["PATH"] == os.environ["PATH"]


def test_a_kind_that_fails_made_no_cluster_and_its_last_words_are_told(create: Create) -> None:
    with pytest.raises(ClusterError, match="kind failed with code 3") as caught:
        create("echo 'ERROR: no room for a node' >&2; exit 3")
    assert caught.value.details == ["ERROR: no room for a node"]


def test_a_kind_that_does_not_end_is_ended(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind, "_CREATE_SECONDS", 0.3)
    pids: list[int] = []
    with pytest.raises(ClusterError, match="kind took longer"):
        create("exec sleep 60", pids.append)
    assert not Path(f"/proc/{pids[0]}").exists()


def test_an_interrupt_ends_kind_and_is_passed_on(create: Create) -> None:
    pids: list[int] = []

    def started(pid: int) -> None:
        pids.append(pid)
        threading.Timer(0.3, _thread.interrupt_main).start()

    with pytest.raises(KeyboardInterrupt):
        create("exec sleep 60", started)
    assert not Path(f"/proc/{pids[0]}").exists()


def test_logs_are_exported_without_the_users_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "the-users-own")
    monkeypatch.setattr(kind, "engine_url", lambda: "unix:///the/right.sock")
    binary = tmp_path / "kind"
    binary.write_text('#!/bin/sh\necho "$@"; env\n')
    binary.chmod(0o755)
    kind.export_logs(binary, "demo", tmp_path / "logs")
    said = (tmp_path / "logs" / "export.log").read_text()
    assert f"export logs {tmp_path / 'logs'} --name demo" in said
    assert "KUBECONFIG" not in said
