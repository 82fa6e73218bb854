"""Shared fixtures: small random GPT-2 models, saved as any trained model is."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

ModelFactory = Callable[[int, int, int, int, int], Path]


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
