"""The engine gives transformers' greedy text and the oracle's samples, alone or not, and survives a failing step."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from promptgen.config import DEFAULT_MODEL
from promptgen.errors import ContextLengthExceeded, InvalidRequest
from promptgen.generation.engine import Engine
from promptgen.generation.gpt2 import EagerGpt2
from promptgen.generation.memory import Memory
from promptgen.generation.modelfile import read_shape, read_weights
from promptgen.generation.reference import fast_sample_sequence
from promptgen.generation.request import (
    Event,
    FailureEvent,
    FinishEvent,
    GenerationRequest,
    Sampling,
    StartEvent,
    TokenEvent,
)
from promptgen.text.tokenizer import load_tokenizer
from tests.conftest import StepsFactory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

END, BANNED = 1, (0, 2, 5)
NEVER = -1
SHAPES = [(1, 16, 1, 61, 24, 66), (2, 48, 3, 211, 64, 67), (3, 64, 2, 500, 80, 67)]
SMALL = (2, 32, 2, 97, 32)
GREEDY = Sampling(temperature=0)
BEGINNINGS = [
    "高血压要注意",
    "糖尿病的饮食",
    "感冒了怎么办",
    "失眠的原因",
    "请帮我写一封",
    "写一篇关于春天的",
    "用一句话解释",
    "如何学习英语",
    "怎样做红烧肉",
    "给我推荐一本书",
    "周末去北京旅游",
    "把下面的句子翻译成英文",
    "请用Python写一个函数",
    "2026年的计划",
    "每天3次",
    "你是一位经验丰富的老师，",
    "为一家咖啡店想一个名字",
    "画一只在月亮上的猫",
    "总结这篇文章",
    "孩子不爱吃饭",
    "Write a short story about",
    "Explain how",
    "What is the best way to",
    "Translate the following",
    "gpt 2 is",
    "Give me three ideas for",
    "How do I",
    "You are a helpful",
    "Hello, world!",
    "中文 and English",
]


class Collected:
    """What an engine gave out, by (request, sample)."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.token_ids: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        self.logprobs: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
        self.reasons: dict[tuple[int, int], str] = {}
        self.failed: list[int] = []

    def take(self, events: Sequence[Event]) -> None:
        self.events += events
        for event in events:
            if isinstance(event, TokenEvent):
                assert (event.request_id, event.sample) not in self.reasons
                self.token_ids[event.request_id, event.sample].append(event.token_id)
                self.logprobs[event.request_id, event.sample].append(event.logprob)
            elif isinstance(event, FinishEvent):
                assert (event.request_id, event.sample) not in self.reasons
                self.reasons[event.request_id, event.sample] = event.reason
            elif isinstance(event, FailureEvent):
                self.failed.append(event.request_id)


def run_all(
    engine: Engine,
    requests: Sequence[GenerationRequest],
    *,
    per_step: int = 1000,
    after_step: Callable[[int], None] | None = None,
) -> Collected:
    """Adds `per_step` requests before each step, numbered in order, and steps until all is done."""
    collected, todo, num_steps = Collected(), list(enumerate(requests)), 0
    while todo or engine.has_work:
        for request_id, request in todo[:per_step]:
            engine.check(request)
            engine.add(request_id, request)
        del todo[:per_step]
        collected.take(engine.step())
        num_steps += 1
        if after_step:
            after_step(num_steps)
    assert engine.stats.num_rows == engine.stats.num_waiting == 0
    return collected


IMPLEMENTATION: list[StepsFactory] = []


@pytest.fixture(scope="module", autouse=True)
def both_implementations(make_steps: StepsFactory) -> Iterator[None]:
    """Every test of this file runs over torch and over the compiled kernels."""
    IMPLEMENTATION.append(make_steps)
    yield
    IMPLEMENTATION.pop()


