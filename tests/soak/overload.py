"""Ten times more requests than can be answered: `python tests/soak/overload.py [--seconds 60] [--factor 10]`.

First as many callers as keep the service busy: what it can do. Then requests arrive at ten times that pace, whoever is refused does not wait.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from service import (
    PROMPTS,
    Figures,
    Server,
    main,
    new_session,
    percentile,
    post,
    resident_mib,
    serving,
    wait_until_idle,
)

ASKED = {"samples": 5, "maxlength": 40, "temperature": 1.5, "top_k": 0, "top_p": 0}
CALLERS = 32
ALLOWED_GROWTH_MIB = 24


def fields_of(number: int) -> Figures:
    return ASKED | {"context": PROMPTS[number % len(PROMPTS)], "seed": number}


async def at_capacity(server: Server, seconds: float, callers: int) -> tuple[float, list[float]]:
    """Answers per second to callers who each ask again as soon as they have an answer, and how long each took."""
    end, took = time.monotonic() + seconds, list[float]()
    async with new_session() as session:

        async def caller(number: int) -> None:
            while time.monotonic() < end:
                status, seconds_taken = await post(session, server, fields_of(number))
                assert status == 200, status
                took.append(seconds_taken)
                number += callers

        started = time.monotonic()
        await asyncio.gather(*map(caller, range(callers)))
    return len(took) / (time.monotonic() - started), took


async def beyond(server: Server, pace: float, seconds: float) -> tuple[list[tuple[int, float, float]], list[float]]:
    """Status, seconds taken and moment of the answer (seconds), for requests that come at a steady pace; memory each second."""
    results, resident = list[tuple[int, float, float]](), list[float]()
    async with new_session() as session:
        started = time.monotonic()

        async def ask(number: int) -> None:
            status, took = await post(session, server, fields_of(number))
            results.append((status, took, time.monotonic() - started))

        async def watch() -> None:
            while True:
                resident.append(resident_mib(server))
                await asyncio.sleep(1)

        watching, asked = asyncio.create_task(watch()), set[asyncio.Task[None]]()
        for number in range(int(pace * seconds)):
            await asyncio.sleep(started + number / pace - time.monotonic())
            task = asyncio.create_task(ask(number))
            asked.add(task)
            task.add_done_callback(asked.discard)
        await asyncio.gather(*asked)
        watching.cancel()
    return results, resident


def run(seconds: float, factor: float, max_queue: int) -> Figures:
    callers = min(CALLERS, max_queue)
    with serving("--max-queue", str(max_queue)) as server:
        asyncio.run(at_capacity(server, min(5, seconds), callers))  # warm
        capacity, _ = asyncio.run(at_capacity(server, max(3.0, seconds / 3), callers))
        filling_s = max_queue / capacity + 1  # until as much is accepted as ever will be
        results, resident = asyncio.run(beyond(server, capacity * factor, filling_s + seconds))
        idle_s = wait_until_idle(server)
        server.assert_healthy()
    statuses = Counter(status for status, _, _ in results)
    refusals = [took for status, took, _ in results if status in (429, 503)]
    goodput = sum(status == 200 and 0 <= moment - filling_s < seconds for status, _, moment in results) / seconds
    early = max(resident[: max(1, int(filling_s))])
    return {
        "what": "overload",
        "seconds": seconds,
        "arrivals_per_s": round(capacity * factor, 1),
        "requests": len(results),
        "statuses": dict(statuses),
        "capacity_per_s": round(capacity, 2),
        "goodput_per_s": round(goodput, 2),
        "goodput_share": round(goodput / capacity, 3),
        "refusal_ms_p50": round(percentile(refusals, 50) * 1000, 1),
        "refusal_ms_p99": round(percentile(refusals, 99) * 1000, 1),
        "memory_mib": [round(early, 1), round(resident[-1], 1)],
        "idle_after_s": round(idle_s, 2),
        "promises": {
            "goodput at least 90 % of capacity": goodput >= 0.9 * capacity,
            "refusals in under 50 ms (p99)": percentile(refusals, 99) < 0.05,
            "only 200, 429 and 503": set(statuses) <= {200, 429, 503},
            "memory flat": resident[-1] - early < ALLOWED_GROWTH_MIB,
        },
    }


if __name__ == "__main__":
    main(__doc__ or "", {"seconds": 60.0, "factor": 10.0, "max_queue": 64}, run)
