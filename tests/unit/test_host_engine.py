from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from sandbox.errors import EnvironmentMissing
from sandbox.host import capabilities, engine, preparing
from sandbox.host.engine import BOUNDED_RUNTIME, Home, engine_url, look, runs, start_command

WRAPPER = Path(preparing.__file__).with_name(BOUNDED_RUNTIME)
STATUS = "Name:\tx\nCapBnd:\t{:016x}\n"
FULL = (1 << 41) - 1


def home(tmp_path: Path) -> Home:
    return Home(
        socket=tmp_path / "engine.sock",
        data_root=tmp_path / "data",
        exec_root=tmp_path / "exec",
        pid_file=tmp_path / "engine.pid",
        log=tmp_path / "engine.log",
    )


def test_a_full_bounding_set_lacks_nothing() -> None:
    assert capabilities.lacking(STATUS.format(FULL), last=40) == []


def test_the_missing_capability_is_named() -> None:
    assert capabilities.lacking(STATUS.format(FULL & ~(1 << 24)), last=40) == ["CAP_SYS_RESOURCE"]


def test_a_capability_newer_than_the_kernel_is_not_missing() -> None:
    assert capabilities.lacking(STATUS.format((1 << 38) - 1), last=37) == []


def test_docker_host_wins_over_the_context(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"currentContext": "nowhere"}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    assert engine_url() == "tcp://127.0.0.1:1"


def test_without_context_or_variable_the_usual_socket_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.delenv("DOCKER_CONTEXT", raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert engine_url() == Home().url


def test_an_engine_named_by_the_user_that_does_not_answer_is_never_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/not-there.sock")
    assert look().state == "foreign"
    with pytest.raises(EnvironmentMissing, match="DOCKER_HOST"):
        preparing.prepare()


def test_a_pid_that_another_program_took_is_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = home(tmp_path)
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "dockerd").write_text("#!/bin/sh\n")
    (fake / "dockerd").chmod(0o755)
    monkeypatch.setenv("PATH", str(fake))
    there.pid_file.write_text(str(os.getpid()))
    assert not runs(os.getpid(), "dockerd")
    found = look(there)
    assert (found.state, found.stale_pid) == ("dead", True)
    assert str(os.getpid()) in found.seen
    preparing.clear_stale(there)
    assert not there.pid_file.exists()


def test_without_dockerd_the_engine_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert look(home(tmp_path)).state == "absent"


def test_an_engine_that_accepts_and_never_answers_is_not_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = home(tmp_path)
    monkeypatch.setattr(engine, "_ASK", 1.0)
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(there.socket))
        mute.listen()
        assert look(there).state in {"dead", "absent"}


def test_the_switch_refuses_and_names_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(preparing.SWITCH, "0")
    with pytest.raises(EnvironmentMissing) as refused:
        preparing.prepare(home(tmp_path))
    assert "apt-get install -y debootstrap docker.io" in refused.value.fix
    assert refused.value.exit_code == 4


def test_the_bounding_runtime_is_set_only_where_it_is_given() -> None:
    assert not [word for word in start_command(Home(), None) if "runtime" in word]
    with_it = start_command(Home(), Path("/opt/bounded-runc"))
    assert "--default-runtime=bounded-runc" in with_it
    assert "--add-runtime=bounded-runc=/opt/bounded-runc" in with_it


def test_inotify_is_raised_but_never_lowered(tmp_path: Path) -> None:
    (tmp_path / "max_user_instances").write_text("128")
    (tmp_path / "max_user_watches").write_text("1048576")
    preparing.raise_inotify(tmp_path)
    assert (tmp_path / "max_user_instances").read_text() == "512"
    assert (tmp_path / "max_user_watches").read_text() == "1048576"


needs_root = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="drops a capability: root")


def run_bounded(tmp_path: Path, dropped: str, *words: str) -> list[str]:
    """Run the wrapper with `dropped` gone from the bounding set and a runc that prints its arguments."""
    runc = tmp_path / "runc"
    runc.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    runc.chmod(0o755)
    command = ["setpriv", f"--bounding-set=-{dropped}", str(WRAPPER), *words]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()


TRICKY = '"CAP_SYS_TIME", {"capabilities":{"bounding":["CAP_SYS_TIME"]}}'


def container(capabilities: list[str]) -> dict[str, object]:
    return {
        "ociVersion": "1.0.2",
        "process": {
            "args": ["capsh", "CAP_SYS_TIME", TRICKY],
            "capabilities": {"bounding": capabilities, "effective": capabilities, "ambient": []},
        },
    }


@needs_root
@pytest.mark.parametrize("form", ["--bundle {}", "-b {}", "--bundle={}"])
def test_the_wrapper_drops_what_the_host_lacks_from_a_container(tmp_path: Path, form: str) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(container(["CAP_CHOWN", "CAP_SYS_TIME", "CAP_KILL"]), separators=(",", ":")))
    words = ["--root", "/run/x", "create", *form.format(tmp_path).split(), "--pid-file", "/p", "id"]
    assert run_bounded(tmp_path, "sys_time", *words) == words
    written = json.loads(config.read_text())["process"]
    kept = [each for each in ["CAP_CHOWN", "CAP_KILL"] if each not in capabilities.lacking()]
    assert written["capabilities"] == {"bounding": kept, "effective": kept, "ambient": []}
    assert written["args"] == ["capsh", "CAP_SYS_TIME", TRICKY]


@needs_root
def test_the_wrapper_drops_what_the_host_lacks_from_an_exec(tmp_path: Path) -> None:
    process = tmp_path / "process.json"
    process.write_text(json.dumps(container(["CAP_SYS_TIME"])["process"]))
    process.chmod(0o600)
    run_bounded(tmp_path, "sys_time", "exec", "--process", str(process), "id")
    assert json.loads(process.read_text())["capabilities"]["bounding"] == []
    assert process.stat().st_mode & 0o777 == 0o600


@needs_root
def test_the_wrapper_leaves_a_container_alone_that_asks_for_nothing_missing(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    text = json.dumps(container(["CAP_CHOWN"]))
    config.write_text(text)
    run_bounded(tmp_path, "sys_time", "create", "--bundle", str(tmp_path), "id")
    assert config.read_text() == text


@needs_root
def test_the_wrapper_reads_nothing_for_other_commands(tmp_path: Path) -> None:
    assert run_bounded(tmp_path, "sys_time", "kill", "id", "9") == ["kill", "id", "9"]
