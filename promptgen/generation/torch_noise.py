"""generation/noise.py on int64 tensors, which wrap around as two's complement does: for the rows of a step in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from promptgen.generation.noise import GOLDEN, MIX_1, MIX_2, signed


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift right of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix_tensor(x: Tensor) -> Tensor:
    """`mix` of each element of an int64 tensor."""
    x = (x ^ _shift(x, 30)) * signed(MIX_1)
    x = (x ^ _shift(x, 27)) * signed(MIX_2)
    return x ^ _shift(x, 31)


def gumbel(keys: Tensor, positions: Tensor, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise [R, K] (float64) for tokens [R, K] at positions [R] of the sequences with keys [R].

    argmax(log p + gumbel) draws from p exactly (Gumbel 1954; Maddison et al. 2014).
    """
    golden = signed(GOLDEN)
    at_position = mix_tensor(keys + (positions + 1) * golden)
    bits = _shift(mix_tensor(at_position[:, None] + (token_ids + 1) * golden), 11)  # 53 bits
    # 2**53 - 1 + 0.5 rounds up to 2**53; the largest double under 1 keeps the noise finite.
    uniform = ((bits.to(torch.float64) + 0.5) * 2.0**-53).clamp_(max=1 - 2.0**-53)
    return uniform.log_().neg_().log_().neg_()
