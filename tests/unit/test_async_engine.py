"""The engine behind an event loop: answers, cancellation, overload, deadlines, failures, drain and stop, with the loop free throughout."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from promptgen.config import EngineSettings
from promptgen.errors import ContextLengthExceeded, DeadlineExceeded, EngineFailure, FileFault, Overloaded
from promptgen.generation import async_engine
from promptgen.generation.async_engine import AsyncEngine, Delta
from promptgen.generation.candidates import CandidateSet, Finished, Piece, Shown
from promptgen.generation.gpt2 import EagerGpt2
from promptgen.generation.loader import open_model
from promptgen.generation.request import Answer, Event, Sampling, TextRequest
from promptgen.generation.steps import PromptTokens
from tests.unit.small_engine import FULL, TOKENIZER, collect, in_loop, is_empty, loader, running, texts_of, until

ONE = replace(FULL, num_samples=1)


def test_it_goes_from_new_to_ready_to_stopped() -> None:
    async def scenario() -> None:
        engine = AsyncEngine(EngineSettings(max_rows=3), loader())
        assert (engine.state, engine.info, engine.stats.max_rows) == ("new", None, 0)
        starting = asyncio.ensure_future(engine.start())
        await asyncio.sleep(0)
        assert engine.state == "loading"
        with pytest.raises(Overloaded, match="loading"):
            await engine.answer(FULL)
        await starting
        assert engine.state == "ready"
        assert engine.info is not None
        assert (engine.info.name, engine.stats.max_rows) == ("small", 3)
        await engine.stop()
        assert engine.state == "stopped"
        with pytest.raises(Overloaded, match="stopped"):
            await engine.answer(FULL)

    in_loop(scenario())


def test_a_model_that_cannot_be_loaded_gives_its_fault_and_the_state_failed(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = AsyncEngine(EngineSettings(model=tmp_path / "nowhere"))
        with pytest.raises(FileFault, match="nowhere"):
            await engine.start()
        assert engine.state == "failed"
        assert isinstance(engine.fault, FileFault)
        with pytest.raises(Overloaded, match="failed"):
            await engine.answer(FULL)
        await engine.stop()
        assert engine.state == "failed"

    in_loop(scenario())


def test_the_answer_is_the_collected_stream() -> None:
    async def scenario() -> None:
        async with running() as engine:
            deltas: list[Delta] = []
            await collect(engine, FULL, deltas)
            *before, answer = deltas
            assert isinstance(answer, Answer)
            assert (answer.num_prompt_tokens, answer.num_completion_tokens) == (4, 60)
            assert sorted(candidate.index for candidate in answer.candidates) == [0, 1]
            for candidate in answer.candidates:
                own = [d for d in before if not isinstance(d, Answer) and d.sample == candidate.index]
                assert "".join(d.text for d in own if isinstance(d, Piece)) == candidate.completion
                assert own[-1] == Finished(candidate.index, candidate)
            assert texts_of(await engine.answer(FULL)) == texts_of(answer)
            assert min(answer.queue_s, answer.prefill_s, answer.decode_s) >= 0

    in_loop(scenario())


@pytest.mark.parametrize("request_", [FULL, replace(FULL, stop=("never said",)), replace(FULL, until="sentence")])
def test_who_waits_for_the_whole_is_woken_seldom_and_who_may_have_enough_at_every_step(
    request_: TextRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    takes: list[int] = []
    take = AsyncEngine._take

    def counted(self: AsyncEngine, events: list[Event], *others: Any) -> list[Shown]:
        takes.append(len(events))
        return take(self, events, *others)

    monkeypatch.setattr(AsyncEngine, "_take", counted)

    async def scenario() -> None:
        async with running() as engine:
            deltas: list[Delta] = []
            await collect(engine, request_, deltas)
            *_, streamed = deltas
            assert isinstance(streamed, Answer)
            at_every_step = takes[:]
            takes.clear()
            answer = await engine.answer(request_)
            assert texts_of(answer) == texts_of(streamed)
            assert max(at_every_step) <= 4  # a start, or an end, beside two tokens
            if request_ is FULL:
                assert len(takes) <= 4 < 20 < len(at_every_step)  # the first step, two bundles, the end
                assert sum(takes) == sum(at_every_step)
            else:
                assert max(takes) <= 4

    in_loop(scenario())


def test_much_text_becomes_ids_off_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words that must not come, words with a bias and choices are text as well, and many short contexts are a long one."""
    make, is_aside = CandidateSet.__init__, list[bool]()

    def noted(self: CandidateSet, *args: Any, **options: Any) -> None:
        is_aside.append(threading.current_thread() is not threading.main_thread())
        make(self, *args, **options)

    monkeypatch.setattr(CandidateSet, "__init__", noted)
    words = tuple("高血压"[: 1 + number % 3] * 20 for number in range(9))

    async def scenario() -> None:
        async with running() as engine:
            for requests in (
                [replace(ONE, bad_words=words)] * 8,
                [replace(ONE, prompt="高" * 20)] * 110,
                [replace(ONE, choices=("高" * 30,) * 64)],
                [replace(ONE, logit_bias=((TOKENIZER.vocabulary.tokens[-1], 1.0),) * 2001)],
            ):
                is_aside.clear()
                await engine.answer_all(requests)
                assert is_aside == [True] * len(requests)
            await engine.answer(ONE)
            assert is_aside[-1] is False

    in_loop(scenario())


