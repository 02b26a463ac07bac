"""What is sent along with each load: our own code, so that it is always the one that asked, and profiles."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

from sandbox import paths

_MODULES = ("__init__.py", "errors.py", "grammar.py", "paths.py", "progress.py", "timeline.py")
_ROOMS = ("spec", "load")
_LOADTESTS = ("profiles", "prompts")
_FOLDER = "/tmp/load"  # noqa: S108 - of the pod's own
# Reads a length and a zip file from standard input, byte for byte: what follows belongs to the program it becomes.
_UNPACK = f"""
import io, os, sys, zipfile
def read(count):
    got = b""
    while len(got) < count and (piece := os.read(0, count - len(got))):
        got += piece
    return got
size = b""
while (byte := read(1)) not in (b"\\n", b""):
    size += byte
zipfile.ZipFile(io.BytesIO(read(int(size)))).extractall({_FOLDER!r})
os.chdir({_FOLDER!r})
os.environ["PYTHONPATH"] = {_FOLDER!r} + ":/opt/lib"
os.environ["HOME"] = {_FOLDER!r}
os.execv(sys.executable, [sys.executable, "-B", "-P", "-m", "sandbox.load.relay"])
"""
COMMAND = ["/usr/bin/python3.11", "-B", "-I", "-c", _UNPACK]


def packed() -> bytes:
    """The parcel as it is written to the pod's standard input: a length, a newline, a zip file."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as box:
        for name, path in _contents():
            box.write(path, name)
    data = whole.getvalue()
    return b"%d\n%s" % (len(data), data)


def _contents() -> Iterator[tuple[str, Path]]:
    package = paths.shipped("spec").parent
    for name in _MODULES:
        yield f"sandbox/{name}", package / name
    for room in _ROOMS:
        for path in sorted((package / room).rglob("*.py")):
            yield f"sandbox/{path.relative_to(package).as_posix()}", path
    seen: set[str] = set()
    for folder in paths.catalogue("loadtests"):  # the user's own before the shipped
        for path in (file for room in _LOADTESTS for file in sorted((folder / room).glob("*.*"))):
            name = f"loadtests/{path.relative_to(folder).as_posix()}"
            if name not in seen:
                seen.add(name)
                yield name, path
