"""A number for the tokens that stand before a place: those who have the same number stand after the same tokens.

Steps that compute one row for all that stand after the same tokens know them by it, and so does what is kept of a pass for later ones
(native/kernels.cpp has the same function, and adds to it token by token). It is a sum, so its parts may be known already. The key is the
process's own: nobody can look for a prompt that passes for another.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import count

import numpy as np

from promptgen.generation.noise import GOLDEN, mix, mix_array

_KEY = secrets.token_bytes(16)
SECRET = int.from_bytes(_KEY[:8], "little")
_MASK = (1 << 64) - 1
_CACHED = 1 << 13  # parts of sums; two megabytes
_FEW = 48  # tokens for which numpy is not worth its calls


def beginning_of(token_ids: Sequence[int], salt: str) -> int:
    """Of a prompt, for whoever has this salt: 64 bits, and never 0, which says that it is not known."""
    said = sum(map(_of_token, count(), token_ids)) if len(token_ids) <= _FEW else _of_many(token_ids)
    return (_of_salt(salt) + said) & _MASK or 1


@lru_cache(_CACHED)
def _of_token(position: int, token_id: int) -> int:
    return mix(mix(SECRET + (position + 1) * GOLDEN) + (token_id + 1) * GOLDEN)


def _of_many(token_ids: Sequence[int]) -> int:
    golden = np.uint64(GOLDEN)
    positions = np.arange(1, len(token_ids) + 1, dtype=np.uint64)
    at = mix_array(positions * golden + np.uint64(SECRET))
    said = mix_array(at + (np.array(token_ids, np.uint64) + np.uint64(1)) * golden)
    return int(said.sum(dtype=np.uint64))


@lru_cache(4096)
def _of_salt(salt: str) -> int:
    return int.from_bytes(blake2b(salt.encode(), digest_size=8, key=_KEY).digest(), "little")
