"""The Go of this machine: which one is on PATH, and whether images can be compiled with it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

NEEDED = (1, 26)
_VERSION = re.compile(r"go(\d+)\.(\d+)")
_SECONDS = 10


def on_path() -> tuple[str, str]:
    """Path and version (`go1.26.8`) of the Go on PATH; both empty where there is none."""
    found = shutil.which("go") or ""
    return found, ask(found, "GOVERSION") if found else ""


def ask(program: str, name: str) -> str:
    """What `go env` says of a variable with the user's own settings; empty where it says nothing.

    Asked from `/`, and of itself alone: a go.mod around us must not make it fetch and become another version.
    """
    environment = {**os.environ, "GOTOOLCHAIN": "local"}
    try:
        done = subprocess.run(
            [program, "env", name],
            cwd="/",
            env=environment,
            text=True,
            capture_output=True,
            check=False,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def enough(version: str) -> bool:
    """Whether a version such as `go1.26.8` compiles what is shipped."""
    found = _VERSION.match(version)
    return found is not None and (int(found[1]), int(found[2])) >= NEEDED
