"""HTTP by hand: sizes that lie, requests in crumbs, pipelines, garbage and random damage. Never a 5xx, never a hang."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.amount import cases

if TYPE_CHECKING:
    from tests.service.conftest import Server

BODY = '{"context": "高血压要注意", "seed": 3, "samples": 2, "maxlength": 2}'
TYPE = "Content-Type: application/json"
LIMIT = 64 * 1024
NUM_MUTATIONS = cases(2000, 200_000)


def split(answer: bytes) -> tuple[bytes, bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return head + b"\r\n", body


def assert_too_large(answer: bytes) -> None:
    head, body = split(answer)
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nConnection: close\r\n" in head
    assert json.loads(body)["error"]["code"] == "body_too_large"


def head_of(server: Server, *headers: str, line: str = "POST /generate HTTP/1.1") -> bytes:
    return "\r\n".join([line, f"Host: 127.0.0.1:{server.port}", TYPE, *headers, "", ""]).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@pytest.mark.parametrize("declared", [LIMIT + 1, 10_000_000, 2**40, 2**63 - 1])
def test_a_declared_length_over_the_limit_is_413_and_the_connection_closes(server: Server, declared: int) -> None:
    assert_too_large(server.exchange(head_of(server, f"Content-Length: {declared}")))


def test_a_chunked_body_over_the_limit_is_413_and_the_connection_closes(server: Server) -> None:
    body = chunk(b" " * 16384) * 4 + chunk(b" ")
    assert_too_large(server.exchange(head_of(server, "Transfer-Encoding: chunked") + body))


def test_exactly_the_limit_is_read(server: Server) -> None:
    data = BODY.encode()
    for size, status in ((LIMIT, 200), (LIMIT + 1, 413)):
        answer = server.exchange(server.http(data + b" " * (size - len(data)), TYPE))
        assert answer.startswith(b"HTTP/1.1 %d " % status)


def test_a_chunked_body_is_read(server: Server) -> None:
    data = BODY.encode()
    body = b"".join(chunk(data[i : i + 10]) for i in range(0, len(data), 10)) + b"0\r\n\r\n"
    answer = server.exchange(head_of(server, "Transfer-Encoding: chunked", "Connection: close") + body)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert len(json.loads(split(answer)[1])["result"]) == 2


def test_expect_with_too_large_a_length_gets_413_instead_of_100(server: Server) -> None:
    answer = server.exchange(head_of(server, f"Content-Length: {LIMIT + 1}", "Expect: 100-continue"))
    assert b"100 Continue" not in answer
    assert_too_large(answer)


def test_a_refused_expectation_carries_cors_and_a_request_id_as_all_answers_do(server: Server) -> None:
    raw = head_of(
        server, f"Content-Length: {LIMIT + 1}", "Expect: 100-continue", "Origin: http://a.example", "X-Request-Id: mine"
    )
    head, _ = split(server.exchange(raw))
    assert b"\r\nAccess-Control-Allow-Origin: *\r\n" in head
    assert b"\r\nX-Request-Id: mine\r\n" in head


def test_expect_with_a_small_length_gets_100_and_then_the_answer(server: Server) -> None:
    data = BODY.encode()
    with server.connect() as connection:
        connection.sendall(head_of(server, f"Content-Length: {len(data)}", "Expect: 100-continue", "Connection: close"))
        assert connection.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(data)
        answer = server.read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_other_expectations_are_417(server: Server) -> None:
    answer = server.exchange(server.http("{}", TYPE, "Expect: the unexpected"))
    assert answer.startswith(b"HTTP/1.1 417 ")


@pytest.mark.parametrize("expectation", ["hello", "100-continue"])
@pytest.mark.parametrize(
    ("line", "host", "status", "code"),
    [
        ("POST /nope HTTP/1.1", "localhost", 404, "not_found"),
        ("DELETE /generate HTTP/1.1", "localhost", 405, "method_not_allowed"),
        ("OPTIONS /generate HTTP/1.1", "localhost", 405, "method_not_allowed"),
        ("POST /nope HTTP/1.1", "evil.example", 403, "host_not_allowed"),
        ("POST /generate HTTP/1.1", "evil.example", 403, "host_not_allowed"),
    ],
)
def test_an_expectation_changes_no_refusal(
    server: Server, line: str, host: str, status: int, code: str, expectation: str
) -> None:
    raw = server.http(
        "{}", TYPE, f"Host: {host}", f"Expect: {expectation}", "X-Request-Id: mine", line=line, host=False
    )
    head, body = split(server.exchange(raw))
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nX-Request-Id: mine\r\n" in head
    assert json.loads(body)["error"]["code"] == code
    assert b"hello" not in head + body


@pytest.mark.parametrize(
    "part", [b"", b'{"context": "a', BODY.encode()[:-1]], ids=["nothing", "a part", "all but one byte"]
)
def test_a_body_slower_than_the_limit_is_408_and_the_connection_closes(server: Server, part: bytes) -> None:
    started = time.monotonic()
    answer = server.exchange(head_of(server, f"Content-Length: {len(BODY.encode())}") + part)
    head, body = split(answer)
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"\r\nConnection: close\r\n" in head
    assert json.loads(body)["error"]["code"] == "body_timeout"
    assert 0.9 < time.monotonic() - started < 10


def test_a_body_in_drops_does_not_outlive_the_limit(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(head_of(server, "Content-Length: 1000"))
        started = time.monotonic()
        answer = b""
        connection.settimeout(0.1)
        while not answer and time.monotonic() - started < 10:
            try:
                connection.sendall(b" ")
                answer = connection.recv(4096)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_length_that_is_too_small_cuts_the_body_and_damages_nothing_else(server: Server) -> None:
    data = BODY.encode()
    answer = server.exchange(head_of(server, f"Content-Length: {len(data) - 5}") + data)
    # The five bytes left over are a request of their own, which HTTP does not know either; it is answered as HTTP/1.0.
    assert answer[:13] in (b"HTTP/1.1 400 ", b"HTTP/1.0 400 ")
    assert b" 500 " not in answer
    assert b" 200 OK" not in answer


@pytest.mark.parametrize(
    "lengths", [["Content-Length: x"], ["Content-Length: -1"], ["Content-Length: 5", "Content-Length: 6"], ["Content-Length: 1e3"],
                ["Content-Length: 4", "Transfer-Encoding: chunked"], ["Transfer-Encoding: chunked, gzip"], ["Content-Length: " + "9" * 60]],
    ids=lambda lengths: " + ".join(lengths)[:50],
)  # fmt: skip
def test_lengths_that_make_no_sense_are_refused_and_the_connection_closes(server: Server, lengths: list[str]) -> None:
    answer = server.exchange(head_of(server, *lengths) + b"0\r\n\r\n")
    assert answer[:12] in (b"HTTP/1.0 400", b"HTTP/1.1 400", b"HTTP/1.1 413", b"HTTP/1.1 415"), answer


def test_a_bad_chunk_size_is_400(server: Server) -> None:
    answer = server.exchange(head_of(server, "Transfer-Encoding: chunked") + b"ZZ\r\n{}\r\n0\r\n\r\n")
    assert b" 400 " in answer.splitlines()[0]


def test_half_closing_after_the_request_neither_hangs_nor_fails(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(server.http(BODY, TYPE))
        connection.shutdown(socket.SHUT_WR)
        answer = server.read_to_end(connection)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 200 ")


def test_half_closing_within_the_body_ends_the_connection(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(server.http(BODY, TYPE)[:-10])
        connection.shutdown(socket.SHUT_WR)
        answer = server.read_to_end(connection)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")


def test_a_request_in_two_parts_split_at_every_seventh_byte(server: Server) -> None:
    raw = server.http(BODY, TYPE)

    def in_two_parts(cut: int) -> bytes:
        with server.connect() as connection:
            connection.sendall(raw[:cut])
            time.sleep(0.01)
            connection.sendall(raw[cut:])
            return server.read_to_end(connection)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(in_two_parts, range(7, len(raw), 7)))
    assert len(answers) > 25
    assert {answer[:13] for answer in answers} == {b"HTTP/1.1 200 "}
    assert len({json.dumps(json.loads(split(answer)[1])["result"]) for answer in answers}) == 1


def test_a_request_in_crumbs_of_seven_bytes(server: Server) -> None:
    raw = server.http(BODY, TYPE)
    with server.connect() as connection:
        for begin in range(0, len(raw), 7):
            connection.sendall(raw[begin : begin + 7])
            time.sleep(0.002)
        answer = server.read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    keep = head_of(server, f"Content-Length: {len(BODY.encode())}") + BODY.encode()
    bad = head_of(server, "Content-Length: 2") + b"[]"
    health = f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode()
    answer = server.exchange(keep + bad + health + server.http(BODY, TYPE))
    assert [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]] == [200, 400, 200, 200]
    results = [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert json.loads(results[0])["result"] == json.loads(results[3])["result"]


def test_a_connection_is_used_again_after_an_error(server: Server) -> None:
    with server.connect() as connection:
        for _ in range(3):
            connection.sendall(head_of(server, "Content-Length: 2") + b"[]")
            assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")
        connection.sendall(server.http(BODY, TYPE))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


GARBAGE = {
    "word": b"garbage-7f3a\r\n\r\n",
    "binary": bytes(range(256)) + b"\r\n\r\n",
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64 + b"\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": b"POST /generate\r\n\r\n",
    "version 9": b"GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: evil.example\r\nHost: localhost\r\n\r\n",
    "bad url": b"GET http://[garbage-7f3a HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "NUL in header": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
    "no colon": b"GET /health HTTP/1.1\r\nHost: localhost\r\ngarbage-7f3a\r\n\r\n",
    "space before colon": b"GET /health HTTP/1.1\r\nHost : localhost\r\n\r\n",
    "long header": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"garbage-7f3a" * 2000 + b"\r\n\r\n",
    "long url": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "many headers": b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    + b"".join(b"X-%d: y\r\n" % i for i in range(5000))
    + b"\r\n",
}


@pytest.mark.parametrize("raw", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_is_refused_and_the_connection_closes(server: Server, raw: bytes) -> None:
    first = server.exchange(raw).splitlines()[0]
    assert first.split()[1] in {b"400", b"403", b"431"}, first


@pytest.mark.parametrize("name", ["word", "bad url", "no colon", "long header"])
def test_garbage_is_refused_in_the_one_error_shape_and_not_echoed(server: Server, name: str) -> None:
    answer = server.exchange(GARBAGE[name])
    assert b"7f3a" not in answer
    assert set(json.loads(split(answer)[1])["error"]) == {"message", "type", "param", "code"}


def test_http_1_0_is_answered_and_closed(server: Server) -> None:
    raw = server.http(BODY, TYPE, line="POST /generate HTTP/1.0").replace(b"Connection: close\r\n", b"")
    answer = server.exchange(raw)
    assert answer.startswith((b"HTTP/1.0 200 ", b"HTTP/1.1 200 "))
    assert len(json.loads(split(answer)[1])["result"]) == 2


def test_http_1_0_streams_without_chunks(server: Server) -> None:
    body = BODY[:-1] + ', "stream": true}'
    raw = server.http(body, TYPE, line="POST /generate HTTP/1.0").replace(b"Connection: close\r\n", b"")
    head, events = split(server.exchange(raw))
    assert b"chunked" not in head
    assert events.startswith(b"data: ")
    assert events.endswith(b"data: [DONE]\n\n")


def mutated(raw: bytes, chance: random.Random) -> bytes:
    data = bytearray(raw)
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        at = chance.randrange(len(data))
        match chance.randrange(6):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at] = chance.randrange(256)
            case 2:
                del data[at : at + chance.randrange(1, 9)]
            case 3:
                data[at:at] = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 5)))
            case 4:
                data[at:at] = data[at : at + chance.randrange(1, 20)]
            case _:
                data[at:at] = chance.choice([b"\r\n", b"\n", b"\0", b":", b"0", b"9", b'"', b"{", b" ", b"\xff"])
    return bytes(data)


def answer_to_damage(server: Server, raw: bytes) -> bytes:
    """What comes back within 20 s; a client that sent less than it declared closes its side after half a second."""
    parts = []
    with server.connect(0.5) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(raw)
        with contextlib.suppress(TimeoutError):
            while part := connection.recv(65536):
                parts.append(part)
        connection.settimeout(20)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.heavy
def test_random_damage_never_gives_a_5xx_and_never_hangs(server: Server) -> None:
    chance = random.Random(20261120)
    raw = server.http(BODY, TYPE)
    with ThreadPoolExecutor(48) as pool:
        answers = list(
            pool.map(lambda data: answer_to_damage(server, data), [mutated(raw, chance) for _ in range(NUM_MUTATIONS)])
        )
    firsts = [answer.split(b" ", 2)[1] for answer in answers if answer]
    assert len(firsts) > NUM_MUTATIONS // 2
    assert {code[:1] for code in firsts} <= {b"2", b"4"}
    assert not [answer for answer in answers if b"HTTP/1.1 5" in answer or b"HTTP/1.0 5" in answer]
    assert {b"200", b"400"} <= set(firsts)
    assert "unforeseen" not in server.log()
