"""Schedule, run, update: the synchronous engine. One thread calls it; everything else goes through AsyncEngine.

engine.add(7, request)
while engine.has_work:
    for event in engine.step(): ...
"""

from __future__ import annotations

import logging
from dataclasses import replace

from promptgen.errors import ContextLengthExceeded, InvalidRequest
from promptgen.generation.memory import MAX_ENDS, Memory
from promptgen.generation.request import EngineStats, Event, FailureEvent, GenerationRequest, TokenEvent
from promptgen.generation.runner import Runner
from promptgen.generation.scheduler import FAILED, Scheduler
from promptgen.generation.steps import Steps

_log = logging.getLogger(__name__)


class EngineBroken(Exception):
    """This engine will answer nobody any more."""


class Engine:
    """Continuous batching over one model: rows of all running requests share every step."""

    def __init__(self, memory: Memory, steps: Steps) -> None:
        self.window = memory.shape.window
        self.vocabulary = memory.shape.vocabulary
        self.max_rows = len(memory.rows)
        self.num_prompt_slots = memory.num_prompt_slots
        self._scheduler = Scheduler(
            max_rows=self.max_rows,
            num_prompt_slots=memory.num_prompt_slots,
            end_id=memory.end_id,
        )
        self._runner = Runner(memory, steps)
        self._offered: Steps | None = None
        self._num_steps = self._num_prompt_tokens = self._num_reused_tokens = self._num_generated_tokens = 0
        self._num_shared_tokens = 0

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            num_waiting=self._scheduler.num_waiting,
            num_rows=len(self._scheduler.rows),
            max_rows=self.max_rows,
            num_steps=self._num_steps,
            num_prompt_tokens=self._num_prompt_tokens,
            num_reused_tokens=self._num_reused_tokens,
            num_generated_tokens=self._num_generated_tokens,
            num_recalled_tokens=self._scheduler.num_recalled,
            num_shared_tokens=self._num_shared_tokens,
            steps=self._runner.steps.description,
        )

    def check(self, request: GenerationRequest) -> None:
        """Raises InvalidRequest for a request that no state of the engine could serve."""
        if not request.prompt_ids or request.max_new_tokens < 1 or request.num_samples < 1:
            raise InvalidRequest("a request needs a prompt, a sample and a new token at least")
        given_ids = (
            *request.prompt_ids,
            *request.end_ids,
            *request.forced_ids,
            *(token_id for token_id, _ in request.bias),
        )
        if not all(0 <= token_id < self.vocabulary for token_id in given_ids):
            raise InvalidRequest(f"a token id is outside the vocabulary of {self.vocabulary}")
        if len(request.end_ids) > MAX_ENDS:
            raise InvalidRequest(f"a candidate ends at {MAX_ENDS} tokens of its own at most")
        if len(request.forced_ids) not in (0, request.max_new_tokens):
            raise InvalidRequest("as many tokens are given as asked for, or none")
        sampling = request.sampling
        if not (
            sampling.temperature >= 0
            and sampling.top_k >= 0
            and 0 <= sampling.top_p <= 1
            and sampling.repetition_penalty > 0
        ):
            raise InvalidRequest(
                "temperature and top_k must be 0 or more, top_p from 0 to 1, repetition_penalty over 0"
            )
        if len(request.prompt_ids) + request.max_new_tokens > self.window:
            raise ContextLengthExceeded(len(request.prompt_ids), request.max_new_tokens, self.window)

    def add(self, request_id: int, request: GenerationRequest) -> None:
        """Queues a request that `check` has passed."""
        if len(request.branches) > self.num_prompt_slots:
            request = replace(request, branches=request.branches[: self.num_prompt_slots])
        self._scheduler.add(request_id, request)

    def cancel(self, request_id: int, sample: int | None = None) -> None:
        self._scheduler.cancel(request_id, sample)

    @property
    def begun(self) -> frozenset[int]:
        """Requests of which something is being computed."""
        return self._scheduler.begun

    def offer(self, steps: Steps) -> None:
        """From any thread: another implementation over the same memory. It takes over before the next step; one of another precision
        or cache type when what is running has ended, so that no draw is made with two, and what was computed for prompts is forgotten. (Candidates that are drawn anew in the place
        of equal ones are draws of their own.)"""
        self._offered = steps

    def step(self) -> list[Event]:
        """One pass for everything that runs, or several. A fault fails the requests it belongs to, and the engine goes on.

        Raises EngineBroken when nothing could be computed and a proof of the model fails as well: a new engine is needed.
        """
        try:
            return self._step()
        except KeyboardInterrupt:  # in a notebook: what was planned may not have been computed
            self._scheduler.drop_running()
            raise

    def _step(self) -> list[Event]:
        if self._offered is not None:
            self._take_up(self._offered)
        plan = self._scheduler.schedule()
        failures, self._scheduler.failures = self._scheduler.failures, []
        if plan is None:
            return failures
        try:
            result = self._runner.run(plan)
        except Exception:
            _log.exception("a step of %d rows failed", plan.num_rows)
            return failures + [FailureEvent(request_id, FAILED) for request_id in self._scheduler.drop_running()]
        failed_rows = result.failed_rows
        if failed_rows:
            self._runner.wipe(failed_rows)  # before another row moves there
        events = [
            event
            for token_ids, logprobs in result.earlier
            for event in self._scheduler.update(plan, token_ids, logprobs)
        ]
        events += self._scheduler.update(
            plan, result.token_ids, result.logprobs, result.picks, result.tops, result.failed_slots
        )
        if self._scheduler.distrusted:
            self._runner.wipe(self._scheduler.distrusted)
            self._scheduler.distrusted = []
        if failed_rows or result.failed_slots:
            self._prove()
        events += failures
        self._num_steps += 1 + len(result.earlier)
        self._num_prompt_tokens += sum(len(stretch.token_ids) for stretch in plan.stretches)
        self._num_reused_tokens += plan.num_reused
        self._num_shared_tokens += result.num_shared
        self._num_generated_tokens += sum(type(event) is TokenEvent for event in events)
        return events

    def _prove(self) -> None:
        """Is it the request, or the engine?"""
        slot = self._scheduler.prompts.idle_slot  # the failed request has left it empty
        if slot is None:
            return
        try:
            self._runner.prove(slot)
        except Exception as fault:
            raise EngineBroken("the model computes nothing any more") from fault

    def _take_up(self, steps: Steps) -> None:
        old = self._runner.steps
        if (steps.precision, steps.cache_type) != (old.precision, old.cache_type):
            self._scheduler.is_held = self._scheduler.is_running
            if self._scheduler.is_held:
                return
            self._scheduler.prompts.forget()
        self._runner.steps, self._offered = steps, None
        _log.info("the model's step is now: %s", steps.description)
