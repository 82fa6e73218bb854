"""Server-sent events: the format byte by byte, refusals before the stream, and readers that vanish."""

from __future__ import annotations

import json
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.service.conftest import Reply, Server

PROMPT = "高血压要注意"
WILD = {"temperature": 2, "top_k": 0, "top_p": 0}  # near uniform: no trained model ends such candidates soon
TYPE = "Content-Type: application/json"


def stream(server: Server, **fields: Any) -> Reply:
    reply = server.post({"stream": True, "context": PROMPT} | fields)
    assert reply.status == 200, reply.body
    return reply


def events(body: bytes) -> list[Any]:
    """The decoded events, after a check of the framing: nothing but data lines and blank lines, and one [DONE], last."""
    assert body.endswith(b"\n\ndata: [DONE]\n\n")
    lines = body.split(b"\n")
    assert set(lines[1::2]) == {b""}
    data = [line for line in lines[::2] if line]
    assert all(line.startswith(b"data: ") for line in data)
    assert data.count(b"data: [DONE]") == 1
    return [json.loads(line[6:]) for line in data[:-1]]


def joined(decoded: list[Any], samples: int) -> list[str]:
    """The text of each candidate as a client has it at the end."""
    texts = [""] * samples
    for event in decoded:
        if "reset" in event:
            texts[event["index"]] = ""
        elif "text" in event:
            texts[event["index"]] += event["text"]
    return texts


def test_headers_of_a_stream(server: Server) -> None:
    headers = stream(server, maxlength=2).headers
    assert headers["Content-Type"] == "text/event-stream"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Accel-Buffering"] == "no"
    assert headers["X-Request-Id"]
    assert headers["Content-Length"] is None


def test_a_stream_carries_cors_headers(server: Server) -> None:
    reply = server.post({"context": PROMPT, "maxlength": 1, "stream": True}, {"Origin": "http://page.example"})
    assert reply.headers.get_all("Access-Control-Allow-Origin") == ["*"]


@pytest.mark.parametrize("echo", [True, False])
@pytest.mark.parametrize(
    "context", [PROMPT, "How ARE you  ", "第一行\r\n第二行", "😀 café", 'a "b" \\ data: [DONE]\n\n'], ids=ascii
)
def test_events_have_the_promised_form_and_joined_pieces_are_the_results(
    server: Server, context: str, echo: bool
) -> None:
    decoded = events(stream(server, context=context, samples=3, maxlength=8, seed=1, echo=echo).body)
    *parts, last = decoded
    assert set(last) == {"result", "time", "order", "scores"}
    assert last["time"] > 0
    assert all(set(part) in ({"index", "text"}, {"index", "finish_reason"}, {"index", "reset"}) for part in parts)
    assert {part["index"] for part in parts} == {0, 1, 2}
    assert [text or None for text in joined(decoded, 3)] == [text or None for text in last["result"]]
    assert sorted(last["order"]) == [i for i in range(3) if last["result"][i] is not None]
    assert last["scores"] == sorted(last["scores"], reverse=True)
    assert all(text.startswith(context) for text in last["result"] if text is not None) or not echo
    for index in range(3):
        own = [part for part in parts if part["index"] == index]
        assert own[-1].get("finish_reason") in {"stop", "length"} or own[-1] == {"index": index, "reset": True}
        for before, after in pairwise(own):
            assert "finish_reason" not in before or after == {"index": index, "reset": True}


def test_a_stream_and_a_whole_answer_are_the_same_text(server: Server) -> None:
    fields = {"context": PROMPT, "seed": 12, "samples": 4, "maxlength": 20}
    last = events(stream(server, **fields).body)[-1]
    assert [last["result"][i] for i in last["order"]] == server.generate(**fields)["result"]


def test_a_duplicate_is_withdrawn_and_drawn_anew_under_its_index(server: Server) -> None:
    # One of two words: most of eight draws are equal.
    fields = {"context": "高血压要注意", "seed": 3, "samples": 8, "maxlength": 1, "top_k": 2, "echo": False}
    decoded = events(stream(server, **fields).body)
    last = decoded[-1]
    assert any("reset" in event for event in decoded)
    assert len(set(last["result"])) == 8  # distinct goes before top_k
    assert joined(decoded, 8) == last["result"]
    assert [joined(decoded, 8)[i] for i in last["order"]] == server.generate(**fields)["result"]


def test_choices_are_shown_as_they_were_sent(server: Server) -> None:
    choices = ["压要注意", " Travel 😀", "压"]
    decoded = events(stream(server, context="高血", choices=choices, echo=False, rank="none").body)
    assert joined(decoded, 3) == decoded[-1]["result"] == choices


def test_pieces_come_one_step_at_a_time(server: Server) -> None:
    decoded = events(stream(server, samples=1, maxlength=20, min_length=20, seed=1, echo=False, **WILD).body)
    assert sum("text" in event for event in decoded) >= 8


def test_details_come_with_the_result(server: Server) -> None:
    last = events(stream(server, samples=2, maxlength=3, details=True, seed=5).body)[-1]
    added = {"candidates", "usage", "timing", "model", "seed", "redrawn", "missing"}
    assert set(last) == {"result", "time", "order", "scores"} | added
    assert last["seed"] == 5


