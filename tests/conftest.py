"""Shared fixtures: small random GPT-2 models, saved as any trained model is."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from promptgen.config import DEFAULT_CACHE, DEFAULT_MODEL, EngineSettings
from promptgen.generation.gpt2 import EagerGpt2
from promptgen.generation.memory import Memory
from promptgen.generation.modelfile import Gpt2Shape, Weights
from promptgen.generation.native.compiler import KernelsUnavailable, compile_library, find_library
from promptgen.generation.native.model import Kernels, NativeGpt2
from promptgen.generation.steps import Steps
from tests.amount import cases

settings.register_profile("promptgen", max_examples=cases(200, 5000), deadline=None)
settings.load_profile("promptgen")

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a shell that runs us in the background; children would ignore Ctrl-C too
    signal.signal(signal.SIGINT, signal.default_int_handler)

ModelFactory = Callable[[int, int, int, int, int], Path]
StepsFactory = Callable[[Memory, Weights], Steps]


@pytest.fixture(scope="session")
def kernels() -> Kernels:
    """The compiled kernels, from the cache that `make install` fills."""
    folder = DEFAULT_CACHE.expanduser()
    try:
        return Kernels(find_library(folder) or compile_library(folder, EngineSettings(model=DEFAULT_MODEL).compiler))
    except KernelsUnavailable as fault:
        pytest.skip(f"no compiled kernels: {fault}")


@pytest.fixture(scope="module", params=["torch", "compiled"])
def make_steps(request: pytest.FixtureRequest) -> StepsFactory:
    """make_steps(memory, weights) gives the model's steps in float32 on one thread: every test with it runs for both implementations."""
    if request.param == "torch":
        return EagerGpt2
    kernels: Kernels = request.getfixturevalue("kernels")
    return lambda memory, weights: NativeGpt2(kernels, memory, weights, "float32", 1)


def random_weights(shape: Gpt2Shape, seed: int = 0, scale: float = 0.3) -> Weights:
    """Weights of a GPT-2 that nobody trained; norms are around 1."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (scale * torch.randn(size, generator=generator) + ("ln_" in name and name.endswith("weight"))).numpy()
        for name, size in shape.tensors().items()
    }


def new_memory(shape: Gpt2Shape, *, max_rows: int = 8, num_prompt_slots: int = 4) -> Memory:
    return Memory(shape, max_rows=max_rows, num_prompt_slots=num_prompt_slots, banned_ids=(), end_id=-1)


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> ModelFactory:
    """random_model(layers, width, heads, vocabulary, window) saves a float32 GPT2LMHeadModel and returns its folder.

    Biases and norms are random too, so that none can be lost unseen; weights are large: no near-ties when greedy.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    @cache
    def save(layers: int, width: int, heads: int, vocabulary: int, window: int) -> Path:
        config = GPT2Config(
            vocab_size=vocabulary,
            n_positions=window,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            bos_token_id=None,
            eos_token_id=None,
        )
        model = GPT2LMHeadModel(config)
        generator = torch.Generator().manual_seed(layers * 1_000_003 + width * 1009 + vocabulary)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(mean=1.0 if "ln_" in name and "weight" in name else 0.0, std=0.3, generator=generator)
        folder = tmp_path_factory.mktemp("model")
        model.save_pretrained(folder)
        return folder

    return save
