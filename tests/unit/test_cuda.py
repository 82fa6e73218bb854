"""The GPU's path: all of it but the graphs on the CPU here, and with the graphs where there is a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from promptgen.config import EngineSettings
from promptgen.errors import UsageError
from promptgen.generation.cuda import CudaGpt2, DeviceMemory
from promptgen.generation.engine import Engine
from promptgen.generation.gpt2 import EagerGpt2
from promptgen.generation.loader import open_model
from promptgen.generation.memory import Memory
from promptgen.generation.modelfile import read_shape, read_weights
from promptgen.generation.request import GenerationRequest, Sampling
from promptgen.generation.steps import Precision
from tests.unit.test_engine import random_neighbours, run_all

SHAPE = (2, 32, 2, 97, 160)
has_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here; the graphs are untested")


@pytest.fixture
def folder(random_model: Any) -> Path:
    return random_model(*SHAPE)


def engines(folder: Path, device: str, precision: Precision = "float32") -> tuple[Engine, Engine]:
    """On the device, and the plain one."""
    shape = read_shape(folder)
    weights = read_weights(folder, shape)
    options = {"max_rows": 24, "num_prompt_slots": 4, "banned_ids": (0, 2), "end_id": 1}
    cache_dtype = torch.float32 if precision == "float32" else torch.bfloat16
    memory = DeviceMemory(shape, device=torch.device(device), cache_dtype=cache_dtype, **options)
    plain = Memory(shape, **options)  # type: ignore[arg-type]
    return (
        Engine(memory, CudaGpt2(memory, weights, precision)),
        Engine(plain, EagerGpt2(plain, weights)),
    )


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=has_gpu)])
def test_the_device_gives_the_same_tokens(folder: Path, device: str) -> None:
    ours, plain = engines(folder, device)
    crowd = random_neighbours(60, SHAPE[3], 30, seed=5)
    crowd += [GenerationRequest((5, 6, 7), 20, 140, Sampling(seed=2), ignore_end=True)]  # several buckets of both kinds
    assert run_all(ours, crowd, per_step=3).token_ids == run_all(plain, crowd, per_step=3).token_ids


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=has_gpu)])
def test_bfloat16_is_near(folder: Path, device: str) -> None:
    ours, plain = engines(folder, device, "bfloat16")
    asked = [GenerationRequest((9, 8, 7, 6), 1, 1, Sampling(seed=seed), want_logprobs=True) for seed in range(200)]
    given, wanted = run_all(ours, asked), run_all(plain, asked)
    same = sum(given.token_ids[key] == ids for key, ids in wanted.token_ids.items())
    assert same >= 150


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused_with_what_to_do() -> None:
    with pytest.raises(UsageError, match="--device cuda"):
        open_model(EngineSettings(device="cuda"))
