"""Debian systems as layers: debootstrap once, packages on top, and slices that carry a few packages only.

Without root or debootstrap the system is made in a container instead. Everything is as Debian signs it (debootstrap and
apt verify); versions are those of the day and are recorded.
"""

from __future__ import annotations

import fnmatch
import io
import json
import os
import posixpath
import re
import shutil
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sandbox.errors import ImageUnavailable
from sandbox.images import apt, container_tree, crew, store
from sandbox.images.ingredients import Item, debian_licence
from sandbox.images.recipe import DebianTree, SliceLayer, TreeLayer, architecture, digest_of
from sandbox.progress import step

_STATUS = "var/lib/dpkg/status"
_INFO = "var/lib/dpkg/info"
_MERGED = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
_COPYRIGHT = re.compile(r"usr/share/doc/[^/]+/copyright$")
# what no container reads; licences stay
_USELESS = ("usr/share/doc/*", "usr/share/man/*", "usr/share/locale/*", "usr/share/info/*", "usr/share/lintian/*")
_TAIL = 12
_LINKS = 8  # more in a row is a circle
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_TREE = "tree.tar"
_PACKAGES = "packages.json"


@dataclass(frozen=True)
class Package:
    """An installed package. `depends`: names, the first of alternatives that is installed is looked up later."""

    name: str
    version: str
    depends: tuple[tuple[str, ...], ...]
    provides: tuple[str, ...]


def key(tree: DebianTree) -> str:
    """Content key of what `build` gives: Debian's own changes after the first build do not enter it."""
    words = ["2", architecture(), tree.suite, *sorted(tree.packages)]
    return f"{tree.suite}-{digest_of(words, [])[:12]}"


def build(tree: DebianTree) -> Path:
    """Make a Debian system, or take it from the cache. The folder holds `tree.tar` and `packages.json`.

    As root with debootstrap it is made here, else in a container of the engine.

    Raises:
        EnvironmentMissing: neither way is open.
        ImageUnavailable: a package cannot be had; the last lines are in the details.
    """
    return store.produced("debian", key(tree), lambda draft: _make(tree, draft))


def require(tree: DebianTree) -> None:
    """Raise ImageUnavailable where no Debian tree can be made here, with the reason for each way and the fix."""
    if not (refusal := _no_root()) or not (registries := container_tree.trouble(tree.suite)):
        return
    install = "apt-get install --yes debootstrap debian-archive-keyring"
    here = install if os.geteuid() == 0 else "sudo env PATH=$PATH sandbox images build"
    raise ImageUnavailable(
        "Debian packages can be installed into an image in neither way",
        details=[f"here: {refusal}", *(f"in a container of debian:{tree.suite}-slim: {each}" for each in registries)],
        fix=f"{here}   (Debian); or name a registry that has the images: SANDBOX_REGISTRY=<host:port>",
    )


def _no_root() -> str:
    """Why a tree cannot be made on this machine itself, or nothing."""
    if os.geteuid() != 0:
        return "not root, which debootstrap has to be"
    if not shutil.which("debootstrap"):
        return "no debootstrap"
    return "" if _KEYRING.is_file() else "no debian-archive-keyring, to verify Debian's packages with"


def _make(tree: DebianTree, draft: Path) -> None:
    title = f"install {len(tree.packages)} Debian packages and what they need"
    if refusal := _no_root():
        with step(f"{title}, in a container ({refusal})"):
            container_tree.make(tree.suite, tree.packages, draft / _TREE)
            _record(draft)
        return
    base = store.produced("debian", f"{tree.suite}-minbase-{architecture()}", lambda inner: _bootstrap(tree, inner))
    with step(f"{title}, with debootstrap"):
        root = draft / "root"
        lent = apt.of_machine(tree.suite)
        _unpack(base, root, lent)
        _apt(root, ["update"], lent)
        _apt(root, ["--yes", "upgrade"], lent)
        _apt(root, ["--yes", "--no-install-recommends", "install", *tree.packages], lent)
        _pack(root, draft)


def _bootstrap(tree: DebianTree, draft: Path) -> None:
    with step(f"debootstrap Debian {tree.suite}"):
        root = draft / "root"
        lent = apt.of_machine(tree.suite)
        mirror = [lent.mirror] if lent else []  # debootstrap knows Debian's own
        kind = ["--variant=minbase", "--merged-usr"]
        _run(["debootstrap", "--force-check-gpg", *kind, tree.suite, str(root), *mirror])
        if lent:  # a machine's mirror is nothing for an image that others get
            (root / "etc/apt/sources.list").write_text("", encoding="utf-8")
        _pack(root, draft)


