"""SIGTERM under load, again and again: `python tests/soak/drains.py [--count 200] [--at-once 2]`.

At a random moment, with whole and streamed answers under way and new requests coming. Whatever was accepted is answered to its end, the others are
refused with 503 or find nobody, and the process ends with 0.
"""

from __future__ import annotations

import http.client
import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from service import Figures, Server, main, serving

CALLERS = 6
# The kernel takes connections before the service does; those that it had not taken when it closed its door end so, unread.
GONE = {ConnectionRefusedError: "nobody there", BrokenPipeError: "closed unread", ConnectionResetError: "closed unread"}


def ask(server: Server, chance: random.Random) -> list[str]:
    """What became of requests until the service is gone."""
    outcomes = list[str]()
    while True:
        is_stream = chance.random() < 0.5
        fields = {
            "context": chance.choice(["高血压要注意", "写一首诗", "a"]),
            "samples": chance.choice([1, 4, 8]),
            "maxlength": chance.choice([5, 40, 120]),
            "temperature": 2,
            "top_k": 0,
            "top_p": 0,
            "stream": is_stream,
        }
        try:
            reply = server.post(fields)
        except (
            ConnectionRefusedError,
            ConnectionResetError,
            http.client.RemoteDisconnected,
            TimeoutError,
            OSError,
        ) as fault:
            outcomes.append(GONE.get(type(fault), f"lost: {type(fault).__name__}"))
            return outcomes
        except http.client.IncompleteRead:
            outcomes.append("lost: cut")
            return outcomes
        outcomes.append(outcome_of(reply.status, reply.body, is_stream=is_stream))
        if reply.status == 503:
            time.sleep(0.02)


def outcome_of(status: int, body: bytes, *, is_stream: bool) -> str:
    if status == 503:
        return "refused"
    if status != 200:
        return f"lost: {status}"
    if is_stream:
        is_whole = body.endswith(b"data: [DONE]\n\n") and b'"error"' not in body and b'"result"' in body
    else:
        is_whole = bool(json.loads(body)["result"])
    return "answered" if is_whole else "lost: not whole"


def drain_once(seed: int) -> tuple[list[str], int, float]:
    chance = random.Random(seed)
    with serving() as server, ThreadPoolExecutor(CALLERS) as pool:
        asking = [pool.submit(ask, server, random.Random(seed * 1000 + caller)) for caller in range(CALLERS)]
        time.sleep(chance.uniform(0.05, 1.0))
        started = time.monotonic()
        server.process.terminate()
        code = server.process.wait(60)
        took_s = time.monotonic() - started
        return [outcome for future in asking for outcome in future.result()], code, took_s


def run(count: int, at_once: int) -> Figures:
    outcomes, codes, took = Counter[str](), Counter[int](), list[float]()
    with ThreadPoolExecutor(at_once) as pool:
        for ended, code, took_s in pool.map(drain_once, range(count)):
            outcomes.update(ended)
            codes[code] += 1
            took.append(took_s)
    lost = sum(number for outcome, number in outcomes.items() if outcome.startswith("lost"))
    return {
        "what": "drains",
        "count": count,
        "outcomes": dict(outcomes),
        "exit_codes": {str(code): number for code, number in codes.items()},
        "longest_s": round(max(took), 2),
        "promises": {"nothing accepted is lost": lost == 0, "always exit 0": set(codes) == {0}},
    }


if __name__ == "__main__":
    main(__doc__ or "", {"count": 200, "at_once": 2}, run)
