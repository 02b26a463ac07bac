"""What may not run beside other tests is marked `alone`; see the session `tests` of noxfile.py."""

from __future__ import annotations

import os
import signal

import pytest

# Runs measure, and `sandbox run` and the fixture `k8s` use the cluster that is called solo.
_MEASURED = {"sandbox_cluster", "sandbox_run", "sandbox_stack", "k8s"}


def pytest_configure(config: pytest.Config) -> None:
    # a shell that starts a job in the background has it ignore Ctrl-C, which some tests are about
    signal.signal(signal.SIGINT, signal.default_int_handler)
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and not config.option.sandbox_cluster:
        config.option.sandbox_cluster = f"solo-{worker}"  # processes do not share a cluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _MEASURED & {*getattr(item, "fixturenames", ())}:
            item.add_marker("alone")
