"""Build one image from packages and give it to the engine, whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

from sandbox import paths
from sandbox.errors import EnvironmentMissing
from sandbox.host import look
from sandbox.host.checks import check_disk
from sandbox.images import archive, assemble, debian, engine, golang, sbom, store
from sandbox.images.ingredients import Ingredients
from sandbox.images.recipe import Recipe
from sandbox.progress import step

# what compiling takes at its height, measured for the node image
_NEEDED = 16 << 30


def build(recipe: Recipe) -> engine.Image:
    """Build an image. What was compiled or installed before, by any checkout, is taken from the cache.

    Raises:
        ImageUnavailable: a package cannot be had or does not build, or the engine or a disk gave up.
        EnvironmentMissing: something that building needs is missing here.
    """
    with engine.explained(f"{recipe.name} could not be built", where=str(recipe.folder / "image.yaml")):
        _check(recipe)
        assemble.prepare(recipe)
        with step(f"put {recipe.name} together"), store.scratch(f"image-{recipe.name}") as folder:
            return _assembled(recipe, folder)


def _assembled(recipe: Recipe, folder: Path) -> engine.Image:
    spec = recipe.spec
    inside = Ingredients()
    labels = assemble.labels(recipe)
    inner = [
        archive.image(each.ref, assemble.cut(recipe, each.layers, folder, inside), each.config, {})
        for each in spec.contains
    ]
    layers = assemble.cut(recipe, spec.layers, folder, inside)
    document = sbom.document(recipe, inside)
    entry = archive.Entry(f"usr/share/sbom/{recipe.name}.spdx.json", source=document)
    layers.append(archive.write_layer([entry], folder / "sbom.tar"))
    name = f"{recipe.ref}-base" if inner else recipe.ref
    archive.write_archive([archive.image(name, layers, spec.config, labels)], folder / "image.tar")
    engine.load(folder / "image.tar")
    if inner and spec.finish:
        try:
            (folder / "image.tar").unlink()
            archive.write_archive(archive.compressed(inner), folder / "contained.tar")
            engine.finish_node(name, folder / "contained.tar", spec.finish, recipe.ref)
        finally:
            engine.untag(name)
    sbom.write(recipe, document)
    image = engine.find(recipe.name, recipe.ref, "built")
    if image is None:
        raise EnvironmentMissing(
            "the engine took the image and does not know it now", where=recipe.ref, fix="sandbox doctor"
        )
    return image


def _check(recipe: Recipe) -> None:
    """Say what is missing before an hour of work, not after it."""
    for tree in recipe.spec.debian.values():
        if not debian.present(tree):
            debian.require(tree)
    if not recipe.spec.contains:  # small beside a node image
        return
    full = [check for check in check_disk(look()) if check.state == "missing"]
    if full:
        raise EnvironmentMissing(
            f"there is no room to put {recipe.name} together",
            details=[f"{check.name}: {check.seen}" for check in full],
            fix="; ".join(check.fix for check in full),
        )
    free = shutil.disk_usage(paths.cache_dir()).free
    if free < _NEEDED and not all(golang.present(module, recipe.folder) for module in recipe.spec.go.values()):
        raise EnvironmentMissing(
            f"{free >> 30} GiB free in {paths.cache_dir()}, compiling {recipe.name} takes up to {_NEEDED >> 30} GiB",
            fix="free some, or name a roomier folder: SANDBOX_CACHE_DIR=<folder>",
        )