def test_a_request_that_cannot_fit_is_refused_before_it_starts() -> None:
    async def scenario() -> None:
        async with running() as engine:
            with pytest.raises(ContextLengthExceeded):
                await engine.answer(TextRequest("高血压", 1, 65))
            assert engine.stats.num_steps == 0
            assert is_empty(engine)

    in_loop(scenario())


def test_closing_the_stream_frees_its_rows() -> None:
    async def scenario() -> None:
        async with running(pause_s=0.05) as engine:
            stream = engine.stream(FULL)
            await anext(stream)
            assert (engine.stats.num_rows, engine.num_active) == (2, 1)
            await stream.aclose()
            await until(lambda: is_empty(engine))
            assert engine.stats.num_steps < 30

    in_loop(scenario())


def test_cancelling_the_task_frees_its_rows_and_its_place_in_the_queue() -> None:
    async def scenario() -> None:
        async with running(pause_s=0.05, max_rows=2) as engine:
            tasks = [asyncio.create_task(engine.answer(FULL)) for _ in range(3)]
            await until(lambda: engine.stats.num_rows == 2 and engine.stats.num_waiting == 2)
            for task in tasks:
                task.cancel()
            assert all(
                isinstance(r, asyncio.CancelledError) for r in await asyncio.gather(*tasks, return_exceptions=True)
            )
            await until(lambda: is_empty(engine))
            assert engine.stats.num_steps < 30

    in_loop(scenario())


def test_a_stop_string_frees_the_row_of_its_candidate() -> None:
    async def scenario() -> None:
        async with running(pause_s=0.05) as engine:
            whole = (await engine.answer(FULL)).candidates[0].completion
            before = engine.stats.num_steps
            request = TextRequest("高血压", 1, 30, Sampling(seed=5), (whole[0],), ignore_end=True)
            (candidate,) = (await engine.answer(request)).candidates
            assert (candidate.completion, candidate.finish_reason) == ("", "stop")
            await until(lambda: is_empty(engine))
            assert engine.stats.num_steps - before < 10

    in_loop(scenario())


def test_fifty_requests_with_random_cancellations_leave_nothing_behind() -> None:
    draw = random.Random(3)

    async def walk_away(engine: AsyncEngine, num_deltas: int) -> None:
        async with contextlib.aclosing(engine.stream(FULL)) as stream:
            for _ in range(num_deltas):
                await anext(stream)

    async def scenario() -> None:
        async with running(pause_s=0.001) as engine:
            alone = await engine.answer(FULL)
            kept, dropped = [], []
            for number in range(50):
                if number % 3 == 0:
                    kept.append(asyncio.create_task(engine.answer(FULL)))
                elif number % 3 == 1:
                    dropped.append(asyncio.create_task(walk_away(engine, draw.randrange(40))))
                else:
                    dropped.append(asyncio.create_task(engine.answer(FULL)))
                    asyncio.get_running_loop().call_later(draw.uniform(0, 0.3), dropped[-1].cancel)
            await asyncio.gather(*dropped, return_exceptions=True)
            assert [texts_of(await task) for task in kept] == [texts_of(alone)] * 17
            await until(lambda: is_empty(engine))
            assert texts_of(await engine.answer(FULL)) == texts_of(alone)

    in_loop(scenario())


