"""The sampler draws from exactly the distribution that was asked for, row by row, whatever the other rows ask for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from promptgen.generation.reference import filter_logits
from promptgen.generation.request import Sampling
from promptgen.generation.sampler import NOT_A_TOKEN, RowSampling, chosen_logprobs, penalize, sample

NUM_DRAWS = 100_000
LOGITS = [2.0, -1.0, 0.5, 1.7, -0.3, 0.0, 1.1, -2.2, 0.9, 1.4, -0.8, 0.2]
SEEN = (0, 3, 4, 7)
VOCABULARY = len(LOGITS)


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


def rows_of(samplings: list[Sampling], each: int) -> RowSampling:
    rows = RowSampling.allocate(len(samplings) * each)
    for index, sampling in enumerate(samplings):
        rows.set_rows(index * each, each, sampling, VOCABULARY)
    return rows


def draw(logits: torch.Tensor, sampling: Sampling, position: int = 9) -> torch.Tensor:
    return sample(logits.expand(NUM_DRAWS, -1), torch.full((NUM_DRAWS,), position), rows_of([sampling], NUM_DRAWS))


def assert_distribution(token_ids: torch.Tensor, probabilities: np.ndarray) -> None:
    counts = torch.bincount(token_ids, minlength=len(probabilities)).numpy()
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
def test_draws_follow_the_exact_distribution(sampling: Sampling) -> None:
    assert_distribution(draw(torch.tensor(LOGITS), sampling), exact(LOGITS, sampling))


@pytest.mark.parametrize(
    "sampling", [Sampling(top_k=0, repetition_penalty=1.8), Sampling(0.8, 7, 0.9, 1.3), Sampling(1.0, 0, 0.0, 0.6)]
)
def test_penalized_draws_follow_the_exact_distribution(sampling: Sampling) -> None:
    seen = torch.zeros(1, VOCABULARY, dtype=torch.bool)
    seen[0, list(SEEN)] = True
    scored = penalize(torch.tensor([LOGITS]), seen, torch.tensor([sampling.repetition_penalty]))
    assert_distribution(draw(scored[0], sampling), exact(LOGITS, sampling, SEEN))


def test_penalty_divides_positive_and_multiplies_negative_logits_of_seen_tokens() -> None:
    seen = torch.tensor([[True, True, False, False], [True, True, True, True]])
    scored = penalize(torch.tensor([[2.0, -2.0, 2.0, -2.0]] * 2), seen, torch.tensor([2.0, 1.0]))
    assert scored.tolist() == [[1.0, -4.0, 2.0, -2.0], [2.0, -2.0, 2.0, -2.0]]


def test_rows_of_all_kinds_mixed_keep_their_own_parameters() -> None:
    kinds = [
        Sampling(temperature=0, seed=1),
        Sampling(temperature=2.0, top_k=0, seed=2),
        Sampling(top_k=3, seed=3),
        Sampling(top_k=0, top_p=0.6, seed=4),
        Sampling(temperature=0, top_k=0, top_p=0.9, seed=5),
        Sampling(temperature=0.4, top_k=8, top_p=0.97, seed=6),
    ]
    each = NUM_DRAWS // len(kinds)
    rows = rows_of(kinds, each)
    shuffled = torch.randperm(len(kinds) * each, generator=torch.Generator().manual_seed(0))
    columns = (rows.keys, rows.temperature, rows.top_k, rows.top_p, rows.penalty, rows.noise)
    mixed = RowSampling(*(column[shuffled] for column in columns))
    logits = torch.tensor(LOGITS).expand(len(shuffled), -1)
    drawn = sample(logits, torch.full((len(shuffled),), 5), mixed)
    kind_of_row = shuffled // each
    for index, kind in enumerate(kinds):
        token_ids = drawn[kind_of_row == index]
        if kind.temperature == 0:
            assert set(token_ids.tolist()) == {0}
        else:
            assert_distribution(token_ids, exact(LOGITS, kind))


def test_a_row_draws_the_same_alone_and_in_a_batch() -> None:
    kinds = [
        Sampling(t, k, p, seed=s)
        for s, (t, k, p) in enumerate([(0, 30, 0), (1, 0, 0), (1, 4, 0), (1, 0, 0.5), (3, 7, 0.9)] * 40)
    ]
    logits = torch.randn(len(kinds), VOCABULARY, generator=torch.Generator().manual_seed(3)) * 2
    positions = torch.arange(len(kinds)) % 50
    together = sample(logits, positions, rows_of(kinds, 1))
    alone = [int(sample(logits[i : i + 1], positions[i : i + 1], rows_of([kind], 1))) for i, kind in enumerate(kinds)]
    assert together.tolist() == alone


@pytest.mark.parametrize(
    "sampling",
    [Sampling(top_k=0), Sampling(temperature=100.0, top_k=0), Sampling(top_k=8, top_p=0.99), Sampling(temperature=0)],
)
def test_banned_ids_are_never_drawn(sampling: Sampling) -> None:
    logits = torch.tensor(LOGITS)
    logits[[0, 3, 5]] = NOT_A_TOKEN
    drawn = set(draw(logits, sampling).tolist())
    assert drawn.isdisjoint({0, 3, 5})
    assert drawn == {9} if sampling.temperature == 0 else len(drawn) > 4


def test_top_k_0_draws_from_everything() -> None:
    assert set(draw(torch.zeros(VOCABULARY), Sampling(top_k=0)).tolist()) == set(range(VOCABULARY))


def test_moved_row_takes_all_its_parameters_along() -> None:
    rows = rows_of([Sampling(0.5, 3, 0.4, 1.2, seed=8), Sampling(0, seed=1)], 1)
    wanted = rows_of([Sampling(0.5, 3, 0.4, 1.2, seed=8)], 2)
    rows.move_row(0, 1)
    for name in RowSampling.__dataclass_fields__:
        assert torch.equal(getattr(rows, name)[1:], getattr(wanted, name)[:1]), name


def test_samples_of_a_request_are_numbered_from_0_in_any_rows() -> None:
    low, high = RowSampling.allocate(8), RowSampling.allocate(8)
    low.set_rows(0, 3, Sampling(seed=4), VOCABULARY)
    high.set_rows(5, 3, Sampling(seed=4), VOCABULARY)
    assert torch.equal(low.keys[:3], high.keys[5:])
    assert len(set(low.keys[:3].tolist())) == 3


@given(
    st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=40, unique=True),
    st.sampled_from([0.3, 1.0, 2.0]),
    st.integers(0, 45),
    st.sampled_from([0.0, 0.2, 0.6, 0.9, 1.0]),
    st.integers(0, 2**64 - 1),
)
@settings(max_examples=200, deadline=None)
def test_drawn_token_survives_the_reference_filter(
    logits: list[float], temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    rows = RowSampling.allocate(4)
    rows.set_rows(0, 4, Sampling(temperature, top_k, top_p, seed=seed), len(logits))
    drawn = sample(torch.tensor([logits] * 4), torch.arange(4), rows)
    kept = filter_logits(torch.tensor(logits), [], temperature, top_k, top_p * (1 + 1e-5) if top_p < 1 else 1.0, 1.0)
    assert bool(torch.isfinite(kept[drawn]).all())


def test_chosen_logprobs_are_the_log_softmax_at_temperature_1() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [np.log(3.0), 0.0, NOT_A_TOKEN, NOT_A_TOKEN]], dtype=torch.float32)
    assert chosen_logprobs(logits, torch.tensor([2, 0])).tolist() == pytest.approx(
        [np.log(0.25), np.log(0.75)], abs=1e-6
    )
