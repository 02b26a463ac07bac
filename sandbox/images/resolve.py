"""Have images: in the engine already, else pulled, else built from packages."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sandbox import host, paths
from sandbox.errors import EnvironmentMissing, ImageUnavailable, UsageError
from sandbox.host import registries
from sandbox.images import building, debian, engine, golang, recipe, registry, sbom, store
from sandbox.images.engine import Image
from sandbox.images.recipe import Recipe
from sandbox.progress import say

Mode = Literal["auto", "pull", "build"]
# name -> the image whose Go module builds it, the module, the program's file there, the version that must be on PATH
_TOOLS = {
    "kind": ("node", "kind", "kind", "v0.33.0"),
    "kubectl": ("node", "kubernetes", "kubernetes", ""),  # one file is all of Kubernetes' programs, by its name
}


@dataclass(frozen=True)
class Listed:
    """One line of `sandbox images list`. `image` is None where the engine has not got it.

    `packages` counts what its SBOM lists, `licences_unknown` those of them without a recognised licence.
    """

    name: str
    description: str
    version: str
    ref: str
    image: Image | None
    sbom: Path | None
    packages: int
    licences_unknown: int


@engine.explained("the images could not be had")
def ensure(names: Iterable[str], *, mode: Mode = "auto") -> dict[str, Image]:
    """Have every named image in the engine, which is brought up where none runs; what is there is left as it is.

    Args:
        names: folders of `clusters/images/`.
        mode: `auto` pulls where a registry answers within seconds, else builds; `pull` and `build` do only that.

    Raises:
        UsageError: there is no image of that name, its recipe is wrong, or SANDBOX_REGISTRY names no registry.
        EnvironmentMissing: there is no engine, and it may not be installed or started.
        ImageUnavailable: it can be neither pulled nor built; says why for both.
    """
    recipes = recipe.recipes(names)
    registries.mirror()
    host.prepare()
    # nodes first: the longest to make, and the likeliest to find that something is missing here
    in_order = sorted(recipes, key=lambda each: not each.spec.contains)
    found = {each.name: _present(each, mode) or _made(each, mode) for each in in_order}
    return {each.name: found[each.name] for each in recipes}


@engine.explained("the images could not be built")
def build(names: Iterable[str] = (), *, fresh: bool = False) -> dict[str, Image]:
    """Build images from packages; all when none is named.

    Args:
        names: folders of `clusters/images/`.
        fresh: forget the Debian trees, so that their packages come in today's versions.
    """
    chosen = list(names) or recipe.names()
    if fresh:
        recipes = recipe.recipes(chosen)
        host.prepare()
        _forget_trees(recipes)
        return {each.name: _rebuilt(each) for each in recipes}
    return ensure(chosen, mode="build")


def pull(names: Iterable[str] = ()) -> dict[str, Image]:
    """Pull images; all that can be pulled when none is named."""
    chosen = list(names) or [name for name in recipe.names() if registry.sources(recipe.recipe(name))]
    return ensure(chosen, mode="pull")


def push(target: str, names: Iterable[str] = ()) -> dict[str, str]:
    """Give built images to a registry, for SANDBOX_REGISTRY elsewhere; name -> digest there."""
    target = registries.checked(target)
    return {name: registry.push(image, target) for name, image in build(names).items()}


def mirrored(names: Iterable[str]) -> dict[str, str]:
    """The references by which another machine's nodes pull images: those of the mirror. Asks nothing and nobody.

    Raises:
        EnvironmentMissing: no mirror is named, and no cluster elsewhere can pull what only this machine has.
    """
    mirror = registries.mirror()
    if not mirror:
        raise EnvironmentMissing(
            "a cluster that is not on this machine cannot pull images that only this machine has",
            fix=f"sandbox images push <host:port>, then set {registries.MIRROR}=<host:port>, as its nodes reach it",
        )
    return {name: f"{mirror}/{recipe.recipe(name).ref}" for name in dict.fromkeys(names)}


@engine.explained("the images could not be listed")
def list_images() -> list[Listed]:
    """Every image that can be asked for, and whether the engine has it; without an engine it has none."""
    listed: list[Listed] = []
    running = host.look().state == "running"
    for each in recipe.recipes(recipe.names()):
        document = sbom.path(each)
        packages, unknown = sbom.count(document) if document.is_file() else (0, 0)
        listed.append(
            Listed(
                name=each.name,
                description=each.spec.metadata.description,
                version=each.spec.version,
                ref=each.ref,
                image=_present(each, "auto") if running else None,
                sbom=document if document.is_file() else None,
                packages=packages,
                licences_unknown=unknown,
            )
        )
    return listed


@engine.explained("the program could not be built")
def tool(name: str) -> Path:
    """A program that runs on this machine, built like those in the images: `kind`, `kubectl`.

    One on PATH is taken as it is: a kind of the same version, any kubectl.
    """
    if name not in _TOOLS:
        raise UsageError(f"there is no tool {name!r}; there are {', '.join(_TOOLS)}")
    owner, module, file, version = _TOOLS[name]
    if (present := shutil.which(name)) and (not version or version in _said([present, "version"])):
        return Path(present)
    each = recipe.recipe(owner)
    built = golang.build(each.spec.go[module], each.folder, golang.HOST).folder / file
    return built if file == name else _linked(name, built)


def _linked(name: str, program: Path) -> Path:
    """The program under another name, in a folder of its own."""
    link = paths.cache_dir() / "tools" / name
    link.parent.mkdir(exist_ok=True)
    if not link.is_symlink() or link.readlink() != program:
        link.unlink(missing_ok=True)
        link.symlink_to(program)
    return link


@engine.explained("not all could be removed")
def trim() -> int:
    """Remove what building gets again: Go's caches, what killed builds left, images of other recipes. Bytes freed.

    Raises:
        EnvironmentMissing: something is being built.
    """
    freed = 0
    with store.all_locked():
        for folder in (*golang.caches(), *store.remains()):
            freed += store.size(folder)
            store.discard(folder)
        if host.look().state == "running":
            freed += engine.remove_old([each.ref for each in recipe.recipes(recipe.names())])
    return freed


def _said(command: list[str]) -> str:
    return subprocess.run(command, text=True, capture_output=True, check=False).stdout


def _present(each: Recipe, mode: Mode) -> Image | None:
    """What the engine has: this recipe's own image, or (unless it must be built) the pinned upstream one."""
    own = engine.find(each.name, each.ref, _origin(each))
    if own is not None and (mode != "pull" or own.source == "pulled"):
        return own
    return registry.upstream(each) if mode != "build" else None


