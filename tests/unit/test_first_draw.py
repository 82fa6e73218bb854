"""The few leaves that are looked at hold the best ones, ties included, and their noise is that of every other draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from promptgen.generation.first_draw import CHUNK, _likely
from promptgen.generation.noise import gumbel_lines, sequence_key
from promptgen.generation.torch_noise import gumbel


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(0, 40 * CHUNK), st.sampled_from([2, 5, 1000]))
def test_no_better_score_is_left_out(seed: int, number: int, size: int, levels: int) -> None:
    scores = np.random.default_rng(seed).integers(0, levels, size).astype(np.float64)
    scores[scores == 0] = -np.inf
    likely = _likely(scores, number)
    assert likely.tolist() == sorted(set(likely.tolist()))
    assert len(likely) >= min(number, size)
    left_out = np.setdiff1d(np.arange(size), likely)
    if len(left_out):
        assert (scores[likely] > scores[left_out].max()).sum() >= number


def test_few_are_looked_at_among_many() -> None:
    scores = np.random.default_rng(0).normal(size=10_000)
    assert len(_likely(scores, 30)) < 200


@pytest.mark.parametrize("seed", [0, 7, 2**63])
def test_the_noise_of_a_few_tokens_is_that_of_a_row(seed: int) -> None:
    keys = [sequence_key(seed, sample) for sample in range(4)]
    token_ids = np.array([0, 1, 17, 9999, 123])
    positions = np.array([3, 3, 4, 200, 0])
    rows = [
        gumbel(torch.tensor(keys), torch.full((4,), int(p)), torch.full((4, 1), int(t)))
        for p, t in zip(positions, token_ids, strict=True)
    ]
    np.testing.assert_allclose(gumbel_lines(keys, positions, token_ids), torch.cat(rows, 1).numpy(), rtol=1e-13)