def _unpack(base: Path, root: Path, lent: apt.Sources | None) -> None:
    root.mkdir()
    _run(["tar", "--extract", "--numeric-owner", "--file", str(base / _TREE), "--directory", str(root)])
    # no service may start in a tree that is only being put together
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n", encoding="utf-8")
    policy.chmod(0o755)
    resolver = Path("/etc/resolv.conf")
    if resolver.is_file():
        shutil.copyfile(resolver, root / "etc/resolv.conf")
    for name, content in (lent.files if lent else {}).items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)


def _apt(root: Path, arguments: Sequence[str], lent: apt.Sources | None) -> None:
    _run(["chroot", str(root), *apt.command(arguments, lent)], **apt.ENVIRONMENT)


def _pack(root: Path, draft: Path) -> None:
    """Write the tree as a layer without what only the installing needed, and the list of its packages."""
    for leftover in apt.EMPTIED:
        for inner in (root / leftover).iterdir():
            store.discard(inner) if inner.is_dir() and not inner.is_symlink() else inner.unlink()
    for leftover in apt.REMOVED:
        (root / leftover).unlink(missing_ok=True)
    _run(
        [
            *("tar", "--create", "--numeric-owner", "--sort=name", "--hard-dereference", "--format=pax", "--mtime=@0"),
            *("--pax-option=delete=atime,delete=ctime", "--file", str(draft / _TREE), "--directory", str(root)),
            *sorted(path.name for path in root.iterdir()),
        ]
    )
    store.discard(root)
    _record(draft)


def _record(draft: Path) -> None:
    """Write the list of a tree's packages beside it."""
    with tarfile.open(draft / _TREE) as tree:
        members = {member.name.removeprefix("./"): member for member in tree.getmembers()}
        installed = _installed(_text(tree, members[_STATUS]))
        listed = [asdict(_item(tree, members, package)) for package in installed.values()]
    (draft / _PACKAGES).write_text(json.dumps(listed, indent=1), encoding="utf-8")


def _item(tree: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], package: Package) -> Item:
    """A package with the licences that its copyright file names (machine-readable ones only)."""
    member = _followed(members, f"usr/share/doc/{package.name}/copyright")
    text = _text(tree, member) if member else ""
    licence, words = debian_licence(re.findall(r"^License:[ \t]*(\S.*)$", text, re.MULTILINE))
    return Item("debian", package.name, package.version, licence, words)


def _followed(members: Mapping[str, tarfile.TarInfo], name: str) -> tarfile.TarInfo | None:
    """The file of that name where it, or the folder it lies in, may be a link: packages of one source share theirs."""
    for _ in range(_LINKS):
        link = next((path for path in (name, posixpath.dirname(name)) if path in members and members[path].issym()), "")
        if not link:
            break
        behind = posixpath.join("/", posixpath.dirname(link), members[link].linkname)
        name = posixpath.normpath(behind + name.removeprefix(link)).lstrip("/")
    return members.get(name)


def _run(command: Sequence[str], **environment: str) -> None:
    done = crew.run(command, environment=os.environ | environment)
    if done.returncode:
        lines = (done.stdout + done.stderr).splitlines()[-_TAIL:]
        raise ImageUnavailable(
            f"`{command[0]}` failed with exit code {done.returncode}",
            where=" ".join(command)[:200],
            details=lines,
            fix=store.remedy("\n".join(lines), "check that Debian's packages are reachable with: apt-get update"),
        )


def packages(folder: Path) -> dict[str, Item]:
    """The packages of a tree that `build` gave, by name."""
    return {each["name"]: Item(**each) for each in json.loads((folder / _PACKAGES).read_text(encoding="utf-8"))}


def write_tree(folder: Path, layer: TreeLayer, target: Path) -> None:
    """Write a whole tree as a layer."""
    with tarfile.open(folder / _TREE) as tree, tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as out:
        for member in tree:
            if member.name.startswith("dev/"):  # the engine makes its own
                continue
            if not _left_out(member.name, layer.without) or _COPYRIGHT.search(member.name):
                out.addfile(member, tree.extractfile(member) if member.isreg() else None)