def _made(each: Recipe, mode: Mode) -> Image:
    with store.locked(f"image-{each.name}"):
        if present := _present(each, mode):  # another process was quicker
            return present
        trouble: ImageUnavailable | None = None
        if mode != "build" and (mode == "pull" or registry.sources(each)):
            try:
                return _recorded(each, registry.pull(each))
            except ImageUnavailable as error:
                if mode == "pull":
                    raise
                trouble = error
                say(f"{each.name}: not pulled ({'; '.join(error.details)}): building it from packages")
        try:
            return _recorded(each, building.build(each))
        except ImageUnavailable as error:
            error.details += [f"and it was not pulled: {detail}" for detail in (trouble.details if trouble else [])]
            raise


def _rebuilt(each: Recipe) -> Image:
    with store.locked(f"image-{each.name}"):
        return _recorded(each, building.build(each))


def _forget_trees(recipes: list[Recipe]) -> None:
    trees = [tree for each in recipes for tree in each.spec.debian.values()]
    with ThreadPoolExecutor() as beside:
        list(beside.map(debian.forget, trees))


def _origin(each: Recipe) -> engine.Source:
    path = _origin_path(each)
    if path.is_file():
        return "pulled" if json.loads(path.read_text(encoding="utf-8"))["source"] == "pulled" else "built"
    return "built"


def _recorded(each: Recipe, image: Image) -> Image:
    path = _origin_path(each)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"source": image.source}), encoding="utf-8")
    return image


def _origin_path(each: Recipe) -> Path:
    return paths.cache_dir() / "origin" / f"{each.name}-{each.key}.json"
