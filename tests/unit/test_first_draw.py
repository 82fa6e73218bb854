"""The few leaves that are looked at hold the best ones, ties included, and their noise is that of every other draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from promptgen.generation.first_draw import CHUNK, _likely, draw_first
from promptgen.generation.noise import gumbel_lines, sequence_key
from promptgen.generation.request import Branch, GenerationRequest, Sampling
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


def log_softmax(line: NDArray[np.float64]) -> NDArray[np.float64]:
    return line - np.logaddexp.reduce(line)


@pytest.mark.parametrize("top_k", [0, 1, 5])
@pytest.mark.parametrize("top_p", [0.0, 0.7])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("num_excluded", [1, 40, 130])
def test_redraws_are_leaves_that_are_left_with_their_probabilities(
    top_k: int, top_p: float, temperature: float, num_excluded: int
) -> None:
    size, rng = 130, np.random.default_rng(top_k)
    lines = rng.normal(0, 3, (2, size)).astype(np.float32)
    banned = np.zeros(size, np.float32)
    banned[3] = -np.inf
    excluded = tuple(range(10, 10 + num_excluded)) if num_excluded < size else tuple(range(size))
    found = -1.5  # log-probability of the token 7, with which a candidate that was found began
    branches = (
        Branch((), np.arange(size), excluded_ids=(7, *excluded)),
        Branch((7,), np.arange(size), excluded_ids=excluded, num_new=1, path_logprobs=(found,)),
    )
    sampling = Sampling(temperature, top_k, top_p, seed=4)
    request = GenerationRequest((1, 2), 4, 9, sampling, True, branches=branches, different=True, bias=((20, 2.0),))
    picks = draw_first(request, range(4), list(lines), banned, end_id=0)
    bias = banned.astype(np.float64)
    bias[20] += 2
    first, second = (log_softmax(line + bias) for line in lines.astype(np.float64))
    expected = {0: first, 1: first[7] + second}
    for pick in picks:
        assert pick.logprob == pytest.approx(expected[pick.branch][pick.token_id], abs=1e-4)
    if num_excluded < size:
        assert len({(pick.branch, pick.token_id) for pick in picks}) == 4
        assert not {pick.token_id for pick in picks} & {3, *excluded}


def test_biases_that_forbid_all_that_was_typed_are_left_out() -> None:
    lines = [np.zeros(64, np.float32)]
    cover = np.array([5, 6])
    bias = tuple((int(i), -np.inf) for i in cover)
    request = GenerationRequest((1,), 2, 9, Sampling(seed=1), branches=(Branch((), cover),), bias=bias)
    picks = draw_first(request, range(2), lines, np.zeros(64, np.float32), end_id=0)
    assert {pick.token_id for pick in picks} <= {5, 6}
    assert all(pick.logprob == pytest.approx(np.log(0.5)) for pick in picks)
