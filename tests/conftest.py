"""What may not run beside other tests is marked `alone`; see the session `tests` of noxfile.py."""

from __future__ import annotations

import pytest

_ONE_CLUSTER = {"sandbox_cluster", "sandbox_clusters", "sandbox_run", "sandbox_stack", "k8s"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _ONE_CLUSTER & {*getattr(item, "fixturenames", ())}:
            item.add_marker("alone")
