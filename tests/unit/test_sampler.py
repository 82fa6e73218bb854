"""Draws follow exactly the distribution that was asked for, row by row, whatever the other rows ask for: in torch and compiled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from promptgen.generation.gpt2 import EagerGpt2
from promptgen.generation.memory import NOT_A_TOKEN, Memory
from promptgen.generation.modelfile import Gpt2Shape
from promptgen.generation.native.model import Kernels, NativeGpt2
from promptgen.generation.reference import filter_logits
from promptgen.generation.request import GenerationRequest, Sampling
from promptgen.generation.sampler import penalize
from promptgen.generation.steps import NO_TOKENS
from tests.amount import cases
from tests.conftest import StepsFactory, new_memory, random_weights

NUM_DRAWS = 100_000
LOGITS = [2.0, -1.0, 0.5, 1.7, -0.3, 0.0, 1.1, -2.2, 0.9, 1.4, -0.8, 0.2]
SEEN = (0, 3, 4, 7)
VOCABULARY = len(LOGITS)
Drawn = NDArray[np.int64]


def exact(logits: list[float], sampling: Sampling, seen: tuple[int, ...] = ()) -> np.ndarray:
    """The probabilities by the definitions: penalty, temperature, top-k, top-p."""
    scores = np.array(logits, dtype=np.float64)
    for token_id in seen:
        scores[token_id] *= sampling.repetition_penalty if scores[token_id] < 0 else 1 / sampling.repetition_penalty
    weights = np.exp(scores / sampling.temperature)
    order = np.argsort(-weights)
    if sampling.top_k:
        weights[order[sampling.top_k :]] = 0
    if 0 < sampling.top_p < 1:
        reached = np.cumsum(weights[order]) / weights.sum() >= sampling.top_p
        weights[order[int(np.argmax(reached)) + 1 :]] = 0
    return weights / weights.sum()


def shape_of(vocabulary: int) -> Gpt2Shape:
    return Gpt2Shape(vocabulary=vocabulary, window=8, width=16, layers=1, heads=1, inner=16, epsilon=1e-5)


def memory_of(
    samplings: Sequence[Sampling], each: int, vocabulary: int = VOCABULARY, prompt: Sequence[int] = (0,)
) -> Memory:
    """Rows of all samplings, `each` of them in a row, whose prompt was `prompt`."""
    memory = new_memory(shape_of(vocabulary), max_rows=len(samplings) * each, num_prompt_slots=1)
    for index, sampling in enumerate(samplings):
        request = GenerationRequest(tuple(prompt), each, 1, sampling)
        memory.start_rows(request, len(memory.rows), index * each, range(each))
    return memory


def draw(
    make_steps: StepsFactory, memory: Memory, logits: Sequence[float] | np.ndarray, position: int | Drawn = 9
) -> Drawn:
    """A token for each row of the memory, from one line of logits or from a line each, to stand at `position`."""
    logits = np.asarray(logits, np.float32)
    steps = make_steps(memory, random_weights(memory.shape))
    memory.rows["position"] = np.asarray(position) - 1
    num_rows = len(memory.rows)
    if logits.ndim == 1:
        memory.logits[num_rows, : len(logits)] = logits
        token_ids, _ = steps.draw(num_rows, 0, np.full(num_rows, num_rows, np.int32))
    else:
        memory.logits[:num_rows, : logits.shape[1]] = logits
        token_ids, _ = steps.draw(num_rows, num_rows, NO_TOKENS)
    assert (memory.rows["position"] == position).all()
    assert memory.rows["token_id"].tolist() == token_ids
    return np.array(token_ids)


def assert_distribution(token_ids: Drawn, probabilities: np.ndarray) -> None:
    counts = np.bincount(token_ids, minlength=len(probabilities))
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    assert (probabilities[possible] * len(token_ids)).min() >= 5
    if possible.sum() > 1:
        assert stats.chisquare(counts[possible], probabilities[possible] * counts.sum()).pvalue > 1e-3


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, top_k=0, seed=1),
        Sampling(temperature=0.5, top_k=0, seed=2),
        Sampling(temperature=2.5, top_k=0, seed=3),
        Sampling(top_k=5, seed=4),
        Sampling(top_k=1, seed=5),
        Sampling(top_k=VOCABULARY, seed=6),
        Sampling(top_k=1000, seed=7),
        Sampling(top_k=0, top_p=0.7, seed=8),
        Sampling(top_k=0, top_p=1.0, seed=9),
        Sampling(top_k=0, top_p=1e-6, seed=10),
        Sampling(temperature=1.3, top_k=6, top_p=0.8, seed=11),
        Sampling(temperature=0.7, top_k=9, top_p=0.95, seed=2**64 - 1),
    ],
    ids=lambda s: f"t{s.temperature}-k{s.top_k}-p{s.top_p}",
)
def test_draws_follow_the_exact_distribution(make_steps: StepsFactory, sampling: Sampling) -> None:
    assert_distribution(draw(make_steps, memory_of([sampling], NUM_DRAWS), LOGITS), exact(LOGITS, sampling))


@pytest.mark.parametrize(
    "sampling", [Sampling(top_k=0, repetition_penalty=1.8), Sampling(0.8, 7, 0.9, 1.3), Sampling(1.0, 0, 0.0, 0.6)]
)
def test_penalized_draws_follow_the_exact_distribution(make_steps: StepsFactory, sampling: Sampling) -> None:
    memory = memory_of([sampling], NUM_DRAWS, prompt=SEEN)
    token_ids = draw(make_steps, memory, LOGITS)
    assert_distribution(token_ids, exact(LOGITS, sampling, SEEN))
    assert memory.seen[np.arange(NUM_DRAWS), token_ids].all()
    assert set(np.flatnonzero(memory.seen.all(axis=0))) >= set(SEEN)


def test_penalty_divides_positive_and_multiplies_negative_logits_of_seen_tokens() -> None:
    seen = torch.tensor([[True, True, False, False], [True, True, True, True]])
    scored = penalize(torch.tensor([[2.0, -2.0, 2.0, -2.0]] * 2), seen, torch.tensor([2.0, 1.0]))
    assert scored.tolist() == [[1.0, -4.0, 2.0, -2.0], [2.0, -2.0, 2.0, -2.0]]


def test_rows_of_all_kinds_mixed_keep_their_own_parameters(make_steps: StepsFactory) -> None:
    kinds = [
        Sampling(temperature=0, seed=1),
        Sampling(temperature=2.0, top_k=0, seed=2),
        Sampling(top_k=3, seed=3),
        Sampling(top_k=0, top_p=0.6, seed=4),
        Sampling(temperature=0, top_k=0, top_p=0.9, seed=5),
        Sampling(temperature=0.4, top_k=8, top_p=0.97, seed=6),
    ]
    each = NUM_DRAWS // len(kinds)
    memory = memory_of(kinds, each)
    shuffled = np.random.default_rng(0).permutation(len(kinds) * each)
    memory.rows[:] = memory.rows[shuffled]
    drawn = draw(make_steps, memory, LOGITS, 5)
    for index, kind in enumerate(kinds):
        token_ids = drawn[shuffled // each == index]
        if kind.temperature == 0:
            assert set(token_ids.tolist()) == {0}
        else:
            assert_distribution(token_ids, exact(LOGITS, kind))


MANY_KINDS = [
    Sampling(t, k, p, seed=s)
    for s, (t, k, p) in enumerate([(0, 30, 0), (1, 0, 0), (1, 4, 0), (1, 0, 0.5), (3, 7, 0.9)] * 40)
]
MANY_LOGITS = np.random.default_rng(3).normal(size=(len(MANY_KINDS), VOCABULARY)) * 2
MANY_POSITIONS = np.arange(len(MANY_KINDS)) % 50 + 1


def test_a_row_draws_the_same_alone_and_in_a_batch(make_steps: StepsFactory) -> None:
    together = draw(make_steps, memory_of(MANY_KINDS, 1), MANY_LOGITS, MANY_POSITIONS)
    alone = [
        int(draw(make_steps, memory_of([kind], 1), MANY_LOGITS[i : i + 1], MANY_POSITIONS[i : i + 1])[0])
        for i, kind in enumerate(MANY_KINDS)
    ]
    assert together.tolist() == alone


def test_both_implementations_draw_the_same(kernels: Kernels) -> None:
    def compiled(memory: Memory, weights: dict[str, torch.Tensor]) -> NativeGpt2:
        return NativeGpt2(kernels, memory, weights, "float32", 2)

    for vocabulary in (12, 64, 65, 1000):
        logits = np.random.default_rng(4).normal(size=(len(MANY_KINDS), vocabulary)) * 3
        ours, theirs = (
            draw(make, memory_of(MANY_KINDS, 1, vocabulary), logits, MANY_POSITIONS) for make in (EagerGpt2, compiled)
        )
        assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize(
    "sampling",
    [Sampling(top_k=0), Sampling(temperature=100.0, top_k=0), Sampling(top_k=8, top_p=0.99), Sampling(temperature=0)],
)
def test_banned_ids_are_never_drawn(make_steps: StepsFactory, sampling: Sampling) -> None:
    memory = memory_of([sampling], 20_000)
    memory.bias[[0, 3, 5]] = NOT_A_TOKEN
    drawn = set(draw(make_steps, memory, LOGITS).tolist())
    assert drawn.isdisjoint({0, 3, 5})
    assert drawn == {9} if sampling.temperature == 0 else len(drawn) > 4


def test_top_k_0_draws_from_everything(make_steps: StepsFactory) -> None:
    drawn = draw(make_steps, memory_of([Sampling(top_k=0)], 20_000), [0.0] * VOCABULARY)
    assert set(drawn.tolist()) == set(range(VOCABULARY))


def test_a_moved_row_takes_everything_along() -> None:
    memory = memory_of([Sampling(0.5, 3, 0.4, 1.2, seed=8), Sampling(0, seed=1)], 1, prompt=SEEN)
    memory.keys[:, 0], memory.values[:, 0] = 5, 6
    memory.copy([memory.move_row(0, 1)])
    assert memory.rows[1] == memory.rows[0]
    assert memory.seen[1].tolist() == memory.seen[0].tolist()
    assert (memory.keys[:, 1, :, : len(SEEN)] == 5).all()
    assert (memory.values[:, 1, :, : len(SEEN)] == 6).all()


def test_samples_of_a_request_have_their_own_noise_in_any_rows() -> None:
    low, high = memory_of([Sampling(seed=4)], 8), memory_of([Sampling(seed=4)], 8)
    high.start_rows(GenerationRequest((0,), 3, 1, Sampling(seed=4)), 8, 5, range(3))
    assert low.rows["key"][:3].tolist() == high.rows["key"][5:].tolist()
    assert len(set(low.rows["key"].tolist())) == 8


@given(
    st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=40, unique=True),
    st.sampled_from([0.3, 1.0, 2.0]),
    st.integers(0, 45),
    st.sampled_from([0.0, 0.2, 0.6, 0.9, 1.0]),
    st.integers(0, 2**64 - 1),
)
@settings(max_examples=cases(100, 5000))
def test_drawn_token_survives_the_reference_filter(
    make_steps: StepsFactory, logits: list[float], temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    memory = memory_of([Sampling(temperature, top_k, top_p, seed=seed)], 4, len(logits))
    drawn = draw(make_steps, memory, logits)
    kept = filter_logits(torch.tensor(logits), [], temperature, top_k, top_p * (1 + 1e-5) if top_p < 1 else 1.0, 1.0)
    assert bool(torch.isfinite(kept[drawn]).all())


def test_logprobs_are_the_log_softmax_at_temperature_1_where_asked_for(make_steps: StepsFactory) -> None:
    memory = memory_of([Sampling(3.0, 0, seed=5)], 64)
    memory.rows["wants_logprob"] = np.arange(64) % 2
    memory.bias[1] = NOT_A_TOKEN
    memory.logits[64, :VOCABULARY] = LOGITS
    token_ids, logprobs = make_steps(memory, random_weights(memory.shape)).draw(64, 0, np.full(64, 64, np.int32))
    wanted = torch.tensor(LOGITS, dtype=torch.float64)
    wanted[1] = NOT_A_TOKEN
    expected = wanted.log_softmax(0)[token_ids] * torch.from_numpy(memory.rows["wants_logprob"])
    assert logprobs == pytest.approx(expected.tolist(), abs=1e-6)