def write_slice(folder: Path, layer: SliceLayer, target: Path) -> list[Item]:
    """Write some packages of a tree, with all they depend on, as a layer; what went in."""
    with tarfile.open(folder / _TREE) as tree:
        members = {member.name.removeprefix("./"): member for member in tree.getmembers()}
        status = _text(tree, members[_STATUS])
        known = _installed(status)
        chosen = closure(known, layer.packages, layer.without_packages)
        wanted = {name for package in chosen for name in _files(tree, members, package)}
        wanted |= {name for name in members if any(fnmatch.fnmatch(name, pattern) for pattern in layer.also)}
        wanted |= {name for name in _MERGED if name in members and members[name].issym()}
        wanted |= {str(parent) for name in wanted for parent in Path(name).parents if str(parent) != "."}
        with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as out:
            for name in sorted(wanted & members.keys()):
                useless = _left_out(name, (*_USELESS, *layer.without)) and not _COPYRIGHT.search(name)
                if useless and not members[name].isdir():
                    continue
                out.addfile(members[name], tree.extractfile(members[name]) if members[name].isreg() else None)
            _write_status(out, status, chosen)
    listed = packages(folder)
    return [listed[name] for name in sorted(chosen)]


def closure(packages: Mapping[str, Package], wanted: Iterable[str], without: Iterable[str]) -> set[str]:
    """Return the wanted packages and all they depend on, except those left out.

    Raises:
        ImageUnavailable: a wanted package is not installed in the tree.
    """
    providers = {name: package.name for package in packages.values() for name in package.provides}
    banned, chosen, queue = set(without), set[str](), list(wanted)
    for name in queue:
        if name not in packages:
            raise ImageUnavailable(
                f"the package {name} is not in the Debian tree", fix="name it in the tree's packages in image.yaml"
            )
    while queue:
        name = queue.pop()
        if name in chosen or name in banned:
            continue
        chosen.add(name)
        for alternatives in packages[name].depends:
            found = next((each for each in alternatives if each in packages), None)
            found = found or next((providers[each] for each in alternatives if each in providers), None)
            if found:
                queue.append(found)
    return chosen


def _installed(status: str) -> dict[str, Package]:
    found: dict[str, Package] = {}
    for stanza in status.split("\n\n"):
        fields = dict(re.findall(r"^([A-Z][\w-]*): (.*)$", stanza, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            needs = ", ".join(filter(None, (fields.get("Pre-Depends", ""), fields.get("Depends", ""))))
            depends = tuple(tuple(map(_bare, group.split("|"))) for group in needs.split(",") if group.strip())
            provides = tuple(_bare(each) for each in fields.get("Provides", "").split(",") if each.strip())
            found[fields["Package"]] = Package(fields["Package"], fields["Version"], depends, provides)
    return found


def _bare(dependency: str) -> str:
    return re.split(r"[(:]", dependency, maxsplit=1)[0].strip()


def _files(tree: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], package: str) -> set[str]:
    listing = members.get(f"{_INFO}/{package}.list") or members.get(f"{_INFO}/{package}:{architecture()}.list")
    if listing is None:
        raise ImageUnavailable(f"dpkg does not list the files of {package}", fix="sandbox images build --fresh")
    names = (line.strip("/") for line in _text(tree, listing).splitlines())
    # the packages still say /lib, the tree has it under /usr
    return {f"usr/{name}" if name.split("/")[0] in _MERGED and "/" in name else name for name in names} - {"", "."}


def _write_status(out: tarfile.TarFile, status: str, chosen: set[str]) -> None:
    """One file per package where scanners look for them in images without a package manager."""
    for stanza in status.split("\n\n"):
        name = stanza.removeprefix("\n").split("\n")[0].removeprefix("Package: ")
        if name in chosen:
            body = f"{stanza.strip()}\n".encode()
            info = tarfile.TarInfo(f"var/lib/dpkg/status.d/{name}")
            info.size, info.mode = len(body), 0o644
            out.addfile(info, io.BytesIO(body))


def _text(tree: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    content = tree.extractfile(member)
    return content.read().decode(errors="replace") if content else ""


def _left_out(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def present(tree: DebianTree) -> bool:
    """Whether the cache has it already."""
    return store.folder("debian", key(tree)).is_dir()


def forget(tree: DebianTree) -> None:
    """Drop a tree and what it stands on from the cache, so that the next build takes today's packages."""
    for name in (key(tree), f"{tree.suite}-minbase-{architecture()}"):
        with store.locked(f"debian-{name}"):
            store.discard(store.folder("debian", name))
