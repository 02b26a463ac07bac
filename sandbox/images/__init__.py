"""Images: pulled where a registry answers, built from packages where none does, cached by content."""

from __future__ import annotations

from sandbox.images.engine import Image
from sandbox.images.resolve import Listed, build, ensure, list_images, mirrored, pull, push, tool, trim

__all__ = ["Image", "Listed", "build", "ensure", "list_images", "mirrored", "pull", "push", "tool", "trim"]
