"""An environment of its own for each client, with exact versions, below the cache; made when missing."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

from sandbox import paths
from tests.bench.peers.kinds import Client

PINS = Path(__file__).parent / "pins"
DRIVERS = Path(__file__).parent / "drivers"
TOKENIZER = "bench/words"
_INSTALL_SECONDS = 900
_REVISION = "0" * 40


class NotInstalled(Exception):
    """A client cannot be had here; the message says why."""


def home(client: Client) -> Path:
    """The folder of a client's environment, made when missing.

    Raises:
        NotInstalled: there is no Python new enough, or the installation failed.
    """
    if not client.package:
        return Path(sys.prefix)
    root = paths.cache_dir() / "peers"
    folder = root / f"{client.package}-{client.version}"
    pins = PINS / f"{client.package}.txt"
    key = hashlib.sha256(pins.read_bytes()).hexdigest()
    done = folder / ".pins"
    root.mkdir(exist_ok=True)
    with FileLock(root / f"{folder.name}.lock"):
        if not done.is_file() or done.read_text() != key:
            _install(client, folder, pins)
            done.write_text(key)
    return folder


def _install(client: Client, folder: Path, pins: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    pip = folder / "bin" / "pip"
    wanted = f"{client.package}=={client.version}"
    for command in (
        [python(client.least), "-m", "venv", str(folder)],
        [str(pip), "install", "--quiet", "--disable-pip-version-check", wanted, "--constraint", str(pins)],
    ):
        try:
            made = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise NotInstalled(f"not installed within {_INSTALL_SECONDS} s") from None
        if made.returncode:
            raise NotInstalled(f"not installed: {(made.stderr.strip().splitlines() or ['no reason given'])[-1][:200]}")


def python_of(folder: Path) -> str:
    """The version of Python in an environment."""
    lines = (folder / "pyvenv.cfg").read_text().splitlines() if (folder / "pyvenv.cfg").is_file() else []
    found = [line.partition("=")[2].strip() for line in lines if line.startswith("version")]
    return found[0] if found else platform.python_version()


def python(least: tuple[int, int]) -> str:
    """A Python of at least this version: this one, or one at hand.

    Raises:
        NotInstalled: there is none.
    """
    if sys.version_info[:2] >= least:
        return sys.executable
    names = [f"python{least[0]}.{minor}" for minor in range(least[1], least[1] + 3)]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = [*filter(None, map(shutil.which, names))]
    found += [str(path) for minor in names for path in sorted(pyenv.glob(f"*/bin/{minor}"))]
    for each in found:  # a shim of a version manager may be on the path and lead nowhere
        if not subprocess.run([each, "-c", "import venv"], capture_output=True, check=False).returncode:
            return each
    raise NotInstalled(f"needs Python {least[0]}.{least[1]}, which is not at hand")


def offline(task_home: Path) -> dict[str, str]:
    """Variables for clients that insist on a tokenizer: a made-up one in a hub cache of our own, and no network."""
    hub = paths.cache_dir() / "peers" / "hub"
    model = hub / "hub" / f"models--{TOKENIZER.replace('/', '--')}"
    snapshot = model / "snapshots" / _REVISION
    if not (model / "refs" / "main").is_file():
        snapshot.mkdir(parents=True, exist_ok=True)
        script = str(DRIVERS / "tokenizer.py")
        subprocess.run([str(task_home / "bin" / "python"), script, str(snapshot)], check=True, timeout=120)
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / "main").write_text(_REVISION)
    return {"HF_HOME": str(hub), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def tokenizer_folder() -> Path:
    """Where that tokenizer lies, for clients that take a folder."""
    return paths.cache_dir() / "peers" / "hub" / "hub" / "models--bench--words" / "snapshots" / _REVISION
