"""From a recipe to a finished image: its layers, and the record of what went in."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, Future, as_completed
from itertools import zip_longest
from pathlib import Path
from typing import Any

from sandbox.images import archive, crew, debian, golang, pypi
from sandbox.images import recipe as recipes
from sandbox.images.ingredients import Ingredients
from sandbox.images.recipe import Recipe

LABEL = "io.github.ai-k8s-sandbox"


def prepare(recipe: Recipe) -> None:
    """Make everything slow that the layers are cut from: Debian trees beside compiling, downloads one module ahead.

    The first failure, or an interrupt, ends all of it.
    """
    spec = recipe.spec
    with crew.at_work(4) as beside:
        jobs: list[Future[Any]] = [
            beside.submit(_compile, recipe, beside),
            *(beside.submit(debian.build, tree) for tree in spec.debian.values()),
            *(beside.submit(pypi.fetch, wheels, recipe.folder) for wheels in spec.wheels.values()),
        ]
        for job in as_completed(jobs):
            job.result()


def _compile(recipe: Recipe, beside: Executor) -> None:
    """Compile the modules one after the other, since compilers use all CPUs by themselves."""
    modules = list(recipe.spec.go.values())
    for module, following in zip_longest(modules, modules[1:]):
        if following:
            beside.submit(golang.download, following, recipe.folder)
        golang.build(module, recipe.folder)


def cut(recipe: Recipe, layers: Sequence[recipes.Layer], scratch: Path, into: Ingredients) -> list[archive.Layer]:
    """Cut the layers of one image into `scratch` and note what is in them; `prepare` must have run."""
    return [_cut(recipe, layer, scratch / f"{len(list(scratch.iterdir()))}.tar", into) for layer in layers]


def labels(recipe: Recipe) -> dict[str, str]:
    """What an image says of itself."""
    return {f"{LABEL}/image": recipe.name, f"{LABEL}/version": recipe.spec.version, f"{LABEL}/key": recipe.key}


def _cut(recipe: Recipe, layer: recipes.Layer, target: Path, into: Ingredients) -> archive.Layer:
    spec = recipe.spec
    match layer:
        case recipes.TreeLayer():
            folder = debian.build(spec.debian[layer.tree])
            debian.write_tree(folder, layer, target)
            into.add(debian.packages(folder).values())
            return archive.Layer(target, archive.sha256(target))
        case recipes.SliceLayer():
            folder = debian.build(spec.debian[layer.slice])
            into.add(debian.write_slice(folder, layer, target))
            return archive.Layer(target, archive.sha256(target))
        case recipes.BinariesLayer():
            binaries = golang.build(spec.go[layer.binaries], recipe.folder)
            into.add(binaries.items(layer.names))
            names = layer.names or list(spec.go[layer.binaries].packages)
            root = layer.into.strip("/")
            entries = [archive.Entry(f"{root}/{name}".strip("/"), 0o755, binaries.folder / name) for name in names]
        case recipes.WheelsLayer():
            folder = pypi.fetch(spec.wheels[layer.wheels], recipe.folder)
            into.add(pypi.unpacked(folder))
            entries = archive.folder_entries(folder / "files", layer.into, only=layer.only)
        case recipes.ModuleFilesLayer():
            source, item = golang.module_files(spec.go[layer.module_files], recipe.folder, layer.of)
            into.add([item])
            entries = archive.folder_entries(source / layer.folder, layer.into, only=layer.only)
        case recipes.FilesLayer():
            entries = archive.folder_entries(recipe.folder / layer.files, layer.into)
            if layer.into == "/":  # no recipe can hold an empty folder, and every program wants this one
                entries.append(archive.Entry("tmp", 0o1777))
        case recipes.PackageLayer():
            where = f"{layer.into.rstrip('/')}/sandbox/{layer.package}"
            # what the types and the wire formats were made from is of no use at run time
            entries = [
                entry
                for entry in archive.folder_entries(layer.folder, where)
                if not entry.name.endswith((".pyi", ".proto"))
            ]
        case recipes.LinksLayer():
            entries = [archive.Entry(name, link=target) for name, target in layer.links.items()]
    return archive.write_layer(entries, target)
