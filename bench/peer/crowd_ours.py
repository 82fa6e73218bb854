"""promptgen under many callers: `python -m bench.peer.crowd_ours --model FOLDER --precision int8 --cache FOLDER`.

Text to text over one AsyncEngine; every request has a salt of its own, so that no prompt is found in the cache.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import promptgen
from bench.peer.crowd_task import PROMPT_TOKENS, SAMPLES, TOKENS, TOP_K, Task, parser, prompt_of, task_of, tell
from bench.peer.weights import read_vocabulary
from promptgen.config import EngineSettings
from promptgen.generation.async_engine import AsyncEngine


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--precision", default="int8")
    options.add_argument("--cache", type=Path, required=True, help="folder of compiled kernels")
    args = options.parse_args()
    task = task_of(args)
    settings = EngineSettings(model=task.model, precision=args.precision, threads=task.threads, cache=args.cache)
    asyncio.run(run(task, settings))


async def run(task: Task, settings: EngineSettings) -> None:
    engine, words = AsyncEngine(settings), read_vocabulary(task.model)
    await engine.start()
    await engine.settled()
    numbers = itertools.count(1)

    async def ask() -> None:
        number = next(numbers)
        prompt = " ".join(words[token_id] for token_id in prompt_of(number)[1:])
        sampling = promptgen.Sampling(top_k=TOP_K, seed=number)
        request = promptgen.TextRequest(
            prompt,
            SAMPLES,
            TOKENS,
            sampling,
            ignore_end=True,
            salt=str(number),
            heal=False,
            distinct=False,
            rank="none",
        )
        answer = await engine.answer(request)
        assert answer.num_prompt_tokens == PROMPT_TOKENS
        assert [candidate.num_tokens for candidate in answer.candidates] == [TOKENS] * SAMPLES

    await ask()  # the compiled step is taken up
    assert engine.stats.steps.startswith("compiled"), engine.stats.steps
    for callers in task.callers:
        await crowd(task, callers, ask)
    await engine.stop()


async def crowd(task: Task, callers: int, ask: Callable[[], Awaitable[None]]) -> None:
    begin = time.perf_counter() + task.warm_up_s
    end, took = begin + task.seconds, list[float]()

    async def caller() -> None:
        while (asked := time.perf_counter()) < end:
            await ask()
            now = time.perf_counter()
            if begin <= now < end:
                took.append((now - asked) * 1000)

    await asyncio.gather(*(caller() for _ in range(callers)))
    tell(task, callers, took, task.seconds)


if __name__ == "__main__":
    main()
