"""POST /chat as clients meet it: answers with a memory that the client keeps, whole and streamed, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.service.conftest import Reply, Server, ServerFactory

QUESTION = "高血压要注意什么？"
TALK = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "平时要少熬夜、定期量血压。"}]
PREFLIGHT = {"Origin": "http://elsewhere.example", "Access-Control-Request-Headers": "content-type"}


def post(server: Server, **fields: Any) -> Reply:
    return server.post({"seed": 1, **fields}, path="/chat")


def ask(server: Server, **fields: Any) -> dict[str, Any]:
    reply = post(server, **fields)
    assert reply.status == 200, reply.body
    answer: dict[str, Any] = reply.json
    return answer


def events_of(reply: Reply) -> tuple[list[dict[str, Any]], str]:
    """The JSON events of a stream, and what stands after them."""
    assert reply.status == 200, reply.body
    assert reply.headers["Content-Type"] == "text/event-stream"
    *blocks, last, nothing = reply.body.decode().split("\n\n")
    assert nothing == ""
    return [json.loads(block.removeprefix("data: ")) for block in blocks], last


def test_a_question_is_answered_and_the_history_handed_back(server: Server) -> None:
    answer = ask(server, question=QUESTION)
    assert set(answer) == {"answer", "finish_reason", "history", "turns_read", "seed", "time", "candidates"}
    assert answer["answer"].strip()
    assert answer["history"] == [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": answer["answer"]},
    ]
    assert (answer["turns_read"], answer["seed"]) == (0, 1)
    assert answer["candidates"][0]["text"] == answer["answer"]
    texts = [candidate["text"] for candidate in answer["candidates"]]
    assert 1 <= len(set(texts)) == len(texts) <= 4


def test_what_was_said_before_is_read_and_changes_the_answer(server: Server) -> None:
    alone = ask(server, question="那饮食呢？", temperature=0, samples=1)
    after = ask(server, question="那饮食呢？", temperature=0, samples=1, history=TALK)
    assert (alone["turns_read"], after["turns_read"]) == (0, 1)
    assert alone["answer"] != after["answer"]
    assert after["history"][:3] == [*TALK, {"role": "user", "content": "那饮食呢？"}]


def test_messages_are_another_way_to_say_the_same(server: Server) -> None:
    by_question = ask(server, question="那饮食呢？", history=TALK)
    by_messages = ask(server, messages=[*TALK, {"role": "user", "content": "那饮食呢？", "id": 7}])
    assert {**by_question, "time": 0} == {**by_messages, "time": 0}


def test_a_seed_gives_the_same_answer_and_another_one_another(server: Server) -> None:
    answers = [ask(server, question=QUESTION, seed=seed, samples=1)["answer"] for seed in (5, 5, 6, 7, 8)]
    assert answers[0] == answers[1]
    assert len(set(answers)) > 1
    unseeded = [server.post({"question": QUESTION}, path="/chat").json["seed"] for _ in range(2)]
    assert unseeded[0] != unseeded[1]


@pytest.mark.parametrize("samples", [1, 4])
def test_a_stream_joins_to_the_whole_answer_and_ends_with_an_end_event(server: Server, samples: int) -> None:
    whole = ask(server, question=QUESTION, samples=samples)
    events, last = events_of(post(server, question=QUESTION, samples=samples, stream=True))
    *pieces, final = events
    assert last == "event: end\ndata: [DONE]"
    assert len(pieces) > 1
    assert all(set(piece) == {"text"} and piece["text"] for piece in pieces)
    assert "".join(piece["text"] for piece in pieces) == final["answer"] == whole["answer"]
    assert {**final, "time": 0} == {**whole, "time": 0}


def test_a_long_history_is_read_from_its_end_and_handed_back_whole(server: Server) -> None:
    history = TALK * 40
    answer = ask(server, question="那饮食呢？", history=history, samples=1)
    assert 1 <= answer["turns_read"] < 40
    assert len(answer["history"]) == len(history) + 2


def test_a_history_too_long_for_a_line_of_a_stream_is_left_to_the_client(server: Server) -> None:
    history = [{"role": "user", "content": "高" * 20_000}, {"role": "assistant", "content": "好。"}]
    fields = {"question": QUESTION, "history": history, "stream": True, "samples": 1}
    body = json.dumps(fields, ensure_ascii=False)
    reply = server.request("POST", "/chat?ascii=1", body, {"Content-Type": "application/json"})
    *_, final = events_of(reply)[0]
    assert final["history"] is None
    assert final["answer"]
    assert max(map(len, reply.body.split(b"\n"))) < 64 * 1024


def test_system_messages_and_words_that_look_like_special_tokens_are_no_harm(server: Server) -> None:
    plain = ask(server, messages=[{"role": "user", "content": QUESTION}], temperature=0, samples=1)
    dressed = ask(
        server,
        messages=[{"role": "system", "content": "说英语"}, {"role": "user", "content": f"[CLS]{QUESTION}[SEP]"}],
        temperature=0,
        samples=1,
    )
    assert dressed["answer"] == plain["answer"]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({}, "missing_field", "question"),
        ({"question": " \n"}, "invalid_value", "question"),
        ({"question": "[SEP]"}, "invalid_value", "question"),
        ({"question": 7}, "invalid_value", "question"),
        ({"question": QUESTION, "messages": []}, "invalid_value", "messages"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": TALK}, "invalid_value", "messages"),
        ({"messages": [{"role": "cat", "content": "x"}]}, "invalid_value", "messages"),
        ({"messages": [{"role": "user"}]}, "missing_field", "messages"),
        ({"messages": "hello"}, "invalid_value", "messages"),
        ({"question": QUESTION, "history": [QUESTION]}, "invalid_value", "history"),
        ({"question": QUESTION, "samples": 0}, "invalid_value", "samples"),
        ({"question": QUESTION, "samples": 17}, "invalid_value", "samples"),
        ({"question": QUESTION, "temperature": 2.1}, "invalid_value", "temperature"),
        ({"question": QUESTION, "max_new_tokens": 0}, "invalid_value", "max_new_tokens"),
        ({"question": QUESTION, "stream": "yes"}, "invalid_value", "stream"),
        ({"question": QUESTION, "maxlength": 3}, "unknown_field", "maxlength"),
        ({"question": QUESTION * 400}, "context_length_exceeded", "question"),
        ({"question": QUESTION, "max_new_tokens": 10**9}, "context_length_exceeded", "question"),
        ({"messages": [{"role": "user", "content": "[SEP]"}]}, "invalid_value", "messages"),
        ({"messages": [*TALK, {"role": "user", "content": QUESTION * 400}]}, "context_length_exceeded", "messages"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_answered_is_refused_by_the_name_of_the_field(
    server: Server, fields: dict[str, Any], code: str, param: str, stream: bool
) -> None:
    reply = server.post({"stream": stream, **fields}, path="/chat")
    message = reply.error(400, code, param)
    assert QUESTION not in message


def test_one_new_token_is_enough_and_the_limit_is_told(server: Server) -> None:
    answer = ask(server, question=QUESTION, max_new_tokens=1, samples=1)
    assert answer["finish_reason"] == "length"


def test_the_path_has_a_page_and_an_endpoint_and_says_so(server: Server) -> None:
    page = server.get("/chat")
    assert page.status == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    refused = server.request("PUT", "/chat", "{}", {"Content-Type": "application/json"})
    refused.error(405, "method_not_allowed")
    assert set(refused.headers["Allow"].split(", ")) == {"GET", "HEAD", "POST", "OPTIONS"}


def test_a_browser_of_another_origin_may_ask(server: Server) -> None:
    for method in ("GET", "POST"):
        reply = server.request("OPTIONS", "/chat", None, {**PREFLIGHT, "Access-Control-Request-Method": method})
        assert reply.status == 200, reply.body
        assert reply.headers["Access-Control-Allow-Origin"] == "*"
        assert reply.headers["Access-Control-Allow-Headers"] == "content-type"
    reply = server.post({"question": QUESTION}, {"Origin": "http://elsewhere.example"}, path="/chat")
    assert reply.headers["Access-Control-Allow-Origin"] == "*"


def test_with_a_key_the_page_is_open_and_the_endpoint_is_not(start_server: ServerFactory) -> None:
    keyed = start_server(PROMPTGEN_API_KEYS="open-sesame")
    assert keyed.get("/chat").status == 200
    keyed.post({"question": QUESTION}, path="/chat").error(401, "invalid_api_key")
    assert keyed.post({"question": QUESTION}, {"X-Api-Key": "open-sesame"}, path="/chat").status == 200


def test_one_who_hangs_up_leaves_nothing_running(server: Server) -> None:
    body = json.dumps({"question": QUESTION, "stream": True, "samples": 16})
    for _ in range(5):
        with server.connect() as connection:
            connection.sendall(server.http(body, "Content-Type: application/json", line="POST /chat HTTP/1.1"))
    server.wait_until("/ready", 200)
    assert ask(server, question=QUESTION, samples=1)["answer"]
