"""Opens a model folder: the tokenizer and an engine over its weights, checked against each other.

torch is imported when its steps are needed: not where the compiled ones are ready, which saves a start seconds and the service 200 MB.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from promptgen.config import EngineSettings
from promptgen.errors import ContextLengthExceeded, FileFault, UsageError
from promptgen.generation.candidates import CandidateSet
from promptgen.generation.chat_template import ChatTemplate
from promptgen.generation.dialogue import Dialogue
from promptgen.generation.embedding import Embedder
from promptgen.generation.engine import Engine
from promptgen.generation.healing import Healer
from promptgen.generation.memory import Memory, on_host
from promptgen.generation.modelfile import Gpt2Shape, Weights, read_sampling, read_shape, read_weights
from promptgen.generation.request import Sampling, TextRequest
from promptgen.generation.steps import Precision, PromptTokens, Steps
from promptgen.generation.upgrade import Upgrade, check_precision, usable_threads
from promptgen.text.tokenizer import VOCABULARY_FILES, Tokenizer, load_tokenizer

SELF_TEST_TOKENS = 8
LEAST_SLOTS = 16  # the ways to spell the word in which a prompt was cut have one each
KEPT_BYTES = (
    512 << 20
)  # of keys and values of what is kept, in float32 and full to the window; most is short, and in half of that


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What /version tells of a model. `sampling` is how it is drawn from where a caller does not say."""

    name: str
    window: int
    vocabulary: int
    layers: int
    width: int
    heads: int
    sampling: Sampling = Sampling()


@dataclass(frozen=True, slots=True)
class OpenModel:
    """`upgrading` is the thread that prepares a faster step, None when there is nothing to prepare. `end_ids` end every candidate, as the
    end-of-document token does."""

    tokenizer: Tokenizer
    healer: Healer
    engine: Engine
    info: ModelInfo
    dialogue: Dialogue
    end_ids: tuple[int, ...] = ()
    upgrading: threading.Thread | None = None
    embedder: Embedder | None = None

    def candidates(self, request: TextRequest) -> CandidateSet:
        """The candidates of a request, whose parts the engine can serve. Raises InvalidRequest (ContextLengthExceeded)."""
        if self.end_ids:
            request = replace(request, end_ids=tuple(dict.fromkeys((*request.end_ids, *self.end_ids))))
        candidates = CandidateSet(self.tokenizer, request, self.healer, window=self.info.window)
        if not request.choices and candidates.num_prompt_tokens + request.max_new_tokens > self.info.window:
            raise ContextLengthExceeded(candidates.num_prompt_tokens, request.max_new_tokens, self.info.window)
        for part in candidates.requests:
            self.engine.check(part)
        return candidates

    def settle(self) -> None:
        """Waits until the step that will stay is ready."""
        if self.upgrading is not None:
            self.upgrading.join()


