"""API keys and other secrets of a load: named in what is written, read from the environment where they are sent."""

from __future__ import annotations

import os
from collections.abc import Mapping

from sandbox.errors import UsageError
from sandbox.spec.loadtest import VARIABLE, variables_in


def api_keys(*variables: str) -> dict[str, str]:
    """Return the key that each environment variable holds; an empty name stands for no key.

    Raises:
        UsageError: some are not set, or hold what no header can carry.
    """
    named = sorted({name for name in variables if name})
    if missing := [name for name in named if not os.environ.get(name)]:
        raise UsageError(f"not set: {', '.join(missing)}", fix="export it with the API key before you start")
    if broken := [name for name in named if not (os.environ[name].isascii() and os.environ[name].isprintable())]:
        words = "holds a line break or another character that no header can carry"
        raise UsageError(
            f"{', '.join(broken)}: {words}", fix="export the bare key; `$(cat FILE)` leaves the line break out"
        )
    return {name: os.environ[name] if name else "" for name in variables}


def filled(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers with the values of the environment variables that they name as `${NAME}`.

    Raises:
        UsageError: as `api_keys`.
    """
    values = api_keys(*variables_in(headers))
    return {name: VARIABLE.sub(lambda found: values[found[1]], text) for name, text in headers.items()}
