"""What all tests share: Ctrl-C as in a terminal, and where their time went beside what was planned for it."""

from __future__ import annotations

import signal

import pytest
from budget import Clock


def pytest_configure(config: pytest.Config) -> None:
    # a shell that starts a job in the background has it ignore Ctrl-C, which some tests are about
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.register(Clock(), "where-the-time-went")
