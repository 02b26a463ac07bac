from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import docker
import pytest

from sandbox.errors import EnvironmentMissing
from sandbox.host import capabilities, checks, engine, preparing
from sandbox.host.engine import BOUNDED_RUNTIME, Engine, Home, engine_url, look, runs, start_command

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


@pytest.mark.parametrize("by", ["variable", "file"])
def test_a_context_that_is_not_there_is_an_error_and_never_the_default_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, by: str
) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.delenv("DOCKER_CONTEXT", raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"currentContext": "nowhere"} if by == "file" else {}))
    if by == "variable":
        monkeypatch.setenv("DOCKER_CONTEXT", "nowhere")
    for ask in (engine_url, engine.client, preparing.prepare):
        with pytest.raises(EnvironmentMissing, match=r"there is no docker context nowhere|does not answer") as refused:
            ask()
        assert refused.value.exit_code == 4
        assert "DOCKER_CONTEXT" in refused.value.fix
    assert (look().state, look().seen) == ("foreign", "there is no docker context nowhere")
    assert checks.check_engine(look()).state == "missing"


def test_a_context_that_is_there_is_used_and_a_torn_one_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("DOCKER_CONTEXT", "lab")
    (tmp_path / "config.json").write_text("{}")
    meta = tmp_path / "contexts" / "meta" / hashlib.sha256(b"lab").hexdigest() / "meta.json"
    meta.parent.mkdir(parents=True)
    told = {"Name": "lab", "Metadata": {}, "Endpoints": {"docker": {"Host": "unix:///run/lab.sock"}}}
    meta.write_text(json.dumps(told))
    assert engine_url() == "unix:///run/lab.sock"
    (tmp_path / "config.json").unlink()  # docker-py looks nowhere else then
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    with pytest.raises(EnvironmentMissing, match="no docker context lab") as refused:
        engine_url()
    assert f"echo {{}} > {tmp_path}/config.json" in refused.value.fix
    (tmp_path / "config.json").write_text("{}")
    meta.write_text("{")
    with pytest.raises(EnvironmentMissing, match="lab cannot be read"):
        engine_url()


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
    assert found.state == "dead"
    assert f"pid {os.getpid()}, which is no dockerd" in found.seen
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


def test_the_machines_own_engine_is_told_nothing_that_its_daemon_json_may_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start_command(Home(), None) == ["dockerd"]
    assert f"--data-root={tmp_path}/data" in start_command(home(tmp_path), None)
    monkeypatch.setattr(engine, "DAEMON_JSON", tmp_path / "daemon.json")
    assert engine.configured() == set()
    (tmp_path / "daemon.json").write_text('{"data-root": "/data", "runtimes": {}}')
    assert start_command(Home(), Path("/opt/bounded-runc"), engine.configured()) == ["dockerd"]
    (tmp_path / "daemon.json").write_text("no JSON")
    assert engine.configured() == set()


def test_an_engine_that_this_user_may_not_talk_to_is_no_reason_to_install_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> dict[str, Any]:
        raise PermissionError(13, "Permission denied")

    engine._shared.cache_clear()
    monkeypatch.setattr(engine, "_ask", refuse)
    monkeypatch.setattr(preparing, "install", lambda: pytest.fail("installed an engine"))
    monkeypatch.setattr(preparing, "start", lambda _: pytest.fail("started an engine"))
    assert look().state == "forbidden"
    assert "usermod -aG docker" in checks.check_engine(look()).fix
    for asking in (preparing.prepare, engine.client):
        with pytest.raises(EnvironmentMissing, match="may not talk to") as refused:
            asking()
        assert "usermod -aG docker" in refused.value.fix


def test_an_engine_behind_tls_is_talked_to_with_the_users_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / f"{name}.pem").touch()
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    asked: list[Any] = []

    class Client:
        def __init__(self, **settings: Any) -> None:
            asked.append(settings["tls"])

        def version(self, **_: object) -> dict[str, str]:
            return {"ApiVersion": "1.41"}

        def info(self) -> dict[str, str]:
            return {}

        def close(self) -> None:
            pass

    monkeypatch.setattr(docker, "APIClient", Client)
    assert look().state == "running"
    assert [each.cert for each in asked] == [(f"{tmp_path}/cert.pem", f"{tmp_path}/key.pem")] * 2
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path / "none"))
    assert "certificate" in look().seen


@pytest.mark.parametrize("state", ["running", "absent"])
def test_a_machine_whose_engine_runs_is_not_changed_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: Any
) -> None:
    states = iter([state, "running"])
    monkeypatch.setattr(preparing, "look", lambda _: Engine(next(states), "unix:///x", "seen"))
    monkeypatch.setattr(preparing, "_permitted", lambda _: None)
    monkeypatch.setattr(preparing, "_LOCK", tmp_path / "lock")
    monkeypatch.setattr(preparing, "raise_inotify", lambda: pytest.fail("changed a limit"))
    assert preparing.prepare().state == "running"


@pytest.mark.parametrize(
    ("user", "said", "fix"), [(1000, "only root may", "apt-get install"), (0, "no apt", "docs.docker.com")]
)
def test_what_it_may_not_or_cannot_prepare_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, user: int, said: str, fix: str
) -> None:
    monkeypatch.delenv(preparing.SWITCH, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: user)
    monkeypatch.setattr(preparing, "look", lambda _: Engine("absent", "unix:///x", "no engine is installed"))
    with pytest.raises(EnvironmentMissing, match=said) as refused:
        preparing.prepare()
    assert fix in refused.value.fix


class Daemon:
    """A dockerd that lives and says nothing."""

    returncode: int | None = None

    def wait(self, timeout: float) -> int:
        raise subprocess.TimeoutExpired("dockerd", timeout)

    def poll(self) -> int | None:
        return self.returncode


def test_an_engine_whose_socket_is_silent_is_waited_for_as_long_as_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock, looks = [0.0], list[float]()

    def slow(_: Home) -> Engine:
        clock[0] += 5.0
        looks.append(clock[0])
        return Engine("dead", "unix:///x", "silent")

    there = home(tmp_path)
    there.log.write_text("level=error the reason\n")
    monkeypatch.setattr(capabilities, "lacking", list)
    monkeypatch.setattr(preparing, "launch", lambda *_: Daemon())
    monkeypatch.setattr(preparing, "look", slow)
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with pytest.raises(EnvironmentMissing, match="did not answer within 60 s") as told:
        preparing.start(there)
    assert len(looks) == 12
    assert told.value.details == ["level=error the reason"]


def test_a_systemd_that_hangs_is_told_with_where_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(command, 60)

    monkeypatch.setattr("subprocess.run", hang)
    monkeypatch.setattr(preparing, "look", lambda _: Engine("dead", "unix:///x", "dead"))
    with pytest.raises(EnvironmentMissing, match="systemd did not bring up") as told:
        preparing._start_with_systemd(Home(), [])
    assert "took longer" in told.value.details[0]
    assert told.value.fix.startswith("journalctl")


def test_apt_waits_for_a_machine_that_updates_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("subprocess.run", run)
    preparing.install()
    assert [command[:3] for command in asked] == [["apt-get", "-o", "DPkg::Lock::Timeout=120"]] * 2


def test_inotify_limits_that_cannot_be_written_are_said_and_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "max_user_instances").write_text("128")

    def refuse(*_: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refuse)
    preparing.raise_inotify(tmp_path)
    assert "fs.inotify.max_user_instances stays 128 (Read-only file system)" in capsys.readouterr().err


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
