"""The noise is SplitMix64's, one on ints and tensors, uniform, independent between neighbours, and frozen for good."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from promptgen.generation.noise import mix, sequence_key
from promptgen.generation.torch_noise import gumbel, mix_tensor

GOLDEN = 0x9E3779B97F4A7C15
NUM_DRAWS = 100_000
unsigned = st.integers(0, 2**64 - 1)


def signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x


def uniform(keys: torch.Tensor, positions: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    return torch.exp(-torch.exp(-gumbel(keys, positions, token_ids)))


def keys_of(seeds: range, samples: range) -> torch.Tensor:
    return torch.tensor([sequence_key(seed, sample) for seed in seeds for sample in samples])


@pytest.mark.parametrize(
    ("step", "expected"), [(1, 0xE220A8397B1DCDAF), (2, 0x6E789E6AA1B965F4), (3, 0x06C45D188009454F)]
)
def test_mix_gives_the_published_splitmix64_sequence_of_seed_0(step: int, expected: int) -> None:
    assert mix(step * GOLDEN) == expected


@given(st.lists(unsigned, min_size=1, max_size=20))
def test_mix_and_mix_tensor_are_one_function(numbers: list[int]) -> None:
    assert mix_tensor(torch.tensor([signed(x) for x in numbers])).tolist() == [signed(mix(x)) for x in numbers]


@pytest.mark.parametrize("x", [0, 1, 2**63 - 1, 2**63, 2**64 - 1, 2**31, GOLDEN])
def test_mix_and_mix_tensor_agree_at_the_edges(x: int) -> None:
    assert mix_tensor(torch.tensor([signed(x)])).tolist() == [signed(mix(x))]


@given(unsigned, st.integers(0, 1000))
def test_sequence_key_fits_int64(seed: int, sample: int) -> None:
    assert -(2**63) <= sequence_key(seed, sample) < 2**63


@pytest.mark.parametrize(
    ("seed", "sample", "expected"),
    [
        (0, 0, -6411193824288604561),
        (0, 1, -5511663747979980962),
        (1, 0, 6791897765849424158),
        (2**64 - 1, 7, -5093915736712460761),
        (1234567, 4, 6762581483656550392),
    ],
)
def test_sequence_keys_are_frozen(seed: int, sample: int, expected: int) -> None:
    assert sequence_key(seed, sample) == expected


def test_gumbel_values_are_frozen() -> None:
    keys = torch.tensor([sequence_key(0, 0), sequence_key(42, 3)])
    noise = gumbel(keys, torch.tensor([0, 17]), torch.tensor([[0, 1, 2], [5, 21127, 50004]]))
    assert noise.dtype == torch.float64
    assert noise.flatten().tolist() == pytest.approx(
        [
            -0.7143951177675684,
            -1.097722639506,
            0.9163217771211836,
            3.821818463810906,
            4.108327014505132,
            2.815375484393753,
        ],
        rel=1e-12,
    )


@pytest.mark.parametrize("key", [-4188647063337296395, 2295574122455614247], ids=["all 53 bits 0", "all 53 bits 1"])
def test_noise_is_finite_where_the_random_bits_are_extreme(key: int) -> None:
    assert torch.isfinite(gumbel(torch.tensor([key]), torch.tensor([0]), torch.tensor([[0]]))).all()


@pytest.mark.parametrize("axis", ["seed", "sample", "position", "token"])
def test_noise_is_uniform_along_each_part_of_the_key(axis: str) -> None:
    if axis == "token":
        u = uniform(keys_of(range(1), range(1)), torch.tensor([3]), torch.arange(NUM_DRAWS)[None])
    elif axis == "position":
        u = uniform(
            keys_of(range(1), range(1)).expand(NUM_DRAWS),
            torch.arange(NUM_DRAWS),
            torch.zeros(NUM_DRAWS, 1, dtype=torch.int64),
        )
    else:
        keys = keys_of(range(NUM_DRAWS), range(1)) if axis == "seed" else keys_of(range(1), range(NUM_DRAWS))
        u = uniform(keys, torch.zeros(NUM_DRAWS, dtype=torch.int64), torch.zeros(NUM_DRAWS, 1, dtype=torch.int64))
    counts = torch.histc(u, bins=200, min=0, max=1)
    assert int(counts.sum()) == NUM_DRAWS
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_noise_has_the_gumbel_distribution() -> None:
    noise = gumbel(keys_of(range(5), range(20)), torch.arange(100), torch.arange(1000).expand(100, 1000))
    assert stats.kstest(noise.flatten().numpy(), stats.gumbel_r.cdf).pvalue > 1e-3


@pytest.mark.parametrize("axis", ["seed", "sample", "position", "token"])
def test_neighbours_are_independent(axis: str) -> None:
    tokens = torch.arange(2000).expand(40, 2000)
    positions = torch.arange(40)
    here = uniform(keys_of(range(1), range(40)), positions, tokens)
    there = {
        "seed": lambda: uniform(keys_of(range(1, 2), range(40)), positions, tokens),
        "sample": lambda: uniform(keys_of(range(1), range(1, 41)), positions, tokens),
        "position": lambda: uniform(keys_of(range(1), range(40)), positions + 1, tokens),
        "token": lambda: uniform(keys_of(range(1), range(40)), positions, tokens + 1),
    }[axis]()
    cells = (here * 10).long() * 10 + (there * 10).long()
    counts = torch.bincount(cells.flatten(), minlength=100)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert not bool((here == there).any())
