"""What an image is made of: `clusters/images/<image>/image.yaml`, its checks, and its content key."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from sandbox import paths
from sandbox.errors import EnvironmentMissing, UsageError
from sandbox.progress import say
from sandbox.spec.base import KeyPath, Metadata, Name, Strict
from sandbox.spec.loader import load

# raised when the builder makes something else of the same recipe
FORMAT = 3
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
RelativePath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$")]
ImagePath = Annotated[str, StringConstraints(pattern=r"^/[A-Za-z0-9_./-]*$")]


class GoModule(Strict):
    """One `go build` in a small module of our own with a committed go.sum."""

    module: RelativePath = Field(description="Folder of go.mod and go.sum, relative to the recipe.")
    packages: dict[str, str] = Field(min_length=1, description="Name of the binary -> package.")
    tags: list[str] = Field(default_factory=list)
    stamp: dict[str, str] = Field(default_factory=dict, description="Variables set at link time (-X).")


class DebianTree(Strict):
    """A Debian system with packages installed, as of the day of the build; versions are recorded."""

    suite: str = "bookworm"
    packages: list[str] = Field(min_length=1)


class Wheels(Strict):
    """Wheels from PyPI, each pinned with its hashes."""

    requirements: RelativePath = Field(description="A requirements file for pip's --require-hashes.")


class TreeLayer(Strict):
    """All of a Debian tree."""

    tree: str
    without: list[str] = Field(default_factory=list, description="Glob patterns of paths left out.")


class SliceLayer(Strict):
    """Some packages of a Debian tree with all they depend on, without package manager and scripts."""

    slice: str = Field(description="Name of the Debian tree.")
    packages: list[str] = Field(min_length=1)
    without_packages: list[str] = Field(
        default_factory=list, alias="withoutPackages", description="Dependencies that do nothing at run time."
    )
    also: list[str] = Field(default_factory=list, description="Glob patterns of files that installing made.")
    without: list[str] = Field(default_factory=list, description="Glob patterns of paths left out.")


class BinariesLayer(Strict):
    """Binaries of a Go module."""

    binaries: str = Field(description="Name of the Go module.")
    names: list[str] = Field(default_factory=list, description="Which; all when empty.")
    into: ImagePath = "/usr/local/bin"


class WheelsLayer(Strict):
    """Files of the wheels."""

    wheels: str
    into: ImagePath
    only: list[str] = Field(default_factory=list, description="Glob patterns of the files taken; all when empty.")


class ModuleFilesLayer(Strict):
    """Files out of a Go module's source, as its authors ship them."""

    module_files: str = Field(alias="moduleFiles", description="Name of the Go module that requires it.")
    of: str = Field(description="Path of the required module.")
    folder: RelativePath = Field(description="Folder inside the required module that becomes the root.")
    into: ImagePath = "/"
    only: list[str] = Field(default_factory=list)


class FilesLayer(Strict):
    """A folder of the recipe, laid over the root."""

    files: RelativePath
    into: ImagePath = "/"


class PackageLayer(Strict):
    """A Python package of this tool, as a namespace package: nothing of the packages above it."""

    package: RelativePath = Field(description="Its folder below the `sandbox` package, such as gpu/emulator.")
    into: ImagePath = Field(default="/opt/lib", description="What the image's Python has on its path.")

    @property
    def folder(self) -> Path:
        """Where its files lie here."""
        return paths.shipped(self.package)


class LinksLayer(Strict):
    """Many names for one program, as busybox and systemd have them."""

    links: dict[ImagePath, str] = Field(min_length=1, description="Name of the link -> what it points to.")


Layer = TreeLayer | SliceLayer | BinariesLayer | WheelsLayer | ModuleFilesLayer | FilesLayer | PackageLayer | LinksLayer


class Config(Strict):
    """How a container of the image starts."""

    entrypoint: list[str] = Field(default_factory=list)
    command: list[str] = Field(default_factory=list)
    env: dict[str, str] = Field(default_factory=dict)
    user: str = ""
    workdir: str = ""
    ports: list[int] = Field(default_factory=list)
    stop_signal: str = Field(default="", alias="stopSignal")


