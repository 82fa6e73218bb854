"""An engine of a few thousand weights behind an event loop, slow and breakable on demand: for tests of what goes on around it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import torch

from promptgen.config import EngineSettings
from promptgen.generation.async_engine import AsyncEngine, Delta
from promptgen.generation.dialogue import Dialogue
from promptgen.generation.engine import Engine
from promptgen.generation.gpt2 import EagerGpt2
from promptgen.generation.healing import Healer
from promptgen.generation.loader import ModelInfo, OpenModel
from promptgen.generation.memory import Memory
from promptgen.generation.modelfile import Gpt2Shape
from promptgen.generation.request import Answer, Event, Sampling, TextRequest
from promptgen.text.tokenizer import BertWordTokenizer
from promptgen.text.vocabulary import Vocabulary

TOKENIZER = BertWordTokenizer(
    Vocabulary.of(["[SEP]", "[CLS]", "[MASK]", "[PAD]", "[UNK]", *"高血压要注意饮食睡眠运动，。", "hello", "world"])
)
SHAPE = Gpt2Shape(vocabulary=TOKENIZER.size, window=64, width=16, layers=1, heads=2, inner=64, epsilon=1e-5)
FULL = TextRequest("高血压", 2, 30, Sampling(seed=5), ignore_end=True)


class SlowEngine(Engine):
    """Each step takes `pause_s` longer; `breaks` lets the next step raise out of the engine, `hold` keeps it from returning until it is set."""

    pause_s = 0.0
    breaks = False
    hold: threading.Event | None = None

    def step(self) -> list[Event]:
        time.sleep(self.pause_s)
        if self.hold is not None:
            self.hold.wait(60)
        if self.breaks:
            raise RuntimeError("broken on purpose")
        return super().step()


def loader(pause_s: float = 0.0, weights_seed: int = 1) -> Callable[[EngineSettings], OpenModel]:
    def load(settings: EngineSettings) -> OpenModel:
        torch.set_num_threads(1)
        generator = torch.Generator().manual_seed(weights_seed)
        weights = {
            name: (0.3 * torch.randn(shape, generator=generator)).numpy() for name, shape in SHAPE.tensors().items()
        }
        memory = Memory(
            SHAPE,
            max_rows=settings.max_rows,
            num_prompt_slots=settings.prompt_slots or 64,
            banned_ids=TOKENIZER.banned_ids,
            end_id=TOKENIZER.end_id,
        )
        engine = SlowEngine(memory, EagerGpt2(memory, weights))
        engine.pause_s = pause_s
        info = ModelInfo("small", 64, TOKENIZER.size, 1, 16, 2)
        return OpenModel(TOKENIZER, Healer(TOKENIZER), engine, info, Dialogue(TOKENIZER, 64))

    return load


@contextlib.asynccontextmanager
async def running(
    *,
    pause_s: float = 0.0,
    max_rows: int = 16,
    max_queue: int = 100,
    load: Callable[[EngineSettings], OpenModel] | None = None,
    **settings: Any,
) -> AsyncIterator[AsyncEngine]:
    engine = AsyncEngine(EngineSettings(max_rows=max_rows, max_queue=max_queue, **settings), load or loader(pause_s))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def collect(engine: AsyncEngine, request: TextRequest, into: list[Delta]) -> None:
    async for delta in engine.stream(request):
        into.append(delta)  # noqa: PERF401 - what came before a fault is kept


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - counts of another thread have no event
            await asyncio.sleep(0.002)


def texts_of(answer: Answer) -> list[str]:
    return [candidate.completion for candidate in answer.candidates]


def is_empty(engine: AsyncEngine) -> bool:
    return engine.num_active == engine.stats.num_rows == engine.stats.num_waiting == 0


def in_loop(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 100))


def the_engine(engine: AsyncEngine) -> SlowEngine:
    model = engine._model
    assert model is not None
    assert isinstance(model.engine, SlowEngine)
    return model.engine
