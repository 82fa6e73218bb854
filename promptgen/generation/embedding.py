"""A text as a vector: the mean of its tokens' hidden states after the final norm, of length 1.

A forward of its own over the model's weights, in float32 and on the CPU. It touches neither the cache nor the rows; the engine thread runs it
between two steps, one text at a time, so that what is running waits no longer than for a prompt of that length.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from promptgen.generation.modelfile import Gpt2Shape


class Embedder:
    """Over weights as modelfile.read_weights gives them; they are used where they lie."""

    def __init__(self, shape: Gpt2Shape, weights: Mapping[str, Tensor], begin_id: int) -> None:
        self._shape, self._weights, self._begin_id = shape, weights, begin_id

    @torch.inference_mode()
    def embed(self, token_ids: tuple[int, ...]) -> NDArray[np.float32]:
        """[width]. The begin token is read but not counted in, unless there is no other: it is the same in every text."""
        hidden = self._hidden(torch.tensor(token_ids))
        if token_ids[0] == self._begin_id and len(token_ids) > 1:
            hidden = hidden[1:]
        vector: NDArray[np.float32] = functional.normalize(hidden.mean(dim=0), dim=0).numpy()
        return vector

    def _hidden(self, token_ids: Tensor) -> Tensor:
        """[T, width] after the final norm."""
        weights = self._weights
        hidden = weights["wte.weight"][token_ids] + weights["wpe.weight"][: len(token_ids)]
        for layer in range(self._shape.layers):
            mixed = self._linear(f"h.{layer}.attn.c_attn", self._norm(f"h.{layer}.ln_1", hidden))
            queries, keys, values = mixed.view(len(token_ids), 3, self._shape.heads, -1).permute(1, 2, 0, 3)
            attended = functional.scaled_dot_product_attention(queries[None], keys[None], values[None], is_causal=True)
            hidden = hidden + self._linear(f"h.{layer}.attn.c_proj", attended[0].transpose(0, 1).flatten(1))
            inner = self._linear(f"h.{layer}.mlp.c_fc", self._norm(f"h.{layer}.ln_2", hidden))
            hidden = hidden + self._linear(f"h.{layer}.mlp.c_proj", functional.gelu(inner, approximate="tanh"))
        return self._norm("ln_f", hidden)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return torch.addmm(self._weights[f"{name}.bias"], x, self._weights[f"{name}.weight"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return functional.layer_norm(x, x.shape[-1:], weight, bias, self._shape.epsilon)