def test_more_streams_than_the_queue_allows_are_refused_at_once() -> None:
    async def scenario() -> None:
        async with running(pause_s=0.01, max_rows=2, max_queue=3) as engine:
            tasks = [asyncio.create_task(engine.answer(FULL)) for _ in range(3)]
            await until(lambda: engine.num_active == 3)
            with pytest.raises(Overloaded) as refused:
                await engine.answer(FULL)
            assert refused.value.retry_after_s == 1
            assert len({(await task).candidates for task in tasks}) == 1

    in_loop(scenario())


def test_many_long_prompts_at_once_cannot_pass_the_queue_limit_and_kill_the_engine() -> None:
    async def scenario() -> None:
        long = TextRequest("高血压" + " " * 2500, 1, 30, ignore_end=True)
        async with running(pause_s=0.01, max_rows=1, max_queue=2) as engine:
            results = await asyncio.gather(*(engine.answer(long) for _ in range(8)), return_exceptions=True)
            assert {type(result) for result in results} == {Answer, Overloaded}
            assert sum(isinstance(result, Answer) for result in results) == 2
            assert engine.state == "ready"

    in_loop(scenario())


def test_no_token_in_time_is_a_deadline_exceeded_and_frees_the_rows() -> None:
    async def scenario() -> None:
        async with running(pause_s=0.2) as engine:
            with pytest.raises(DeadlineExceeded, match=r"0\.02 s"):
                await engine.answer(FULL, first_token_timeout_s=0.02)
            await until(lambda: is_empty(engine))
            short = TextRequest("高血压", 1, 2, ignore_end=True)
            assert (await engine.answer(short, first_token_timeout_s=5)).num_completion_tokens == 2

    in_loop(scenario())


def test_the_deadline_is_for_the_first_token_only() -> None:
    async def scenario() -> None:
        async with running(pause_s=0.1) as engine:
            request = TextRequest("高血压", 1, 8, ignore_end=True)
            assert (await engine.answer(request, first_token_timeout_s=0.6)).num_completion_tokens == 8

    in_loop(scenario())


def test_a_step_that_fails_once_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with running(pause_s=0.005) as engine:
            expected = texts_of(await engine.answer(FULL))
            forward, faults = EagerGpt2.forward, [MemoryError(), RuntimeError()]

            def faulty(steps: EagerGpt2, num_rows: int, prompts: PromptTokens) -> None:
                if num_rows and faults:
                    raise faults.pop()
                forward(steps, num_rows, prompts)

            monkeypatch.setattr(EagerGpt2, "forward", faulty)
            answers = await asyncio.gather(*(engine.answer(FULL) for _ in range(2)))
            assert [texts_of(answer) for answer in answers] == [expected] * 2
            assert not faults
            assert (engine.state, engine.num_restarts) == ("ready", 0)

    in_loop(scenario())


def test_an_engine_that_computes_nothing_any_more_is_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_engine, "BACKOFF_S", 0.02)

    async def scenario() -> None:
        async with running(pause_s=0.005) as engine:
            expected = texts_of(await engine.answer(FULL))
            with monkeypatch.context() as patch:
                patch.setattr(EagerGpt2, "forward", lambda *_: torch.zeros(1)[9])
                known = asyncio.create_task(engine.answer(FULL))  # draws its first tokens from logits that are there
                other = asyncio.create_task(engine.answer(replace(FULL, prompt="饮食")))
                await until(lambda: engine.state == "restarting")
            with pytest.raises(EngineFailure):
                await known
            assert len((await other).candidates) == 2
            assert texts_of(await engine.answer(FULL)) == expected
            assert (engine.state, engine.num_restarts) == ("ready", 1)

    in_loop(scenario())


