"""`sandbox images …`: had, built, pulled, pushed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from sandbox.cli_output import Output, OutputOption, out, table, write_json

if TYPE_CHECKING:
    from sandbox.images import Image

images_app = typer.Typer(help="Node and app images: built from packages or pulled.", no_args_is_help=True)
ImagesArgument = Annotated[list[str] | None, typer.Argument(help="Images of clusters/images/; all without.")]


@images_app.command("list")
def images_list(output: OutputOption = Output.text) -> None:
    """Show every image, whether the engine has it, and what its SPDX document counts."""
    from sandbox import images

    found = images.list_images()
    if output is Output.json:
        write_json(found)
        return
    rows = [
        (
            each.name,
            each.version,
            f"{each.image.source}, {each.image.size / 1e6:.0f} MB" if each.image else "not here",
            f"{each.packages} ({each.licences_unknown} without a known licence)" if each.sbom else "",
            str(each.sbom or ""),
        )
        for each in found
    ]
    out.print(table(("image", "version", "here", "packages", "SPDX"), rows))


@images_app.command("ensure")
def images_ensure(names: ImagesArgument = None, output: OutputOption = Output.text) -> None:
    """Have images, as every command does: there already, else pulled where a registry answers, else built."""
    from sandbox import images

    _had(images.ensure(names or [each.name for each in images.list_images()]), output)


@images_app.command("build")
def images_build(
    names: ImagesArgument = None,
    fresh: Annotated[bool, typer.Option(help="With today's versions of the Debian packages.")] = False,
    output: OutputOption = Output.text,
) -> None:
    """Build images from Debian, Go and PyPI packages; what is there already is left as it is."""
    from sandbox import images

    _had(images.build(names or [], fresh=fresh), output)


@images_app.command("pull")
def images_pull(names: ImagesArgument = None, output: OutputOption = Output.text) -> None:
    """Pull images by their pinned digest, or from the mirror named in SANDBOX_REGISTRY."""
    from sandbox import images

    _had(images.pull(names or []), output)


@images_app.command("push")
def images_push(
    registry: Annotated[str, typer.Argument(help="<host:port> or <host:port>/<prefix>")],
    names: ImagesArgument = None,
    output: OutputOption = Output.text,
) -> None:
    """Give built images to a registry, for machines that name it in SANDBOX_REGISTRY."""
    from sandbox import images

    pushed = images.push(registry, names or [])
    if output is Output.json:
        write_json(pushed)
        return
    for name, digest in pushed.items():
        out.print(f"{name}: {digest}", markup=False, soft_wrap=True)


@images_app.command("trim")
def images_trim(output: OutputOption = Output.text) -> None:
    """Remove the caches that only building needs, what broken builds left, and images of other recipes than now."""
    from sandbox import images

    freed = images.trim()
    if output is Output.json:
        write_json({"freed": freed})
    else:
        out.print(f"{freed / 1e9:.1f} GB freed")


def _had(images: Mapping[str, Image], output: Output) -> None:
    if output is Output.json:
        write_json(images)
        return
    for image in images.values():
        out.print(f"{image.name}: {image.ref} ({image.source}, {image.size / 1e6:.0f} MB)", soft_wrap=True)
