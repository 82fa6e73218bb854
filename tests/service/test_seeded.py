"""Batching is invisible: a seeded request gives the same text alone or among any others, cancelled ones included."""

from __future__ import annotations

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.amount import cases

if TYPE_CHECKING:
    from tests.service.conftest import Server

SEEDED = {
    "context": "我想学英语，",
    "seed": 2026,
    "samples": 4,
    "maxlength": 12,
    "top_k": 50,
    "repetition_penalty": 1.1,
}
CONTEXTS = ["高血压要注意", "How do I", "a", "，" * 100, "😀", "写一首关于秋天的诗", "1 2 3 4 5 6 7 8 9"]
NUM_MIXES = cases(100, 2000)


@pytest.fixture(scope="module")
def alone(server: Server) -> list[str]:
    texts: list[str] = server.generate(**SEEDED)["result"]
    return texts


def other_request(chance: random.Random) -> dict[str, Any]:
    fields = {
        "context": chance.choice(CONTEXTS),
        "samples": chance.choice([1, 2, 5, 17]),
        "maxlength": chance.randrange(1, 25),
        "temperature": chance.choice([0, 0.7, 1, 2]),
        "top_k": chance.choice([0, 1, 30, 500]),
        "top_p": chance.choice([0, 0.3, 0.9, 1]),
        "repetition_penalty": chance.choice([0.5, 1, 1.5]),
        "stream": chance.random() < 0.5,
        "details": chance.random() < 0.5,
    }
    return fields | ({"seed": chance.randrange(9)} if chance.random() < 0.5 else {})


def send_other(server: Server, seed: int) -> None:
    chance = random.Random(seed)
    fields = other_request(chance)
    time.sleep(chance.random() * 0.03)
    if chance.random() < 0.3:
        with server.connect() as connection:
            connection.sendall(server.http(json.dumps(fields), "Content-Type: application/json"))
            time.sleep(chance.random() * 0.05)
    else:
        assert server.post(fields).status == 200


@pytest.mark.heavy
@pytest.mark.parametrize("mix", range(NUM_MIXES))
def test_a_seeded_request_gives_the_same_text_among_others(server: Server, alone: list[str], mix: int) -> None:
    chance = random.Random(mix)
    with ThreadPoolExecutor(6) as pool:
        others = [pool.submit(send_other, server, chance.randrange(1 << 30)) for _ in range(5)]
        time.sleep(chance.random() * 0.05)
        seeded = pool.submit(server.generate, **SEEDED)
        assert seeded.result(60)["result"] == alone
        for other in others:
            other.result(60)


def test_a_candidate_does_not_depend_on_how_many_others_are_asked_for(server: Server) -> None:
    as_drawn = SEEDED | {"rank": "none", "distinct": False}
    most = server.generate(**(as_drawn | {"samples": 9}))["result"]
    for samples in (1, 2, 3, 4):
        assert server.generate(**(as_drawn | {"samples": samples}))["result"] == most[:samples]


def test_the_same_seeded_request_many_times_at_once(server: Server, alone: list[str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.generate(**SEEDED)["result"], range(8)))
    assert answers == [alone] * 8
