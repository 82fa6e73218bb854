"""Overload: a full queue is refused at once and says when to come back; nothing else is ever answered, and nothing dies of it."""

from __future__ import annotations

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.service.conftest import Reply, Server, ServerFactory

PROMPT = "高血压要注意"
WILD = {"temperature": 2, "top_k": 0, "top_p": 0}


@pytest.fixture(scope="module")
def narrow(start_server: ServerFactory) -> Server:
    server = start_server("--max-queue", "2", "--max-rows", "16")
    server.baseline = server.fixed_result()
    return server


def storm(server: Server, count: int, **fields: Any) -> list[Reply]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: server.post({"context": PROMPT, **WILD} | fields), range(count)))


def assert_served_or_refused(replies: list[Reply]) -> Counter[int]:
    counted = Counter(reply.status for reply in replies)
    assert set(counted) <= {200, 503}, counted
    for reply in replies:
        if reply.status == 503:
            reply.error(503, "overloaded")
            assert 1 <= int(reply.headers["Retry-After"]) <= 60
    return counted


def test_many_parallel_requests_are_200_or_503_with_retry_after(narrow: Server) -> None:
    counted = assert_served_or_refused(storm(narrow, 40, samples=16, maxlength=100, min_length=100))
    assert counted[200] >= 2
    assert counted[503] >= 1
    narrow.assert_healthy()


def test_a_refusal_comes_at_once_while_the_service_is_busy(narrow: Server) -> None:
    body = json.dumps({"context": PROMPT, "samples": 64, "maxlength": 200, "min_length": 200, **WILD})
    busy = [narrow.connect() for _ in range(2)]
    for connection in busy:
        connection.sendall(narrow.http(body, "Content-Type: application/json"))
    narrow.wait_for_requests(2)
    started = time.monotonic()
    narrow.post({"context": PROMPT}).error(503, "overloaded")
    assert time.monotonic() - started < 1
    for connection in busy:
        connection.close()
    narrow.wait_for_requests(0)
    narrow.assert_healthy()


def test_what_can_never_be_answered_is_a_400_however_busy_it_is(start_slow_server: ServerFactory) -> None:
    server = start_slow_server("--max-queued-tokens", "20000")
    server.slow_down()
    body = json.dumps({"context": PROMPT, "samples": 64, "maxlength": 50, "min_length": 50, **WILD})
    with server.connect() as busy:
        busy.sendall(server.http(body, "Content-Type: application/json"))
        server.wait_for_requests(1)
        server.post({"context": PROMPT, "samples": 64, "maxlength": 5000}).error(
            400, "context_length_exceeded", "context"
        )


def test_streams_are_refused_with_a_status_and_not_within_the_stream(narrow: Server) -> None:
    replies = storm(narrow, 20, samples=16, maxlength=100, min_length=100, stream=True)
    for reply in replies:
        if reply.status == 503:
            reply.error(503, "overloaded")
        else:
            assert reply.body.endswith(b"data: [DONE]\n\n")
            assert b'"error"' not in reply.body
    assert {reply.status for reply in replies} == {200, 503}
    narrow.assert_healthy()


def test_long_contexts_in_parallel_are_refused_as_short_ones_are(narrow: Server) -> None:
    """Contexts over 2 000 characters are encoded off the loop, between the check of the queue and the entry into it."""
    for _ in range(3):
        assert_served_or_refused(storm(narrow, 30, context="高血压" + " " * 30_000 + "要注意", samples=8, maxlength=10))
    narrow.assert_healthy()


def test_more_samples_than_rows_all_come(narrow: Server) -> None:
    assert len(narrow.generate(context=PROMPT, samples=64, maxlength=3)["result"]) == 64
