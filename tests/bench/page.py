"""The page of figures: each part between marks of its own, written by whoever measures it."""

from __future__ import annotations

import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "benchmarks.md"


def write(part: str, text: str) -> None:
    """Put what a part has to show between its marks on the page."""
    put(PAGE, f"bench {part}", text)


def put(page: Path, part: str, text: str) -> None:
    """Put a text between the marks of that name on a page."""
    begin, end = f"<!-- {part} -->", f"<!-- /{part} -->"
    head, _, rest = page.read_text().partition(begin)
    _, _, tail = rest.partition(end)
    block = f"{begin}\n{text.rstrip()}\n{end}"
    page.write_text(f"{head.rstrip()}\n\n{block}{tail or chr(10)}")
    sys.stdout.write(block + "\n")
