"""Generation without an event loop: one request, many requests with faults in place, and the plain function generate_text."""

from __future__ import annotations

import asyncio
import inspect
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from promptgen import generate_text
from promptgen.config import EngineSettings
from promptgen.errors import ContextLengthExceeded, EngineFailure, FileFault, InvalidRequest
from promptgen.generation.async_engine import AsyncEngine
from promptgen.generation.local import Generator
from promptgen.generation.modelfile import Gpt2Shape
from promptgen.generation.request import Answer, Sampling, TextRequest

TOKENS = ["[SEP]", "[CLS]", "[MASK]", "[PAD]", "[UNK]", *"高血压要注意饮食睡眠运动，。", "hello", "world"]
SHAPE = Gpt2Shape(vocabulary=len(TOKENS), window=64, width=16, layers=2, heads=2, inner=64, epsilon=1e-5)
PROMPTS = ["高血压", "要注意，", "hello", "饮食。", "hello world", "睡眠", "运动要", "血压高", "注意"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small")
    generator = torch.Generator().manual_seed(2)
    save_file(
        {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in SHAPE.tensors().items()},
        path / "model.safetensors",
    )
    config = {
        "model_type": "gpt2",
        "vocab_size": len(TOKENS),
        "n_positions": 64,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
    }
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (path / "vocab.txt").write_text("".join(token + "\n" for token in TOKENS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def generator(folder: Path) -> Generator:
    return Generator(EngineSettings(model=folder, max_rows=4))


def request(prompt: str, seed: int, num_samples: int = 3, max_new_tokens: int = 10) -> TextRequest:
    return TextRequest(prompt, num_samples, max_new_tokens, Sampling(seed=seed), ignore_end=True)


def test_generate_gives_the_candidates_of_one_prompt(generator: Generator) -> None:
    answer = generator.generate(request("高血压", 1))
    assert [candidate.num_tokens for candidate in answer.candidates] == [10, 10, 10]
    assert len({candidate.completion for candidate in answer.candidates}) == 3
    assert answer.num_prompt_tokens == 4
    assert answer.decode_s > 0
    assert generator.info.window == 64


def test_the_same_seed_gives_the_same_text_and_another_seed_another(generator: Generator) -> None:
    first, again, other = (generator.generate(request("高血压", seed)).candidates for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_generate_many_answers_all_as_they_would_be_alone(generator: Generator) -> None:
    requests = [request(prompt, seed, max_new_tokens=3 + 2 * seed) for seed, prompt in enumerate(PROMPTS)]
    answers = dict(generator.generate_many(requests))
    assert sorted(answers) == list(range(9))
    for index, asked in enumerate(requests):
        answer = answers[index]
        assert isinstance(answer, Answer)
        alone = generator.generate(asked).candidates
        assert [c.completion for c in answer.candidates] == [c.completion for c in alone]


def test_faults_stand_in_the_place_of_their_answers(generator: Generator) -> None:
    requests = [request("高", 0), request("高" * 70, 1), request("压", 2, num_samples=0), request("血", 3)]
    answers = dict(generator.generate_many(iter(requests)))
    assert [type(answers[index]) for index in range(4)] == [Answer, ContextLengthExceeded, InvalidRequest, Answer]


def test_of_nothing_comes_nothing(generator: Generator) -> None:
    assert list(generator.generate_many([])) == []


def test_generate_raises_what_generate_many_gives(generator: Generator) -> None:
    with pytest.raises(ContextLengthExceeded):
        generator.generate(request("高" * 70, 1))


def test_an_engine_failure_fails_the_guilty_and_the_rest_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator(EngineSettings(model=folder, max_rows=4))  # one that has read no prompt yet
    steps = generator._engine._runner.steps
    forward = steps.forward
    calls = iter(range(1000))  # the step, and then the first prompt alone
    monkeypatch.setattr(steps, "forward", lambda *a: forward(*a) if next(calls) > 1 else torch.zeros(1)[9])
    answers = dict(generator.generate_many([request(prompt, 1) for prompt in PROMPTS]))
    assert isinstance(answers[0], EngineFailure)
    assert all(isinstance(answers[index], Answer) for index in range(1, 9))
    assert sorted(answers) == list(range(9))


def test_abandoning_generate_many_leaves_the_next_request_right(generator: Generator) -> None:
    expected = generator.generate(request("高血压", 1)).candidates
    answers = generator.generate_many([request(prompt, 3) for prompt in PROMPTS])
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert generator.generate(request("高血压", 1)).candidates == expected


def test_a_stop_string_cuts_and_frees(generator: Generator) -> None:
    whole = generator.generate(request("高血压", 1, num_samples=1)).candidates[0].completion
    cut = TextRequest("高血压", 1, 10, Sampling(seed=1), stop=(whole[2:4],), ignore_end=True)
    assert generator.generate(cut).candidates[0].completion == whole[: whole.find(whole[2:4])]


def test_the_engine_over_asyncio_gives_the_same_text(folder: Path, generator: Generator) -> None:
    async def answers() -> list[Answer]:
        engine = AsyncEngine(EngineSettings(model=folder, max_rows=7))
        await engine.start()
        try:
            return await asyncio.gather(*(engine.answer(request(prompt, 9)) for prompt in PROMPTS))
        finally:
            await engine.stop()

    expected = [generator.generate(request(prompt, 9)).candidates for prompt in PROMPTS]
    assert [answer.candidates for answer in asyncio.run(answers())] == expected


def test_generate_text_takes_prompt_max_len_and_batch_size(folder: Path) -> None:
    assert list(inspect.signature(generate_text).parameters)[:3] == ["prompt", "max_len", "batch_size"]
    texts = generate_text("高血压", 8, 4, model=folder)
    assert len(texts) == 4
    assert all(text.startswith("高血压") for text in texts)
    assert len(generate_text("hello", model=str(folder))) == 5


def test_generate_text_is_seeded_by_its_sampling_alone(folder: Path, generator: Generator) -> None:
    first, again = (generate_text("高血压", 10, 3, model=folder, sampling=Sampling(seed=4)) for _ in range(2))
    own = generator.generate(TextRequest("高血压", 3, 10, Sampling(seed=4)))
    assert first == again == ["高血压" + candidate.completion for candidate in own.candidates]
    assert len({tuple(generate_text("高血压", 30, 3, model=folder)) for _ in range(3)}) == 3


@pytest.mark.parametrize("blank", ["", " ", "\n\t 　"])
def test_a_blank_prompt_gives_an_empty_list_and_loads_nothing(blank: str, tmp_path: Path) -> None:
    assert generate_text(blank, model=tmp_path / "nowhere") == []


def test_a_missing_model_is_a_file_fault(tmp_path: Path) -> None:
    with pytest.raises(FileFault, match="nowhere"):
        generate_text("高血压", model=tmp_path / "nowhere")
