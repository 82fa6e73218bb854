"""A fault stays with the request it belongs to: numbers that are none, parts of a step that raise, memory that runs out. Torch and compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from promptgen.generation.engine import Engine, EngineBroken
from promptgen.generation.memory import Memory
from promptgen.generation.modelfile import Gpt2Shape
from promptgen.generation.native.model import NativeGpt2
from promptgen.generation.prompts import PromptCache
from promptgen.generation.request import (
    Branch,
    Event,
    FailureEvent,
    FinishEvent,
    GenerationRequest,
    Sampling,
    TokenEvent,
)
from promptgen.generation.steps import NO_TOKEN, NO_TOKENS, NOTHING_TO_READ, Copy, Pick, PromptTokens, Steps
from tests.conftest import StepsFactory, random_weights

SHAPE = Gpt2Shape(vocabulary=50, window=32, width=32, layers=2, heads=2, inner=64, epsilon=1e-5)
POISON = 49  # a token that no draw gives
Answers = dict[int, dict[int, list[int]]]  # by request and sample


@dataclass
class Faulty:
    """Steps whose calls may raise: `forward_fault` sees the token ids that go in, `draw_fault` the rows that are drawn for."""

    inner: Steps
    forward_fault: Callable[[list[int]], bool] = lambda _: False
    draw_fault: Callable[[NDArray[Any]], bool] = lambda _: False
    memory: Memory | None = None
    num_faults: int = 0
    precision: Any = "float32"
    description: str = "faulty"
    num_shared: int = 0

    def forward(self, num_rows: int, prompts: PromptTokens) -> None:
        assert self.memory is not None
        fed = [*self.memory.rows[:num_rows]["token_id"].tolist(), *prompts.token_ids.tolist()]
        if self.forward_fault(fed):
            self.num_faults += 1
            raise RuntimeError("a fault on purpose")
        self.inner.forward(num_rows, prompts)

    def copy(self, copies: Sequence[Copy]) -> None:
        self.inner.copy(copies)

    def draw(
        self, num_rows: int, num_continuing: int, prompt_slots: NDArray[np.int32]
    ) -> tuple[list[int], list[float]]:
        assert self.memory is not None
        if self.draw_fault(self.memory.rows[:num_rows]):
            self.num_faults += 1
            self.memory.rows["position"][:num_rows] += 1  # half done
            raise MemoryError
        return self.inner.draw(num_rows, num_continuing, prompt_slots)

    def forget(self) -> None:
        self.inner.forget()

    def advance(self, num_rows: int, most: int) -> list[tuple[list[int], list[float]]]:
        self.forward(num_rows, NOTHING_TO_READ)
        return [self.draw(num_rows, num_rows, NO_TOKENS)]

    def draw_first(self, request: GenerationRequest, samples: Sequence[int], slots: Sequence[int]) -> list[Pick]:
        return self.inner.draw_first(request, samples, slots)


@dataclass
class Bench:
    """An engine over faulty steps, and what came out of it."""

    engine: Engine
    memory: Memory
    steps: Faulty
    answers: Answers = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)

    def run(self, *requests: GenerationRequest, before_step: Callable[[int], None] = lambda _: None) -> Answers:
        self.answers, self.failed = {}, set()
        for request_id, request in enumerate(requests):
            self.engine.check(request)
            self.engine.add(request_id, request)
            self.answers[request_id] = {}
        number = 0
        while self.engine.has_work:
            before_step(number)
            self.take(self.engine.step())
            number += 1
            assert number < 500
        assert self.engine.stats.num_rows == self.engine.stats.num_waiting == 0
        assert not any(prompt.num_users for prompt in self.engine._scheduler.prompts)
        return {request_id: tokens for request_id, tokens in self.answers.items() if request_id not in self.failed}

    def take(self, events: list[Event]) -> None:
        for event in events:
            assert event.request_id not in self.failed, "nothing comes after a failure"
            if isinstance(event, TokenEvent):
                assert event.token_id != NO_TOKEN
                self.answers[event.request_id].setdefault(event.sample, []).append(event.token_id)
            elif isinstance(event, FailureEvent):
                self.failed.add(event.request_id)
            elif isinstance(event, FinishEvent):
                pass


@pytest.fixture
def bench(make_steps: StepsFactory) -> Bench:
    memory = Memory(SHAPE, max_rows=16, num_prompt_slots=6, banned_ids=(POISON,), end_id=-1)
    steps = Faulty(make_steps(memory, random_weights(SHAPE)), memory=memory)
    return Bench(Engine(memory, steps), memory, steps)


def request_of(*prompt: int, samples: int = 2, new: int = 6, seed: int = 3, **more: Any) -> GenerationRequest:
    return GenerationRequest(prompt, samples, new, Sampling(seed=seed), **more)


REQUESTS = [
    request_of(1, 2, 3, seed=1),
    request_of(4, 5, seed=2, want_logprobs=True),
    GenerationRequest((7, 8, 9, 10), 3, 6, Sampling(0.7, 5, 0.9, 1.3, 4)),
    request_of(11, 12, seed=5, bias=((3, 2.0),)),
]


def branched(*prompt: int) -> GenerationRequest:
    words = np.arange(20, 30)
    return request_of(*prompt, branches=(Branch((), words), Branch((15,), words)))


# -- interrupts ----------------------------------------------------------------------------------------------------------------


def test_what_an_interrupt_left_half_done_is_not_trusted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in a notebook, while a prompt is read: the next call reads it anew."""
    wanted = bench.run(request_of(1, 2, 3))
    bench.engine._scheduler.prompts.forget()
    with monkeypatch.context() as patch:
        patch.setattr(bench.steps, "forward", interrupt)
        bench.engine.add(0, request_of(1, 2, 3))
        with pytest.raises(KeyboardInterrupt):
            bench.engine.step()
    bench.engine.cancel(0)
    assert not bench.engine.has_work
    bench.memory.logits[:] = 0
    assert bench.run(request_of(1, 2, 3)) == wanted


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


