"""A text's vector is the mean of transformers' last hidden states, of length 1, and computing it disturbs no row."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from promptgen.config import EngineSettings
from promptgen.errors import EngineFailure, Overloaded
from promptgen.generation.async_engine import AsyncEngine
from promptgen.generation.embedding import Embedder
from promptgen.generation.loader import OpenModel, open_model
from promptgen.generation.modelfile import read_shape, read_weights
from promptgen.generation.request import Sampling, TextRequest

BEGIN = 4


@pytest.fixture
def folder(random_model: Any) -> Path:
    return random_model(3, 64, 2, 500, 80)


@pytest.mark.parametrize("ids", [(9,), (9, 8, 7), tuple(range(5, 85)), (BEGIN,), (BEGIN, 9, 8, 7)])
def test_it_is_the_mean_of_the_last_hidden_states(folder: Path, ids: tuple[int, ...]) -> None:
    from transformers import GPT2Model

    with torch.inference_mode():
        states = GPT2Model.from_pretrained(folder).eval()(torch.tensor([ids])).last_hidden_state[0]
    if ids[0] == BEGIN and len(ids) > 1:
        states = states[1:]
    mean = states.mean(dim=0).numpy()
    shape = read_shape(folder)
    vector = Embedder(shape, read_weights(folder, shape), BEGIN).embed(ids)
    assert vector == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


def in_loop(scenario: Any) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))


SETTINGS = EngineSettings(threads=1, precision="float32", compiler="", max_rows=8)


def test_vectors_come_between_steps_and_disturb_nothing() -> None:
    async def scenario() -> None:
        engine = AsyncEngine(SETTINGS)
        await engine.start()
        asked = TextRequest("高血压要注意", 4, 200, Sampling(seed=5), ignore_end=True)
        alone = await engine.answer(asked)
        vector = await engine.embed((2, 20, 30))
        running = asyncio.ensure_future(engine.answer(asked))
        vectors = await asyncio.gather(*(engine.embed((2, 20, 30)) for _ in range(12)))
        assert not running.done()
        assert all((other == vector).all() for other in vectors)
        assert (await running).candidates == alone.candidates
        assert engine.num_active == 0
        await engine.stop()

    in_loop(scenario())


def test_those_who_wait_for_their_turn_count_as_waiting() -> None:
    async def scenario() -> None:
        engine = AsyncEngine(replace(SETTINGS, max_queue=3))
        await engine.start()
        async with engine._embedding:  # somebody's turn that does not end
            waiting = [asyncio.ensure_future(engine.embed((2, 20, 30))) for _ in range(3)]
            await asyncio.sleep(0)
            assert engine.num_active == 3
            with pytest.raises(Overloaded):
                await engine.embed((2, 20, 30))
        await asyncio.gather(*waiting)
        assert engine.num_active == 0
        await engine.stop()

    in_loop(scenario())


def test_a_failure_is_that_of_its_caller_and_leaves_nothing_behind() -> None:
    class Broken:
        def embed(self, _: tuple[int, ...]) -> None:
            raise RuntimeError("broken")

    def load(settings: EngineSettings) -> OpenModel:
        model = open_model(settings)
        return OpenModel(model.tokenizer, model.healer, model.engine, model.info, model.dialogue, embedder=Broken())  # type: ignore[arg-type]

    async def scenario() -> None:
        engine = AsyncEngine(SETTINGS, load)
        await engine.start()
        with pytest.raises(EngineFailure):
            await engine.embed((2, 3))
        assert (await engine.answer(TextRequest("高血压", 1, 2))).candidates
        assert engine.num_active == 0
        waiting = asyncio.ensure_future(engine.embed((2, 3)))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert engine.num_active == 0
        await engine.stop()

    in_loop(scenario())
