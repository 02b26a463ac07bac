"""Traces: both published layouts, and every way in which a file can be wrong."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from sandbox.errors import UsageError
from sandbox.spec import trace
from sandbox.spec.trace import Row

SHIPPED = Path(__file__).parents[2] / "loadtests" / "traces"
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8

2023-11-16 18:17:05.9799609,0,1
"""
MOONCAKE = """{"timestamp": 27482, "input_length": 915, "output_length": 52, "hash_ids": [46, 47]}
{"timestamp": 27482, "input_length": 100, "output_length": 1}
{"timestamp": 30535.5, "input_length": 513, "output_length": 3, "hash_ids": [46, 48]}
"""


def write(folder: Path, text: str | bytes, name: str = "mine.csv") -> str:
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(file)


def refused(folder: Path, text: str | bytes) -> UsageError:
    with pytest.raises(UsageError) as caught:
        trace.resolve(write(folder, text))
    return caught.value


@pytest.mark.parametrize("change", [("\n", "\r\n"), ("TIME", "\ufeffTIME"), ("09,0,1\n", "09,0,1")])
def test_azure_rows_count_from_the_first(tmp_path: Path, change: tuple[str, str]) -> None:
    assert trace.resolve(write(tmp_path, AZURE.replace(*change))) == [
        Row(at=0, prompt=4808, output=10),
        Row(at=0.052, prompt=3180, output=8),
        Row(at=2, prompt=0, output=1),
    ]


def test_azure_of_2024_has_zones_and_may_have_other_columns(tmp_path: Path) -> None:
    text = (
        "Id,TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "a,2024-05-10 00:00:00.009930+00:00,2162,5\n"
        'b,"2024-05-10 02:00:01.259930+02:00",2399,6\n'
        "c,2024-05-10T00:00:02Z,76,15\n"
    )
    assert [row.at for row in trace.resolve(write(tmp_path, text))] == [0, 1.25, 1.99007]


def test_a_time_without_a_zone_is_utc(tmp_path: Path) -> None:
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00,1,1\n2024-05-10 01:00:02+01:00,1,1\n"
    assert [row.at for row in trace.resolve(write(tmp_path, text))] == [0, 2]


def test_mooncake_rows_count_from_the_first_and_keep_their_blocks(tmp_path: Path) -> None:
    assert trace.resolve(write(tmp_path, MOONCAKE)) == [
        Row(at=0, prompt=915, output=52, blocks=[46, 47]),
        Row(at=0, prompt=100, output=1),
        Row(at=3.0535, prompt=513, output=3, blocks=[46, 48]),
    ]


def test_a_request_without_output_asks_for_one_token_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = trace.resolve(write(tmp_path, AZURE.replace("3180,8", "3180,0")))
    assert [row.output for row in rows] == [10, 1, 1]
    assert "1 requests were answered with no token" in capsys.readouterr().err


def test_what_comes_after_the_time_asked_for_is_not_read(tmp_path: Path) -> None:
    name = write(tmp_path, AZURE + "this is no request\n")
    assert len(trace.resolve(name, until=2)) == 2
    with pytest.raises(UsageError):
        trace.resolve(name, until=3)


