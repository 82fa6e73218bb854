"""Clients that vanish at every moment of a request: `python tests/soak/disconnects.py [--count 5000]`.

Nine moments, each left by a close, a reset or a half-close. Afterwards every row and slot is free, and no descriptor, thread or task is left.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from service import Figures, Server, descriptors, main, metrics, resident_mib, serving, threads, wait_until_idle

MOMENTS = (
    "connected", "in the head", "after the head", "in the body", "queued", "in prefill", "in decode", "in a stream", "at the end",
)  # fmt: skip
WAYS = ("close", "reset", "half-close")
LONG = {"samples": 16, "maxlength": 100, "temperature": 2, "top_k": 0, "top_p": 0}
NEW_TASKS = 4  # of the process itself: connections that are just being closed


def leave(server: Server, seed: int) -> tuple[str, str]:
    chance = random.Random(seed)
    moment, way = chance.choice(MOMENTS), chance.choice(WAYS)
    fields = LONG | {
        "context": chance.choice(["高血压要注意", "写一首诗", "a"]),
        "seed": seed,
        "stream": chance.random() < 0.5,
    }
    if moment == "in prefill":
        fields |= {"context": "高血压要注意" * 25 + str(seed), "maxlength": 20}
    if moment == "in a stream":
        fields |= {"stream": True}
    if moment == "at the end":
        fields |= {"samples": 1, "maxlength": 2}
    raw = server.http(json.dumps(fields), "Content-Type: application/json")
    head = raw.index(b"\r\n\r\n") + 4
    upto = {
        "connected": 0, "in the head": chance.randrange(1, head), "after the head": head, "in the body": chance.randrange(head, len(raw)),
    }.get(moment, len(raw))  # fmt: skip
    with server.connect(30) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(raw[:upto])
        if moment == "in decode":
            time.sleep(chance.uniform(0.02, 0.3))
        elif moment == "in prefill":
            time.sleep(chance.uniform(0, 0.02))
        elif moment in ("in a stream", "at the end"):
            connection.recv(200)
        go(connection, way)
    return moment, way


def go(connection: socket.socket, way: str) -> None:
    if way == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif way == "half-close":
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(0.05)
        with contextlib.suppress(TimeoutError):
            connection.recv(1)


def run(count: int, at_once: int) -> Figures:
    with serving("--body-timeout-s", "2", "--max-queue", "512") as server:
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda seed: leave(server, seed), range(-at_once, 0)))  # what is made once and kept
        wait_until_idle(server)
        server.assert_healthy()
        before = {
            "descriptors": descriptors(server),
            "threads": threads(server),
            "memory_mib": round(resident_mib(server), 1),
        }
        done, idle_s, is_healthy = Counter[tuple[str, str]](), list[float](), True
        with ThreadPoolExecutor(at_once) as pool:
            for begin in range(0, count, 250):
                done.update(pool.map(lambda seed: leave(server, seed), range(begin, min(count, begin + 250))))
                idle_s.append(wait_until_idle(server))
                is_healthy &= server.get("/ready").status == 200 and server.fixed_result() == server.baseline
        time.sleep(3)  # bodies that never came are given up after 2 s
        after = {
            "descriptors": descriptors(server),
            "threads": threads(server),
            "memory_mib": round(resident_mib(server), 1),
        }
        cancelled = metrics(server)["promptgen_requests_cancelled_total"]
        log = server.log()
    return {
        "what": "disconnects",
        "count": sum(done.values()),
        "by_moment": {moment: sum(done[moment, way] for way in WAYS) for moment in MOMENTS},
        "by_way": {way: sum(done[moment, way] for moment in MOMENTS) for way in WAYS},
        "cancelled": cancelled,
        "longest_until_all_free_s": round(max(idle_s), 3),
        "before": before,
        "after": after,
        "promises": {
            "every row and slot is free within a second": max(idle_s) < 1,
            "no descriptor is left": after["descriptors"] <= before["descriptors"] + NEW_TASKS,
            "no thread is left": after["threads"] <= before["threads"],
            "healthy, and the same bytes as before": is_healthy,
            "nothing unforeseen in the log": "unforeseen" not in log
            and "never retrieved" not in log
            and "was destroyed" not in log,
        },
    }


if __name__ == "__main__":
    main(__doc__ or "", {"count": 5000, "at_once": 16}, run)
