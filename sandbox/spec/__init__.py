"""What users write, as models, and the loader that names every mistake with file, line and key path."""

from sandbox.spec.loader import Document, load, load_text

__all__ = ["Document", "load", "load_text"]
