"""Make this machine able to run clusters: install the engine's package, start the engine, raise what is too low.

Only as root on an apt machine whose engine is missing or dead, and only what is missing. Where an engine runs,
nothing at all is changed. `SANDBOX_PREPARE_HOST=0` refuses.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from filelock import FileLock

from sandbox.errors import EnvironmentMissing
from sandbox.host import capabilities
from sandbox.host.engine import (
    BOUNDED_RUNTIME,
    DAEMON_JSON,
    FIX_FORBIDDEN,
    FIX_FOREIGN,
    Engine,
    Home,
    configured,
    launch,
    look,
    names_runtimes,
    recorded_pid,
    runs,
)
from sandbox.progress import say, step

# the engine, and what building a node image from packages needs
PACKAGES = ("debootstrap", "docker.io", "iptables")
SWITCH = "SANDBOX_PREPARE_HOST"
INOTIFY = {"max_user_instances": 512, "max_user_watches": 524288}
_INOTIFY_ROOT = Path("/proc/sys/fs/inotify")
_WRAPPER = Path(__file__).with_name(BOUNDED_RUNTIME)
_INSTALLED_WRAPPER = Path("/usr/local/lib/ai-k8s-sandbox") / BOUNDED_RUNTIME
_LOCK = Path("/run/lock/ai-k8s-sandbox-prepare.lock")
_START = 60.0  # seconds; with many containers to restore dockerd takes some
_TICK = 0.2
_APT_LOCK = 120  # seconds; a machine that has just booted updates itself


def prepare(home: Home | None = None) -> Engine:
    """Bring up an engine if none runs, and return it. Says every change it makes.

    Raises:
        EnvironmentMissing: it may not (refused, not root, no apt, somebody else's engine) or it did not work.
    """
    found = look(home)
    if found.state == "running":
        return found
    _permitted(found)
    with FileLock(_LOCK):
        found = look(home)  # another command may have done it while we waited
        if found.state == "running":
            return found
        raise_inotify()
        if found.state == "absent":
            install()
            found = look(home)
        return found if found.state == "running" else start(home or Home())


def may_change() -> bool:
    """Tell whether the user lets us change the machine."""
    return os.environ.get(SWITCH, "1").lower() not in {"0", "no", "false", "off"}


def _permitted(found: Engine) -> None:
    """Stop with the right next command where preparing is not ours to do."""
    if found.state == "foreign":
        raise EnvironmentMissing(
            "the engine named by DOCKER_HOST or the docker context does not answer",
            where=found.url,
            fix=FIX_FOREIGN,
            details=[found.seen],
        )
    if found.state == "forbidden":
        raise EnvironmentMissing(found.seen, fix=FIX_FORBIDDEN)
    by_hand = f"sudo apt-get install -y {' '.join(PACKAGES)}" if found.state == "absent" else "sudo dockerd &"
    if not may_change():
        raise EnvironmentMissing(f"{found.seen}, and {SWITCH}=0 forbids preparing this machine", fix=by_hand)
    if os.geteuid() != 0:
        raise EnvironmentMissing(
            f"{found.seen}, and only root may change that", fix=f"start Docker, or {by_hand}, or run this as root"
        )
    if found.state == "absent" and shutil.which("apt-get") is None:
        raise EnvironmentMissing(
            f"{found.seen}, and this machine has no apt", fix="install Docker: https://docs.docker.com/engine/install/"
        )


def install() -> None:
    """Install Debian's packages. Raises EnvironmentMissing with apt's last lines."""
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_MODE": "l"}
    wait = ["-o", f"DPkg::Lock::Timeout={_APT_LOCK}"]
    command = ["apt-get", *wait, "install", "-y", "--no-install-recommends", *PACKAGES]
    with step(f"install {' '.join(PACKAGES)} with apt-get"):
        for words in (["apt-get", *wait, "update"], command):
            done = subprocess.run(words, env=quiet, capture_output=True, text=True, check=False)
            if done.returncode:
                raise EnvironmentMissing(
                    f"`{' '.join(words)}` failed with code {done.returncode}",
                    fix=f"run `{' '.join(words)}` by hand and read what it says",
                    details=(done.stderr or done.stdout).strip().splitlines()[-5:],
                )


def start(home: Home) -> Engine:
    """Start a dead engine and wait until it answers.

    Where systemd runs the machine, systemd starts it; elsewhere dockerd is started in a session of its own,
    with the capability-bounding runtime if, and only if, the bounding set lacks a capability.
    """
    pid = recorded_pid(home)
    if pid is not None and runs(pid, "dockerd"):
        raise EnvironmentMissing(
            f"dockerd runs (pid {pid}) but does not answer; it is left alone",
            where=str(home.socket),
            fix=f"look into {home.log}; if it hangs: kill {pid}, then run this again",
        )
    missing = capabilities.lacking()
    if has_systemd() and home == Home():
        return _start_with_systemd(home, missing)
    clear_stale(home)
    runtime = install_wrapper(missing) if missing else None
    if runtime is not None and names_runtimes(configured()):
        say(f"privileged containers may fail here: {by_hand()}")
    with step(f"start dockerd (log: {home.log})"):
        process = launch(home, runtime)
        deadline = time.monotonic() + _START  # looking takes seconds too where a socket is silent
        while time.monotonic() < deadline:
            try:
                process.wait(timeout=_TICK)
                break
            except subprocess.TimeoutExpired:
                found = look(home)
                if found.state == "running":
                    process.returncode = 0  # it outlives us on purpose; Popen would warn of that
                    return found
    raise EnvironmentMissing(
        "dockerd stopped" if process.poll() is not None else f"dockerd did not answer within {_START:.0f} s",
        where=str(home.socket),
        fix=f"read {home.log}",
        details=_reasons(home.log),
    )


def _reasons(log: Path) -> list[str]:
    """Return what dockerd's log says of its end: the last lines that are worse than information."""
    lines = log.read_text(errors="replace").splitlines()[-60:]
    return [line for line in lines if line and "level=info" not in line][-6:]


def _start_with_systemd(home: Home, missing: list[str]) -> Engine:
    """Ask systemd for the engine. Its unit knows no bounding runtime, so a missing capability is told."""
    command = ["systemctl", "start", "docker"]
    try:
        with step("start docker.service with systemd"):
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_START)
        said = done.stderr.strip().splitlines()[-5:]
    except subprocess.TimeoutExpired:
        said = [f"`{' '.join(command)}` took longer than {_START:.0f} s"]
    found = look(home)
    if found.state != "running":
        raise EnvironmentMissing("systemd did not bring up the engine", fix="journalctl -u docker -n 50", details=said)
    if missing:
        install_wrapper(missing)
        say(f"privileged containers may fail here: {by_hand()}")
    return found