def new_engine(
    folder: Path,
    *,
    end_id: int = END,
    banned_ids: Sequence[int] = BANNED,
    max_rows: int = 64,
    num_prompt_slots: int = 8,
) -> Engine:
    shape = read_shape(folder)
    memory = Memory(shape, max_rows=max_rows, num_prompt_slots=num_prompt_slots, banned_ids=banned_ids, end_id=end_id)
    return Engine(memory, IMPLEMENTATION[-1](memory, read_weights(folder, shape)))


@cache
def transformers_model(folder: Path) -> PreTrainedModel:
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(folder).eval()


@torch.inference_mode()
def transformers_choices(
    folder: Path, prompt_ids: Sequence[int], new_ids: Sequence[int], banned_ids: Sequence[int]
) -> list[int]:
    """The greedy choice of transformers at each place of new_ids, given all that stands before it.

    Equal to new_ids if and only if greedy decoding, one token at a time, gives new_ids.
    """
    logits = transformers_model(folder)(torch.tensor([[*prompt_ids, *new_ids[:-1]]])).logits[0, len(prompt_ids) - 1 :]
    logits[:, list(banned_ids)] = float("-inf")
    return logits.argmax(dim=-1).tolist()


def random_prompts(count: int, vocabulary: int, longest: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Prompts of the lengths 1, 2, ... longest, over and over."""
    draw = random.Random(seed)
    return [tuple(draw.randrange(vocabulary) for _ in range(1 + index % longest)) for index in range(count)]


def random_neighbours(
    count: int, vocabulary: int, longest: int, seed: int, max_samples: int = 4
) -> list[GenerationRequest]:
    draw = random.Random(seed)
    return [
        GenerationRequest(
            prompt,
            draw.randint(1, max_samples),
            draw.randint(1, 12),
            Sampling(
                draw.choice([0, 0.5, 1.0, 3.0]),
                draw.choice([0, 1, 7, 30]),
                draw.choice([0.0, 0.7]),
                draw.choice([1.0, 1.5]),
                draw.getrandbits(63),
            ),
            want_logprobs=draw.random() < 0.5,
            ignore_end=draw.random() < 0.3,
        )
        for prompt in random_prompts(count, vocabulary, longest, seed)
    ]


def with_end(collected: Collected, key: tuple[int, int], end_id: int) -> list[int]:
    return collected.token_ids[key] + [end_id] * (collected.reasons[key] == "stop")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These models are too small to share out; threads that wait for each other only make a busy machine slow."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def small(random_model: Any) -> Path:
    return random_model(*SMALL)


@pytest.mark.parametrize(("layers", "width", "heads", "vocabulary", "window", "num_prompts"), SHAPES)
def test_greedy_equals_transformers_alone_and_mixed(
    random_model: Any, layers: int, width: int, heads: int, vocabulary: int, window: int, num_prompts: int
) -> None:
    folder = random_model(layers, width, heads, vocabulary, window)
    engine = new_engine(folder, max_rows=16)
    prompts = random_prompts(num_prompts, vocabulary, window - 1)
    asked = [GenerationRequest(prompt, 1, min(12, window - len(prompt)), GREEDY) for prompt in prompts]
    alone = {}
    for index, request in enumerate(asked):
        collected = run_all(engine, [request])
        given = with_end(collected, (0, 0), END)
        assert given == transformers_choices(folder, request.prompt_ids, given, BANNED)
        assert collected.reasons[0, 0] == "stop" or len(given) == request.max_new_tokens
        alone[index] = collected.token_ids[0, 0]
    neighbours = random_neighbours(num_prompts, vocabulary, window - 12, seed=1, max_samples=8)
    mixture = [request for pair in zip(asked, neighbours, strict=True) for request in pair]
    mixed = run_all(engine, mixture, per_step=2)
    assert {index: mixed.token_ids[2 * index, 0] for index in alone} == alone


def test_greedy_equals_transformers_generate(small: Path) -> None:
    prompts = random_prompts(6, SMALL[3], 20, seed=5)
    collected = run_all(new_engine(small), [GenerationRequest(prompt, 1, 12, GREEDY) for prompt in prompts])
    for index, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        options = {
            "do_sample": False,
            "max_new_tokens": 12,
            "suppress_tokens": list(BANNED),
            "eos_token_id": END,
            "pad_token_id": 0,
        }
        full = transformers_model(small).generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert with_end(collected, (index, 0), END) == full[0, len(prompt) :].tolist()


def test_shipped_model_greedy_and_sampled_equal_transformers() -> None:
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    banned, end = tokenizer.banned_ids, tokenizer.end_id
    engine = new_engine(DEFAULT_MODEL, end_id=end, banned_ids=banned)
    prompts = [tuple(tokenizer.encode(text)) for text in BEGINNINGS]
    asked = [GenerationRequest(prompt, 1, 24, GREEDY) for prompt in prompts]
    sampled = [GenerationRequest(prompt, 2, 24, Sampling(seed=index)) for index, prompt in enumerate(prompts)]
    mixture = [request for pair in zip(asked, sampled, strict=True) for request in pair]
    collected = run_all(engine, mixture, per_step=3)
    for index, prompt in enumerate(prompts):
        given = with_end(collected, (2 * index, 0), end)
        assert given == transformers_choices(DEFAULT_MODEL, prompt, given, banned), BEGINNINGS[index]
    for index in range(0, 30, 6):
        assert run_all(engine, [asked[index]]).token_ids[0, 0] == collected.token_ids[2 * index, 0]
        wanted = fast_sample_sequence(
            transformers_model(DEFAULT_MODEL), prompts[index], 24, seed=index, sample=1, banned_ids=banned, end_id=end
        )
        assert collected.token_ids[2 * index + 1, 1] == wanted


@pytest.mark.parametrize("penalty", [1.0, 1.4])
@pytest.mark.parametrize("top_p", [0.0, 0.8])
@pytest.mark.parametrize("top_k", [0, 5, 30])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 2.0])
def test_engine_equals_the_oracle_sample_by_sample(
    small: Path, temperature: float, top_k: int, top_p: float, penalty: float
) -> None:
    prompt = (9, 3, 44, 3, 80, 7)
    collected = run_all(
        new_engine(small), [GenerationRequest(prompt, 3, 8, Sampling(temperature, top_k, top_p, penalty, seed=77))]
    )
    for sample in range(3):
        parameters = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": penalty}
        wanted = fast_sample_sequence(
            transformers_model(small), prompt, 8, seed=77, sample=sample, banned_ids=BANNED, end_id=END, **parameters
        )
        assert collected.token_ids[0, sample] == wanted


@pytest.mark.parametrize("seed", range(20))
def test_seeded_request_is_the_same_among_50_neighbours(small: Path, seed: int) -> None:
    penalty, top_p = (1.0, 1.3)[seed % 2], (0.0, 0.9)[seed // 2 % 2]
    request = GenerationRequest(
        (7, 8, 9, 10 + seed),
        4,
        12,
        Sampling(1.2, (30, 0)[seed // 4 % 2], top_p, penalty, seed=seed),
        want_logprobs=True,
    )
    engine = new_engine(small, max_rows=48)
    alone = run_all(engine, [request])
    crowd = random_neighbours(50, SMALL[3], 20, seed)
    place = seed * 2
    crowd.insert(place, request)
    draw = random.Random(seed)

    def cancel_some(_: int) -> None:
        victim = draw.choice([request_id for request_id in range(51) if request_id != place])
        engine.cancel(victim, draw.choice([None, 0, 1]))

    among = run_all(engine, crowd, per_step=4, after_step=cancel_some)
    for sample in range(4):
        assert among.token_ids[place, sample] == alone.token_ids[0, sample]
        assert among.reasons[place, sample] == alone.reasons[0, sample]
        assert among.logprobs[place, sample] == pytest.approx(alone.logprobs[0, sample], abs=1e-4)
    assert len({tuple(alone.token_ids[0, sample]) for sample in range(4)}) > 1


def test_banned_ids_are_never_given_out_and_all_others_are(small: Path) -> None:
    banned = tuple(range(0, SMALL[3], 2))
    sampling = Sampling(temperature=50.0, top_k=0, seed=3)
    collected = run_all(new_engine(small, end_id=NEVER, banned_ids=banned), [GenerationRequest((1,), 64, 30, sampling)])
    assert {token_id for ids in collected.token_ids.values() for token_id in ids} == set(range(1, SMALL[3], 2))


def test_end_token_ends_a_candidate_and_is_not_given_out(small: Path) -> None:
    sampling = Sampling(temperature=2.0, top_k=0, seed=12)
    endless = run_all(new_engine(small, end_id=NEVER), [GenerationRequest((4, 5), 1, 10, sampling)]).token_ids[0, 0]
    end = next(token_id for index, token_id in enumerate(endless) if index >= 3 and token_id not in endless[:index])
    ended = run_all(new_engine(small, end_id=end), [GenerationRequest((4, 5), 1, 10, sampling)])
    assert ended.token_ids[0, 0] == endless[: endless.index(end)]
    assert ended.reasons == {(0, 0): "stop"}


def test_end_token_drawn_first_gives_an_empty_candidate(small: Path) -> None:
    first = run_all(new_engine(small, end_id=NEVER), [GenerationRequest((4, 5), 1, 1, GREEDY)]).token_ids[0, 0][0]
    collected = run_all(new_engine(small, end_id=first), [GenerationRequest((4, 5), 2, 10, GREEDY)])
    assert collected.events == [
        StartEvent(0),
        FinishEvent(0, 0, "stop", 0.0, first),
        FinishEvent(0, 1, "stop", 0.0, first),
    ]


def test_further_end_ids_end_the_candidates_of_their_request_alone(small: Path) -> None:
    sampling = Sampling(temperature=2.0, top_k=0, seed=12)
    plain = GenerationRequest((4, 5), 2, 10, sampling, True)
    endless = run_all(new_engine(small, end_id=NEVER), [plain])
    ids = endless.token_ids[0, 0]
    end = next(token_id for index, token_id in enumerate(ids) if index >= 3 and token_id not in ids[:index])
    ending = replace(plain, end_ids=(end,))
    requests = [ending, plain, replace(ending, ignore_end=True)]
    collected = run_all(new_engine(small, end_id=NEVER), requests)
    assert collected.token_ids[0, 0] == ids[: ids.index(end)]
    assert collected.reasons[0, 0] == "stop"
    assert collected.token_ids[1, 0] == ids
    assert collected.reasons[2, 0] == "length"
    assert end not in collected.token_ids[2, 0]
    (finish,) = [e for e in collected.events if isinstance(e, FinishEvent) and (e.request_id, e.sample) == (0, 0)]
    assert finish.logprob == pytest.approx(endless.logprobs[0, 0][ids.index(end)], abs=1e-4)


@pytest.mark.parametrize("max_new_tokens", [1, 2, 7, 29])
def test_length_limit_is_exact(small: Path, max_new_tokens: int) -> None:
    collected = run_all(new_engine(small, end_id=NEVER), [GenerationRequest((4, 5, 6), 3, max_new_tokens)])
    assert [len(collected.token_ids[0, sample]) for sample in range(3)] == [max_new_tokens] * 3
    assert set(collected.reasons.values()) == {"length"}


def test_ignored_end_gives_all_tokens_and_spares_the_neighbours(small: Path) -> None:
    sampling = Sampling(temperature=2.0, top_k=0, seed=12)
    endless = run_all(new_engine(small, end_id=NEVER), [GenerationRequest((4, 5), 1, 10, sampling)]).token_ids[0, 0]
    end = endless[3]
    ending, going_on = (GenerationRequest((4, 5), 1, 10, sampling, ignore_end=ignore) for ignore in (False, True))
    collected = run_all(new_engine(small, end_id=end), [ending, going_on, ending])
    assert collected.reasons == {(0, 0): "stop", (1, 0): "length", (2, 0): "stop"}
    assert collected.token_ids[0, 0] == collected.token_ids[2, 0] == endless[: endless.index(end)]
    assert len(collected.token_ids[1, 0]) == 10
    assert end not in collected.token_ids[1, 0]


@pytest.mark.parametrize("num_prompt", [1, 2, 30, 31])
def test_window_is_usable_to_its_last_position_and_no_further(small: Path, num_prompt: int) -> None:
    engine, prompt = new_engine(small, end_id=NEVER), tuple(range(10, 10 + num_prompt))
    max_new_tokens = 32 - num_prompt
    given = run_all(engine, [GenerationRequest(prompt, 2, max_new_tokens, GREEDY)]).token_ids
    assert len(given[0, 0]) == max_new_tokens
    assert given[0, 1] == given[0, 0]
    assert given[0, 0] == transformers_choices(small, prompt, given[0, 0], BANNED)
    with pytest.raises(ContextLengthExceeded, match=rf"\b{num_prompt}\b.*\b{max_new_tokens + 1}\b.*\b32\b") as refusal:
        engine.check(GenerationRequest(prompt, 2, max_new_tokens + 1, GREEDY))
    assert refusal.value.code == "context_length_exceeded"
    assert refusal.value.param == "context"


@pytest.mark.parametrize(
    "request_",
    [
        GenerationRequest((), 1, 1),
        GenerationRequest((3,), 0, 1),
        GenerationRequest((3,), -1, 1),
        GenerationRequest((3,), 1, 0),
        GenerationRequest((3,), 1, -5),
        GenerationRequest((3,) * 32, 1, 1),
    ],
)
def test_impossible_request_is_refused(small: Path, request_: GenerationRequest) -> None:
    with pytest.raises(InvalidRequest):
        new_engine(small).check(request_)


@pytest.mark.parametrize("token_id", [-1, SMALL[3], 2**40])
def test_prompt_with_an_id_outside_the_vocabulary_is_refused(small: Path, token_id: int) -> None:
    with pytest.raises(InvalidRequest):
        new_engine(small).check(GenerationRequest((3, token_id), 1, 1))


def fail_once(engine: Engine, monkeypatch: pytest.MonkeyPatch, *, after_run: bool) -> None:
    """The next step raises, before or after the runner has done its work."""
    original = engine._runner.run

    def failing(plan: Any) -> Any:
        monkeypatch.setattr(engine._runner, "run", original)
        if after_run:
            original(plan)
        raise RuntimeError("out of luck")

    monkeypatch.setattr(engine._runner, "run", failing)


@pytest.mark.parametrize("after_run", [False, True])
def test_failing_step_fails_its_requests_and_the_next_one_works(
    small: Path, monkeypatch: pytest.MonkeyPatch, after_run: bool
) -> None:
    engine = new_engine(small)
    request = GenerationRequest((5, 6, 7), 3, 8, Sampling(seed=4))
    wanted = run_all(engine, [request]).token_ids
    for request_id, running in enumerate(random_neighbours(6, SMALL[3], 20, seed=9)):
        engine.add(request_id, running)
    engine.step()
    engine.cancel(2)
    running_ids = sorted({sequence.request_id for sequence in engine._scheduler.rows})
    assert len(running_ids) >= 3
    fail_once(engine, monkeypatch, after_run=after_run)
    events = engine.step()
    assert all(isinstance(event, FailureEvent) and event.message for event in events)
    assert sorted(event.request_id for event in events) == running_ids
    assert engine.stats.num_rows == engine.stats.num_waiting == 0
    assert not engine.has_work
    assert run_all(engine, [request]).token_ids == wanted


def test_failing_step_spares_the_requests_that_wait(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = new_engine(small, max_rows=4, num_prompt_slots=1)
    engine.add(0, GenerationRequest((5, 6), 6, 8, GREEDY))  # two samples have no row yet: the prompt keeps its slot
    engine.step()
    engine.add(1, GenerationRequest((7, 8), 2, 3, GREEDY))
    fail_once(engine, monkeypatch, after_run=False)
    collected = Collected()
    collected.take(engine.step())
    while engine.has_work:
        collected.take(engine.step())
    assert collected.failed == [0]
    assert set(collected.reasons) == {(1, 0), (1, 1)}


def test_cancelled_sample_frees_its_row_before_the_next_step(small: Path) -> None:
    engine = new_engine(small, end_id=NEVER)
    engine.add(0, GenerationRequest((5, 6), 4, 8))
    engine.step()
    assert engine.stats.num_rows == 4
    engine.cancel(0, 1)
    assert engine.stats.num_rows == 3
    assert {event.sample for event in engine.step() if isinstance(event, TokenEvent)} == {0, 2, 3}


def test_cancelled_request_frees_its_rows_before_the_next_step(small: Path) -> None:
    engine = new_engine(small, end_id=NEVER, max_rows=4)
    for request_id in range(3):
        engine.add(request_id, GenerationRequest((5, 6), 4, 8))
    engine.step()
    engine.cancel(1)
    assert (engine.stats.num_rows, engine.stats.num_waiting) == (4, 1)
    engine.cancel(0)
    assert (engine.stats.num_rows, engine.stats.num_waiting) == (0, 1)
    assert {event.request_id for event in engine.step()} == {2}
    engine.cancel(2)
    assert not engine.has_work
    assert engine.step() == []


@pytest.mark.parametrize("banned", [(), BANNED])
def test_logprobs_are_the_log_softmax_of_transformers(small: Path, banned: tuple[int, ...]) -> None:
    prompt = (11, 12, 13)
    asked = [
        GenerationRequest(prompt, 3, 10, Sampling(temperature, 8, 0.9, 1.2, seed=5), want_logprobs=True)
        for temperature in (0, 0.5, 3.0)
    ]
    collected = run_all(new_engine(small, end_id=NEVER, banned_ids=banned), asked)
    assert len(collected.token_ids) == 9
    for key, new_ids in collected.token_ids.items():
        logits = transformers_model(small)(torch.tensor([[*prompt, *new_ids]])).logits[0, 2:-1].detach().double()
        logits[:, list(banned)] = float("-inf")
        wanted = logits.log_softmax(dim=-1).gather(1, torch.tensor(new_ids)[:, None])[:, 0]
        assert collected.logprobs[key] == pytest.approx(wanted.tolist(), abs=1e-3)
        assert sum(collected.logprobs[key]) == pytest.approx(float(wanted.sum()), abs=1e-3)


def test_logprobs_are_0_for_a_request_that_did_not_ask(small: Path) -> None:
    asking, silent = (GenerationRequest((11, 12), 2, 5, Sampling(seed=5), want_logprobs=want) for want in (True, False))
    collected = run_all(new_engine(small, end_id=NEVER), [silent, asking, silent])
    assert all(logprob < 0 for sample in range(2) for logprob in collected.logprobs[1, sample])
    assert [collected.logprobs[request_id, sample] for request_id in (0, 2) for sample in range(2)] == [[0.0] * 5] * 4


def test_stats_count_and_return_to_zero_rows(small: Path) -> None:
    engine = new_engine(small, end_id=NEVER, max_rows=4)
    run_all(engine, [GenerationRequest((5, 6, 7), 3, 4), GenerationRequest((5, 6), 2, 2)])
    stats = engine.stats
    assert (stats.num_rows, stats.num_waiting, stats.max_rows) == (0, 0, 4)
    assert (stats.num_steps, stats.num_prompt_tokens, stats.num_generated_tokens) == (4, 5, 12 + 4)
    assert engine.step() == []
    assert engine.stats == stats


def test_each_request_starts_once_before_its_tokens(small: Path) -> None:
    requests = random_neighbours(30, SMALL[3], 20, seed=2)
    collected = run_all(new_engine(small, max_rows=8), requests, per_step=3)
    started: list[int] = []
    for event in collected.events:
        if isinstance(event, StartEvent):
            started.append(event.request_id)
        assert event.request_id in started
    assert started == list(range(30))
    assert set(collected.reasons) == {
        (index, sample) for index, request in enumerate(requests) for sample in range(request.num_samples)
    }


def test_more_samples_than_rows_all_come(small: Path) -> None:
    collected = run_all(new_engine(small, max_rows=4), [GenerationRequest((5, 6, 7), 9, 6, Sampling(seed=3))])
    wanted = run_all(new_engine(small, max_rows=9), [GenerationRequest((5, 6, 7), 9, 6, Sampling(seed=3))])
    assert collected.token_ids == wanted.token_ids
    assert len(collected.reasons) == 9


def typed(rng: random.Random, vocabulary: int) -> Iterator[tuple[int, ...]]:
    """Prompts as someone types them: a word more, some words less, another end, all anew."""
    prompt: tuple[int, ...] = (7,)
    while True:
        yield prompt
        if len(prompt) < 20 and rng.random() < 0.6:
            prompt += tuple(rng.randrange(vocabulary) for _ in range(rng.randint(1, 3)))
        else:
            prompt = prompt[: rng.randint(1, len(prompt))]


def test_what_is_reused_between_keystrokes_changes_no_answer(small: Path) -> None:
    rng = random.Random(4)
    prompts = typed(rng, SMALL[3])
    asked = [
        GenerationRequest(next(prompts), 2, 5, Sampling(seed=seed), want_logprobs=True, salt=rng.choice("aab"))
        for seed in range(120)
    ]
    reusing = new_engine(small, num_prompt_slots=3)
    for request in asked:
        given = run_all(reusing, [request])
        wanted = run_all(new_engine(small), [request])
        assert given.token_ids == wanted.token_ids
        assert all(given.logprobs[key] == pytest.approx(wanted.logprobs[key], abs=1e-4) for key in wanted.logprobs)
    stats = reusing.stats
    assert stats.num_reused_tokens > stats.num_prompt_tokens


def test_offered_steps_take_over_between_two_steps_unnoticed(small: Path) -> None:
    weights = read_weights(small, read_shape(small))
    requests = random_neighbours(12, SMALL[3], 18, seed=6)
    wanted = run_all(new_engine(small), requests).token_ids
    engine = new_engine(small)
    memory = engine._runner._memory

    def take_over(num_steps: int) -> None:
        if num_steps == 4:
            engine.offer(EagerGpt2(memory, weights))
        if num_steps == 8:
            engine.offer(IMPLEMENTATION[-1](memory, weights))

    assert run_all(engine, requests, per_step=2, after_step=take_over).token_ids == wanted


def test_slots_and_queue_are_empty_after_a_thousand_requests_with_cancellations(small: Path) -> None:
    engine, draw = new_engine(small, max_rows=16, num_prompt_slots=5), random.Random(8)
    requests = random_neighbours(1000, SMALL[3], 18, seed=7)

    def cancel_some(_: int) -> None:
        for _ in range(3):
            engine.cancel(draw.randrange(1000), draw.choice([None, None, 0, 1]))

    run_all(engine, requests, per_step=5, after_step=cancel_some)
    assert not engine.has_work
    assert not any(prompt.num_users for prompt in engine._scheduler.prompts)
    assert len(list(engine._scheduler.prompts)) == 5
