"""How long the event loop keeps others waiting while 32 callers read streams: `python tests/soak/loop_lag.py [--seconds 60]`.

As the service itself measures it (promptgen_event_loop_lag_seconds); the figure is the upper end of the bucket that the percentile falls into.
"""

from __future__ import annotations

import asyncio
import time

from service import PROMPTS, Figures, Server, main, metrics, new_session, post, serving

CALLERS = 32
BUCKET = 'promptgen_event_loop_lag_seconds_bucket{le="'


async def stream(server: Server, seconds: float) -> int:
    end, answered = time.monotonic() + seconds, 0
    async with new_session() as session:

        async def caller(number: int) -> None:
            nonlocal answered
            while time.monotonic() < end:
                fields = {
                    "context": PROMPTS[number % len(PROMPTS)],
                    "samples": 4,
                    "maxlength": 60,
                    "stream": True,
                    "seed": number,
                }
                status, _ = await post(session, server, fields)
                assert status == 200, status
                answered += 1
                number += CALLERS

        await asyncio.gather(*map(caller, range(CALLERS)))
    return answered


def lags(server: Server) -> dict[float, float]:
    """How many were at most so long, by seconds."""
    return {
        float(name.removeprefix(BUCKET).rstrip('"}')): value
        for name, value in metrics(server).items()
        if name.startswith(BUCKET)
    }


def run(seconds: float) -> Figures:
    with serving() as server:
        before = lags(server)
        answered = asyncio.run(stream(server, seconds))
        after = lags(server)
        largest = metrics(server)["promptgen_event_loop_lag_max_seconds"]
        server.assert_healthy()
    counted = {limit: after[limit] - before[limit] for limit in after}
    total = counted[float("inf")]
    p99 = min(limit for limit, number in counted.items() if number >= 0.99 * total)
    return {
        "what": "loop lag",
        "callers": CALLERS,
        "streams": answered,
        "measured": int(total),
        "lag_ms_p99_at_most": p99 * 1000,
        "lag_ms_largest": round(largest * 1000, 1),
        "share_under_10_ms": round(counted[0.01] / total, 4),
        "promises": {"p99 under 10 ms": p99 <= 0.01},
    }


if __name__ == "__main__":
    main(__doc__ or "", {"seconds": 60.0}, run)
