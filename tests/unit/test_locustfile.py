"""Where a locustfile is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.errors import UsageError
from sandbox.spec.locustfile import locate

SHIPPED = Path(__file__).parents[2] / "loadtests" / "locustfile.py"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["loadtests/locustfile.py", "locustfile.py", str(SHIPPED)])
def test_a_shipped_one_is_found_from_anywhere(name: str) -> None:
    assert locate(name) == SHIPPED


def test_a_path_of_the_users_own_comes_first(elsewhere: Path) -> None:
    own = elsewhere / "locustfile.py"
    own.touch()
    assert locate("locustfile.py") == own
    assert locate("loadtests/locustfile.py") == SHIPPED
    (elsewhere / "loadtests").mkdir()
    (elsewhere / "loadtests" / "locustfile.py").touch()
    assert locate("loadtests/locustfile.py") == elsewhere / "loadtests" / "locustfile.py"


@pytest.mark.parametrize(
    "name", ["nope.py", "../locustfile.py", "loadtests/../locustfile.py", "/nope.py", "x" * 5000, "."]
)
def test_what_is_not_there_is_refused_with_what_is(name: str) -> None:
    with pytest.raises(UsageError, match="there is no locustfile") as caught:
        locate(name)
    assert "locustfile_steps.py" in str(caught.value)
