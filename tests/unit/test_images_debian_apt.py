from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.images import apt

KEYRING = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
ONE_LINE = """\
# deb http://old.example/debian bookworm main
deb [arch=amd64 trusted=yes] http://mirror.example/debian bookworm main contrib # near
deb-src http://mirror.example/debian bookworm main
deb http://mirror.example/debian bookworm-updates main
deb http://mirror.example/debian bookworm-backports main
deb http://mirror.example/security bookworm-security main
deb [signed-by=/usr/share/keyrings/vendor.gpg] http://vendor.example/apt bookworm main
deb http://vendor.example/apt bookworm stable
deb cdrom:[Debian]/ bookworm main
"""
DEB822 = """\
Types: deb deb-src
# where from
URIs: https://one.example/debian
 http://two.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
Enabled: no

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm
Components: main
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    (tmp_path / "etc/apt/sources.list.d").mkdir(parents=True)
    (tmp_path / "etc/os-release").write_text('NAME="Debian GNU/Linux"\nVERSION_CODENAME=bookworm\nID=debian\n')
    return tmp_path


def _lines(sources: apt.Sources | None) -> list[str]:
    assert sources is not None
    return sources.files["tmp/sandbox-apt/sources.list"].decode().splitlines()


def test_one_line_sources_lend_the_suite_its_updates_and_its_security_fixes_only(machine: Path) -> None:
    (machine / "etc/apt/sources.list").write_text(ONE_LINE)
    sources = apt.of_machine("bookworm", machine)
    assert _lines(sources) == [
        f"deb {KEYRING} http://mirror.example/debian bookworm main",
        f"deb {KEYRING} http://mirror.example/debian bookworm-updates main",
        f"deb {KEYRING} http://mirror.example/security bookworm-security main",
    ]
    assert sources
    assert sources.mirror == "http://mirror.example/debian"


def test_deb822_sources_give_every_address_with_every_suite_and_the_machines_authorities(machine: Path) -> None:
    (machine / "etc/apt/sources.list.d/debian.sources").write_text(DEB822)
    (machine / "etc/ssl/certs").mkdir(parents=True)
    (machine / "etc/ssl/certs/ca-certificates.crt").write_bytes(b"trusted")
    sources = apt.of_machine("bookworm", machine)
    hosts = [line.split("//")[1].split("/")[0] for line in _lines(sources)]
    assert hosts == ["one.example", "one.example", "two.example", "two.example"]
    assert sources
    assert sources.files["tmp/sandbox-apt/authorities.crt"] == b"trusted"
    assert "Acquire::https::CAInfo=/tmp/sandbox-apt/authorities.crt" in apt.command(["update"], sources)


@pytest.mark.parametrize(
    ("release", "sources"),
    [
        ("ID=debian\nVERSION_CODENAME=trixie\n", ONE_LINE),
        ("ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=bookworm\n", ONE_LINE),
        ("ID=debian\nVERSION_CODENAME=bookworm\n", "deb http://mirror.example/security bookworm-security main\n"),
        ("ID=debian\nVERSION_CODENAME=bookworm\n", ""),
    ],
)
def test_a_machine_that_is_not_debian_of_that_suite_lends_nothing(machine: Path, release: str, sources: str) -> None:
    (machine / "etc/os-release").write_text(release)
    (machine / "etc/apt/sources.list").write_text(sources)
    assert apt.of_machine("bookworm", machine) is None


def test_a_machine_without_apt_lends_nothing_and_apt_then_asks_what_the_tree_names(tmp_path: Path) -> None:
    assert apt.of_machine("bookworm", tmp_path) is None
    assert not [word for word in apt.command(["update"], None) if word.startswith("Dir::")]


def test_lent_sources_lie_where_the_tree_is_emptied_afterwards(machine: Path) -> None:
    (machine / "etc/apt/sources.list").write_text(ONE_LINE)
    sources = apt.of_machine("bookworm", machine)
    assert sources
    assert all(name.startswith(tuple(f"{folder}/" for folder in apt.EMPTIED)) for name in sources.files)