def has_systemd() -> bool:
    """Tell whether systemd runs this machine, and so its engine."""
    return Path("/run/systemd/system").is_dir()


def by_hand() -> str:
    """What a person does for an engine whose settings are not ours: the bounding runtime, installed and named."""
    lines = f'"runtimes": {{"{BOUNDED_RUNTIME}": {{"path": "{_INSTALLED_WRAPPER}"}}}}'
    return (
        f"sudo install -D {_WRAPPER} {_INSTALLED_WRAPPER}; "
        f'add to {DAEMON_JSON}: {lines}, "default-runtime": "{BOUNDED_RUNTIME}"; then restart the engine'
    )


def clear_stale(home: Home) -> None:
    """Remove pid files of a killed engine: with its pid reused by another program dockerd would refuse to start."""
    containerd = home.exec_root / "containerd" / "containerd.pid"
    for pid_file, name in ((home.pid_file, "dockerd"), (containerd, "containerd")):
        word = pid_file.read_text().strip() if pid_file.is_file() else ""
        if pid_file.is_file() and not (word.isdigit() and runs(int(word), name)):
            say(f"remove {pid_file}: {word or 'nothing'} is no living {name}")
            pid_file.unlink(missing_ok=True)


def install_wrapper(missing: list[str]) -> Path:
    """Put the bounding runtime where no virtual environment's end can take it away, and return its path."""
    text = _WRAPPER.read_bytes()
    if not _INSTALLED_WRAPPER.is_file() or _INSTALLED_WRAPPER.read_bytes() != text:
        say(f"this machine cannot give {', '.join(missing)}: install {_INSTALLED_WRAPPER}, which runs runc without it")
        _INSTALLED_WRAPPER.parent.mkdir(parents=True, exist_ok=True)
        fresh = _INSTALLED_WRAPPER.with_suffix(".new")
        fresh.write_bytes(text)
        fresh.chmod(0o755)
        fresh.replace(_INSTALLED_WRAPPER)
    return _INSTALLED_WRAPPER


def raise_inotify(root: Path = _INOTIFY_ROOT) -> None:
    """Raise the inotify limits to what several nodes need; never lowers one."""
    for name, wanted in INOTIFY.items():
        limit = root / name
        if limit.is_file() and (now := int(limit.read_text())) < wanted:
            say(f"raise fs.inotify.{name} from {now} to {wanted} (until the next boot)")
            try:
                limit.write_text(str(wanted))
            except OSError as error:  # /proc/sys is read-only in most containers
                say(f"fs.inotify.{name} stays {now} ({error.strerror}): several nodes may run out of it")
