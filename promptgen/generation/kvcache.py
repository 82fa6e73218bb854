"""Keys and values of all sequences, allocated once: one slot a row, the whole window long."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class KVCache:
    """`keys` and `values` are [layers, rows, heads, window, head_dim]. Memory is taken from the system as rows come into use."""

    def __init__(self, *, num_layers: int, max_rows: int, num_heads: int, window: int, head_dim: int) -> None:
        shape = (num_layers, max_rows, num_heads, window, head_dim)
        self.keys, self.values = _zeros(shape), _zeros(shape)

    def move_row(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of a row over another."""
        self.keys[:, target, :, :length] = self.keys[:, source, :, :length]
        self.values[:, target, :, :length] = self.values[:, source, :, :length]

    def fork(self, keys: Tensor, values: Tensor, first_row: int, num_rows: int) -> None:
        """Writes a prompt's keys and values [layers, heads, T, head_dim] to several rows."""
        rows = slice(first_row, first_row + num_rows)
        length = keys.shape[2]
        self.keys[:, rows, :, :length] = keys[:, None]
        self.values[:, rows, :, :length] = values[:, None]


def _zeros(shape: tuple[int, ...]) -> Tensor:
    """numpy's zeros come from calloc, whose pages cost memory only once they are written; torch.zeros writes them all."""
    return torch.from_numpy(np.zeros(shape, np.float32))