def open_model(settings: EngineSettings, *, upgrade_later: bool = True) -> OpenModel:
    """Loads, checks and warms up the model of the settings. Raises FileFault naming the file at fault, UsageError for a setting.

    With `upgrade_later` a step that is faster than torch's, but not prepared yet, is prepared in the background.
    """
    check_precision(settings.precision)
    if settings.device not in ("cpu", "cuda"):
        raise UsageError(f"--device is cpu or cuda, is {settings.device!r}")
    folder = settings.model
    if not folder.is_dir():
        raise FileFault(folder, "is not a model folder; train one (promptgen train) or name another with --model")
    shape = read_shape(folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer.size != shape.vocabulary:
        file = next(path for name in VOCABULARY_FILES if (path := folder / name).exists())
        raise FileFault(file, f"has {tokenizer.size} tokens, config.json says {shape.vocabulary}")
    if shape.window < 2:
        raise FileFault(folder / "config.json", "n_positions must be 2 or more: a prompt and a new token")
    template = ChatTemplate.load(folder)
    dialogue = Dialogue(tokenizer, shape.window, template)
    end_ids = dialogue.end_ids if template is not None else ()
    weights = read_weights(folder, shape)
    options: dict[str, Any] = {
        "max_rows": settings.max_rows,
        "num_prompt_slots": num_prompt_slots(settings.prompt_slots, shape),
        "banned_ids": [i for i in tokenizer.banned_ids if i not in end_ids],
        "end_id": tokenizer.end_id,
    }
    info = ModelInfo(
        folder.name, shape.window, shape.vocabulary, shape.layers, shape.width, shape.heads, read_sampling(folder)
    )
    embedder = Embedder(shape, weights, tokenizer.begin_id)
    if settings.device == "cuda":
        memory, steps = _on_cuda(settings, shape, weights, options)
        engine = _checked_engine(settings, memory, steps, tokenizer)
        return OpenModel(tokenizer, Healer(tokenizer), engine, info, dialogue, end_ids, embedder=embedder)
    memory = Memory(shape, **options)
    upgrade = Upgrade(settings, memory, weights, tokenizer.begin_id)
    fast = upgrade.ready()
    engine = _checked_engine(settings, memory, fast or _in_torch(settings, memory, weights), tokenizer)
    is_worth_it = upgrade_later and upgrade.is_wanted and fast is None
    upgrading = upgrade.prepare(engine.offer) if is_worth_it else None
    return OpenModel(tokenizer, Healer(tokenizer), engine, info, dialogue, end_ids, upgrading, embedder)


def num_prompt_slots(asked: int, shape: Gpt2Shape) -> int:
    """As many as asked for, but enough for the ways to spell a word; without a wish what KEPT_BYTES hold, 64 to 256.

    Someone who types keeps ten or so: the prompt, its branches, five candidates.
    """
    if asked:
        return max(LEAST_SLOTS, asked)
    return max(64, min(256, KEPT_BYTES // shape.slot_bytes))


def _in_torch(settings: EngineSettings, memory: Memory, weights: Weights) -> Steps:
    import torch

    from promptgen.generation.gpt2 import EagerGpt2

    if settings.threads:
        torch.set_num_threads(usable_threads(settings.threads))
    precision = cast(Precision, "float32" if settings.precision == "auto" else settings.precision)
    return EagerGpt2(memory, weights, precision)


def _on_cuda(
    settings: EngineSettings, shape: Gpt2Shape, weights: Weights, options: dict[str, Any]
) -> tuple[Memory, Steps]:
    import torch

    from promptgen.generation.cuda import CudaGpt2, DeviceMemory

    if not torch.cuda.is_available():
        raise UsageError("--device cuda: this torch sees no GPU; the pinned build is for CPUs, install one for CUDA")
    if settings.precision == "int8":
        raise UsageError("--device cuda computes in bfloat16 or float32; int8 is for CPUs")
    precision: Precision = "float32" if settings.precision == "float32" else "bfloat16"
    cache_dtype = torch.float32 if precision == "float32" else torch.bfloat16
    memory = DeviceMemory(shape, device=torch.device("cuda"), cache_dtype=cache_dtype, **options)
    return memory, CudaGpt2(memory, weights, precision)


def _checked_engine(settings: EngineSettings, memory: Memory, steps: Steps, tokenizer: Tokenizer) -> Engine:
    """Raises FileFault if a first short run gives logits that are no numbers. It also pays for one-time set-up, so that no request does."""
    slot = len(memory.rows)  # the first prompt slot; the prompt cache knows nothing of it
    length = min(SELF_TEST_TOKENS, memory.shape.window - 1)
    steps.forward(0, PromptTokens.of([(slot, 0, (tokenizer.begin_id,) * length, True)]))
    if not np.isfinite(on_host(memory.logits[slot])).all():
        file = settings.model / "model.safetensors"
        raise FileFault(file, "gives logits that are not finite; the weights are damaged")
    return Engine(memory, steps)
