"""What callers who count in tokens ask the engine: alternatives, prompts scored, ends of their own, penalties by count. In torch and compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from promptgen.errors import InvalidRequest
from promptgen.generation.cuda import _suits_graph
from promptgen.generation.engine import Engine
from promptgen.generation.gpt2 import EagerGpt2
from promptgen.generation.memory import IN_PROMPT, MAX_COUNT, MAX_ENDS, NOT_A_TOKEN, Memory
from promptgen.generation.modelfile import read_shape, read_weights
from promptgen.generation.native.model import Kernels, NativeGpt2
from promptgen.generation.request import Event, FinishEvent, GenerationRequest, Sampling, TokenEvent, TopEvent
from promptgen.generation.scheduler import Plan
from promptgen.generation.steps import NO_TOKENS
from tests.conftest import StepsFactory, new_memory, random_weights
from tests.unit.test_sampler import (
    LOGITS,
    NUM_DRAWS,
    VOCABULARY,
    assert_distribution,
    draw,
    exact,
    memory_of,
    shape_of,
)

SMALL = (2, 32, 2, 97, 32)
END, BANNED = 1, (0, 2, 5)
PROMPT = (7, 8, 9, 10)


@pytest.fixture
def folder(random_model: Any) -> Path:
    return random_model(*SMALL)


@pytest.fixture
def engine(folder: Path, make_steps: StepsFactory) -> Engine:
    shape = read_shape(folder)
    memory = Memory(shape, max_rows=8, num_prompt_slots=4, banned_ids=BANNED, end_id=END)
    return Engine(memory, make_steps(memory, read_weights(folder, shape)))


def run(engine: Engine, *requests: GenerationRequest) -> list[Event]:
    for request_id, request in enumerate(requests):
        engine.check(request)
        engine.add(request_id, request)
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    return events


@torch.inference_mode()
def transformers_logits(folder: Path, ids: Sequence[int]) -> torch.Tensor:
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(folder).eval()(torch.tensor([ids])).logits[0].double()


def logprobs_of(folder: Path, ids: Sequence[int]) -> torch.Tensor:
    """[T, V] among the tokens that may be drawn."""
    logits = transformers_logits(folder, ids).clone()
    logits[:, BANNED] = NOT_A_TOKEN
    return logits.log_softmax(dim=-1)


def told(events: Sequence[Event], request_id: int = 0, sample: int = 0) -> list[tuple[int, float, Any]]:
    """(token, its log-probability, the alternatives that were told before it) of one candidate, its end included."""
    found, top = [], None
    for event in events:
        if (getattr(event, "request_id", None), getattr(event, "sample", None)) != (request_id, sample):
            continue
        if isinstance(event, TopEvent):
            top = event.top
        elif isinstance(event, TokenEvent) or (isinstance(event, FinishEvent) and event.token_id is not None):
            assert event.token_id is not None
            found.append((event.token_id, event.logprob, top))
            top = None
    return found


@pytest.mark.parametrize("num_top", [1, 5, 20])
def test_the_likeliest_tokens_are_those_of_transformers(engine: Engine, folder: Path, num_top: int) -> None:
    sampling = Sampling(temperature=1.5, top_k=0, seed=3)
    asked = GenerationRequest(PROMPT, 2, 12, sampling, want_logprobs=True, num_top=num_top)
    plain = GenerationRequest((3, 4, 5), 3, 20, Sampling(seed=9))
    events = run(engine, plain, asked)
    assert all(top is None for sample in range(3) for _, _, top in told(events, 0, sample))
    for sample in range(2):
        tokens = told(events, 1, sample)
        expected = logprobs_of(folder, [*PROMPT, *(token_id for token_id, _, _ in tokens)])[len(PROMPT) - 1 :]
        for line, (token_id, logprob, top) in zip(expected, tokens, strict=False):
            best = line.topk(num_top)
            assert [i for i, _ in top] == best.indices.tolist()
            assert [value for _, value in top] == pytest.approx(best.values.tolist(), abs=1e-4)
            assert logprob == pytest.approx(line[token_id].item(), abs=1e-4)
            assert dict(top).get(token_id, logprob) == logprob  # the very same number
    assert [t[:1] for t in told(run(engine, replace(asked, num_top=0)))] == [t[:1] for t in told(events, 1)]


def test_a_token_that_may_not_come_yet_is_no_alternative(engine: Engine, folder: Path) -> None:
    asked = GenerationRequest(
        PROMPT, 1, 6, Sampling(top_k=0, seed=1), want_logprobs=True, num_top=97, min_new_tokens=4, end_ids=(11, 12),
        bias=((13, float("-inf")), (14, 2.0)),
    )  # fmt: skip
    tokens = told(run(engine, asked))
    for place, (_, _, top) in enumerate(tokens):
        named = {token_id for token_id, _ in top}
        assert named.isdisjoint({*BANNED, 13})
        assert ({END, 11, 12} <= named) == (place >= 4)
        assert sum(np.exp(value) for _, value in top) == pytest.approx(1, abs=1e-6)


def test_a_plan_says_whether_a_row_wants_alternatives(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []
    plain_run = engine._runner.run
    monkeypatch.setattr(engine._runner, "run", lambda plan: plans.append(plan) or plain_run(plan))
    short = GenerationRequest(PROMPT, 1, 3, Sampling(seed=1), ignore_end=True, num_top=2, want_logprobs=True)
    long = GenerationRequest(PROMPT, 1, 9, Sampling(seed=1), ignore_end=True)
    run(engine, short, long)
    has_tops = [plan.has_tops for plan in plans if plan.num_rows]
    assert has_tops[:3] == [True] * 3
    assert set(has_tops[3:]) == {False}  # several steps may be of one plan
    engine.add(9, short)
    engine.step()
    engine.cancel(9)
    plans.clear()
    run(engine, long)
    assert not any(plan.has_tops for plan in plans)


def test_a_prompt_is_scored_as_transformers_scores_it(engine: Engine, folder: Path) -> None:
    ids = (7, END, 0, 8, 8, 2, 50, 5, END, 9)  # what is banned, and what ends a document, may stand in a prompt
    asked = GenerationRequest(ids[:1], 1, len(ids) - 1, want_logprobs=True, forced_ids=ids[1:], num_top=3, end_ids=(8,))
    events = run(engine, asked)
    tokens = told(events)
    assert tuple(token_id for token_id, _, _ in tokens) == ids[1:]
    assert events[-1] == FinishEvent(0, 0, "length")
    expected = transformers_logits(folder, ids).log_softmax(dim=-1)
    for line, (token_id, logprob, top) in zip(expected, tokens, strict=False):
        assert logprob == pytest.approx(line[token_id].item(), abs=1e-4)
        assert [i for i, _ in top] == line.topk(3).indices.tolist()


def test_a_candidate_ends_at_a_token_of_its_own(engine: Engine) -> None:
    sampling, never_end = Sampling(temperature=2, top_k=0, seed=5), ((END, float("-inf")),)
    endless = [i for i, _, _ in told(run(engine, GenerationRequest(PROMPT, 1, 20, sampling, bias=never_end)))]
    own = next(i for place, i in enumerate(endless) if place > 4 and i not in endless[:place])
    asked = GenerationRequest(PROMPT, 1, 20, sampling, end_ids=(96, own), want_logprobs=True, bias=never_end)
    events = run(engine, asked)
    assert [i for i, _, _ in told(events)] == endless[: endless.index(own) + 1]
    last = events[-1]
    assert isinstance(last, FinishEvent)
    assert (last.reason, last.token_id) == ("stop", own)
    assert last.logprob < 0
    later = [i for i, _, _ in told(run(engine, replace(asked, min_new_tokens=18)))]
    assert len(later) >= 18
    assert own not in later[:18]
    ignoring = [i for i, _, _ in told(run(engine, replace(asked, ignore_end=True)))]
    assert len(ignoring) == 20
    assert {own, 96, END}.isdisjoint(ignoring)


@pytest.mark.parametrize(
    "wrong", [{"end_ids": (97,)}, {"end_ids": (3,) * (MAX_ENDS + 1)}, {"bias": ((-1, 1.0),)}, {"prompt_ids": (97,)}]
)
def test_ids_outside_the_vocabulary_are_refused(engine: Engine, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        engine.check(replace(GenerationRequest(PROMPT, 1, 3), **wrong))


PENALTIES = [
    Sampling(top_k=0, presence_penalty=1.5, seed=1),
    Sampling(top_k=0, frequency_penalty=0.7, seed=2),
    Sampling(0.8, 9, 0.9, 1.3, 3, 0.6, 0.4),
    Sampling(1.2, 0, 0.0, 0.7, 4, -1.0, -0.5),
]
COUNTS = [0, 1, 2, 3, 0, 1, MAX_COUNT, 0, 0, 5, 1, 0]
STANDING = (0, 3, 4, 7)


def counted(sampling: Sampling, each: int, vocabulary: int = VOCABULARY) -> Memory:
    """Rows of a prompt that holds STANDING, which drew token i COUNTS[i] times."""
    memory = memory_of([sampling], each, vocabulary, prompt=STANDING)
    memory.seen[:, : len(COUNTS)] += np.array(COUNTS, np.uint8)
    return memory


def penalized(sampling: Sampling) -> np.ndarray:
    """The logits by the definitions."""
    scores = np.array(LOGITS)
    for token_id, count in enumerate(COUNTS):
        if count or token_id in STANDING:
            scores[token_id] *= sampling.repetition_penalty ** (-1 if scores[token_id] > 0 else 1)
        scores[token_id] -= count * sampling.frequency_penalty + (count > 0) * sampling.presence_penalty
    return scores


@pytest.mark.parametrize("sampling", PENALTIES)
def test_draws_with_counts_follow_the_exact_distribution(make_steps: StepsFactory, sampling: Sampling) -> None:
    memory = counted(sampling, NUM_DRAWS)
    before = memory.seen.copy()
    drawn = draw(make_steps, memory, LOGITS)
    plain = Sampling(sampling.temperature, sampling.top_k, sampling.top_p)
    probabilities = exact(penalized(sampling).tolist(), plain)
    possible = probabilities * NUM_DRAWS >= 5
    assert np.bincount(drawn, minlength=VOCABULARY)[~possible].sum() < 100
    kept = drawn[possible[drawn]]
    assert_distribution(kept, np.where(possible, probabilities, 0) / probabilities[possible].sum())
    rows = np.arange(NUM_DRAWS)
    was, now = before[rows, drawn], memory.seen[rows, drawn]
    assert ((now & IN_PROMPT) == (was & IN_PROMPT)).all()
    assert ((now & MAX_COUNT) == np.minimum((was & MAX_COUNT) + 1, MAX_COUNT)).all()
    assert now.sum() - was.sum() == memory.seen.sum(dtype=np.int64) - before.sum(dtype=np.int64)


def test_both_implementations_penalize_alike(kernels: Kernels) -> None:
    def compiled(memory: Memory, weights: dict[str, torch.Tensor]) -> NativeGpt2:
        return NativeGpt2(kernels, memory, weights, "float32", 2)

    generator = np.random.default_rng(8)
    for vocabulary in (12, 65, 1000):
        seen = (
            generator.integers(0, 2, (400, vocabulary)) * IN_PROMPT + generator.integers(0, 4, (400, vocabulary))
        ).astype(np.uint8)
        logits = generator.normal(size=(400, vocabulary)) * 3
        ends = generator.permutation(vocabulary)[:2]
        drawn = []
        for make in (EagerGpt2, compiled):
            memory = memory_of(PENALTIES * 25, 4, vocabulary, prompt=STANDING)
            memory.seen[:] = seen
            memory.rows["end_ids"][:, :2] = ends
            memory.rows["end_from"] = 11
            drawn.append((draw(make, memory, logits).tolist(), memory.seen.copy()))
        assert drawn[0][0] == drawn[1][0]
        assert (drawn[0][1] == drawn[1][1]).all()
        assert set(drawn[0][0]).isdisjoint(ends.tolist())


def test_an_own_end_is_not_drawn_before_its_position(make_steps: StepsFactory) -> None:
    memory = memory_of([Sampling(top_k=0, seed=1)], 2000)
    memory.rows["end_ids"] = (0, 3, 9, -1)
    memory.rows["end_from"] = 10
    assert set(draw(make_steps, memory, LOGITS, 9).tolist()).isdisjoint({0, 3, 9})
    assert {0, 3, 9} <= set(draw(make_steps, memory, LOGITS, 10).tolist())


def test_a_moved_row_takes_counts_and_ends_along() -> None:
    memory = new_memory(shape_of(VOCABULARY), max_rows=2, num_prompt_slots=1)
    request = GenerationRequest(STANDING, 1, 4, Sampling(presence_penalty=1, seed=8), num_top=3, end_ids=(5, 6))
    memory.start_rows(request, 2, 0, range(1))
    for token_id, is_new in ((3, True), (5, False), (7, False)):
        memory._place(0, token_id, is_new=is_new, keeps_seen=True)
    memory.move_row(0, 1)
    assert memory.rows[1]["end_ids"].tolist() == [5, 6, -1, -1]
    assert (memory.rows[1]["num_top"], memory.rows[1]["keeps_seen"]) == (3, 1)
    assert memory.seen[1].tolist() == [IN_PROMPT, 0, 0, IN_PROMPT + 1, IN_PROMPT, IN_PROMPT, 0, IN_PROMPT, 0, 0, 0, 0]


def test_penalties_of_repeated_text_change_it(engine: Engine) -> None:
    greedy = Sampling(temperature=0)
    plain = [i for i, _, _ in told(run(engine, GenerationRequest(PROMPT, 1, 24, greedy, ignore_end=True)))]
    strict = replace(greedy, frequency_penalty=2.0, presence_penalty=2.0)
    varied = [i for i, _, _ in told(run(engine, GenerationRequest(PROMPT, 1, 24, strict, ignore_end=True)))]
    assert len(set(varied)) > len(set(plain)) or len(set(plain)) == 24
    assert varied[0] == plain[0]  # nothing was drawn yet: the prompt does not count


def test_a_graph_draws_rows_with_an_own_end_once_they_may_end() -> None:
    memory = memory_of([Sampling(top_k=5)], 3)
    rows = memory.rows
    rows["end_from"], rows["position"] = 9, 8
    assert _suits_graph(rows)
    rows["end_ids"][1, 0] = 4
    assert _suits_graph(rows)  # the next token stands at 9
    rows["position"][1] = 7
    assert not _suits_graph(rows)
    rows["end_ids"][1, 0] = -1
    rows["keeps_seen"][2] = 1
    assert not _suits_graph(rows)


def test_logits_are_as_they_were_after_a_draw(make_steps: StepsFactory) -> None:
    """The alternatives are taken from them."""
    memory = memory_of([PENALTIES[2], Sampling()], 2)
    memory.bias[3] = NOT_A_TOKEN
    memory.logits[:4, :VOCABULARY] = LOGITS
    before = memory.logits.copy()
    make_steps(memory, random_weights(memory.shape)).draw(4, 4, NO_TOKENS)
    assert (memory.logits == before).all()
