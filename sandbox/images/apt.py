"""How apt is asked inside a Debian tree, wherever the tree is made, and which archive it asks.

A machine that is Debian of the same suite lends its own archive addresses, so that a mirror it is set to is used. They
are in the tree only while it is made: what a layer is cut from names no archive but Debian's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ENVIRONMENT: Final = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
# what only the making needed, or what tells of the machine it was made on: these are emptied, those removed
EMPTIED: Final = ("var/cache/apt", "var/lib/apt/lists", "var/log", "tmp")
REMOVED: Final = ("usr/sbin/policy-rc.d", "etc/resolv.conf", "etc/hostname")
_LENT = "tmp/sandbox-apt"
_LIST, _AUTHORITIES = f"{_LENT}/sources.list", f"{_LENT}/authorities.crt"
_KEYRING = "usr/share/keyrings/debian-archive-keyring.gpg"
_MACHINE_AUTHORITIES = "etc/ssl/certs/ca-certificates.crt"
_ONE_LINE = re.compile(r"^deb\s+(?:\[(?P<options>[^]]*)]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)$")
_COMPONENT = "main"


@dataclass(frozen=True)
class Entry:
    """One archive address for one suite, as an apt source names it. `signed_by` is empty where none is named."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str


@dataclass(frozen=True)
class Sources:
    """The machine's archive addresses: the suite's own `mirror`, and what a tree is lent, path -> content."""

    mirror: str
    files: Mapping[str, bytes]


def command(arguments: Sequence[str], lent: Sources | None) -> list[str]:
    """The command line of apt-get in a tree that holds the files of `lent`, or asks its own archive where None."""
    options = ["Dpkg::Use-Pty=0", "Acquire::Languages=none", "DPkg::Options::=--force-unsafe-io"]
    if lent:
        options += [f"Dir::Etc::sourcelist=/{_LIST}", "Dir::Etc::sourceparts=/dev/null"]
        if _AUTHORITIES in lent.files:
            options.append(f"Acquire::https::CAInfo=/{_AUTHORITIES}")
    return ["apt-get", "-qq", *(word for option in options for word in ("-o", option)), *arguments]


def of_machine(suite: str, root: Path = Path("/")) -> Sources | None:
    """What this machine's apt is set to, where it is Debian of that suite; else None.

    Only addresses over HTTP(S) with the component `main`, of the suite itself, its updates and its security fixes, that
    name no other signing key than Debian's; a tree trusts that key alone, whatever the machine trusts.
    """
    if not _is_debian(root, suite):
        return None
    wanted = (suite, f"{suite}-updates", f"{suite}-security")
    entries = [
        entry
        for entry in _entries(root)
        if entry.suite in wanted
        and entry.uri.startswith(("http://", "https://"))
        and _COMPONENT in entry.components
        and (not entry.signed_by or Path(entry.signed_by).name.startswith("debian-archive-"))
    ]
    mirror = next((entry.uri for entry in entries if entry.suite == suite), None)
    if mirror is None:
        return None
    lines = dict.fromkeys(f"deb [signed-by=/{_KEYRING}] {each.uri} {each.suite} {_COMPONENT}\n" for each in entries)
    files = {_LIST: "".join(lines).encode()}
    authorities = root / _MACHINE_AUTHORITIES
    if any(entry.uri.startswith("https:") for entry in entries) and authorities.is_file():
        files[_AUTHORITIES] = authorities.read_bytes()  # a bare tree knows none
    return Sources(mirror, files)


def _is_debian(root: Path, suite: str) -> bool:
    about = root / "etc/os-release"
    if not about.is_file():
        return False
    fields = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', about.read_text(encoding="utf-8"), re.MULTILINE))
    return fields.get("ID") == "debian" and fields.get("VERSION_CODENAME") == suite


def _entries(root: Path) -> Iterator[Entry]:
    folder = root / "etc/apt"
    for path in (folder / "sources.list", *sorted((folder / "sources.list.d").glob("*.list"))):
        for line in _text(path).splitlines():
            if found := _ONE_LINE.match(line.partition("#")[0].strip()):
                options = dict(re.findall(r"([\w-]+)=(\S+)", found["options"] or ""))
                components = tuple(found["components"].split())
                yield Entry(found["uri"], found["suite"], components, options.get("signed-by", ""))
    for path in sorted((folder / "sources.list.d").glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", _text(path)):
            yield from _stanza(stanza)


def _stanza(stanza: str) -> Iterator[Entry]:
    """The entries of one deb822 stanza: each address with each suite."""
    kept = "\n".join(line for line in stanza.splitlines() if not line.startswith("#"))
    found = re.findall(r"^([\w-]+):((?:.*\n?)(?:[ \t].*\n?)*)", kept, re.MULTILINE)
    fields = {name.lower(): value.strip() for name, value in found}
    if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in {"no", "false", "0"}:
        return
    components = tuple(fields.get("components", "").split())
    for uri in fields.get("uris", "").split():
        for suite in fields.get("suites", "").split():
            yield Entry(uri, suite, components, fields.get("signed-by", ""))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
