"""The faults the harness declares for this node: read from a ConfigMap, ended when their time is over."""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import MISSING, fields
from typing import Any

from sandbox.gpu.emulator.apiserver import ApiServer, follow
from sandbox.gpu.emulator.devices import Board, Fault

_LOG = logging.getLogger(__name__)
CONFIG_MAP = "faults"
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "int | None": (int, type(None)),
}
_IDLE_SECONDS = 1.0


def watch(api: ApiServer, board: Board, namespace: str, stop: threading.Event) -> None:
    """Take over every change of the ConfigMap `faults` until `stop`.

    While the API server cannot be reached, and where a document cannot be read, what was declared before stays.
    """
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    key = f"{board.config.node}.json"
    before = None
    for found in follow(api, path, {"fieldSelector": f"metadata.name={CONFIG_MAP}"}, stop):
        text = found.get(CONFIG_MAP, {}).get("data", {}).get(key, "[]")
        if text == before:
            continue
        before = text
        try:
            declared = parse(text)
        except ValueError as error:
            _LOG.warning("the faults of this node cannot be read, those before them stay: %s", error)
            continue
        board.set_faults(declared)
        _LOG.info("faults: %s", ", ".join(each.id for each in declared) or "none")


def parse(text: str) -> list[Fault]:
    """One node's document.

    Raises:
        ValueError: it is not a list of faults.
    """
    raw = json.loads(text)
    if not isinstance(raw, list):
        raise ValueError(f"a list of faults is needed, not {type(raw).__name__}")  # noqa: TRY004 - one error for callers
    return [_fault(each) for each in raw]


def next_end(board: Board, *, most: float) -> float:
    """Seconds until the next of the faults ends by itself, `most` at most: how long a change can be waited for."""
    now = time.time()
    return min([most, *(fault.until - now for fault in board.faults if fault.until > now)])


def expire(board: Board, stop: threading.Event) -> None:
    """Count the board's version up and wake all who wait on it when a fault ends by itself, until `stop`."""
    before: set[str] = set()
    while not stop.is_set():
        with board.changed:
            active = {fault.id for fault in board.faults if fault.until > time.time()}
            if over := before - active:
                _LOG.info("over: %s", ", ".join(sorted(over)))
                board.version += 1
                board.changed.notify_all()
            before = active
            board.changed.wait(next_end(board, most=_IDLE_SECONDS))


def _fault(raw: Any) -> Fault:
    if not isinstance(raw, dict):
        raise ValueError(f"a fault is a mapping, not {type(raw).__name__}")  # noqa: TRY004
    known = {each.name: each for each in fields(Fault)}
    if unknown := raw.keys() - known.keys():
        raise ValueError(f"a fault has no {', '.join(sorted(unknown))}")
    for name, field in known.items():
        if name not in raw:
            if field.default is MISSING:
                raise ValueError(f"a fault needs {name}")
            continue
        value, allowed = raw[name], _TYPES[str(field.type)]
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise ValueError(f"{name}: {value!r} is no {field.type}")
    return Fault(**raw)
