"""The pull path: pinned upstream images, and mirrors that hold what was built; every step bounded in time."""

from __future__ import annotations

import json
import os
import time
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx
from docker.errors import DockerException
from requests.exceptions import RequestException

from sandbox.errors import ImageUnavailable
from sandbox.host.engine import client
from sandbox.images import engine
from sandbox.images.recipe import Recipe
from sandbox.progress import say, step

MIRROR = "SANDBOX_REGISTRY"
_ANSWER = 3.0  # seconds until a registry that can be used has answered
_SILENCE = 30  # seconds in which a healthy pull always says something
_WHOLE = 900.0  # seconds for one image
_DOCKER_HUB = "registry-1.docker.io"
_OK = 200
_UNAUTHORIZED = 401  # what a healthy public registry says to /v2/ before it hands out tokens
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Source:
    """Where an image may be pulled from: `ref` with tag or digest, and whether only the digest was pinned."""

    ref: str
    pinned: bool

    @property
    def host(self) -> str:
        """The registry's host and port."""
        first = self.ref.split("/")[0]
        return first if "." in first or ":" in first or first == "localhost" else "docker.io"


def sources(recipe: Recipe) -> list[Source]:
    """Where an image may come from, best first: the mirror, which has exactly this recipe's image, then upstream."""
    found: list[Source] = []
    if mirror := os.environ.get(MIRROR):
        found.append(Source(f"{mirror.rstrip('/')}/{recipe.ref}", pinned=False))
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
        if trouble := unreachable(source.host):
            reasons.append(f"{source.host}: {trouble}")
            continue
        try:
            with step(f"pull {source.ref}"):
                return _pulled(recipe, source)
        except (DockerException, RequestException, ImageUnavailable) as error:
            reasons.append(f"{source.ref}: {reason(error)}")
    raise ImageUnavailable(
        f"the image {recipe.name} can be pulled from nowhere",
        details=reasons or [f"no upstream is pinned for it, and {MIRROR} names no mirror"],
        fix=f"name a registry that holds it: {MIRROR}=<host:port>; or build it: sandbox images build {recipe.name}",
    )


def push(image: engine.Image, registry: str) -> str:
    """Give a built image to a registry, so that others can pull it; its digest there.

    Raises:
        ImageUnavailable: the registry does not take it.
    """
    target = f"{registry.rstrip('/')}/{image.ref}"
    repository, _, tag = target.rpartition(":")
    digest = ""
    with closing(client(timeout=_SILENCE * 4)) as docker, step(f"push {target}"):
        docker.images.get(image.ref).tag(repository, tag)
        try:
            for event in docker.images.push(repository, tag, stream=True, decode=True):
                _raise_on_error(event, target)
                digest = event.get("aux", {}).get("Digest", digest)
        except (DockerException, RequestException) as error:
            raise ImageUnavailable(
                f"{registry} did not take the image: {reason(error)}", where=target, fix="sandbox doctor"
            ) from error
        finally:
            engine.untag(target)
    return digest


@cache
def unreachable(host: str) -> str:
    """Why a registry cannot be used, or nothing. Asked once per run, at most a few seconds."""
    name = _DOCKER_HUB if host == "docker.io" else host
    scheme = "http" if name.rsplit(":", 1)[0] in _LOOPBACK else "https"
    try:
        answer = httpx.get(f"{scheme}://{name}/v2/", timeout=_ANSWER)
    except httpx.TimeoutException:
        return f"did not answer within {_ANSWER:.0f} s"
    except httpx.HTTPError as error:
        return str(error) or type(error).__name__
    return "" if answer.status_code in (_OK, _UNAUTHORIZED) else f"answered {answer.status_code} to /v2/"


def _pulled(recipe: Recipe, source: Source) -> engine.Image:
    repository, _, tag = source.ref.rpartition("@" if source.pinned else ":")
    if source.pinned:  # the API takes a digest in the tag's place, and no tag beside it
        repository = repository.rpartition(":")[0]
    ref = source.ref if source.pinned else recipe.ref
    fetch(repository, tag)
    if not source.pinned:
        with closing(client()) as docker:
            own, _, key = recipe.ref.rpartition(":")
            docker.images.get(source.ref).tag(own, key)
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
        ImageUnavailable: the registry refuses it, or it takes too long.
        DockerException, RequestException: the engine or the registry stopped talking; `reason` has the words.
    """
    deadline = time.monotonic() + _WHOLE
    with closing(client(timeout=_SILENCE)) as docker:
        for event in docker.api.pull(repository, tag=tag, stream=True, decode=True, platform=platform):
            _raise_on_error(event, f"{repository}:{tag}")
            if time.monotonic() > deadline:
                raise ImageUnavailable(f"was not there after {_WHOLE:.0f} s", where=f"{repository}:{tag}")


def upstream(recipe: Recipe) -> engine.Image | None:
    """The pinned upstream image, where the engine has it already."""
    for source in sources(recipe):
        if source.pinned:
            return engine.find(recipe.name, source.ref, "pulled")
    return None


def _raise_on_error(event: dict[str, Any], ref: str) -> None:
    if message := event.get("error"):
        raise ImageUnavailable(str(message), where=ref)


def reason(error: Exception) -> str:
    """Why a pull or push failed, in the words of who refused it."""
    if isinstance(error, RequestException) and "timed out" in str(error).lower():
        return f"the registry stopped sending: nothing for {_SILENCE} s"
    if isinstance(error, ImageUnavailable):
        return error.what
    text = str(error)
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text