def test_every_mistake_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    error = refused(
        tmp_path,
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03,4808,10\n"
        "2023-11-16,12.5,-3\n"
        "2023-11-16 18:17:05,7\n"
        "2023-11-16 25:17:05,7,7\n"
        "2023-11-16 18:17:02,1_0,7\n"
        '2023-11-16 18:17:06,"7,7\n'
        "2023-11-16 18:17:06,99999999999,7\n"
        "2023-11-16 18:17:01,1,1\n",
    )
    assert error.what == "9 problems in this trace"
    told = [detail.removeprefix(f"{tmp_path / 'mine.csv'}:") for detail in error.details]
    assert [line.partition(":")[0] for line in told] == ["3", "3", "3", "4", "5", "6", "7", "8", "9"]
    assert "TIMESTAMP: must be a time such as 2023-11-16 18:17:03.9799600" in told[0]
    assert "ContextTokens: must be a whole number of tokens, 0 or more, not '12.5'" in told[1]
    assert "GeneratedTokens: must be a whole number" in told[2]
    assert "has 2 values; the header names 3" in told[3]
    assert "comes 2 s before the line above it" in told[8]
    assert "sort the file by time" in error.fix
    assert "2023-11-16 18:17:03.9799600,4808,10" in error.fix


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"timestamp": 1, "input_length": 1.5, "output_length": 1}', "input_length: Input should be a valid integer"),
        ('{"timestamp": "1", "input_length": 1, "output_length": 1}', "timestamp: Input should be a valid number"),
        ('{"timestamp": NaN, "input_length": 1, "output_length": 1}', "timestamp: Input should be"),
        ('{"timestamp": -1, "input_length": 1, "output_length": 1}', "timestamp: Input should be greater than"),
        ('{"timestamp": 1, "input_length": true, "output_length": 1}', "input_length: Input should be a valid integer"),
        ('{"timestamp": 1, "input_length": 1, "output_length": 1, "chat_id": 3}', "chat_id: is no key of this layout"),
        ('{"timestamp": 1, "output_length": 1}', "input_length: is missing"),
        ('{"timestamp": 1, "input_length": 32, "output_length": 1, "hash_ids": [1, 2]}', "hash_ids: 2 for 32 tokens"),
        ('{"timestamp": 1, "input_length": 1', "Invalid JSON"),
        ("[1, 2]", "Input should be an object"),
    ],
)
def test_a_bad_line_of_mooncakes_is_refused(tmp_path: Path, line: str, told: str) -> None:
    first = MOONCAKE.splitlines()[0].replace("27482", "0")
    error = refused(tmp_path, f"{first}\n{line}\n")
    assert error.what == "1 problem in this trace"
    assert error.details[0].startswith(f"{tmp_path / 'mine.csv'}:2: ")
    assert told in error.details[0]
    assert '"hash_ids": [0, 773, 774]' in error.fix


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "holds no request"),
        ("\n\n", "holds no request"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "holds no request"),
        ("2023-11-16 18:17:03.9799600,4808,10\n", "no header, and not JSON"),
        ("TIMESTAMP,ContextTokens\n", "the header lacks GeneratedTokens"),
        (b"\x1f\x8b\x08\x00\xff\xfe", "is not text in UTF-8"),
        (b"{" + b" " * 2_000_000, "a line of 1,000,000 bytes or more"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_with_what_would_be_one(
    tmp_path: Path, text: str | bytes, what: str
) -> None:
    error = refused(tmp_path, text)
    assert what in error.what
    assert "TIMESTAMP,ContextTokens,GeneratedTokens" in error.fix
    assert str(tmp_path) in error.where


def test_of_many_mistakes_twenty_are_shown_and_reading_ends(tmp_path: Path) -> None:
    error = refused(tmp_path, AZURE + "nonsense\n" * 24)
    assert (error.what, len(error.details)) == ("24 problems in this trace", 21)
    assert error.details[-1] == "and 4 more"
    error = refused(tmp_path, AZURE + "nonsense\n" * 50_000)
    assert error.details[-1] == "and 980 more, as far as line 1005, where reading ended"


def test_bytes_that_are_no_text_are_a_mistake_of_their_line(tmp_path: Path) -> None:
    error = refused(tmp_path, AZURE.encode() + b"\xff\xfe,1,1\n")
    assert error.details == [f"{tmp_path / 'mine.csv'}:6: is not text in UTF-8"]


def test_more_than_can_be_kept_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_MOST_ROWS", 2)
    assert "has more than 2 requests" in refused(tmp_path, AZURE).what
    assert len(trace.resolve(str(tmp_path / "mine.csv"), until=1)) == 2


@pytest.mark.parametrize("name", ["nowhere.csv", "../secret.csv", "x" * 5000, ".", "a\0b"])
def test_a_trace_that_is_not_there_is_told_with_those_that_are(name: str) -> None:
    with pytest.raises(UsageError, match="there is no trace") as caught:
        trace.resolve(name)
    assert "azure-sample.csv, mooncake-sample.jsonl; or a path to a file" in caught.value.fix


def test_a_folder_of_ones_own_comes_first_and_the_shadow_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "loadtests" / "traces"
    (own / "ours").mkdir(parents=True)
    write(own, AZURE, "azure-sample.csv")
    write(own / "ours", MOONCAKE, "monday.jsonl")
    monkeypatch.chdir(tmp_path)
    assert trace.names() == ["azure-sample.csv", "mooncake-sample.jsonl", "ours/monday.jsonl"]
    assert len(trace.resolve("azure-sample.csv")) == 3
    assert "shadows" in capsys.readouterr().err
    assert len(trace.resolve("ours/monday.jsonl")) == 3
    assert len(trace.resolve("mooncake-sample.jsonl")) == 200


@pytest.mark.parametrize("name", ["azure-sample.csv", "mooncake-sample.jsonl"])
def test_the_samples_are_read_whole(name: str) -> None:
    rows = trace.resolve(name)
    assert len(rows) == 200
    assert rows[0].at == 0
    assert 60 < rows[-1].at < 180
    assert all(after.at >= before.at for before, after in pairwise(rows))
    if name.startswith("mooncake"):
        shared = {row.blocks[0] for row in rows}
        assert shared == {0}
        assert all(len(row.blocks) == -(-row.prompt // trace.BLOCK) for row in rows)
        assert len({block for row in rows for block in row.blocks}) < 0.6 * sum(len(row.blocks) for row in rows)


def test_the_recipe_makes_the_samples_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = re.search(r"```python\n(.*?)```", (SHIPPED / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert recipe
    monkeypatch.chdir(tmp_path)
    exec(compile(recipe[1], "README.md", "exec"), {})  # noqa: S102 - the program that the README shows
    for name in ("azure-sample.csv", "mooncake-sample.jsonl"):
        assert (tmp_path / name).read_bytes() == (SHIPPED / name).read_bytes()
