"""Layers and image archives, written byte for byte the same from the same input.

`docker load` and containerd's `ctr images import` both read the archive; neither a builder nor root is needed to make
one. Format: https://github.com/moby/docker-image-spec (v1.2), the combined image JSON and filesystem changeset.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sandbox.images.recipe import Config, architecture

_CHUNK = 1 << 20
# one date for all: what differs then differs in content
_CREATED = "1970-01-01T00:00:00Z"


@dataclass(frozen=True)
class Entry:
    """One thing in a layer: a file from disk or from bytes, a folder, or a link."""

    name: str
    mode: int = 0o644
    source: Path | bytes | None = None
    link: str = ""
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True)
class Layer:
    """A finished layer on disk. `diff_id` is the sha256 of its uncompressed tar, in hex."""

    path: Path
    diff_id: str


@dataclass(frozen=True)
class Built:
    """A finished image: its name, its layers, its configuration as JSON."""

    ref: str
    layers: tuple[Layer, ...]
    config: bytes


def write_layer(entries: Iterable[Entry], path: Path) -> Layer:
    """Write a layer, sorted by name, with every folder on the way, root's own unless said otherwise."""
    wanted = {entry.name.strip("/"): entry for entry in entries}
    for name in list(wanted):
        for parent in Path(name).parents:
            if str(parent) != ".":
                wanted.setdefault(str(parent), Entry(str(parent), 0o755))
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(wanted):
            _add(tar, name, wanted[name])
    return Layer(path, sha256(path))


def _add(tar: tarfile.TarFile, name: str, entry: Entry) -> None:
    info = tarfile.TarInfo(name)
    info.mode, info.uid, info.gid = entry.mode, entry.uid, entry.gid
    if entry.link:
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.link, 0o777
        tar.addfile(info)
    elif entry.source is None:
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    elif isinstance(entry.source, bytes):
        info.size = len(entry.source)
        tar.addfile(info, io.BytesIO(entry.source))
    else:
        info.size = entry.source.stat().st_size
        with entry.source.open("rb") as content:
            tar.addfile(info, content)


def folder_entries(folder: Path, into: str = "/", *, only: Sequence[str] = ()) -> list[Entry]:
    """Every file of a folder as entries below `into`; executables stay so. `only`: glob patterns."""
    entries: list[Entry] = []
    for path in sorted(folder.rglob("*")):
        where = path.relative_to(folder)
        if "__pycache__" in where.parts or (only and not any(where.match(pattern) for pattern in only)):
            continue
        name = (Path(into.strip("/")) / where).as_posix()
        if path.is_symlink():
            entries.append(Entry(name, link=str(path.readlink())))
        elif path.is_file():
            executable = os.access(path, os.X_OK) or path.read_bytes()[:2] == b"#!"
            entries.append(Entry(name, 0o755 if executable else 0o644, path))
        elif not only:
            entries.append(Entry(name, 0o755))
    return entries


def image(ref: str, layers: Sequence[Layer], config: Config, labels: dict[str, str]) -> Built:
    """An image of those layers, bottom first."""
    body: dict[str, Any] = {
        "architecture": architecture(),
        "os": "linux",
        "created": _CREATED,
        "config": _engine_config(config, labels),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.diff_id}" for layer in layers]},
        "history": [{"created": _CREATED, "created_by": "ai-k8s-sandbox"} for _ in layers],
    }
    return Built(ref, tuple(layers), json.dumps(body, sort_keys=True).encode())


def _engine_config(config: Config, labels: dict[str, str]) -> dict[str, Any]:
    env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **config.env}
    body: dict[str, Any] = {
        "Env": [f"{name}={value}" for name, value in env.items()],
        "Labels": labels,
        "User": config.user,
        "WorkingDir": config.workdir or "/",
    }
    if config.entrypoint:
        body["Entrypoint"] = config.entrypoint
    if config.command:
        body["Cmd"] = config.command
    if config.ports:
        body["ExposedPorts"] = {f"{port}/tcp": {} for port in config.ports}
    if config.stop_signal:
        body["StopSignal"] = config.stop_signal
    return body


def compressed(images: Sequence[Built]) -> list[Built]:
    """The same images with gzipped layers, beside the plain ones; quick rather than small, on all CPUs."""
    layers = {layer.diff_id: layer for built in images for layer in built.layers}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # zlib lets go of the interpreter while it works
        packed = dict(zip(layers, pool.map(_gzipped, layers.values()), strict=True))
    return [replace(built, layers=tuple(packed[layer.diff_id] for layer in built.layers)) for built in images]


def _gzipped(layer: Layer) -> Layer:
    target = layer.path.with_suffix(".tar.gz")
    with (
        layer.path.open("rb") as plain,
        target.open("wb") as out,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=out, mtime=0) as packed,
    ):
        shutil.copyfileobj(plain, packed, _CHUNK)
    return Layer(target, layer.diff_id)


def write_archive(images: Sequence[Built], path: Path) -> None:
    """Write images into one archive; a layer that several share is there once."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with tarfile.open(draft, "w", format=tarfile.PAX_FORMAT) as tar:
            written: set[str] = set()
            for built in images:
                for layer in built.layers:
                    if layer.diff_id not in written:
                        written.add(layer.diff_id)
                        _add(tar, f"{layer.diff_id}/layer.tar", Entry("", source=layer.path))
                _add(tar, _config_name(built), Entry("", source=built.config))
            manifest = [
                {
                    "Config": _config_name(built),
                    "RepoTags": [built.ref],
                    "Layers": [f"{layer.diff_id}/layer.tar" for layer in built.layers],
                }
                for built in images
            ]
            _add(tar, "manifest.json", Entry("", source=json.dumps(manifest).encode()))
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _config_name(built: Built) -> str:
    return f"{hashlib.sha256(built.config).hexdigest()}.json"


def sha256(path: Path) -> str:
    """The sha256 of a file, in hex."""
    total = hashlib.sha256()
    with path.open("rb") as content:
        while chunk := content.read(_CHUNK):
            total.update(chunk)
    return total.hexdigest()
