"""What goes into an image: names, versions, licences."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["debian", "go", "wheel"]

# Debian's short names (https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/) as SPDX has them
_SPDX = {
    "apache-2": "Apache-2.0",
    "apache-2.0": "Apache-2.0",
    "artistic": "Artistic-1.0-Perl",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "bsd-4-clause": "BSD-4-Clause",
    "bsd-4-clause-uc": "BSD-4-Clause-UC",
    "cc0": "CC0-1.0",
    "cc0-1.0": "CC0-1.0",
    "curl": "curl",
    "expat": "MIT",
    "isc": "ISC",
    "mit": "MIT",
    "python-2.0": "Python-2.0",
    "openldap-2.8": "OLDAP-2.8",
    "x11": "X11",
    "zlib": "Zlib",
}
_GNU = re.compile(r"^(A?GPL|LGPL|GFDL)-?v?(\d)(?:\.(\d))?(?:\.0)?(\+)?$", re.IGNORECASE)


@dataclass(frozen=True)
class Item:
    """One thing in an image. `licence` is an SPDX expression or empty; `words` says it as the source does."""

    kind: Kind
    name: str
    version: str
    licence: str = ""
    words: str = ""


@dataclass
class Ingredients:
    """All things in an image, each once."""

    items: set[Item] = field(default_factory=set)

    def add(self, items: Iterable[Item]) -> None:
        """Take in more; a thing that is there already is not counted twice."""
        self.items |= set(items)


def debian_licence(names: Iterable[str]) -> tuple[str, str]:
    """Debian's short licence names as (SPDX expression, the names); the expression is empty unless all are known."""
    distinct = sorted({name.strip() for name in names if name.strip()})
    known = [spdx(name) for name in distinct]
    return (" AND ".join(sorted(set(known))) if known and all(known) else "", ", ".join(distinct))


def spdx(name: str) -> str:
    """One Debian short name as SPDX identifier; empty when there is no certain one."""
    if found := _GNU.match(name):
        family, major, minor, later = found.groups()
        return f"{family.upper()}-{major}.{minor or 0}-{'or-later' if later else 'only'}"
    return _SPDX.get(name.lower(), "")
