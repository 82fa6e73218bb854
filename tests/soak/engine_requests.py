"""Ten thousand random requests with cancellations over the shipped model: `python tests/soak/engine_requests.py [--requests N]`.

Through AsyncEngine, as a service does it, a hundred at a time: prompts as people type them, stop strings, callers who walk away at random moments.
At the end every row, slot and stream is free, a fixed seeded request gives the same text as at the start, and memory has not grown after the first
tenth. The last line is JSON; the exit status is 1 if one of these fails.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from pathlib import Path

from promptgen.config import EngineSettings
from promptgen.errors import Superseded
from promptgen.generation.async_engine import AsyncEngine
from promptgen.generation.request import Sampling, TextRequest

ALLOWED_GROWTH_MIB = 32
BEGINNINGS = [
    "高血压要注意",
    "糖尿病患者的饮食",
    "失眠怎么办才好",
    "周末去杭州玩三天",
    "帮我写一封感谢信",
    "How can I lower my",
    "用Python写一个",
]
FIXED = TextRequest("高血压要注意", 5, 40, Sampling(seed=3))


async def run(num_requests: int) -> dict[str, object]:
    engine = AsyncEngine(EngineSettings())
    await engine.start()
    await engine.settled()
    await engine.answer(FIXED)  # takes up the step that stays
    before = (await engine.answer(FIXED)).candidates
    draw, counts, early_mib = random.Random(0), {"answered": 0, "left": 0, "superseded": 0}, 0.0
    started = time.monotonic()

    async def caller(seed: int) -> None:
        nonlocal counts
        rng = random.Random(seed)
        prompt = rng.choice(BEGINNINGS)
        sampling = Sampling(
            rng.choice([0, 0.7, 1.0, 2.0]), rng.choice([0, 1, 30]), rng.choice([0, 0.9]), rng.choice([1.0, 1.3]), seed
        )
        request = TextRequest(
            prompt[: rng.randint(1, len(prompt))],
            rng.randint(1, 16),
            rng.randint(1, 40),
            sampling,
            rng.choice([(), (), ("。",), ("，", "？")]),
            rng.random() < 0.3,
            salt=rng.choice(["", "other"]),
            heal=rng.random() < 0.7,
            distinct=rng.random() < 0.7,
            distinct_first=rng.random() < 0.1,
            session=rng.choice(["", "", "a", "b", "c"]),
        )
        patience = rng.choice([None, None, 0.0, 0.001, 0.01, 0.05])
        try:
            async with asyncio.timeout(patience):
                await engine.answer(request)
            counts["answered"] += 1
        except TimeoutError:
            counts["left"] += 1
        except Superseded:
            counts["superseded"] += 1

    for first in range(0, num_requests, 100):
        await asyncio.gather(*(caller(draw.getrandbits(40)) for _ in range(first, min(first + 100, num_requests))))
        if first <= num_requests // 10:
            early_mib = resident_mib()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10):
            while engine.stats.num_rows or engine.stats.num_waiting or engine.num_active:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    stats = engine.stats
    is_same = (await engine.answer(FIXED)).candidates == before
    await engine.stop()
    return {
        "requests": num_requests,
        **counts,
        "seconds": round(time.monotonic() - started, 1),
        "step": stats.steps,
        "rows_left": stats.num_rows,
        "waiting_left": stats.num_waiting,
        "tokens": stats.num_generated_tokens,
        "prompt_tokens_reused_share": round(
            stats.num_reused_tokens / (stats.num_reused_tokens + stats.num_prompt_tokens), 3
        ),
        "same_text": is_same,
        "mib_early": round(early_mib),
        "mib_late": round(resident_mib()),
    }


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * 4096 / (1 << 20)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    figures = asyncio.run(run(parser.parse_args().requests))
    print(json.dumps(figures))
    is_well = (
        figures["same_text"]
        and not figures["rows_left"]
        and not figures["waiting_left"]
        and int(str(figures["mib_late"])) - int(str(figures["mib_early"])) < ALLOWED_GROWTH_MIB
    )
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
