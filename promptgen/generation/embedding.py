"""A text as a vector: the mean of its tokens' hidden states after the final norm, of length 1.

A forward of its own over the model's weights, in numpy and float32. It touches neither the cache nor the rows; the engine thread runs it
between two steps, one text at a time, so that what is running waits no longer than for a prompt of that length.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from promptgen.generation.modelfile import Gpt2Shape, Weights

Floats = NDArray[np.float32]


class Embedder:
    """Over weights as modelfile.read_weights gives them; they are used where they lie."""

    def __init__(self, shape: Gpt2Shape, weights: Weights, begin_id: int) -> None:
        self._shape, self._weights, self._begin_id = shape, weights, begin_id

    def embed(self, token_ids: tuple[int, ...]) -> Floats:
        """[width]. The begin token is read but not counted in, unless there is no other: it is the same in every text."""
        hidden = self._hidden(np.array(token_ids))
        if token_ids[0] == self._begin_id and len(token_ids) > 1:
            hidden = hidden[1:]
        mean = hidden.mean(axis=0)
        vector: Floats = mean / max(float(np.linalg.norm(mean)), 1e-12)
        return vector

    def _hidden(self, token_ids: NDArray[np.int64]) -> Floats:
        """[T, width] after the final norm."""
        weights, length = self._weights, len(token_ids)
        future = np.triu(np.full((length, length), -np.inf, np.float32), 1)
        hidden: Floats = weights["wte.weight"][token_ids] + weights["wpe.weight"][:length]
        for layer in range(self._shape.layers):
            mixed = self._linear(f"h.{layer}.attn.c_attn", self._norm(f"h.{layer}.ln_1", hidden))
            queries, keys, values = mixed.reshape(length, 3, self._shape.heads, -1).transpose(1, 2, 0, 3)
            scores = _softmax(queries @ keys.transpose(0, 2, 1) * self._shape.head_dim**-0.5 + future)
            attended = (scores @ values).transpose(1, 0, 2).reshape(length, -1)
            hidden = hidden + self._linear(f"h.{layer}.attn.c_proj", attended)
            inner = _gelu(self._linear(f"h.{layer}.mlp.c_fc", self._norm(f"h.{layer}.ln_2", hidden)))
            hidden = hidden + self._linear(f"h.{layer}.mlp.c_proj", inner)
        return self._norm("ln_f", hidden)

    def _linear(self, name: str, x: Floats) -> Floats:
        return x @ self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]

    def _norm(self, name: str, x: Floats) -> Floats:
        centred = x - x.mean(axis=1, keepdims=True)
        variance = (centred * centred).mean(axis=1, keepdims=True)
        scaled = centred / np.sqrt(variance + self._shape.epsilon)
        normed: Floats = scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return normed


def _softmax(scores: Floats) -> Floats:
    """Over the last axis."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return weights


def _gelu(x: Floats) -> Floats:
    """GPT-2's approximation by tanh (Hendrycks, Gimpel 2016)."""
    activated: Floats = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return activated
