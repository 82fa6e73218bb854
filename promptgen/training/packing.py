"""Rows packed from documents: short documents share a row, long ones are split over several.

What is drawn at random (the order of an epoch, where a document's positions begin) depends on (seed, epoch, batch) alone, so any batch
can be made again. A resumed run reads and packs the epoch's earlier rows once more, and learns from none of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from promptgen.training.dataset import TokenFile

Ids = np.ndarray[Any, np.dtype[np.int64]]
IGNORED = -100  # label of a position that carries no loss; torch's cross_entropy default
_OPEN_ROWS = 16  # rows kept open while packing
_COUNTED_DOCUMENTS = 20_000  # packed to count an epoch's rows


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of several documents each. All arrays are [rows, row_length], int64.

    `segments` numbers the documents of a row from 1, 0 is padding; attention stays within a segment. `positions`
    count from the document's start. `labels[t]` is the token that follows `tokens[t]`, or IGNORED.
    """

    tokens: Ids
    labels: Ids
    segments: Ids
    positions: Ids

    @property
    def num_labels(self) -> int:
        return int((self.labels != IGNORED).sum())

    def rows(self, chosen: slice) -> Batch:
        return Batch(self.tokens[chosen], self.labels[chosen], self.segments[chosen], self.positions[chosen])


@dataclass(frozen=True, slots=True)
class Shuffle:
    """The order of one epoch. `shifted_share` of the documents start at a random position, their last one under `window`,
    so that positions beyond the usual length of a document are learned too."""

    seed: int
    epoch: int
    window: int = 0
    shifted_share: float = 0.0


def split_document(document: Ids, max_length: int) -> Iterator[Ids]:
    """The document in pieces of `max_length` at most. A piece begins with the token that the one before ended in, so each is learned once."""
    yield document[:max_length]
    for begin in range(max_length - 1, len(document) - 1, max_length - 1):
        yield document[begin : begin + max_length]


def pack_rows(documents: Iterable[Ids], row_length: int) -> Iterator[list[Ids]]:
    """Puts documents into rows of at most `row_length` tokens, each into the fullest open row it fits."""
    open_rows: list[tuple[int, list[Ids]]] = []
    for document in documents:
        for piece in split_document(document, row_length):
            fitting = [i for i, (used, _) in enumerate(open_rows) if used + len(piece) <= row_length]
            if fitting:
                at = max(fitting, key=lambda i: open_rows[i][0])
                used, row = open_rows[at]
                open_rows[at] = (used + len(piece), [*row, piece])
            else:
                if len(open_rows) == _OPEN_ROWS:
                    fullest = max(range(_OPEN_ROWS), key=lambda i: open_rows[i][0])
                    yield open_rows.pop(fullest)[1]
                open_rows.append((len(piece), [piece]))
    yield from (row for _, row in open_rows)


def count_rows(part: TokenFile, row_length: int, shuffle: Shuffle | None = None) -> int:
    """How many rows `batches` packs a part into. Of more than 20 000 documents so many are packed, the first in order, and the rest is
    taken to need rows by its tokens: an estimate, a little too high for the rows left open."""
    indices = _order(part, shuffle)
    lengths = np.diff(part.offsets)
    counted = lengths[indices[:_COUNTED_DOCUMENTS]]
    blank: Ids = np.zeros(1, np.int64)
    num_rows = sum(1 for _ in pack_rows((np.broadcast_to(blank, length) for length in counted), row_length))
    if len(counted) == len(lengths):
        return num_rows
    return math.ceil(num_rows * int(lengths.sum()) / max(1, int(counted.sum())))


def batches(
    part: TokenFile, row_length: int, rows_per_batch: int, shuffle: Shuffle | None = None, first: int = 0
) -> Iterator[Batch]:
    """All documents of a part once, in batches from number `first` on; in the order of the file, or shuffled."""
    rows = pack_rows((part.document(int(i)) for i in _order(part, shuffle)), row_length)
    next(islice(rows, first * rows_per_batch - 1, None), None) if first else None
    number = first
    while chunk := list(islice(rows, rows_per_batch)):
        yield _batch(chunk, row_length, shuffle, number)
        number += 1


def _order(part: TokenFile, shuffle: Shuffle | None) -> Ids:
    """The documents' numbers in the order of the file, or shuffled."""
    indices = np.arange(len(part))
    if shuffle is not None:
        np.random.default_rng([shuffle.seed, shuffle.epoch]).shuffle(indices)
    return indices


def _batch(rows: list[list[Ids]], row_length: int, shuffle: Shuffle | None, number: int) -> Batch:
    shape = (len(rows), row_length)
    tokens, segments, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    labels = np.full(shape, IGNORED, np.int64)
    draw = np.random.default_rng([shuffle.seed, shuffle.epoch, number]) if shuffle is not None else None
    for r, row in enumerate(rows):
        begin = 0
        for segment, document in enumerate(row, 1):
            end = begin + len(document)
            shift = _shift(draw, shuffle, len(document))
            tokens[r, begin:end] = document
            labels[r, begin : end - 1] = document[1:]
            segments[r, begin:end] = segment
            positions[r, begin:end] = np.arange(shift, shift + len(document))
            begin = end
    return Batch(tokens, labels, segments, positions)


def _shift(draw: np.random.Generator | None, shuffle: Shuffle | None, length: int) -> int:
    if draw is None or shuffle is None or draw.random() >= shuffle.shifted_share:
        return 0
    return int(draw.integers(0, max(1, shuffle.window - length + 1)))
