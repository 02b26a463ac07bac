"""Recorded traffic: when requests came, and how long prompts and answers were."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from sandbox import paths
from sandbox.errors import UsageError
from sandbox.progress import say
from sandbox.spec.base import Strict

BLOCK = 512
"""Tokens that one hash of a Mooncake trace stands for."""
_HEADER = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_MOST_ROWS = 1_000_000  # a run keeps them all in memory, and in its folder
_MOST_TOKENS = 10_000_000
_MOST_BYTES = 1_000_000  # of one line
_SHOWN, _ENOUGH = 20, 1000  # mistakes
_LAYOUTS = "Azure's CSV begins with the line " + ",".join(_HEADER) + "; each line of Mooncake's JSONL is a {...}"
_TIME = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?", re.ASCII)
_EXAMPLES = {
    "Azure": "2023-11-16 18:17:03.9799600,4808,10",
    "Mooncake": '{"timestamp": 3000, "input_length": 1053, "output_length": 26, "hash_ids": [0, 773, 774]}',
}


class Row(Strict):
    """One recorded request. `at`: seconds after the first one of the trace."""

    at: float = Field(ge=0)
    prompt: int = Field(ge=0, description="Tokens in.")
    output: int = Field(ge=1, description="Tokens out.")
    blocks: list[int] = Field(
        default_factory=list, description="Mooncake: hashes of the prompt's blocks; equal ones share a prefix."
    )


def _whole(value: Any) -> Any:
    """`374`, and none of the other ways in which Python reads an int."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,15}", value.strip()):
        raise ValueError("must be a whole number of tokens, 0 or more")
    return int(value)


def _moment(value: Any) -> datetime:
    """A time without a zone is UTC. Digits behind the microsecond are cut off."""
    text = str(value).strip()
    try:
        if _TIME.fullmatch(text):
            read = datetime.fromisoformat(text)
            return read if read.tzinfo else read.replace(tzinfo=UTC)
    except ValueError:
        pass
    raise ValueError("must be a time such as 2023-11-16 18:17:03.9799600 or 2024-05-10 00:00:00.009930+00:00")


_FromText = Annotated[int, BeforeValidator(_whole), Field(le=_MOST_TOKENS)]


class _Azure(BaseModel):
    at: Annotated[datetime, BeforeValidator(_moment)] = Field(alias="TIMESTAMP")
    prompt: _FromText = Field(alias="ContextTokens")
    output: _FromText = Field(alias="GeneratedTokens")

    def seconds(self, first: _Azure) -> float:
        return (self.at - first.at).total_seconds()

    @property
    def blocks(self) -> list[int]:
        return []


