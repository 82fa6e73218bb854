"""The few leaves that are looked at hold the best ones, ties included, and their noise is that of every other draw."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from promptgen.generation.first_draw import CHUNK, _likely, draw_among, draw_first
from promptgen.generation.memory import Memory
from promptgen.generation.modelfile import Gpt2Shape
from promptgen.generation.native.model import Kernels, NativeGpt2
from promptgen.generation.noise import gumbel_lines, sequence_key
from promptgen.generation.request import Branch, GenerationRequest, Sampling
from promptgen.generation.steps import NO_TOKEN
from promptgen.generation.torch_noise import gumbel
from tests.amount import cases
from tests.conftest import random_weights


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


SHAPE = Gpt2Shape(vocabulary=130, window=40, width=16, layers=1, heads=1, inner=16, epsilon=1e-5)


def random_branches(rng: np.random.Generator, size: int) -> tuple[Branch, ...]:
    """Two ways to spell what was typed, or one way to anything; after that as many nodes of found candidates as come."""
    every_id = np.arange(size)
    if rng.random() < 0.5:
        ways = [Branch((), every_id, excluded_ids=(5, 6))]
    else:
        cover = np.sort(rng.choice(size, 30, replace=False))
        ways = [
            Branch((), np.union1d(cover, [5, 6]), frozenset(), excluded_ids=(5, 6)),
            Branch((4,), rng.choice(size, 9, replace=False), frozenset({3})),
        ]
    found: list[Branch] = []
    for first in (5, 6):
        path, logprobs = [first], [-1.0]
        for _ in range(int(rng.integers(0, 4))):
            excluded = tuple(sorted(rng.choice(size, int(rng.integers(1, 4)), replace=False).tolist()))
            branch = Branch(
                tuple(path), every_id, excluded_ids=excluded, num_new=len(path), path_logprobs=tuple(logprobs)
            )
            found.append(branch)
            path.append(excluded[0])
            logprobs.append(-float(rng.exponential()))
            if rng.random() < 0.3:  # a node that was left out
                path.append(int(rng.integers(size)))
                logprobs.append(-float(rng.exponential()))
    return (*ways, *sorted(found, key=lambda branch: len(branch.path_ids)))


@pytest.mark.parametrize("num_threads", [1, 2])
def test_the_kernel_draws_what_numpy_draws(kernels: Kernels, num_threads: int) -> None:
    memory = Memory(SHAPE, max_rows=8, num_prompt_slots=16, banned_ids=(1, 9), end_id=2)
    steps = NativeGpt2(kernels, memory, random_weights(SHAPE), "float32", num_threads)
    rng = np.random.default_rng(num_threads)
    num_branches = 0
    for trial in range(cases(300, 20_000)):
        branches = random_branches(rng, SHAPE.vocabulary)
        slots = rng.choice(np.arange(8, 24), len(branches), replace=False).tolist()
        memory.logits[slots] = rng.normal(0, rng.choice([0.5, 3, 30]), (len(slots), memory.logits.shape[1]))
        memory.logits[slots[0], 4:7] += rng.choice([0, 8])  # candidates were found there because it is likely
        sampling = Sampling(
            float(rng.choice([0.02, 0.7, 1.0, 1.6])),
            int(rng.choice([0, 1, 30, 1000])),
            float(rng.choice([0, 0.3, 0.85])),
            float(rng.choice([1.0, 1.3, 0.8])),
            trial,
        )
        bias = tuple((int(i), float(rng.choice([2, -2, -math.inf]))) for i in rng.choice(SHAPE.vocabulary, 4))
        request = GenerationRequest(
            (7, 7, 11),
            6,
            9,
            sampling,
            True,
            bool(rng.random() < 0.2),
            first_sample=trial,
            min_new_tokens=int(rng.integers(0, 3)),
            bias=bias if rng.random() < 0.3 else (),
            branches=branches,
            different=bool(rng.random() < 0.7),
            end_ids=(8,) if rng.random() < 0.3 else (),
        )
        samples = range(trial, trial + 6)
        at = int(rng.integers(1, 6))
        parts = [steps.draw_first(request, part, slots) for part in (samples[:at], samples[at:])]
        given, wanted = (draw(request, samples, slots) for draw in (steps.draw_first, partial(draw_among, memory)))
        assert [pick[:2] for pick in given] == [pick[:2] for pick in wanted], trial
        assert given == [*parts[0], *parts[1]]  # it does not matter who joins when
        np.testing.assert_allclose([p.logprob for p in given], [p.logprob for p in wanted], rtol=1e-4, atol=1e-3)
        num_branches += len({pick.branch for pick in wanted} - {0})
    assert num_branches > 100


@pytest.mark.parametrize("is_compiled", [False, True])
def test_what_is_drawn_anew_stays_the_same_while_it_agrees_with_what_is_typed(
    kernels: Kernels, *, is_compiled: bool
) -> None:
    """Found were candidates that go on with 5 and then 20 or 21. Those who go down there draw what they draw when 5 has been typed."""
    memory = Memory(SHAPE, max_rows=8, num_prompt_slots=4, banned_ids=(), end_id=2)
    memory.logits[8:10] = np.random.default_rng(0).normal(0, 2, (2, memory.logits.shape[1]))
    memory.logits[8, 5] += 9
    steps = NativeGpt2(kernels, memory, random_weights(SHAPE), "float32", 1)
    draw = steps.draw_first if is_compiled else partial(draw_among, memory)
    every_id, samples = np.arange(SHAPE.vocabulary), range(5, 9)
    root, node = Branch((), every_id, excluded_ids=(5,)), Branch((5,), every_id, excluded_ids=(20, 21))
    num_alike = 0
    for seed in range(300):
        before = GenerationRequest((1,), 4, 9, Sampling(0.8, top_k=40, top_p=0.95, seed=seed), different=True)
        before = replace(before, branches=(root, replace(node, num_new=1, path_logprobs=(-0.01,))))
        after = replace(before, prompt_ids=(1, 5), branches=(replace(node, path_ids=()),))
        first = draw(before, samples, [8, 9])
        second = draw(after, samples, [9])
        if all(pick.branch == 1 for pick in first):
            assert [pick.token_id for pick in first] == [pick.token_id for pick in second]
            num_alike += 1
    assert num_alike > 100


def test_the_kernel_tells_of_logits_that_are_no_numbers_and_goes_on(kernels: Kernels) -> None:
    memory = Memory(SHAPE, max_rows=8, num_prompt_slots=4, banned_ids=(), end_id=2)
    steps = NativeGpt2(kernels, memory, random_weights(SHAPE), "float32", 1)
    request = GenerationRequest((7,), 3, 9, Sampling(seed=1), branches=(Branch((), np.arange(130)),), different=True)
    for bad in (math.nan, math.inf, -math.inf):
        for at in (0, 64, 129):
            memory.logits[8] = 0
            memory.logits[8, at] = bad
            assert [pick.token_id for pick in steps.draw_first(request, range(3), [8])] == [NO_TOKEN] * 3
    memory.logits[8] = 0
    assert len({pick.token_id for pick in steps.draw_first(request, range(3), [8])}) == 3


@pytest.mark.parametrize("is_compiled", [False, True])
def test_what_was_found_comes_again_where_there_is_nothing_else(kernels: Kernels, *, is_compiled: bool) -> None:
    memory = Memory(SHAPE, max_rows=8, num_prompt_slots=4, banned_ids=(0,), end_id=2)
    memory.logits[8, 6] = 1.0
    steps = NativeGpt2(kernels, memory, random_weights(SHAPE), "float32", 1)
    draw = steps.draw_first if is_compiled else partial(draw_among, memory)
    branch = Branch((), np.array([0, 5, 6, 7]), excluded_ids=(5, 6, 7))
    request = GenerationRequest((1,), 4, 9, Sampling(top_k=0, seed=1), branches=(branch,), different=True)
    assert [pick.token_id for pick in draw(request, range(4), [8])] == [6] * 4
    two = replace(request, branches=(replace(branch, excluded_ids=(5,)),))
    picked = [pick.token_id for pick in draw(two, range(4), [8])]
    assert set(picked[:2]) == set(picked[2:]) == {6, 7}  # one after the other, then over again


def test_biases_that_forbid_all_that_was_typed_are_left_out() -> None:
    lines = [np.zeros(64, np.float32)]
    cover = np.array([5, 6])
    bias = tuple((int(i), -np.inf) for i in cover)
    request = GenerationRequest((1,), 2, 9, Sampling(seed=1), branches=(Branch((), cover),), bias=bias)
    picks = draw_first(request, range(2), lines, np.zeros(64, np.float32), end_id=0)
    assert {pick.token_id for pick in picks} <= {5, 6}
    assert all(pick.logprob == pytest.approx(np.log(0.5)) for pick in picks)
