"""Everything at once for half an hour: `python tests/soak/mixed_load.py [--minutes 30]`.

Whole answers and streams, lists of contexts, dialogues, tokens, bad requests, callers who leave, sessions. Memory must be flat once the caches are full, as they are
made at the start, and a small request that is sent all the while must not become slower. Beside it a fixed piece of work that has nothing to do with the
service tells how even the machine was.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from typing import Any

import aiohttp
from service import PROMPTS, Figures, Server, main, new_session, percentile, post, resident_mib, serving, slope

CALLERS = 6
ROWS, SLOTS, LONG = 128, 64, 200  # of the service as it is started here; tokens of a window of 256
WARM_UP = 1 / 6  # of the time
ALLOWED_MIB_IN_TEN_MINUTES = 1.0
PAUSE_S = 0.02  # between small requests: a p99 of a few thousand of them differs by 10 % for no reason, one of some ten thousand does not


def draw(chance: random.Random) -> tuple[str, dict[str, Any]]:
    """A path and a body."""
    prompt = chance.choice(PROMPTS)
    text = prompt[: chance.randint(1, len(prompt))]
    kind = chance.randrange(10)
    common = {"samples": chance.choice([1, 2, 5, 16]), "maxlength": chance.choice([1, 10, 30, 80])}
    if kind < 3:
        return "/generate", common | {
            "context": text,
            "top_p": chance.choice([0, 0.9]),
            "repetition_penalty": chance.choice([1, 1.3]),
        }
    if kind == 3:
        return "/generate", common | {"context": text, "stream": True}
    if kind == 4:
        return "/generate", {"context": [text, "", prompt], "samples": 2, "maxlength": 10}
    if kind == 5:
        return "/generate", common | {"context": text, "session": chance.choice("abcd"), "samples": 3}
    if kind == 6:
        return "/chat", {"question": prompt, "max_new_tokens": 20}
    if kind == 7:
        return "/tokenize", {"text": prompt * chance.randint(1, 50)}
    if kind == 8:
        return "/generate", {"context": text, "choices": ["饮食", "运动", "睡眠"]}
    return chance.choice(
        [("/generate", {"context": 5}), ("/generate", {"context": text, "wrong": 1}), ("/nothing", {})]
    )


async def fill(server: Server) -> None:
    """Writes every row and every slot, nearly to the end of the window: memory is taken when it is first written."""
    long = {"context": "高", "samples": ROWS // 2, "maxlength": LONG, "min_length": LONG, "distinct": False}
    prompts = ({"context": str(number) + "的" * LONG, "samples": 1, "maxlength": 1} for number in range(SLOTS + 1))
    async with new_session() as session:
        for fields in ([long, long], prompts):
            answers = await asyncio.gather(*(post(session, server, each) for each in fields))
            assert {status for status, _ in answers} == {200}, answers


def work() -> float:
    """Seconds of a fixed piece of work."""
    started = time.perf_counter()
    sum(range(100_000))
    return time.perf_counter() - started


async def load(
    server: Server, seconds: float
) -> tuple[Counter[int], list[tuple[float, float]], list[tuple[float, float]], list[tuple[float, float]]]:
    """Statuses, (moment, seconds) of the small request and of the fixed work, (moment, MiB) of memory."""
    await fill(server)
    started, statuses = time.monotonic(), Counter[int]()
    probes, works, memory = list[tuple[float, float]](), list[tuple[float, float]](), list[tuple[float, float]]()

    def now() -> float:
        return time.monotonic() - started

    async with new_session() as session:

        async def caller(seed: int) -> None:
            chance = random.Random(seed)
            while now() < seconds:
                path, fields = draw(chance)
                if chance.random() < 0.1:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(chance.uniform(0.001, 0.1)):
                            await leaving(session, server, path, fields)
                    continue
                statuses[(await post(session, server, fields, path))[0]] += 1
                await asyncio.sleep(chance.uniform(0, 0.1))

        async def probe() -> None:
            while now() < seconds:
                status, took = await post(
                    session, server, {"context": "高血压要注意", "samples": 1, "maxlength": 5, "seed": 1}
                )
                statuses[status] += 1
                probes.append((now(), took))
                works.append((now(), work()))
                await asyncio.sleep(PAUSE_S)

        async def watch() -> None:
            while now() < seconds:
                memory.append((now(), resident_mib(server)))
                await asyncio.sleep(min(5.0, seconds / 50))

        await asyncio.gather(probe(), watch(), *map(caller, range(CALLERS)))
    return statuses, probes, works, memory


async def leaving(session: aiohttp.ClientSession, server: Server, path: str, fields: dict[str, Any]) -> None:
    with contextlib.suppress(aiohttp.ClientError):
        async with session.post(f"http://127.0.0.1:{server.port}{path}", json=fields) as response:
            await response.read()


def run(minutes: float) -> Figures:
    seconds = minutes * 60
    with serving() as server:
        statuses, probes, works, memory = asyncio.run(load(server, seconds))
        server.assert_healthy()
        log = server.log()
    warm = [(moment, mib) for moment, mib in memory if moment > seconds * WARM_UP]
    growth = slope(warm) * 600
    half = seconds * (WARM_UP + 1) / 2

    def halves(times: list[tuple[float, float]], percent: float) -> list[float]:
        """Milliseconds, in the first half after the warm-up and in the second."""
        first = [took for moment, took in times if seconds * WARM_UP < moment <= half]
        second = [took for moment, took in times if moment > half]
        return [round(percentile(some, percent) * 1000, 1) for some in (first, second)]

    def twelfths(times: list[tuple[float, float]]) -> list[float]:
        """Median milliseconds of each twelfth of the time: a drift shows in all of them, a neighbour in some."""
        parts: list[list[float]] = [[] for _ in range(12)]
        for moment, took in times:
            parts[min(11, int(moment / seconds * 12))].append(took)
        return [round(percentile(part, 50) * 1000, 1) for part in parts]

    first, second = halves(probes, 99)
    return {
        "what": "mixed load",
        "minutes": minutes,
        "statuses": dict(statuses),
        "memory_mib": [round(warm[0][1], 1), round(warm[-1][1], 1)],
        "memory_mib_in_ten_minutes": round(growth, 2),
        "probe_ms_p50": halves(probes, 50),
        "probe_ms_p50_by_twelfth": twelfths(probes),
        "fixed_work_ms_p50_by_twelfth": twelfths(works),
        "probe_ms_p99": [first, second],
        "fixed_work_ms_p50": halves(works, 50),
        "fixed_work_ms_p99": halves(works, 99),
        "promises": {
            "memory grows by less than 1 MiB in ten minutes": growth < ALLOWED_MIB_IN_TEN_MINUTES,
            "p99 of the second half within 10 % of the first": second <= first * 1.1,
            "no status that is not expected": set(statuses) <= {200, 400, 404, 409, 429, 503},
            "nothing unforeseen in the log": "unforeseen" not in log,
        },
    }


if __name__ == "__main__":
    main(__doc__ or "", {"minutes": 30.0}, run)
