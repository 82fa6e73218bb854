"""What an engine behind an event loop survives: the death of its thread, a step that hangs, another model in its place, being put to sleep."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from promptgen.config import EngineSettings
from promptgen.errors import ContextLengthExceeded, DeadlineExceeded, EngineFailure, FileFault, Overloaded
from promptgen.generation import async_engine
from promptgen.generation.async_engine import AsyncEngine
from promptgen.generation.candidates import CandidateSet
from promptgen.generation.loader import OpenModel
from promptgen.generation.request import Answer, TextRequest
from tests.unit.small_engine import FULL, in_loop, is_empty, loader, running, texts_of, the_engine, until

ONE = replace(FULL, num_samples=1)


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_engine, "BACKOFF_S", 0.02)


class Loads:
    """A loader whose faults are listed: None for a model, or what is raised instead."""

    def __init__(self, *faults: Exception | None, pause_s: float = 0.002) -> None:
        self.faults, self.count, self.pause_s = list(faults), 0, pause_s
        self.weights_seed, self.name = 1, "small"

    def __call__(self, settings: EngineSettings) -> OpenModel:
        self.count += 1
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            raise fault
        model = loader(self.pause_s, self.weights_seed)(settings)
        return replace(model, info=replace(model.info, name=self.name))


def engine_threads() -> int:
    return sum(thread.name == "engine" for thread in threading.enumerate())


async def started(engine: AsyncEngine, request: TextRequest, count: int) -> list[asyncio.Task[Answer]]:
    """`count` more requests under way: those for which there is room have rows."""
    wanted = engine.num_active + count
    tasks = [asyncio.create_task(engine.answer(request)) for _ in range(count)]
    await until(lambda: engine.num_active == wanted and engine.stats.num_rows >= 1)
    return tasks


# -- the thread dies -------------------------------------------------------------------------------------------------------


def test_after_a_death_those_that_ran_fail_those_that_waited_wait_on_and_the_service_answers_again() -> None:
    async def scenario() -> None:
        load = Loads()
        async with running(load=load, max_rows=2, prompt_slots=1) as engine:
            expected = texts_of(await engine.answer(FULL))
            tasks = await started(engine, FULL, 4)
            await until(lambda: engine.stats.num_rows == 2)
            the_engine(engine).breaks = True
            await until(lambda: engine.state == "restarting")
            with pytest.raises(Overloaded, match="restarting"):
                await engine.answer(FULL)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            failed = [result for result in results if isinstance(result, EngineFailure)]
            answers = [result for result in results if isinstance(result, Answer)]
            assert (len(failed), len(answers)) == (1, 3)
            assert all(texts_of(answer) == expected for answer in answers)
            assert (engine.state, engine.num_restarts, load.count) == ("ready", 1, 2)
            assert not engine.died.is_set()
            assert texts_of(await engine.answer(FULL)) == expected
            assert is_empty(engine)
        assert engine_threads() == 0

    in_loop(scenario())


def test_the_third_death_within_ten_minutes_is_the_last() -> None:
    async def scenario() -> None:
        async with running(pause_s=0.002) as engine:
            for death in range(async_engine.MAX_DEATHS):
                await until(lambda: engine.state == "ready")
                task = asyncio.create_task(engine.answer(FULL))
                await until(lambda: engine.stats.num_rows == 2)
                the_engine(engine).breaks = True
                with pytest.raises(EngineFailure):
                    await task
                assert engine.num_restarts == death
            await asyncio.wait_for(engine.died.wait(), 20)
            assert (engine.state, engine.num_active) == ("failed", 0)
            with pytest.raises(Overloaded, match="failed"):
                await engine.answer(FULL)

    in_loop(scenario())


def test_old_deaths_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_engine, "DEATH_WINDOW_S", 0.0)

    async def scenario() -> None:
        async with running() as engine:
            for number in range(5):
                the_engine(engine).breaks = True
                await engine.answer(FULL)  # it had not begun, so it is answered by the next engine
                assert engine.num_restarts == number + 1

    in_loop(scenario())


def test_a_restart_that_fails_is_tried_again_and_counts_as_a_death() -> None:
    async def scenario() -> None:
        async with running(load=Loads(None, OSError("no descriptors"))) as engine:
            the_engine(engine).breaks = True
            assert len((await engine.answer(FULL)).candidates) == 2
            assert (engine.state, len(engine._deaths)) == ("ready", 2)
        async with running(load=Loads(None, OSError("no"), FileFault("model", "is gone"))) as engine:
            the_engine(engine).breaks = True
            with pytest.raises(Overloaded, match="failed"):
                await engine.answer(FULL)
            await asyncio.wait_for(engine.died.wait(), 20)
            assert engine.state == "failed"

    in_loop(scenario())


def test_a_death_before_a_request_was_given_to_the_thread_is_not_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, go_on = threading.Event(), threading.Event()

    def slow(model: OpenModel, request: TextRequest, candidates: Any = OpenModel.candidates) -> CandidateSet:
        found: CandidateSet = candidates(model, request)
        if request.session == "slow":
            prepared.set()
            assert go_on.wait(60)
        return found

    async def scenario() -> None:
        async with running() as engine:
            expected = texts_of(await engine.answer(FULL))
            monkeypatch.setattr(async_engine, "_LONG", 0)  # every text becomes ids beside the loop
            monkeypatch.setattr(OpenModel, "candidates", slow)
            task = asyncio.create_task(engine.answer(replace(FULL, session="slow")))
            await asyncio.to_thread(prepared.wait, 60)
            the_engine(engine).breaks = True
            assert texts_of(await engine.answer(FULL)) == expected  # by the next engine
            assert engine.num_restarts == 1
            go_on.set()
            assert texts_of(await task) == expected
            assert is_empty(engine)

    in_loop(scenario())


def test_a_request_that_waited_through_two_deaths_is_told_to_come_again() -> None:
    async def scenario() -> None:
        async with running(pause_s=0.01, max_rows=1, prompt_slots=1) as engine:
            tasks = await started(engine, ONE, 8)
            for _ in range(2):
                await until(lambda: engine.state == "ready" and engine.stats.num_rows == 1)
                the_engine(engine).breaks = True
                await until(lambda: engine.state == "restarting")
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(result) for result in results} == {EngineFailure, Overloaded}
            await until(lambda: engine.state == "ready")
            assert len((await engine.answer(ONE)).candidates) == 1

    in_loop(scenario())


def test_what_waits_for_a_restart_keeps_its_deadline() -> None:
    async def scenario() -> None:
        load = Loads(pause_s=0.01)
        async with running(load=load, max_rows=1, prompt_slots=1) as engine:
            running_task = (await started(engine, ONE, 1))[0]
            waiting = asyncio.create_task(engine.answer(ONE, first_token_timeout_s=0.2))
            reading = asyncio.create_task(engine.answer(ONE))
            await asyncio.sleep(0.05)
            load.faults = [OSError("not yet")] * 1
            async_engine.BACKOFF_S = 0.5
            the_engine(engine).breaks = True
            results = await asyncio.gather(running_task, reading, waiting, return_exceptions=True)
            assert isinstance(results[0], EngineFailure)
            assert isinstance(results[2], DeadlineExceeded | EngineFailure)

    in_loop(scenario())


def test_waiting_requests_are_not_answered_by_another_model_than_they_asked() -> None:
    async def scenario() -> None:
        load = Loads(pause_s=0.005)
        async with running(load=load, max_rows=1, prompt_slots=1) as engine:
            tasks = await started(engine, ONE, 5)
            load.name = "another"
            the_engine(engine).breaks = True
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(result) for result in results} == {EngineFailure, Overloaded}
            assert engine.info is not None
            assert engine.info.name == "another"

    in_loop(scenario())


def test_a_death_while_draining_loses_none_of_those_that_waited() -> None:
    async def scenario() -> None:
        async with running(pause_s=0.005, max_rows=1, prompt_slots=1) as engine:
            tasks = await started(engine, ONE, 6)
            draining = asyncio.create_task(engine.drain(60))
            await until(lambda: engine.state == "draining")
            the_engine(engine).breaks = True
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert await draining
            assert sum(isinstance(result, Answer) for result in results) >= 4
            assert {type(result) for result in results} == {Answer, EngineFailure}
            assert engine.state == "draining"

    in_loop(scenario())


# -- a step hangs ------------------------------------------------------------------------------------------------------------


def test_a_hung_step_is_seen_its_stacks_are_written_and_everybody_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        async with running(pause_s=0.002, max_rows=2, step_timeout_s=0.4) as engine:
            tasks = await started(engine, FULL, 3)
            hold = the_engine(engine).hold = threading.Event()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(result) for result in results] == [EngineFailure] * 3
            assert engine.died.is_set()
            assert engine.is_hung
            assert engine.state == "failed"
            with pytest.raises(Overloaded, match="failed"):
                await engine.answer(FULL)
            await asyncio.wait_for(engine.stop(), 5)  # waits for no thread that hangs
            hold.set()

    in_loop(scenario())
    stacks = capfd.readouterr().err
    assert "in step" in stacks
    assert "small_engine.py" in stacks


def test_slow_steps_and_idle_hours_are_no_hang() -> None:
    async def scenario() -> None:
        async with running(pause_s=0.2, step_timeout_s=2) as engine:
            await asyncio.sleep(2.5)
            assert (await engine.answer(replace(ONE, max_new_tokens=8))).num_completion_tokens == 8
            assert engine.state == "ready"

    in_loop(scenario())


# -- another model in its place ------------------------------------------------------------------------------------------------


def test_a_reload_drops_nothing_and_what_runs_ends_with_the_model_it_began_with() -> None:
    async def scenario() -> None:
        load = Loads(pause_s=0.005)
        async with running(load=load) as engine:
            before = texts_of(await engine.answer(FULL))
            load.weights_seed = 2
            running_tasks = await started(engine, FULL, 3)
            for _ in range(3):
                later = [asyncio.create_task(engine.answer(FULL)) for _ in range(3)]
                await engine.reload()
                assert engine.state == "ready"
                running_tasks += later
            assert [texts_of(await task) for task in running_tasks[:6]] == [before] * 6
            after = texts_of(await engine.answer(FULL))
            assert after != before
            assert [texts_of(await task) for task in running_tasks[6:]] == [after] * 6
            await until(lambda: engine_threads() == 1)
            assert engine._retired == []
        assert engine_threads() == 0

    in_loop(scenario())


def test_a_reload_that_fails_changes_nothing() -> None:
    async def scenario() -> None:
        async with running(load=Loads(None, FileFault("config.json", "is not JSON"))) as engine:
            before = texts_of(await engine.answer(FULL))
            with pytest.raises(FileFault, match="not JSON"):
                await engine.reload()
            assert engine.state == "ready"
            assert texts_of(await engine.answer(FULL)) == before

    in_loop(scenario())


def test_the_death_of_a_retired_thread_fails_its_own_requests_alone() -> None:
    async def scenario() -> None:
        async with running(load=Loads(pause_s=0.005)) as engine:
            (old,) = await started(engine, FULL, 1)
            broken = the_engine(engine)
            await engine.reload()
            new = asyncio.create_task(engine.answer(FULL))
            broken.breaks = True
            with pytest.raises(EngineFailure):
                await old
            assert len((await new).candidates) == 2
            assert (engine.state, engine.num_restarts) == ("ready", 0)

    in_loop(scenario())


@pytest.mark.parametrize("act", [AsyncEngine.unload, AsyncEngine.reload])
def test_a_visit_ends_with_the_model_that_it_began_with(
    act: Callable[[AsyncEngine], Coroutine[Any, Any, None]],
) -> None:
    async def scenario() -> None:
        async with running() as engine:
            with engine.visit() as visit:
                first = await engine.answer(FULL, visit=visit)
                worker = engine._worker
                assert worker is not None
                await act(engine)
                assert engine._worker is not worker
                assert texts_of(await engine.answer(FULL, visit=visit)) == texts_of(first)
                assert engine._retired == [worker]
                if engine.state == "unloaded":
                    with pytest.raises(Overloaded, match="unloaded"):
                        await engine.answer(FULL)
            assert not engine._retired
            await worker.join(10)
            assert worker._thread is not None
            assert not worker._thread.is_alive()

    in_loop(scenario())


def test_a_visit_that_woke_a_model_ends_with_it() -> None:
    async def scenario() -> None:
        async with running() as engine:
            first = await engine.answer(FULL)
            assert await engine.sleep()
            with engine.visit() as visit:
                assert texts_of(await engine.answer(FULL, visit=visit)) == texts_of(first)
                await engine.unload()
                assert texts_of(await engine.answer(FULL, visit=visit)) == texts_of(first)
            assert not engine._retired

    in_loop(scenario())


def test_an_unloaded_model_ends_what_runs_leaves_memory_and_comes_back() -> None:
    async def scenario() -> None:
        async with running(load=Loads(pause_s=0.005)) as engine:
            expected = texts_of(await engine.answer(FULL))
            (task,) = await started(engine, FULL, 1)
            inner = weakref.ref(the_engine(engine))
            await engine.unload()
            assert engine.state == "unloaded"
            with pytest.raises(Overloaded, match="unloaded"):
                await engine.answer(FULL)
            assert texts_of(await task) == expected
            del task
            await until(lambda: engine_threads() == 0)
            gc.collect()
            assert inner() is None
            await engine.reload()
            assert texts_of(await engine.answer(FULL)) == expected

    in_loop(scenario())


def test_a_sleeping_model_is_woken_once_by_all_who_ask() -> None:
    async def scenario() -> None:
        load = Loads()
        async with running(load=load) as engine:
            expected = texts_of(await engine.answer(FULL))
            assert await engine.sleep()
            assert engine.state == "asleep"
            assert engine.info is not None
            await until(lambda: engine_threads() == 0)
            answers = await asyncio.gather(*(engine.answer(FULL) for _ in range(5)))
            assert [texts_of(answer) for answer in answers] == [expected] * 5
            assert (engine.state, load.count) == ("ready", 2)

    in_loop(scenario())


def test_a_model_in_use_does_not_sleep_and_one_that_cannot_be_woken_says_so() -> None:
    async def scenario() -> None:
        load = Loads(None, FileFault("model", "is gone"), None)
        async with running(load=load) as engine:
            (task,) = await started(engine, FULL, 1)
            assert not await engine.sleep()
            await task
            assert await engine.sleep()
            with pytest.raises(EngineFailure, match="loaded again"):
                await engine.answer(FULL)
            assert engine.state == "asleep"
            assert len((await engine.answer(FULL)).candidates) == 2

    in_loop(scenario())


# -- several requests at once ----------------------------------------------------------------------------------------------------


def test_several_requests_together_are_answered_as_each_alone() -> None:
    async def scenario() -> None:
        requests = [replace(FULL, prompt=prompt) for prompt in ("高", "饮食", "运动", "hello")]
        async with running() as engine:
            alone = [await engine.answer(request) for request in requests]
            together = await engine.answer_all(requests)
            assert [texts_of(answer) for answer in together] == [texts_of(answer) for answer in alone]
            assert await engine.answer_all([]) == []
            assert is_empty(engine)

    in_loop(scenario())


def test_several_requests_are_all_looked_at_before_one_begins() -> None:
    async def scenario() -> None:
        async with running() as engine:
            with pytest.raises(ContextLengthExceeded):
                await engine.answer_all([FULL, FULL, replace(FULL, max_new_tokens=65)])
            await asyncio.sleep(0.05)
            assert engine.stats.num_steps == 0
            assert is_empty(engine)

    in_loop(scenario())


def test_several_requests_are_accepted_together_or_not_at_all() -> None:
    async def scenario() -> None:
        async with running(pause_s=0.005, max_queue=3) as engine:
            assert len(await engine.answer_all([ONE] * 5)) == 5  # nobody was there
            (task,) = await started(engine, ONE, 1)
            with pytest.raises(Overloaded):
                await engine.answer_all([ONE] * 3)
            assert engine.num_active == 1
            assert len(await engine.answer_all([ONE] * 2)) == 2
            await task

    in_loop(scenario())


def test_more_tokens_than_are_allowed_to_wait_are_refused_with_a_time_to_come_back() -> None:
    async def scenario() -> None:
        async with running(pause_s=0.02, max_queued_tokens=100) as engine:
            large = replace(FULL, num_samples=4)  # more than is allowed, but nobody is there
            tasks = await started(engine, large, 1)
            with pytest.raises(Overloaded) as refused:
                await engine.answer(ONE)
            assert 1 <= refused.value.retry_after_s <= 60
            assert (await tasks[0]).num_completion_tokens == 120
            assert (engine.admission.num_requests, engine.admission.num_tokens) == (0, 0)
            assert engine.admission.num_refused == 1

    in_loop(scenario())


def test_what_is_given_up_while_it_waits_is_never_run() -> None:
    async def scenario() -> None:
        async with running(pause_s=0.05, max_rows=1, prompt_slots=1) as engine:
            first = (await started(engine, ONE, 1))[0]
            expired = [asyncio.create_task(engine.answer(ONE, first_token_timeout_s=0.05)) for _ in range(5)]
            left = [asyncio.create_task(engine.answer(ONE)) for _ in range(5)]
            results = await asyncio.gather(*expired, return_exceptions=True)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            assert {type(result) for result in results} == {DeadlineExceeded}
            await first
            await until(lambda: is_empty(engine))
            assert engine.stats.num_generated_tokens == 30

    in_loop(scenario())


def test_no_task_and_no_thread_outlives_the_engine() -> None:
    async def scenario() -> None:
        before = asyncio.all_tasks()
        async with running() as engine:
            the_engine(engine).breaks = True
            await engine.answer(FULL)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before
        assert engine_threads() == 0

    in_loop(scenario())