# -- numbers that are none -----------------------------------------------------------------------------------------------------


def poison_row(bench: Bench, request_id: int) -> Callable[[int], None]:
    """Before the third step the values in one row of the request are no numbers."""

    def act(step: int) -> None:
        if step == 2:
            row = next(r for r, s in enumerate(bench.engine._scheduler.rows) if s.request_id == request_id)
            bench.memory.values[:, row, :, 0] = np.nan

    return act


@pytest.mark.parametrize("victim", range(4))
def test_a_row_whose_logits_are_no_numbers_fails_its_request_alone(bench: Bench, victim: int) -> None:
    healthy = bench.run(*REQUESTS)
    assert not bench.failed
    left = bench.run(*REQUESTS, before_step=poison_row(bench, victim))
    assert bench.failed == {victim}
    assert left == {request_id: tokens for request_id, tokens in healthy.items() if request_id != victim}
    assert bench.run(*REQUESTS) == healthy


def test_a_fault_in_the_midst_of_several_steps_fails_its_request_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that one request draws, and no other, has no numbers: the step after it fails."""
    inner = bench.steps.inner
    monkeypatch.setattr(bench.steps, "advance", inner.advance)
    if isinstance(inner, NativeGpt2):
        inner._advance.seconds = 60
    requests = [replace(request, num_samples=1, max_new_tokens=15, ignore_end=True) for request in REQUESTS[:2]]
    healthy = bench.run(*requests)
    others = {*healthy[0][0], *(token_id for request in requests for token_id in request.prompt_ids)}
    mine = healthy[1][0]
    at, own = next((at, t) for at, t in enumerate(mine) if 4 <= at < 14 and t not in others | set(mine[:at]))
    embeddings = inner._embeddings[0] if isinstance(inner, NativeGpt2) else inner._tokens.numpy()
    sound = embeddings[own].copy()
    embeddings[own] = np.nan
    assert bench.run(*requests) == {0: healthy[0]}
    assert bench.failed == {1}
    assert bench.answers[1] == {0: mine[: at + 1]}
    embeddings[own] = sound
    assert bench.run(*requests) == healthy


@pytest.mark.parametrize("make", [request_of, branched])
def test_a_prompt_in_the_cache_that_went_bad_fails_one_request_and_is_forgotten(
    bench: Bench, make: Callable[..., GenerationRequest]
) -> None:
    asked, other = make(1, 2, 3, 4), request_of(30, 31)
    healthy = bench.run(asked, other)
    for prompt in bench.engine._scheduler.prompts:
        if prompt.token_ids[:2] == (1, 2):
            bench.memory.values[:, prompt.slot] = np.nan
            bench.memory.logits[prompt.slot] = np.nan
    left = bench.run(asked, other)
    assert bench.failed == {0}
    assert left == {1: healthy[1]}
    assert bench.run(asked, other) == healthy


def test_infinite_logits_and_forced_rows_fail_too(bench: Bench) -> None:
    forced = request_of(1, 2, samples=1, new=3, forced_ids=(5, 6, 7), want_logprobs=True)
    other = request_of(8, 9)
    healthy = bench.run(forced, other)
    assert healthy[0] == {0: [5, 6, 7]}

    def act(step: int) -> None:
        if step == 1:
            bench.memory.values[:, 0, :, 0] = np.inf

    assert bench.run(forced, other, before_step=act) == {1: healthy[1]}
    assert bench.failed == {0}


def test_some_logits_that_are_no_numbers_are_just_never_drawn(make_steps: StepsFactory) -> None:
    memory = Memory(SHAPE, max_rows=4, num_prompt_slots=1, banned_ids=(), end_id=-1)
    steps = make_steps(memory, random_weights(SHAPE))
    for sampling in (Sampling(seed=1), Sampling(0), Sampling(1, 0, 0.5, 1.5, seed=2)):
        memory.logits[4] = np.nan
        memory.logits[4, [7, 9]] = 1.0, 2.0
        memory.start_rows(GenerationRequest((1,), 4, 1, sampling, want_logprobs=True), 4, 0, range(4))
        token_ids, logprobs = steps.draw(4, 0, np.full(4, 4, np.int32))
        assert set(token_ids) <= {7, 9}
        assert np.isfinite(logprobs).all()


def test_no_number_at_all_gives_no_token(make_steps: StepsFactory) -> None:
    memory = Memory(SHAPE, max_rows=4, num_prompt_slots=1, banned_ids=(), end_id=-1)
    steps = make_steps(memory, random_weights(SHAPE))
    for logits in (np.nan, -np.inf, np.inf):
        memory.logits[4] = logits
        memory.start_rows(request_of(1, samples=4), 4, 0, range(4))
        assert steps.draw(4, 0, np.full(4, 4, np.int32))[0] == [NO_TOKEN] * 4


# -- parts of a step that raise --------------------------------------------------------------------------------------------------


def test_a_prompt_that_cannot_be_read_fails_its_request_alone(bench: Bench) -> None:
    healthy = bench.run(*REQUESTS)
    bench.steps.forward_fault = lambda fed: POISON in fed
    left = bench.run(*REQUESTS, request_of(3, POISON, 3), before_step=lambda _: None)
    assert bench.failed == {4}
    assert left == healthy
    assert bench.steps.num_faults == 2  # in the step, and alone


def test_a_row_that_cannot_be_stepped_fails_its_request_alone(bench: Bench) -> None:
    healthy = bench.run(*REQUESTS)
    forced = request_of(1, 2, samples=1, new=4, forced_ids=(5, 6, POISON, 7))
    bench.steps.forward_fault = lambda fed: POISON in fed
    left = bench.run(*REQUESTS, forced, before_step=lambda _: None)
    assert bench.failed == {4}
    assert bench.answers[4] == {0: [5, 6, POISON]}
    assert left == healthy


@pytest.mark.parametrize("branches", [False, True])
def test_a_draw_that_raises_fails_its_request_alone(bench: Bench, branches: bool) -> None:
    others = [*REQUESTS, branched(20, 21)] if branches else REQUESTS
    healthy = bench.run(*others)
    bench.steps.draw_fault = lambda rows: bool((rows["top_k"] == 13).any())
    guilty = GenerationRequest((2, 3), 2, 5, Sampling(1.0, 13, seed=9))
    left = bench.run(guilty, *others)
    assert bench.failed == {0}
    assert {request_id - 1: tokens for request_id, tokens in left.items()} == healthy


def test_a_step_that_raises_now_and_then_changes_no_answer(bench: Bench) -> None:
    more = [request_of(1, i, seed=i, new=12) for i in range(2, 6)]
    everything = [*REQUESTS, *more, branched(20, 21), request_of(1, 2, samples=1, new=3, forced_ids=(5, 6, 7))]
    healthy = bench.run(*everything)
    calls = iter(range(10_000))
    bench.steps.forward_fault = lambda fed: len(fed) > 3 and next(calls) % 2 == 0
    bench.steps.draw_fault = lambda rows: len(rows) > 1 and next(calls) % 3 == 0
    assert bench.run(*everything) == healthy
    assert bench.steps.num_faults > 5


def test_a_failure_while_a_prompt_waits_to_be_read_leaves_the_slots_in_order(bench: Bench) -> None:
    long = [request_of(*range(1 + i, 25), samples=1, new=4, seed=i) for i in range(12)]
    healthy = bench.run(*long)
    bench.steps.forward_fault = lambda fed: POISON in fed
    left = bench.run(*long, request_of(3, POISON, 3))
    assert bench.failed == {12}
    assert left == healthy


# -- admission, and an engine that is done for -------------------------------------------------------------------------------------


def test_memory_that_runs_out_in_admission_fails_that_request_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy = bench.run(*REQUESTS)
    acquire = PromptCache.acquire

    def faulty(cache: PromptCache, token_ids: tuple[int, ...], salt: str) -> Any:
        if token_ids == (3, 3, 3):
            raise MemoryError
        return acquire(cache, token_ids, salt)

    monkeypatch.setattr(PromptCache, "acquire", faulty)
    left = bench.run(*REQUESTS, request_of(3, 3, 3))
    assert bench.failed == {4}
    assert left == healthy
    bench.run(request_of(3, 3, 3))
    assert bench.failed == {0}


def test_an_engine_that_computes_nothing_any_more_says_so(bench: Bench) -> None:
    bench.steps.forward_fault = lambda _: True
    with pytest.raises(EngineBroken):
        bench.run(*REQUESTS)


def test_weights_that_went_bad_are_seen(bench: Bench) -> None:
    forward = bench.steps.inner.forward

    def nothing(num_rows: int, prompts: PromptTokens) -> None:
        forward(num_rows, prompts)
        bench.memory.logits[:] = np.nan

    bench.steps.inner.forward = nothing  # type: ignore[method-assign]
    with pytest.raises(EngineBroken):
        bench.run(*REQUESTS)


def test_a_step_whose_rows_cannot_even_be_arranged_fails_all_of_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = request_of(40, 41, samples=1, new=2)
    healthy = bench.run(short, *REQUESTS)
    with monkeypatch.context() as patch:
        patch.setattr(Memory, "move_row", lambda *_: np.zeros(1)[9])
        bench.run(short, *REQUESTS)  # the last row is to move into the gap that it leaves
        assert bench.failed == {1, 2, 3, 4}
    assert bench.run(short, *REQUESTS) == healthy
