"""A set of 64-bit digests in eight bytes each, for tens of millions of them.

A Python set takes about a hundred bytes an entry. Here the digests lie in sorted arrays; two of like size are merged into one, as in a
log-structured tree, so that there are few to look into and each digest is moved a few times only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Digests = np.ndarray[Any, np.dtype[np.uint64]]

_MAX_RUN = 1 << 23  # digests in an array, 64 MiB; merging takes that much again for a moment


class SeenDigests:
    """Grows by `add`, forgets nothing."""

    def __init__(self, max_run: int = _MAX_RUN) -> None:
        self._runs: list[Digests] = []  # sorted each, without duplicates among them, the larger ones first
        self._max_run = max_run

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    @property
    def num_bytes(self) -> int:
        return sum(run.nbytes for run in self._runs)

    def add(self, digests: Digests) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """[n] of uint64 in, [n] of bool out: whether each was seen for the first time, in this array too."""
        is_new = np.zeros(len(digests), np.bool_)
        distinct, first = np.unique(digests, return_index=True)
        is_known = np.zeros(len(distinct), np.bool_)
        for run in self._runs:
            at = np.searchsorted(run, distinct)
            is_known |= run[np.minimum(at, len(run) - 1)] == distinct
        is_new[first[~is_known]] = True
        if len(fresh := distinct[~is_known]):
            self._runs.append(fresh)
            self._merge()
        return is_new

    def _merge(self) -> None:
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            if len(self._runs[-2]) + len(self._runs[-1]) > self._max_run:
                return
            last, before = self._runs.pop(), self._runs.pop()
            merged = np.concatenate([before, last])
            del last, before
            merged.sort()
            self._runs.append(merged)
