"""Debian trees where there is no root or no debootstrap: Debian's own slim image, apt in a container of it, its files.

Works with any engine that can have the image and reach Debian's packages. The container is an ordinary one, without
privileges; its base is named by suite, not by digest, since apt brings it up to the day (and verifies what it brings).
"""

from __future__ import annotations

import copy
import io
import os
import tarfile
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from docker.errors import ImageNotFound

from sandbox.errors import EnvironmentMissing, ImageUnavailable
from sandbox.host import registries
from sandbox.host.engine import client
from sandbox.images import apt, crew, engine, registry, store
from sandbox.images.recipe import architecture

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

_STEP = 900  # seconds for one call of apt-get
_LIFE = 3 * _STEP + 300  # seconds after which a container ends by itself, should its maker be killed
_TIMED_OUT = (124, 137)
_TAIL = 12
# the engine's, in every container it makes
_ENGINES_OWN = ("etc/hosts", "etc/mtab", "run/.containerenv", ".dockerenv", ".dockerinit")
_MOUNTED = ("dev", "proc", "sys")


def bases(suite: str) -> list[str]:
    """The names under which Debian's image may be had, best first: what SANDBOX_REGISTRY names, then Docker Hub."""
    image = f"debian:{suite}-slim"
    mirror = registries.mirror()
    return [*([f"{mirror}/{image}", f"{mirror}/library/{image}"] if mirror else []), f"docker.io/library/{image}"]


def trouble(suite: str) -> list[str]:
    """Why no tree can be made in a container here, a line for each registry; nothing where one can be tried.

    Raises:
        EnvironmentMissing: no engine answers, or it runs another architecture than images are built for.
    """
    docker = client()
    _same_architecture(docker)
    if _present(docker, suite):
        return []
    reasons = {host: registries.unreachable(host) for host in dict.fromkeys(map(registries.host, bases(suite)))}
    return [] if "" in reasons.values() else [f"{host}: {reason}" for host, reason in reasons.items()]


def make(suite: str, packages: Sequence[str], target: Path) -> None:
    """Write a Debian system with those packages as a tar: names sorted, times 0, no hard links, no devices.

    Raises:
        EnvironmentMissing: no engine answers, or it runs another architecture.
        ImageUnavailable: Debian's image or a package cannot be had, or the engine failed; says what it said.
    """
    docker = client(timeout=_STEP + 60)
    raw = target.with_name("export.tar")
    try:
        with engine.explained("the engine failed to make a Debian tree", where=f"debian:{suite}-slim"):
            _same_architecture(docker)
            base = _present(docker, suite) or _pulled(docker, suite)
            _fill(docker, base, suite, packages, raw)
            _rewrite(raw, target)
    finally:
        raw.unlink(missing_ok=True)


def _same_architecture(docker: DockerClient) -> None:
    engines = str(docker.version().get("Arch", ""))
    if engines != architecture():
        raise EnvironmentMissing(
            f"the engine runs {engines or 'an unknown architecture'}, images are built here for {architecture()}",
            fix="use an engine of this machine's architecture: DOCKER_HOST or docker context use",
        )


def _present(docker: DockerClient, suite: str) -> str:
    """The name of Debian's image in the engine, where it is there for the right architecture."""
    for ref in bases(suite):
        with suppress(ImageNotFound):
            if docker.images.get(ref).attrs.get("Architecture") == architecture():
                return ref
    return ""


def _pulled(docker: DockerClient, suite: str) -> str:
    reasons: list[str] = []
    for ref in bases(suite):
        if silent := registries.unreachable(registries.host(ref)):
            reasons.append(f"{ref}: {silent}")
            continue
        try:
            registry.fetch(*ref.rsplit(":", 1), platform=f"linux/{architecture()}")
        except ImageUnavailable as error:
            reasons.append(f"{ref}: {error.what}")
            continue
        if _present(docker, suite) == ref:
            return ref
        reasons.append(f"{ref}: has no image for linux/{architecture()}")
    raise ImageUnavailable(
        f"Debian's image for {suite} can be pulled from nowhere",
        details=reasons,
        fix=f"name a registry that holds debian:{suite}-slim: {registries.MIRROR}=<host:port>",
    )