def test_the_requests_of_a_visit_are_accepted_together_in_a_full_queue() -> None:
    async def scenario() -> None:
        async with running(pause_s=0.002, max_queue=2) as engine:
            with engine.visit() as visit:
                first = await engine.answer(FULL, visit=visit)
                others = [asyncio.create_task(engine.answer(FULL)) for _ in range(2)]
                await until(lambda: engine.num_active == 2)
                with pytest.raises(Overloaded):
                    await engine.answer(FULL)
                assert texts_of(await engine.answer(FULL, visit=visit)) == texts_of(first)
                await asyncio.gather(*others)
            others = [asyncio.create_task(engine.answer(FULL)) for _ in range(2)]
            await until(lambda: engine.num_active == 2)
            with engine.visit() as late, pytest.raises(Overloaded):  # nothing of it was accepted before
                await engine.answer(FULL, visit=late)
            await asyncio.gather(*others)
            assert (engine.admission.num_requests, is_empty(engine)) == (0, True)

    in_loop(scenario())


def test_a_drain_waits_for_a_visit_to_end() -> None:
    async def scenario() -> None:
        async with running(pause_s=0.002) as engine:
            idle = engine.visit()
            with idle, engine.visit() as visit:  # of `idle` nothing was accepted: nobody waits for it
                first = await engine.answer(FULL, visit=visit)
                draining = asyncio.create_task(engine.drain(20))
                await until(lambda: engine.state == "draining")
                with pytest.raises(Overloaded, match="draining"):
                    await engine.answer(FULL)
                with pytest.raises(Overloaded, match="draining"):
                    await engine.answer(FULL, visit=idle)
                assert not draining.done()
                assert texts_of(await engine.answer(FULL, visit=visit)) == texts_of(first)
                assert not draining.done()
            assert await draining

    in_loop(scenario())


def test_drain_refuses_new_requests_and_waits_for_the_running_ones() -> None:
    async def scenario() -> None:
        async with running(pause_s=0.005) as engine:
            task = asyncio.create_task(engine.answer(FULL))
            await until(lambda: engine.stats.num_rows == 2)
            draining = asyncio.create_task(engine.drain(20))
            await until(lambda: engine.state == "draining")
            with pytest.raises(Overloaded, match="draining"):
                await engine.answer(FULL)
            assert await draining
            assert task.done() or (await task).num_completion_tokens == 60
            assert engine.num_active == 0

    in_loop(scenario())


def test_drain_gives_up_after_its_timeout_and_is_quick_when_idle() -> None:
    async def scenario() -> None:
        async with running(pause_s=0.05) as engine:
            assert await engine.drain(0)
        async with running(pause_s=0.05) as engine:
            task = asyncio.create_task(engine.answer(FULL))
            await until(lambda: engine.num_active == 1)
            assert not await engine.drain(0.1)
            task.cancel()

    in_loop(scenario())


def test_stop_ends_open_streams_with_an_engine_failure() -> None:
    async def scenario() -> None:
        async with running(pause_s=0.01) as engine:
            tasks = [asyncio.create_task(engine.answer(FULL)) for _ in range(3)]
            await until(lambda: engine.stats.num_steps > 2)
            await engine.stop()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(result) for result in results] == [EngineFailure] * 3
            assert (engine.state, engine.num_active) == ("stopped", 0)

    in_loop(scenario())


def test_two_requests_share_their_steps_and_their_events_interleave() -> None:
    async def scenario() -> None:
        async with running(pause_s=0.01) as engine:
            await engine.answer(FULL)
            assert engine.stats.num_steps == 30
            order: list[int] = []

            async def follow(number: int) -> None:
                async for _ in engine.stream(FULL):
                    order.append(number)  # noqa: PERF401 - two tasks write in turn

            await asyncio.gather(follow(0), follow(1))
            assert engine.stats.num_steps - 30 < 60
            assert sum(a != b for a, b in pairwise(order)) > 10

    in_loop(scenario())


def test_the_loop_keeps_breathing_while_the_shipped_model_generates() -> None:
    gaps: list[float] = []

    async def tick() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.005)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    async def scenario() -> None:
        engine = AsyncEngine(EngineSettings(), open_model)
        await engine.start()
        ticker = asyncio.create_task(tick())
        requests = [TextRequest("高血压要注意", 5, 200, Sampling(seed=seed), ignore_end=True) for seed in range(8)]
        answers = await asyncio.gather(*map(engine.answer, requests))
        ticker.cancel()
        await engine.stop()
        assert sum(answer.num_completion_tokens for answer in answers) == 8 * 5 * 200

    in_loop(scenario())
    assert len(gaps) > 3
    assert sorted(gaps)[len(gaps) * 9 // 10] < 0.2  # of all but what the machine itself stands still
