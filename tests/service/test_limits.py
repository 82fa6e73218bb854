"""What one key may ask for: so many requests in a minute, so many at once; and that a crowd with one key does not keep out another."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from promptgen.server.faults import HttpFault
from promptgen.server.keys import Limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.service.conftest import ServerFactory

ROOT = Path(__file__).resolve().parents[2]
ONE, OTHER = {"X-Api-Key": "one"}, {"X-Api-Key": "other"}
TINY = {"context": "高血压", "maxlength": 1, "samples": 1}
WILD = {"temperature": 2, "top_k": 0, "top_p": 0}


class Clock:
    now = 5000.0

    def __call__(self) -> float:
        return self.now


def test_a_minute_slides() -> None:
    clock = Clock()
    limits = Limits(3, 0, clock)
    for _ in range(3):
        with limits.using("a"):
            pass
        clock.now += 10
    with pytest.raises(HttpFault) as refused, limits.using("a"):
        pass
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "30")
    with limits.using("b"):
        pass
    clock.now += 29.9
    with pytest.raises(HttpFault), limits.using("a"):
        pass
    clock.now += 0.1
    with limits.using("a"):
        pass
    with pytest.raises(HttpFault) as refused, limits.using("a"):
        pass
    assert refused.value.headers["Retry-After"] == "10"


def test_at_once_counts_what_runs_whatever_becomes_of_it() -> None:
    limits = Limits(0, 2)
    with limits.using("a"), limits.using("a"):
        with pytest.raises(HttpFault), limits.using("a"):
            pass
        with limits.using("b"):
            pass
    with pytest.raises(RuntimeError), limits.using("a"):
        raise RuntimeError
    with limits.using("a"), limits.using("a"):
        pass


def test_no_limit_keeps_no_books() -> None:
    limits = Limits(0, 0)
    with limits.using("a"):
        assert limits._uses == {}


@pytest.mark.parametrize("option", ["--requests-per-minute", "--requests-at-once"])
def test_a_limit_without_keys_is_refused_at_start(run_command: Callable[..., Any], option: str) -> None:
    done = run_command("serve", "--port", "0", option, "5")
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert option in line
    assert "--api-key-file" in line
    assert f"| `{option}` |" in (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def test_over_its_requests_a_minute_a_key_is_told_when_to_come_back(start_server: ServerFactory) -> None:
    server = start_server("--requests-per-minute", "5", PROMPTGEN_API_KEYS="one,other")
    replies = [server.post(TINY, ONE) for _ in range(8)]
    assert [reply.status for reply in replies] == [200] * 5 + [429] * 3
    for reply in replies[5:]:
        reply.error(429, "rate_limited")
        assert 1 <= int(reply.headers["Retry-After"]) <= 60
    assert server.post(TINY, OTHER).status == 200
    assert server.request("GET", "/models", None, ONE).status == 200, "only POST is counted"
    server.post(TINY, {"X-Api-Key": "wrong"}).error(401, "invalid_api_key")


def test_over_its_requests_at_once_a_key_waits_for_itself_alone(start_slow_server: ServerFactory) -> None:
    server = start_slow_server("--requests-at-once", "2", PROMPTGEN_API_KEYS="one,other")
    server.slow_down()
    body = json.dumps({"context": "高血压", "samples": 32, "maxlength": 200, "min_length": 200, **WILD})
    busy = [server.connect() for _ in range(2)]
    for connection in busy:
        connection.sendall(server.http(body, "Content-Type: application/json", "X-Api-Key: one"))
    server.wait_for_requests(2, OTHER)
    server.post(TINY, ONE).error(429, "rate_limited")
    assert server.post(TINY, OTHER).status == 200
    for connection in busy:
        connection.close()
    end = time.monotonic() + 10
    while server.post(TINY, ONE).status != 200:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_crowd_with_one_key_does_not_keep_out_another(start_server: ServerFactory) -> None:
    server = start_server("--max-rows", "8", "--prompt-slots", "8", PROMPTGEN_API_KEYS="one,other")
    crowd = [{"context": f"第{i}件事", "samples": 8, "maxlength": 30, **WILD} for i in range(60)]
    ended: list[float] = []
    with ThreadPoolExecutor(61) as pool:

        def ask(body: dict[str, object]) -> int:
            status = server.post(body, ONE).status
            ended.append(time.monotonic())
            return status

        asked = [pool.submit(ask, body) for body in crowd]
        while not ended:
            time.sleep(0.01)
        assert server.post(TINY | {"maxlength": 5}, OTHER).status == 200
        answered = time.monotonic()
        assert {future.result() for future in asked} == {200}
    before = sum(moment < answered for moment in ended)
    assert before < 40, f"{before} of the crowd were served first"
