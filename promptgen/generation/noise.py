"""Counter-based noise: a random number is a function of (seed, sample, position, token), not of a generator's state.

So a seeded answer is the same alone or among any others, whatever the batch, the order or the number of steps taken. The function is the
finalizer of SplitMix64 (Steele, Lea, Flood 2014), chained once for each part of the key. Written four times: on Python ints for keys, on
numpy's uint64 for a few tokens, in generation/torch_noise.py for rows of candidates, and in native/kernels.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
GOLDEN, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


def mix(x: int) -> int:
    """SplitMix64's finalizer on an unsigned 64-bit int."""
    x &= _MASK
    x = ((x ^ (x >> 30)) * MIX_1) & _MASK
    x = ((x ^ (x >> 27)) * MIX_2) & _MASK
    return x ^ (x >> 31)


@lru_cache(4096)
def sequence_key(seed: int, sample: int) -> int:
    """The key of one candidate, signed 64-bit."""
    return signed(mix(mix(seed + GOLDEN) + (sample + 1) * GOLDEN))


def gumbel_lines(
    keys: Sequence[int], positions: NDArray[np.int64], token_ids: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Standard Gumbel noise [R, K] for sequences with keys [R] and tokens [K], each at its own one of positions [K].

    argmax(log p + gumbel) draws from p exactly (Gumbel 1954; Maddison et al. 2014).
    """
    golden = np.uint64(GOLDEN)
    of_keys = np.array(keys, np.int64).astype(np.uint64)[:, None]
    at_position = mix_array(of_keys + (positions.astype(np.uint64) + np.uint64(1)) * golden)
    bits = mix_array(at_position + (token_ids.astype(np.uint64) + np.uint64(1)) * golden) >> np.uint64(11)
    uniform = np.minimum((bits.astype(np.float64) + 0.5) * 2.0**-53, 1 - 2.0**-53)
    noise: NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise


def mix_array(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(MIX_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(MIX_2)
    return x ^ (x >> np.uint64(31))
