"""Named sabotages: realistic bugs, each written down with the tests that must go red with it.

One file per room of the product in `sabotages/`. Each entry says which text of which file is replaced by what; it has
to apply exactly once, or the sabotage is no longer true and is an error. The working tree is never touched.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Literal

import yaml

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / "sabotages"
# everything that a unit test may read
_TREE = ("sandbox", "tests", "clusters", "scenarios", "loadtests", "docs")
_FILES = ("pyproject.toml", "constraints.txt", "noxfile.py", "README.md", "CHANGELOG.md", "action.yml")
_SECONDS = 180.0  # for the tests of one sabotage
_FAILED = 1  # pytest's exit code for tests that failed; any other says that they were not run
State = Literal["killed", "survived", "error"]
# Of the time that one file of tests takes, most is the loading of these. So one process loads them, once, and each try
# is a child of that one.
_LIBRARIES = [
    "altair", "docker", "httpx", "jinja2", "kubernetes.client", "numpy", "psutil", "pydantic", "pytest",
    "rich.console", "scipy.stats", "tenacity", "typer", "yaml",
]  # fmt: skip
_QUICK = multiprocessing.get_context("forkserver")
_QUICK.set_forkserver_preload(_LIBRARIES)


class Untrue(Exception):
    """A sabotage that does not apply: the text that it replaces is not there, or more than once."""


@dataclass(frozen=True)
class Sabotage:
    """One bug.

    Attributes:
        name: what the product then does wrong, in words.
        file: from the root of the repository.
        find: text of that file, which has to be there exactly once.
        replace: what stands in its place.
        tests: what must go red: files, or tests in them as pytest names them.
    """

    name: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]

    def sabotaged(self, source: str) -> str:
        """The file's text with the bug in it.

        Raises:
            Untrue: it does not apply exactly once.
        """
        many = source.count(self.find)
        if many != 1:
            raise Untrue(f"{self.file}: the text that {self.name!r} replaces is there {many} times, not once")
        return source.replace(self.find, self.replace)


@dataclass(frozen=True)
class Outcome:
    """What came of one sabotage; `detail` says why it was an error, or which test went red first."""

    sabotage: Sabotage
    state: State
    detail: str
    seconds: float


def sabotages(folder: Path = FOLDER) -> list[Sabotage]:
    """All of them, file by file."""
    entries = [
        entry for file in sorted(folder.glob("*.yaml")) for entry in yaml.safe_load(file.read_text(encoding="utf-8"))
    ]
    return [Sabotage(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def copied(to: Path) -> Path:
    """A copy of the working tree without what is built, for changes that must not reach it."""
    for name in _TREE:
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in _FILES:
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, to / name)
    return to


def environment(tree: Path) -> dict[str, str]:
    """Ours, with the copy in front of what is installed; compiled files are not kept, for a text may come back."""
    return {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}


def run(chosen: list[Sabotage], workers: int) -> list[Outcome]:
    """Try each in a copy of the tree. Tests that are red without any sabotage kill nothing: that is an error."""
    trees: SimpleQueue[Path] = SimpleQueue()
    words = {"killed": "red already", "survived": "green", "error": "error"}

    def look(tests: tuple[str, ...]) -> Outcome:
        none = Sabotage("no sabotage", "pyproject.toml", "[project]\n", "[project]\n", tests)
        outcome = _in_one_of(trees, none)
        _say(words[outcome.state], outcome.seconds, " ".join(tests))
        return outcome

    def one(sabotage: Sabotage) -> Outcome:
        if clean[sabotage.tests].state != "survived":
            return Outcome(sabotage, "error", f"red without it: {clean[sabotage.tests].detail}", 0.0)
        outcome = _in_one_of(trees, sabotage)
        _say(outcome.state, outcome.seconds, sabotage.name)
        return outcome

    with TemporaryDirectory(prefix="mutate-") as folder, ThreadPoolExecutor(max_workers=workers) as pool:
        for number in range(workers):
            trees.put(copied(Path(folder) / str(number)))
        asked = list(dict.fromkeys(each.tests for each in chosen))
        clean = dict(zip(asked, pool.map(look, asked), strict=True))
        return list(pool.map(one, chosen))


def _in_one_of(trees: SimpleQueue[Path], sabotage: Sabotage) -> Outcome:
    tree = trees.get()
    try:
        return attempt(tree, sabotage)
    finally:
        trees.put(tree)


def _say(word: str, seconds: float, what: str) -> None:
    sys.stdout.write(f"{word:11} {seconds:5.1f} s  {what}\n")
    sys.stdout.flush()


def attempt(tree: Path, sabotage: Sabotage) -> Outcome:
    """Put the bug into that tree, run the tests, take it out again."""
    begun = time.monotonic()
    file = tree / sabotage.file
    source = file.read_text(encoding="utf-8")
    try:
        file.write_text(sabotage.sabotaged(source), encoding="utf-8")
        code, output = _pytest(tree, "-x", *sabotage.tests)
    except Untrue as untrue:
        return Outcome(sabotage, "error", str(untrue), 0.0)
    except TimeoutError:  # nobody would take tests that hang for green ones
        return Outcome(sabotage, "killed", f"the tests hang, for {_SECONDS:g} s", time.monotonic() - begun)
    finally:
        file.write_text(source, encoding="utf-8")
    took = time.monotonic() - begun
    if code == 0:
        return Outcome(sabotage, "survived", "every test that is named stayed green", took)
    red = [line.split()[1] for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    if code != _FAILED or not red:  # a bug that keeps the tests from being read at all is none that could be shipped
        return Outcome(sabotage, "error", f"pytest ended with {code}: {output[-500:]}", took)
    return Outcome(sabotage, "killed", red[0], took)


def _pytest(tree: Path, *arguments: str, seconds: float = _SECONDS) -> tuple[int, str]:
    """Exit code and output of pytest on a tree. What hangs is ended with all that it started.

    Raises:
        TimeoutError: it took longer than `seconds`.
    """
    with NamedTemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        options = ("-q", "--no-header", "--tb=line", "-p", "no:cacheprovider")
        process = _QUICK.Process(target=_in_child, args=(str(tree), output.name, [*options, *arguments]))
        process.start()
        process.join(seconds)
        if process.exitcode is None:
            os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()
            raise TimeoutError
        return process.exitcode, Path(output.name).read_text(encoding="utf-8", errors="replace")


def _in_child(tree: str, output: str, arguments: list[str]) -> None:
    """In a process of its own that has the libraries already, and nothing of the product."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a program that somebody has started
    sink = os.open(output, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.chdir(tree)
    os.environ |= environment(Path(tree))
    sys.path[:] = [tree, *(each for each in sys.path if Path(each or ".").resolve() not in {ROOT, Path(tree)})]
    for name in [name for name in sys.modules if name.partition(".")[0] in {"sandbox", "tests"}]:
        del sys.modules[name]
    import pytest  # noqa: PLC0415 - the process that starts this one needs none

    found = find_spec("sandbox")
    if found is None or not Path(str(found.origin)).is_relative_to(tree):
        raise RuntimeError(f"{found} would be tested, not the copy in {tree}")
    sys.exit(pytest.main(arguments))