def _fill(docker: DockerClient, base: str, suite: str, packages: Sequence[str], raw: Path) -> None:
    """Install in a container of `base` and write what it then holds to `raw`; the container is gone afterwards."""
    lent = apt.of_machine(suite)
    name = f"ai-k8s-sandbox-tree-{os.getpid()}-{uuid.uuid4().hex[:12]}"  # whose it is, if it is left over

    def remove() -> None:
        with suppress(*engine.FAILURES):  # nothing may hide why it failed; it removes itself when it ends
            docker.containers.get(name).remove(force=True, v=True)

    try:
        with crew.ending(remove):
            container = docker.containers.run(
                base,
                [str(_LIFE)],
                entrypoint="sleep",
                name=name,
                user="0",
                working_dir="/",
                detach=True,
                auto_remove=True,
                use_config_proxy=True,
            )
            # no service may start in a tree that is only being put together
            _put(container, {"usr/sbin/policy-rc.d": b"#!/bin/sh\nexit 101\n"} | dict(lent.files if lent else {}))
            for arguments in (
                ["update"],
                ["--yes", "upgrade"],
                ["--yes", "--no-install-recommends", "install", *packages],
            ):
                _execute(container, apt.command(arguments, lent))
            with raw.open("wb") as out:
                for chunk in docker.api.export(name):
                    out.write(chunk)
    finally:
        remove()


def _put(container: Container, files: dict[str, bytes]) -> None:
    """Write small files into a container, with the folders they need."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in files.items():
            if name.startswith("tmp/"):
                folder = tarfile.TarInfo(name.rpartition("/")[0])
                folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(folder)
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755 if content.startswith(b"#!") else 0o644
            tar.addfile(info, io.BytesIO(content))
    container.put_archive("/", packed.getvalue())


def _execute(container: Container, command: Sequence[str]) -> None:
    done = container.exec_run(["timeout", "--kill-after=10", str(_STEP), *command], environment=dict(apt.ENVIRONMENT))
    if not done.exit_code:
        return
    output = done.output if isinstance(done.output, bytes) else b"".join(done.output)
    lines = output.decode(errors="replace").splitlines()[-_TAIL:]
    reach = "check that containers reach Debian's packages (a proxy goes into ~/.docker/config.json)"
    raise ImageUnavailable(
        f"apt-get was not done after {_STEP} s"
        if done.exit_code in _TIMED_OUT
        else f"apt-get failed in a container with exit code {done.exit_code}",
        where=" ".join(command)[:200],
        details=lines,
        fix=store.remedy("\n".join(lines), reach),
    )


def _rewrite(raw: Path, target: Path) -> None:
    """Turn what an engine exports into what layers are cut from."""
    with tarfile.open(raw) as tar, tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as out:
        members = {member.name.removeprefix("./").strip("/"): member for member in tar}
        if "bin" not in members or not members["bin"].issym():
            raise ImageUnavailable(
                "Debian's image has /bin beside /usr/bin; layers are cut from merged systems only",
                fix="name a newer suite in image.yaml",
            )
        for name in sorted(filter(None, members)):
            if not left_out(name):
                content = _followed(members, name)
                member = copy.copy(members[name])
                if content.isreg():  # as it is, or in the place of a hard link to it
                    member.type, member.size, member.linkname = content.type, content.size, ""
                member.name, member.mtime, member.uname, member.gname, member.pax_headers = name, 0, "", "", {}
                out.addfile(member, tar.extractfile(content) if content.isreg() else None)


def _followed(members: dict[str, tarfile.TarInfo], name: str) -> tarfile.TarInfo:
    member = members[name]
    while member.islnk():
        member = members[member.linkname.removeprefix("./").strip("/")]
    return member


def left_out(name: str) -> bool:
    """Whether a path of a container's files is no part of the tree: the engine's own, and what making it left."""
    return name in (*_ENGINES_OWN, *apt.REMOVED) or name.startswith(
        tuple(f"{folder}/" for folder in (*_MOUNTED, *apt.EMPTIED))
    )
