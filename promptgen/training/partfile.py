"""Writes the two files of a part of an encoded corpus, by the chunk. The format is in dataset.py."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from promptgen.training.staging import Staging


class PartWriter:
    """Collects documents with `add` and writes them with `flush`: ids are kept as machine numbers, offsets not at all."""

    def __init__(self, staging: Staging, name: str, vocabulary_size: int) -> None:
        self.dtype = np.dtype(np.uint16 if vocabulary_size <= 1 << 16 else np.uint32)
        self.num_documents = 0
        self.num_tokens = 0
        self._tokens = staging.open(f"{name}.tokens.bin")
        self._offsets = staging.open(f"{name}.offsets.bin")
        self._offsets.write(np.zeros(1, np.int64).tobytes())
        self._clear()

    def _clear(self) -> None:
        self._waiting = array("H" if self.dtype == np.uint16 else "I")
        self._lengths = array("q")

    def add(self, ids: Sequence[int]) -> None:
        self._waiting.extend(ids)
        self._lengths.append(len(ids))

    def flush(self) -> np.ndarray[Any, np.dtype[Any]]:
        """Writes what was added since the last time and returns its tokens. Raises DiskFault."""
        tokens = np.frombuffer(self._waiting, self.dtype)
        ends = self.num_tokens + np.cumsum(np.frombuffer(self._lengths, np.int64))
        self._tokens.write(tokens.tobytes())
        self._offsets.write(ends.tobytes())
        self.num_tokens += len(tokens)
        self.num_documents += len(ends)
        self._clear()
        return tokens

    @property
    def sha256(self) -> dict[str, str]:
        """By file name, of what was written."""
        return {file.name: file.sha256 for file in (self._tokens, self._offsets)}
