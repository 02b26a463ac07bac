"""A word in the environment of all that a command starts: whose it is, should the command not live to end it."""

from __future__ import annotations

import os

MARK = "AI_K8S_SANDBOX_OWNER"


def without() -> dict[str, str]:
    """This environment without the mark: for what belongs to the machine, and not to a command."""
    return {key: value for key, value in os.environ.items() if key != MARK}