def test_a_blank_context_streams_an_empty_result(server: Server) -> None:
    assert stream(server, context=" \n").body == b'data: {"result": [], "time": 0}\n\ndata: [DONE]\n\n'


def test_a_stop_string_cuts_a_stream_as_it_cuts_an_answer(server: Server) -> None:
    base = {"seed": 8, "maxlength": 20, "samples": 3, "echo": False, "context": PROMPT, "rank": "none", **WILD}
    longest = max(server.generate(**base)["result"], key=len)
    stop = longest[len(longest) // 2 :][:2]
    decoded = events(stream(server, **base, stop=stop).body)
    assert joined(decoded, 3) == decoded[-1]["result"] == server.generate(**base, stop=stop)["result"]
    assert all(stop not in text for text in decoded[-1]["result"])


def test_ascii_streams_hold_nothing_beyond_ascii(server: Server) -> None:
    reply = server.post({"context": PROMPT, "maxlength": 3, "stream": True}, path="/generate?ascii=1")
    assert events(reply.body)[-1]["result"][0].startswith(PROMPT)
    assert reply.body.isascii()


@pytest.mark.parametrize("samples", [1, 64])
def test_every_line_is_under_64_kib_even_for_a_very_long_context(server: Server, samples: int) -> None:
    context = "高" + " " * 60_000 + "血压"
    body = stream(server, context=context, samples=samples, maxlength=1).body
    assert joined(events(body), samples)[0].startswith(context)
    assert max(map(len, body.split(b"\n"))) < 64 * 1024


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [({"samples": 65}, "invalid_value", "samples"), ({"maxlength": 0}, "invalid_value", "maxlength"), ({"temperature": 3}, "invalid_value", "temperature"),
     ({"stream": 1}, "invalid_value", "stream"), ({"stop": ""}, "invalid_value", "stop"), ({"context": 5}, "invalid_value", "context"),
     ({"prompt": "x"}, "unknown_field", "prompt"), ({"context": "a\0"}, "invalid_text", "context"), ({"top_k": 10**9}, "invalid_value", "top_k"),
     ({"context": "，" * 9999}, "context_length_exceeded", "context"), ({"maxlength": 99_999}, "context_length_exceeded", "context")],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_bad_parameters_are_refused_before_the_stream(
    server: Server, fields: dict[str, Any], code: str, param: str
) -> None:
    server.post({"context": PROMPT, "stream": True} | fields).error(400, code, param)


def open_stream(server: Server, **fields: Any) -> socket.socket:
    connection = server.connect()
    connection.sendall(server.http(json.dumps({"context": PROMPT, "stream": True, **WILD} | fields), TYPE))
    return connection


def test_a_client_that_vanishes_midway_frees_its_rows(server: Server) -> None:
    long = {"samples": 64, "maxlength": server.window - 10}
    connections = [open_stream(server, **long) for _ in range(2)]
    for connection in connections:
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        connection.close()
    server.wait_for_requests(0)
    answer = server.generate(context=PROMPT, samples=64, maxlength=2, details=True, distinct=False)
    assert answer["timing"]["queue"] < 0.5
    assert len(answer["result"]) == 64


def test_a_client_that_waits_for_a_whole_answer_and_vanishes_frees_its_rows(server: Server) -> None:
    body = json.dumps({"context": PROMPT, "samples": 64, "maxlength": server.window - 10, **WILD})
    for _ in range(2):
        with server.connect() as connection:
            connection.sendall(server.http(body, TYPE))
            time.sleep(0.2)
    time.sleep(0.3)
    answer = server.generate(context=PROMPT, samples=64, maxlength=2, details=True, distinct=False)
    assert answer["timing"]["queue"] < 0.5


def test_random_disconnects_leave_the_service_as_it_was(server: Server) -> None:
    chance = random.Random(3)

    def vanish(seed: int) -> None:
        own = random.Random(seed)
        samples, streamed = own.choice([1, 5, 40]), own.random() < 0.7
        body = json.dumps({"context": PROMPT, "stream": streamed, "samples": samples, "maxlength": 100, **WILD})
        raw = server.http(body, TYPE)
        with server.connect() as connection:
            connection.sendall(raw[: own.choice([1, 40, len(raw) - 3, len(raw), len(raw), len(raw)])])
            time.sleep(own.random() * 0.2)
            if own.random() < 0.3:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(vanish, [chance.randrange(1 << 30) for _ in range(20)]))
    time.sleep(0.3)
    answer = server.generate(context=PROMPT, samples=64, maxlength=2, details=True, distinct=False)
    assert answer["timing"]["queue"] < 0.5
    assert "unforeseen" not in server.log()


def test_a_reader_that_takes_nothing_does_not_hold_up_others(server: Server) -> None:
    with open_stream(server, samples=32, maxlength=100):
        time.sleep(0.2)
        started = time.monotonic()
        assert len(server.generate(context=PROMPT, maxlength=2, samples=1)["result"]) == 1
        assert time.monotonic() - started < 5
