"""Opens a model folder: the tokenizer and an engine over its weights, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from promptgen.config import EngineSettings
from promptgen.errors import FileFault
from promptgen.generation.engine import Engine
from promptgen.generation.gpt2 import Gpt2
from promptgen.generation.modelfile import read_shape, read_weights
from promptgen.text.tokenizer import VOCABULARY_FILES, Tokenizer, load_tokenizer

SELF_TEST_TOKENS = 8


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What /version tells of a model."""

    name: str
    window: int
    vocabulary: int
    layers: int
    width: int
    heads: int


@dataclass(frozen=True, slots=True)
class OpenModel:
    tokenizer: Tokenizer
    engine: Engine
    info: ModelInfo


def open_model(settings: EngineSettings) -> OpenModel:
    """Loads, checks and warms up the model of the settings. Raises FileFault naming the file at fault."""
    folder = settings.model
    if not folder.is_dir():
        raise FileFault(folder, "is not a model folder; train one (promptgen train) or name another with --model")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    shape = read_shape(folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer.size != shape.vocabulary:
        file = next(path for name in VOCABULARY_FILES if (path := folder / name).exists())
        raise FileFault(file, f"has {tokenizer.size} tokens, config.json says {shape.vocabulary}")
    if shape.window < 2:
        raise FileFault(folder / "config.json", "n_positions must be 2 or more: a prompt and a new token")
    model = Gpt2(shape, read_weights(folder, shape))
    if not _gives_numbers(model, tokenizer):
        raise FileFault(folder / "model.safetensors", "gives logits that are not finite; the weights are damaged")
    engine = Engine(
        model,
        end_id=tokenizer.end_id,
        banned_ids=tokenizer.banned_ids,
        max_rows=settings.max_rows,
        max_queue=settings.max_queue,
    )
    return OpenModel(
        tokenizer,
        engine,
        ModelInfo(folder.name, shape.window, shape.vocabulary, shape.layers, shape.width, shape.heads),
    )


@torch.inference_mode()
def _gives_numbers(model: Gpt2, tokenizer: Tokenizer) -> bool:
    """Whether a first short run gives finite logits. It also pays for one-time set-up, so that no request does."""
    length = min(SELF_TEST_TOKENS, model.shape.window - 1)
    logits, keys, values = model.prefill([[tokenizer.begin_id] * length])
    cache = model.new_cache(2)
    cache.fork(keys[:, 0], values[:, 0], 0, 2)
    logits = model.decode(torch.tensor([tokenizer.begin_id] * 2), torch.tensor([length] * 2), cache, length + 1)
    return bool(torch.isfinite(logits).all())
