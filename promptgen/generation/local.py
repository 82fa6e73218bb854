"""Generation within one process, without an event loop: scripts, the command line, batches of files.

>>> generator = Generator(EngineSettings())                                     # doctest: +SKIP
>>> generator.generate(TextRequest("高血压要注意", num_samples=2)).candidates    # doctest: +SKIP
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import count
from pathlib import Path
from threading import Lock

from promptgen.config import DEFAULT_MODEL, EngineSettings
from promptgen.errors import EngineFailure, RequestError
from promptgen.generation.candidates import CandidateSet
from promptgen.generation.loader import open_model
from promptgen.generation.request import Answer, FailureEvent, Sampling, StartEvent, TextRequest


class Generator:
    """Answers requests with an engine of its own. Not thread-safe."""

    def __init__(self, settings: EngineSettings, *, upgrade_later: bool = True) -> None:
        """Raises FileFault for a model folder that cannot be used. `upgrade_later` as in loader.open_model."""
        model = open_model(settings, upgrade_later=upgrade_later)
        self.info = model.info
        self.settle = model.settle
        self._model, self._engine = model, model.engine
        self._ids = count()

    def generate(self, request: TextRequest) -> Answer:
        """Raises InvalidRequest (ContextLengthExceeded) for a request that does not fit, EngineFailure if the model failed on it."""
        ((_, answer),) = self.generate_many([request])
        if isinstance(answer, RequestError):
            raise answer
        return answer

    def generate_many(self, requests: Iterable[TextRequest]) -> Iterator[tuple[int, Answer | RequestError]]:
        """Yields (index, answer) as requests complete, in any order; all rows are kept busy. Faults stand in the answer's place."""
        todo = enumerate(requests)
        running: dict[int, tuple[int, CandidateSet, float]] = {}
        exhausted = False
        try:
            while running or not exhausted:
                while self._has_room(running):
                    index, request = next(todo, (-1, None))
                    if request is None:
                        exhausted = True
                        break
                    try:
                        candidates = self._model.candidates(request)
                    except RequestError as fault:
                        yield index, fault
                        continue
                    request_id = next(self._ids)
                    running[request_id] = (index, candidates, time.perf_counter())
                    for part in candidates.requests:
                        self._engine.add(request_id, part)
                yield from self._step(running)
        finally:
            # A caller who stops early leaves nothing behind for the next one.
            for request_id in running:
                self._engine.cancel(request_id)

    def _has_room(self, running: dict[int, tuple[int, CandidateSet, float]]) -> bool:
        """Whether the rows asked for so far leave any of the engine's idle."""
        return sum(candidates.num_open for _, candidates, _ in running.values()) < self._engine.max_rows

    def _step(self, running: dict[int, tuple[int, CandidateSet, float]]) -> Iterator[tuple[int, Answer | RequestError]]:
        for event in self._engine.step():
            if isinstance(event, StartEvent) or event.request_id not in running:
                continue
            index, candidates, started = running[event.request_id]
            if isinstance(event, FailureEvent):
                del running[event.request_id]
                yield index, EngineFailure(event.message)
                continue
            candidates.take(event)
            orders, needless = candidates.take_orders()
            for sample in needless:
                self._engine.cancel(event.request_id, sample)
            for part in orders:
                self._engine.add(event.request_id, part)
            if candidates.is_complete:
                del running[event.request_id]
                yield index, replace(candidates.answer(), decode_s=time.perf_counter() - started)


_one_at_a_time = Lock()


@lru_cache(maxsize=1)
def _generator_of(model: Path) -> Generator:
    return Generator(EngineSettings(model=model))


def generate_text(
    prompt: str,
    max_len: int = 50,
    batch_size: int = 5,
    *,
    model: Path | str = DEFAULT_MODEL,
    sampling: Sampling | None = None,
) -> list[str]:
    """`batch_size` different texts that begin with `prompt`, likeliest first, each with up to `max_len` new tokens; fewer if the model has no more.

    The model stays loaded for the next call. Without `sampling` every call draws anew, as the model's own settings say. Raises FileFault for an unusable model folder
    and ContextLengthExceeded for a prompt that does not fit the window. A blank prompt gives an empty list.
    """
    if not prompt.strip():
        return []
    with _one_at_a_time:
        generator = _generator_of(Path(model))
        sampling = sampling or generator.info.sampling.with_(seed=time.time_ns())
        answer = generator.generate(TextRequest(prompt, batch_size, max_len, sampling))
    return [prompt + candidate.completion for candidate in answer.candidates]