class _Mooncake(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    at: float = Field(alias="timestamp", ge=0, allow_inf_nan=False)
    prompt: int = Field(alias="input_length", ge=0, le=_MOST_TOKENS)
    output: int = Field(alias="output_length", ge=0, le=_MOST_TOKENS)
    blocks: list[int] = Field(alias="hash_ids", default_factory=list)

    def seconds(self, first: _Mooncake) -> float:
        return (self.at - first.at) / 1000

    @model_validator(mode="after")
    def _so_many(self) -> _Mooncake:
        if len(self.blocks) > (most := -(-self.prompt // BLOCK)):
            raise ValueError(
                f"hash_ids: {len(self.blocks)} for {self.prompt} tokens; each stands for {BLOCK}: at most {most}"
            )
        return self


_Record = _Azure | _Mooncake


def names() -> list[str]:
    """Every trace that can be named, the user's own and the shipped ones."""
    found = [
        file.relative_to(folder)
        for folder in _folders()
        for file in folder.rglob("*")
        if file.suffix in {".csv", ".jsonl"} and file.is_file()
    ]
    return sorted({str(file) for file in found})


def _folders() -> list[Path]:
    return [folder / "traces" for folder in paths.catalogue("loadtests")]


def locate(name: str) -> Path:
    """Return the file: of `loadtests/traces/`, the user's own before the shipped one; else `name` taken as a path.

    Raises:
        UsageError: there is no such file.
    """
    inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    try:
        found = [file for folder in _folders() if inside and (file := folder / name).is_file()]
        if not found and Path(name).is_file():
            return Path(name)
    except OSError:  # no name of a file at all: too long
        found = []
    if not found:
        raise UsageError(
            f"there is no trace {name!r}",
            where="loadtests/traces/",
            fix=f"use one of: {', '.join(names()) or 'none'}; or a path to a file",
        )
    if len(found) > 1:
        say(f"trace {name}: {found[0]} is used; it shadows {found[1]}")
    return found[0]


def resolve(name: str, until: float = math.inf) -> list[Row]:
    """Return the requests of trace `name` in order, the first at 0 s.

    Layouts, told apart by the first line: the CSV of the Azure LLM inference traces (2023 and 2024), and the JSONL of
    Mooncake's. A request that was answered with no token is taken as one token long, and said aloud: a server is
    asked for at least one. Lines out of order are refused, never sorted: they are mostly two files in one, or two
    time zones.

    Args:
        name: a file of `loadtests/traces/`, or a path.
        until: seconds after the first request; what comes then is not read at all, so a trace may be far longer.

    Raises:
        UsageError: there is no such file, it cannot be read, it is in neither layout, or it has mistakes, all told
            with their lines; or more than a million requests are asked for.
    """
    file = locate(name)
    reading = _Reading(file)
    try:
        rows = reading.rows(until)
    except OSError as error:
        raise UsageError(
            f"cannot be read: {error}", where=str(file), fix="check the file and its permissions"
        ) from error
    reading.judge(rows)
    return rows


class _Reading:
    """One file as it is read, with what is wrong in it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._layout = ""
        self._parse: Callable[[str], _Record] | None = None
        self._mistakes: list[str] = []
        self._found = 0
        self._unsorted = False
        self._silent = 0
        self._line = 0

    def rows(self, until: float) -> list[Row]:
        """The requests before `until` seconds, as far as they are right."""
        rows: list[Row] = []
        first: Any = None
        above = 0.0
        for text in self._lines():
            if self._parse is None:
                self._detect(text)
                if self._layout == "Azure":
                    continue
            record = self._record(text)
            if record is None:
                continue
            first = first or record
            at = record.seconds(first)
            if at < above:
                self._unsorted = True
                self._wrong(f"comes {above - at:g} s before the line above it; lines must be in order of time")
            above = at
            if at >= until:
                break
            if self._found:  # only what is wrong is still of interest
                continue
            if len(rows) == _MOST_ROWS:
                self._refuse(f"has more than {_MOST_ROWS:,} requests in the time asked for", "replay less of it")
            self._silent += record.output == 0
            rows.append(Row(at=at, prompt=record.prompt, output=max(1, record.output), blocks=record.blocks))
        return rows

    def judge(self, rows: list[Row]) -> None:
        """Refuse what is wrong; say what was taken differently from how it stands."""
        if self._found:
            more = self._found - len(self._mistakes)
            behind = f", as far as line {self._line}, where reading ended" if self._found >= _ENOUGH else ""
            order = "; sort the file by time" if self._unsorted else ""
            self._refuse(
                f"{self._found} problem{'s' if self._found > 1 else ''} in this trace",
                f"mend the lines named{order}. A valid one of {self._layout}'s layout: {_EXAMPLES[self._layout]}",
                [*self._mistakes, *([f"and {more} more{behind}"] if more else [])],
            )
        if not rows:
            self._refuse("holds no request", f"write some into it. {_LAYOUTS}")
        if self._silent:
            say(f"{self._file}: {self._silent} requests were answered with no token; they ask for one")

    def _refuse(self, what: str, fix: str, details: list[str] | None = None) -> NoReturn:
        raise UsageError(what, where=str(self._file), fix=fix, details=details)

    def _wrong(self, what: str) -> None:
        self._found += 1
        if len(self._mistakes) < _SHOWN:
            self._mistakes.append(f"{self._file}:{self._line}: {what}")

    def _lines(self) -> Iterator[str]:
        """The lines that hold something."""
        with self._file.open("rb") as stream:
            while self._found < _ENOUGH and (raw := stream.readline(_MOST_BYTES)):
                self._line += 1
                if len(raw) == _MOST_BYTES:
                    where = f"{self._file}:{self._line}"
                    raise UsageError(f"a line of {_MOST_BYTES:,} bytes or more", where=where, fix=_LAYOUTS)
                try:
                    text = raw.decode("utf-8-sig" if self._line == 1 else "utf-8").strip()
                except UnicodeDecodeError:
                    if self._parse is None:
                        self._refuse("is not text in UTF-8", f"unpack or convert it. {_LAYOUTS}")
                    self._wrong("is not text in UTF-8")
                    continue
                if text:
                    yield text

    def _detect(self, text: str) -> None:
        """Settle the layout by the first line."""
        if text.startswith("{"):
            self._layout, self._parse = "Mooncake", _Mooncake.model_validate_json
            return
        columns = [column.strip().strip('"') for column in text.split(",")]
        if missing := [column for column in _HEADER if column not in columns]:
            known = len(missing) < len(_HEADER)
            what = f"the header lacks {', '.join(missing)}" if known else "no header, and not JSON"
            raise UsageError(
                f"{what}: {text[:80]!r}",
                where=f"{self._file}:{self._line}",
                fix=f"write the header. {_LAYOUTS}",
            )
        self._layout, self._parse = "Azure", lambda line: _Azure.model_validate(_cells(line, columns))

    def _record(self, text: str) -> _Record | None:
        if self._parse is None:
            raise RuntimeError("the layout is not known yet")
        try:
            return self._parse(text)
        except ValidationError as error:
            for item in error.errors(include_url=False):
                self._wrong(_in_words(item))
        except ValueError as error:
            self._wrong(str(error))
        return None


def _cells(line: str, columns: list[str]) -> dict[str, str]:
    try:
        cells = next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise ValueError(str(error)) from error
    if len(cells) != len(columns):
        raise ValueError(f"has {len(cells)} values; the header names {len(columns)}")
    return dict(zip(columns, cells, strict=True))


def _in_words(item: Any) -> str:
    """One of pydantic's mistakes: where, what, and what stood there."""
    where = ".".join(str(part) for part in item["loc"])
    what = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        what = "is no key of this layout, so its other keys may mean something else too"
    elif item["type"] == "missing":
        what = "is missing"
    elif where:
        what = f"{what}, not {str(item['input'])[:60]!r}"
    return f"{where}: {what}" if where else what
