"""Where things lie: the catalogue (read), the cache (rebuilt at will), the state (what runs now)."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path, user_state_path

APP = "ai-k8s-sandbox"
_PACKAGE = Path(__file__).resolve().parent


def _own(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def cache_dir() -> Path:
    """Content-keyed caches, shared by all checkouts; `SANDBOX_CACHE_DIR` moves it."""
    return _own(Path(os.environ.get("SANDBOX_CACHE_DIR") or user_cache_path(APP)))


def state_dir() -> Path:
    """What runs now: kubeconfigs (0600), cluster records, locks; `SANDBOX_STATE_DIR` moves it."""
    return _own(Path(os.environ.get("SANDBOX_STATE_DIR") or user_state_path(APP)))


def catalogue(kind: str) -> list[Path]:
    """Folders that hold `clusters`, `scenarios` or `loadtests`, first match wins.

    The user's own folder of that name in the working directory comes first, then the one that
    lies beside the package (a checkout) or inside it (an installed wheel).
    """
    shipped = _PACKAGE / "_catalogue" / kind
    if not shipped.is_dir():
        shipped = _PACKAGE.parent / kind
    folders = [Path.cwd() / kind, shipped]
    unique = dict.fromkeys(folder.resolve() for folder in folders if folder.is_dir())
    return list(unique)


def shipped(room: str) -> Path:
    """A data folder inside the package: `stacks` or `guardrails`."""
    return _PACKAGE / room
