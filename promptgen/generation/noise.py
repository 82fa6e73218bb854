"""Counter-based noise: a random number is a function of (seed, sample, position, token), not of a generator's state.

So a seeded answer is the same alone or among any others, whatever the batch, the order or the number of steps taken. The function is the
finalizer of SplitMix64 (Steele, Lea, Flood 2014), chained once for each part of the key. Written three times: on Python ints for
keys, on int64 tensors (wrapping around as two's complement does) for rows of candidates, on numpy's uint64 for a few tokens, where torch takes
longer to begin than to compute.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


def mix(x: int) -> int:
    """SplitMix64's finalizer on an unsigned 64-bit int."""
    x &= _MASK
    x = ((x ^ (x >> 30)) * _MIX_1) & _MASK
    x = ((x ^ (x >> 27)) * _MIX_2) & _MASK
    return x ^ (x >> 31)


def sequence_key(seed: int, sample: int) -> int:
    """The key of one candidate, signed 64-bit."""
    return _signed(mix(mix(seed + _GOLDEN) + (sample + 1) * _GOLDEN))


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift right of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix_tensor(x: Tensor) -> Tensor:
    """`mix` of each element of an int64 tensor."""
    x = (x ^ _shift(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shift(x, 27)) * _signed(_MIX_2)
    return x ^ _shift(x, 31)


def gumbel(keys: Tensor, positions: Tensor, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise [R, K] (float64) for tokens [R, K] at positions [R] of the sequences with keys [R].

    argmax(log p + gumbel) draws from p exactly (Gumbel 1954; Maddison et al. 2014).
    """
    golden = _signed(_GOLDEN)
    at_position = mix_tensor(keys + (positions + 1) * golden)
    bits = _shift(mix_tensor(at_position[:, None] + (token_ids + 1) * golden), 11)  # 53 bits
    # 2**53 - 1 + 0.5 rounds up to 2**53; the largest double under 1 keeps the noise finite.
    uniform = ((bits.to(torch.float64) + 0.5) * 2.0**-53).clamp_(max=1 - 2.0**-53)
    return uniform.log_().neg_().log_().neg_()


def gumbel_lines(
    keys: Sequence[int], positions: NDArray[np.int64], token_ids: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The same [R, K] for sequences with keys [R] and tokens [K], each at its own one of positions [K]."""
    golden = np.uint64(_GOLDEN)
    of_keys = np.array(keys, np.int64).astype(np.uint64)[:, None]
    at_position = _mix_array(of_keys + (positions.astype(np.uint64) + np.uint64(1)) * golden)
    bits = _mix_array(at_position + (token_ids.astype(np.uint64) + np.uint64(1)) * golden) >> np.uint64(11)
    uniform = np.minimum((bits.astype(np.float64) + 0.5) * 2.0**-53, 1 - 2.0**-53)
    noise: NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise


def _mix_array(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX_2)
    return x ^ (x >> np.uint64(31))
