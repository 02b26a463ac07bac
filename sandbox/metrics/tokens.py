"""How many tokens an answer had: the server's word, as far as the stream can have carried it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Tokens:
    """Of each request. A token takes at least a byte of text, and a content chunk holds at least one.

    Attributes:
        chunks: content chunks that came.
        usage: usage.completion_tokens; -1 where the server sent none.
        content_bytes: bytes of text in all chunks; -1 where nobody counted.
        first_bytes: of the first chunk alone; -1 where nobody counted.
    """

    chunks: Integers
    usage: Integers
    content_bytes: Integers
    first_bytes: Integers

    @property
    def most(self) -> Integers:
        """As many as there can be: what the server says, but not more than bytes; chunks where it says nothing."""
        said = np.where(self.usage < 0, self.chunks, self.usage)
        return np.where(self.content_bytes < 0, said, np.minimum(said, self.content_bytes))

    @property
    def least(self) -> Integers:
        """As many as there are at the least: those of a word that is not borne out by bytes are one a chunk."""
        borne_out = (self.usage <= self.content_bytes) | (self.usage < 0)
        unseen = (self.content_bytes < 0) & (self.chunks == 0)  # an answer that was not streamed
        return np.where(borne_out | unseen, self.most, np.minimum(self.chunks, self.most))

    @property
    def flowed(self) -> Mask:
        """The text came in more than one chunk, so that there is a time between tokens."""
        found: Mask = self.chunks > 1
        return found

    @property
    def after_first(self) -> Integers:
        """Tokens that surely came after the first chunk: those within it show no time between them."""
        inside = self.least - self.chunks + 1
        inside = np.where(self.first_bytes < 0, inside, np.minimum(inside, self.first_bytes))
        after: Integers = np.maximum(1, self.least - np.maximum(1, inside))
        return after
