"""The pull path: pinned upstream images, and mirrors that hold what was built; every step bounded in time."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from sandbox.errors import ImageUnavailable
from sandbox.host import registries
from sandbox.host.engine import client, puller
from sandbox.host.registries import MIRROR
from sandbox.images import crew, engine, store
from sandbox.images.recipe import Recipe
from sandbox.progress import say, step

_SILENCE = 30  # seconds in which a healthy pull always says something
_WHOLE = 900.0  # seconds for one image
_PLAIN = "server gave HTTP response to HTTPS client"


@dataclass(frozen=True)
class Source:
    """Where an image may be pulled from: `ref` with tag or digest, and whether only the digest was pinned."""

    ref: str
    pinned: bool

    @property
    def host(self) -> str:
        """The registry's host and port."""
        return registries.host(self.ref)


def sources(recipe: Recipe) -> list[Source]:
    """Where an image may come from, best first: the mirror, which has exactly this recipe's image, then upstream."""
    found: list[Source] = []
    if mirror := registries.mirror():
        found.append(Source(f"{mirror}/{recipe.ref}", pinned=False))
    if upstream := recipe.spec.pull:
        found.append(Source(f"{upstream.ref}@{upstream.digest}", pinned=True))
    return found


def pull(recipe: Recipe) -> engine.Image:
    """Pull an image from the first source that gives it.

    Raises:
        ImageUnavailable: none does; the details say why for each.
    """
    reasons: list[str] = []
    for source in sources(recipe):
        if trouble := registries.unreachable(source.host):
            reasons.append(f"{source.host}: {trouble}")
            continue
        try:
            with step(f"pull {source.ref}"), engine.explained("the engine does not name what it pulled"):
                return _pulled(recipe, source)
        except ImageUnavailable as error:
            reasons.append(f"{source.ref}: {error.what}")
    elsewhere = f"name a registry that holds it: {MIRROR}=<host:port>; or build it: sandbox images build {recipe.name}"
    raise ImageUnavailable(
        f"the image {recipe.name} can be pulled from nowhere",
        details=reasons or [f"no upstream is pinned for it, and {MIRROR} names no mirror"],
        fix=store.remedy("\n".join(reasons), elsewhere),
    )


def push(image: engine.Image, registry: str) -> str:
    """Give a built image to a registry, so that others can pull it; its digest there.

    Raises:
        ImageUnavailable: the registry does not take it.
    """
    target = f"{registry}/{image.ref}"
    repository, _, tag = target.rpartition(":")
    digest = ""
    docker = client(timeout=_SILENCE * 4)
    with step(f"push {target}"), engine.explained(f"{registry} did not take the image", where=target):
        docker.images.get(image.ref).tag(repository, tag)
        try:
            for event in docker.images.push(repository, tag, stream=True, decode=True):
                _raise_on_error(event, target)
                digest = event.get("aux", {}).get("Digest", digest)
        finally:
            engine.untag(target)
    return digest


def _pulled(recipe: Recipe, source: Source) -> engine.Image:
    repository, _, tag = source.ref.rpartition("@" if source.pinned else ":")
    if source.pinned:  # the API takes a digest in the tag's place, and no tag beside it
        repository = repository.rpartition(":")[0]
    ref = source.ref if source.pinned else recipe.ref
    fetch(repository, tag)
    if not source.pinned:
        own, _, key = recipe.ref.rpartition(":")
        client().images.get(source.ref).tag(own, key)
        engine.untag(source.ref)
    image = engine.find(recipe.name, ref, "pulled")
    if image is None:
        raise ImageUnavailable("the engine pulled it and does not know it now", where=ref)
    if source.pinned and recipe.spec.pull and recipe.spec.pull.version != recipe.spec.version:
        say(f"{recipe.name}: pulled version {recipe.spec.pull.version}; building gives {recipe.spec.version}")
    return image


def fetch(repository: str, tag: str, *, platform: str | None = None) -> None:
    """Have the engine pull one image, whose tag may be a digest; bounded in its silence and as a whole.

    Raises:
        ImageUnavailable: the registry refuses it, it takes too long, or engine or registry stopped talking.
    """
    deadline = time.monotonic() + _WHOLE
    ref = f"{repository}:{tag}"
    try:
        with closing(puller(_SILENCE)) as api:
            for event in api.pull(repository, tag=tag, stream=True, decode=True, platform=platform):
                _raise_on_error(event, ref)
                crew.check()
                if time.monotonic() > deadline:
                    raise ImageUnavailable(f"was not there after {_WHOLE:.0f} s", where=ref)
    except engine.FAILURES as error:
        words = engine.said(error)
        silent = "timed out" in words.lower()
        what = f"the registry stopped sending: nothing for {_SILENCE} s" if silent else words
        raise ImageUnavailable(what, where=ref, fix=store.remedy(words, "sandbox doctor")) from error


def upstream(recipe: Recipe) -> engine.Image | None:
    """The pinned upstream image, where the engine has it already."""
    for source in sources(recipe):
        if source.pinned:
            return engine.find(recipe.name, source.ref, "pulled")
    return None


def _raise_on_error(event: dict[str, Any], ref: str) -> None:
    if message := str(event.get("error") or ""):
        plain = "name that registry in the engine's insecure-registries" if _PLAIN in message else ""
        raise ImageUnavailable(message, where=ref, fix=plain or store.remedy(message, "sandbox doctor"))
