"""The engine: requests in, events out, one step at a time. Ids only; one thread owns it.

engine.add(request_id, request)
while engine.has_work:
    for event in engine.step(): ...
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from promptgen.errors import ContextLengthExceeded, InvalidRequest
from promptgen.generation.gpt2 import Gpt2
from promptgen.generation.request import EngineStats, Event, FailureEvent, GenerationRequest, TokenEvent
from promptgen.generation.runner import Runner
from promptgen.generation.scheduler import Scheduler

_log = logging.getLogger(__name__)


class Engine:
    """Continuous batching over one model: rows of all running requests share every step."""

    def __init__(self, model: Gpt2, *, end_id: int, banned_ids: Sequence[int], max_rows: int, max_queue: int) -> None:
        self.window = model.shape.window
        self.vocabulary = model.shape.vocabulary
        self.max_rows = max_rows
        self._scheduler = Scheduler(max_rows=max_rows, max_queue=max_queue, end_id=end_id)
        self._runner = Runner(model, max_rows=max_rows, banned_ids=banned_ids, end_id=end_id)
        self._stats = EngineStats(max_rows=max_rows)

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    @property
    def stats(self) -> EngineStats:
        return dataclasses.replace(
            self._stats, num_waiting=len(self._scheduler.waiting), num_rows=len(self._scheduler.rows)
        )

    def check(self, request: GenerationRequest) -> None:
        """Raises InvalidRequest for a request that no state of the engine could serve."""
        if not request.prompt_ids or request.max_new_tokens < 1 or request.num_samples < 1:
            raise InvalidRequest("a request needs a prompt, a sample and a new token at least")
        if not all(0 <= token_id < self.vocabulary for token_id in request.prompt_ids):
            raise InvalidRequest(f"a token id is outside the vocabulary of {self.vocabulary}")
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
        if request.num_samples > self.max_rows:
            raise InvalidRequest(
                f"samples is {request.num_samples}, this service decodes {self.max_rows} at once", param="samples"
            )
        if len(request.prompt_ids) + request.max_new_tokens > self.window:
            raise ContextLengthExceeded(len(request.prompt_ids), request.max_new_tokens, self.window)

    def add(self, request_id: int, request: GenerationRequest) -> None:
        """Queues a request that `check` has passed. Raises Overloaded."""
        self._scheduler.add(request_id, request)

    def cancel(self, request_id: int, sample: int | None = None) -> None:
        self._scheduler.cancel(request_id, sample)

    def step(self) -> list[Event]:
        """One forward pass for everything that runs. A failing step fails the requests in it, and the engine goes on."""
        plan = self._scheduler.schedule()
        if plan is None:
            return []
        try:
            result = self._runner.run(plan)
        except Exception:
            _log.exception("a step of %d rows failed", plan.num_rows)
            return [
                FailureEvent(request_id, "the engine failed on this request")
                for request_id in self._scheduler.drop_running()
            ]
        events = self._scheduler.update(plan, result.token_ids, result.logprobs)
        self._stats = dataclasses.replace(
            self._stats,
            num_steps=self._stats.num_steps + 1,
            num_prompt_tokens=self._stats.num_prompt_tokens + sum(len(a.request.prompt_ids) for a in plan.admissions),
            num_generated_tokens=self._stats.num_generated_tokens + sum(isinstance(e, TokenEvent) for e in events),
        )
        return events