class Contained(Strict):
    """An image that lies unpacked inside a node image."""

    ref: str
    layers: list[Layer] = Field(min_length=1)
    config: Config = Config()


class Pull(Strict):
    """The upstream image that serves where a registry is reachable."""

    ref: str
    digest: Digest
    version: str = Field(default="", description="What it is a version of, where it differs from the built one.")


class ImageSpec(Strict):
    """One image: where it may be pulled from, and how it is built from packages."""

    api_version: Literal["sandbox/v1"] = Field(alias="apiVersion")
    kind: Literal["Image"]
    metadata: Metadata
    version: str
    pull: Pull | None = None
    go: dict[Name, GoModule] = Field(default_factory=dict)
    debian: dict[Name, DebianTree] = Field(default_factory=dict)
    wheels: dict[Name, Wheels] = Field(default_factory=dict)
    layers: list[Layer] = Field(min_length=1)
    config: Config = Config()
    contains: list[Contained] = Field(default_factory=list)
    finish: ImagePath | None = Field(
        default=None, description="Program of a node image that unpacks what it contains: ARCHIVE SCRATCH."
    )

    @model_validator(mode="after")
    def _names_exist(self) -> ImageSpec:
        problems: list[str] = []
        if bool(self.contains) != bool(self.finish):
            problems.append("`contains` and `finish` come together: something has to unpack the images")
        for layer in self.all_layers:
            kind, known, name = _source(self, layer)
            if name and name not in known:
                problems.append(f"{kind} {name!r} is not defined; defined: {', '.join(known) or 'none'}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def all_layers(self) -> list[Layer]:
        """Its own layers and those of what it contains."""
        return [*self.layers, *(layer for inner in self.contains for layer in inner.layers)]


def _source(spec: ImageSpec, layer: Layer) -> tuple[str, list[str], str]:
    match layer:
        case TreeLayer(tree=name) | SliceLayer(slice=name):
            return "debian", list(spec.debian), name
        case BinariesLayer(binaries=name) | ModuleFilesLayer(module_files=name):
            return "go", list(spec.go), name
        case WheelsLayer(wheels=name):
            return "wheels", list(spec.wheels), name
        case FilesLayer() | PackageLayer() | LinksLayer():
            return "files", [], ""


@dataclass(frozen=True)
class Recipe:
    """An image's spec and the folder it came from."""

    spec: ImageSpec
    folder: Path

    @property
    def name(self) -> str:
        return self.spec.metadata.name

    @cached_property
    def key(self) -> str:
        """Content key: 12 hex digits over every file of the recipe, the architecture and the builder's format.

        And over the Python packages of ours that it takes in.
        """
        ours = {layer.package: layer.folder for layer in self.spec.all_layers if isinstance(layer, PackageLayer)}
        return digest_of([f"{FORMAT} {architecture()}", *ours], [self.folder, *ours.values()])[:12]

    @property
    def ref(self) -> str:
        return f"ai-k8s-sandbox/{self.name}:{self.key}"


def digest_of(words: list[str], folders: list[Path]) -> str:
    """Sha256 over words and over every file (path, mode, content) of folders; independent of where they lie."""
    total = hashlib.sha256()
    for word in words:
        total.update(f"{word}\0".encode())
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if "__pycache__" in path.parts or path.is_dir():
                continue
            where = path.relative_to(folder).as_posix()
            if path.is_symlink():
                total.update(f"{where}\0link\0{path.readlink()}\0".encode())
                continue
            content = path.read_bytes()
            # a wheel may have lost the mode; a script is one all the same
            executable = bool(path.stat().st_mode & 0o100) or content.startswith(b"#!")
            total.update(f"{where}\0{executable}\0{hashlib.sha256(content).hexdigest()}\0".encode())
    return total.hexdigest()


def architecture() -> str:
    """This machine's architecture in the words of Go and of registries."""
    try:
        return _ARCHITECTURES[platform.machine()]
    except KeyError:
        raise EnvironmentMissing(
            f"images are built for {', '.join(sorted(set(_ARCHITECTURES.values())))}, not for {platform.machine()}",
            fix="run it on such a machine",
        ) from None


def names() -> list[str]:
    """Every image that can be asked for."""
    return sorted(_folders())


def recipe(name: str) -> Recipe:
    """The recipe of that name; says so where a user's own hides ours.

    Raises:
        UsageError: there is none, or its image.yaml is wrong or names what is not there.
    """
    known = _folders()
    if name not in known:
        raise UsageError(
            f"there is no image {name!r}; there are {', '.join(sorted(known)) or 'none'}", fix="sandbox images list"
        )
    used, *hidden = known[name]
    for folder in hidden:
        _say_hidden(used, folder)
    return _read(used)


def recipes(names: Iterable[str]) -> list[Recipe]:
    """The recipes of those names, each once. Raises UsageError with what is wrong with all of them."""
    good: list[Recipe] = []
    wrong: list[UsageError] = []
    for name in dict.fromkeys(names):
        try:
            good.append(recipe(name))
        except UsageError as error:
            wrong.append(error)
    if len(wrong) > 1:
        heads = [f"{error.where}: {error.what}" if error.where else error.what for error in wrong]
        lines = [line for head, error in zip(heads, wrong, strict=True) for line in (head, *error.details)]
        raise UsageError(f"{len(wrong)} images cannot be made", details=lines, fix="mend the lines named")
    if wrong:
        raise wrong[0]
    return good


@cache
def _say_hidden(used: Path, hidden: Path) -> None:
    say(f"image {used.name}: {used} is used; it shadows {hidden}")


def _read(folder: Path) -> Recipe:
    document = load(folder / "image.yaml", ImageSpec)
    spec = document.model
    problems = [document.problem(keys, words) for keys, words in _absent(spec, folder)]
    if spec.metadata.name != folder.name:
        problems.insert(0, document.problem(("metadata", "name"), f"must be {folder.name!r}, the name of its folder"))
    if problems:
        raise UsageError(
            f"{len(problems)} problem{'s' if len(problems) != 1 else ''} in this image",
            where=str(folder / "image.yaml"),
            details=problems,
            fix="mend the lines named",
        )
    return Recipe(spec, folder)


def _absent(spec: ImageSpec, folder: Path) -> Iterator[tuple[KeyPath, str]]:
    """What the recipe names beside its image.yaml and has not got: the keys, and what is wrong there."""
    for name, wheels in spec.wheels.items():
        if not (folder / wheels.requirements).is_file():
            yield ("wheels", name, "requirements"), f"there is no file {wheels.requirements}"
    for name, module in spec.go.items():
        if not (folder / module.module / "go.mod").is_file():
            yield ("go", name, "module"), f"there is no file {module.module}/go.mod"
    places: list[tuple[KeyPath, list[Layer]]] = [(("layers",), spec.layers)]
    places += [(("contains", index, "layers"), inner.layers) for index, inner in enumerate(spec.contains)]
    for keys, layers in places:
        for index, layer in enumerate(layers):
            if isinstance(layer, FilesLayer) and not (folder / layer.files).is_dir():
                yield (*keys, index, "files"), f"there is no folder {layer.files}"
            if isinstance(layer, PackageLayer) and not (layer.folder / "__init__.py").is_file():
                yield (*keys, index, "package"), f"there is no package {layer.package} in this tool"


def _folders() -> dict[str, list[Path]]:
    """Name of an image -> the folders that say how it is made, the user's own before the shipped one."""
    found: dict[str, list[Path]] = {}
    for root in paths.catalogue("clusters"):
        for file in sorted(root.glob("images/*/image.yaml")):
            found.setdefault(file.parent.name, []).append(file.parent)
    return found
