"""The commands of this project. `nox -l` lists them; everything they need is set up by themselves."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import nox

nox.options.sessions = ["sandbox"]
nox.options.reuse_existing_virtualenvs = True
nox.needs_version = ">=2024.10"

HERE = Path(__file__).resolve().parent
MAIN_SCENARIO = "scenarios/chaos/survive-a-lost-replica.yaml"


def _install(session: nox.Session, extras: str = "dev") -> None:
    """Install the project with pinned versions; skipped in no time when nothing changed since the last time."""
    session.env["PYTHONDONTWRITEBYTECODE"] = ""  # else every command compiles all it loads, which takes two seconds
    wanted = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        wanted.update((HERE / name).read_bytes())
    stamp = Path(session.virtualenv.location) / "installed"
    if stamp.is_file() and stamp.read_text() == wanted.hexdigest():
        return
    session.install("-c", "constraints.txt", "-e", f".[{extras}]")
    stamp.write_text(wanted.hexdigest())


@contextmanager
def _timed(session: nox.Session) -> Iterator[Callable[[str], AbstractContextManager[None]]]:
    """Time what is named, and print all of it in the end, of a session that failed too."""
    spent: dict[str, float] = {}

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            spent[what] = time.monotonic() - begun

    try:
        yield timed
    finally:
        session.log("where the time went, in seconds:")
        for what, seconds in [*spent.items(), ("all", sum(spent.values()))]:
            session.log(f"  {what:<20}{seconds:>6.0f}")


def _browser(session: nox.Session) -> None:
    """Chromium for looking at the report: Debian's own, where we may install it."""
    if any(map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))) or not shutil.which("apt-get"):
        return
    if os.geteuid() == 0 and os.environ.get("SANDBOX_PREPARE_HOST") != "0":
        session.run("apt-get", "update", "-qq", external=True)
        session.run(
            "apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium",
            external=True, env={"DEBIAN_FRONTEND": "noninteractive"}, silent=True,
        )  # fmt: skip


@nox.session
def sandbox(session: nox.Session) -> None:
    """The main job: a cluster, a real model on it, load, a lost replica, attacks; a verdict and a report."""
    _install(session)
    session.run("sandbox", "run", *(session.posargs or [MAIN_SCENARIO]))


@nox.session
def tests(session: nox.Session) -> None:
    """Every test, the live ones on a real cluster included. `nox -s tests -- -k name` for some of them."""
    with _timed(session) as spent:
        with spent("installation"):
            _install(session)
            _browser(session)
        with spent("style and types"):
            session.run("ruff", "check")
            session.run("ruff", "format", "--check")
            session.run("mypy")
        with spent("engine and images"):
            session.run("sandbox", "prepare")
            session.run("sandbox", "images", "ensure")
        if session.posargs:
            session.run("pytest", "tests", *session.posargs)
            return
        # First what waits more than it works, then loads in real time, then what nothing may run beside.
        beside = ("--dist=loadfile", "--no-loadscope-reorder", "--durations=10")
        with spent("tests side by side"):
            session.run("pytest", "tests", "-m", "not alone and not realtime", "-n2", *beside)
        with spent("tests in real time"):
            session.run("pytest", "tests", "-m", "realtime", "-n2", *beside)
        with spent("tests that measure"):
            session.run("pytest", "tests", "-m", "alone", "--durations=10")


@nox.session
def unit(session: nox.Session) -> None:
    """The tests that need no engine and no cluster."""
    _install(session)
    session.run("pytest", "tests/unit", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types, and every shipped scenario with all that it names."""
    _install(session)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("sandbox", "lint", *map(str, sorted((HERE / "scenarios").rglob("*.yaml"))))


@nox.session
def bench(session: nox.Session) -> None:
    """Speed and memory, each figure beside its twin of the same run; writes docs/reference/benchmarks.md."""
    _install(session)
    session.run("python", "-m", "tests.bench", *session.posargs)


@nox.session
def kills(session: nox.Session) -> None:
    """Commands killed at random moments: does the next one work, is anything left? Takes hours, so not in CI."""
    _install(session)
    session.install("--no-deps", "libfaketime==3.0.1")  # a clock that is an hour off, for one command
    session.run("python", "-m", "tests.kills", *session.posargs)


@nox.session
def stress(session: nox.Session) -> None:
    """Six users at once lease clusters and give them back for five minutes: is each clean, and one's own?"""
    _install(session)
    session.run("python", "-m", "tests.stress", *session.posargs)


@nox.session
def mutate(session: nox.Session) -> None:
    """Bugs put in on purpose, in a copy: do the tests see them? Takes an hour, so not in CI; writes the figures."""
    _install(session, "dev,mutate")
    session.run("python", "-m", "tests.mutate", *session.posargs)
