"""What makes candidates worth picking, over HTTP: healing, sessions, constraints, choices."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.service.conftest import Server

PROMPT = "高血压要注意"
WILD = {"temperature": 2, "top_k": 0, "top_p": 0}  # near uniform: no trained model ends such candidates soon
LONG = {"context": PROMPT, "samples": 64, "maxlength": 240, "min_length": 240, "distinct": False, **WILD}


def test_a_context_cut_in_mid_word_goes_on_with_that_word(server: Server) -> None:
    texts = server.generate(context="高血", samples=8, maxlength=6, seed=1)["result"]
    assert all(text.startswith("高血") and len(text) > 2 for text in texts)
    assert sum(text.startswith("高血压") for text in texts) >= 2
    english = server.generate(context="How can I transl", samples=5, maxlength=6, seed=1)["result"]
    assert all(text.startswith("How can I translat") for text in english)


def test_healing_can_be_switched_off(server: Server) -> None:
    off = server.generate(context="How can I transl", samples=5, maxlength=6, seed=1, heal=False)["result"]
    assert not all(text.startswith("How can I translat") for text in off)


def test_a_word_that_is_whole_may_be_followed_by_another(server: Server) -> None:
    whole, healed = (
        server.generate(context=PROMPT, samples=5, maxlength=8, seed=2, rank="none", heal=heal)["result"]
        for heal in (False, True)
    )
    assert all(text.startswith(PROMPT) for text in whole + healed)


def test_results_are_distinct_and_best_first(server: Server) -> None:
    answer = server.generate(context="绿萝换盆要", samples=16, maxlength=12, seed=1, details=True)
    assert len(set(answer["result"])) == 16
    scores = [candidate["score"] for candidate in answer["candidates"]]
    assert scores == sorted(scores, reverse=True)
    as_drawn = server.generate(context="绿萝换盆要", samples=16, maxlength=12, seed=1, rank="none")["result"]
    assert sorted(as_drawn) == sorted(answer["result"])
    assert as_drawn != answer["result"]


def test_distinct_first_gives_each_first_word_once(server: Server) -> None:
    fields = {"context": "高血压", "samples": 8, "maxlength": 1, "echo": False, "heal": False}
    texts = server.generate(**fields, distinct_first=True, seed=1)["result"]
    assert len(set(texts)) == 8
    assert server.generate(**fields, distinct_first=True, seed=2)["result"] == texts


def test_a_newer_request_of_a_session_ends_the_older_with_409(server: Server) -> None:
    with ThreadPoolExecutor(2) as pool:
        older = pool.submit(server.post, LONG | {"session": "s1"})
        server.wait_for_rows(lambda rows: rows > 0)
        newer = server.post({"context": PROMPT, "maxlength": 2, "samples": 1, "session": "s1"})
        older.result(20).error(409, "superseded", None)
    assert newer.status == 200


def test_a_stream_that_is_superseded_says_so_in_its_last_event(server: Server) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)) as connection:
        fields = LONG | {"session": "s2", "stream": True}
        connection.request("POST", "/generate", json.dumps(fields), {"Content-Type": "application/json"})
        older = connection.getresponse()  # its first event is on the way
        assert older.status == 200
        assert server.post({"context": PROMPT, "maxlength": 2, "samples": 1, "session": "s2"}).status == 200
        body = older.read()
    assert body.endswith(b"\n\ndata: [DONE]\n\n")
    last = json.loads(body.split(b"\n\n")[-3].removeprefix(b"data: "))
    assert last["error"]["code"] == "superseded"


def test_sessions_do_not_touch_each_other_or_requests_without(server: Server) -> None:
    short = {"context": PROMPT, "maxlength": 30, "samples": 8, "distinct": False, **WILD}
    with ThreadPoolExecutor(8) as pool:
        asked = [short | ({"session": f"own-{n}"} if n % 2 else {}) for n in range(8)]
        assert [reply.status for reply in pool.map(server.post, asked)] == [200] * 8


def test_a_session_gives_what_the_same_seed_gives_without_reuse(server: Server) -> None:
    typed = "高血压患者怎么运动，"
    seeded = {"samples": 5, "maxlength": 10, "seed": 5}
    with_one = [server.generate(context=typed[:n], session="typist", **seeded)["result"] for n in range(1, 11)]
    # A session for each request: nothing of another is used.
    without = [server.generate(context=typed[:n], session=f"new-{n}", **seeded)["result"] for n in range(1, 11)]
    assert with_one == without


def test_a_session_keeps_its_suggestions_without_a_seed(server: Server) -> None:
    fields = {"context": PROMPT, "samples": 5, "maxlength": 20}
    first, again, other = (server.generate(**fields, session=name)["result"] for name in ("x", "x", "y"))
    assert first == again
    assert first != other


def test_bad_words_never_come(server: Server) -> None:
    fields = {"context": PROMPT, "samples": 32, "maxlength": 10, "seed": 1, "echo": False}
    often = Counter("".join(server.generate(**fields)["result"])).most_common(1)[0][0]
    texts = server.generate(**fields, bad_words=[often, "饮食清淡", "注意"])["result"]
    assert texts
    assert not any(word in text for text in texts for word in (often, "饮食清淡", "注意"))


def test_logit_bias_forbids_and_favours_words(server: Server) -> None:
    fields = {"context": PROMPT, "samples": 5, "maxlength": 3, "seed": 1, "echo": False, "heal": False}
    for text in server.generate(**fields, logit_bias={"睡眠": 100}, distinct=False)["result"]:
        assert text.startswith("睡眠")
    reply = server.post(fields | {"logit_bias": {"这不是一个词": 1}})
    reply.error(400, "invalid_value", "logit_bias")


def test_min_length_keeps_a_candidate_from_ending(server: Server) -> None:
    fields = {"context": PROMPT, "samples": 16, "maxlength": 40, "seed": 1, "details": True, "distinct": False}
    free = [candidate["num_tokens"] for candidate in server.generate(**fields)["candidates"]]
    held = [candidate["num_tokens"] for candidate in server.generate(**fields, min_length=30)["candidates"]]
    assert min(free) < 30 <= min(held)
    server.post({"context": PROMPT, "maxlength": 3, "min_length": 4}).error(400, "invalid_value", "min_length")


@pytest.mark.parametrize("context", [PROMPT, "How can I keep"])
def test_until_sentence_ends_with_the_first_sentence(server: Server, context: str) -> None:
    fields = {"context": context, "samples": 8, "maxlength": 60, "seed": 3, "echo": False, "details": True}
    for candidate in server.generate(**fields, until="sentence")["candidates"]:
        text = candidate["completion"].rstrip("”’\"'）)")
        assert candidate["finish_reason"] == "length" or text[-1:] in "。！？!?.…"
        assert not any(mark in text[:-1] for mark in "。！？!?")


def test_until_line_has_no_line_break(server: Server) -> None:
    fields = {"context": "问：高血压怎么办", "samples": 16, "maxlength": 40, "seed": 3, "echo": False, **WILD}
    assert not any("\n" in text for text in server.generate(**fields, until="line")["result"])


def test_choices_are_scored_and_ranked(server: Server) -> None:
    choices = ["要注意饮食", "是一种水果", "比香蕉弯曲得多得多"]
    answer = server.generate(context="高血压", choices=choices, details=True)
    assert sorted(answer["result"]) == sorted("高血压" + choice for choice in choices)
    assert answer["result"][0] == "高血压要注意饮食"
    scores = [candidate["score"] for candidate in answer["candidates"]]
    assert scores == sorted(scores, reverse=True)
    assert server.generate(context="高血压", choices=choices, rank="none")["result"] == ["高血压" + c for c in choices]
    server.post({"context": "高血压", "choices": [" "]}).error(400, "invalid_value", "choices")
    too_long = {"context": "高血压，" * 60, "choices": ["要注意饮食", "，" * 200]}
    assert "choice 1" in server.post(too_long).error(400, "context_length_exceeded", "choices")


def test_a_deadline_of_the_caller_shortens_that_of_the_service(server: Server) -> None:
    with ThreadPoolExecutor(3) as pool:
        crowd = [pool.submit(server.post, LONG) for _ in range(3)]
        time.sleep(0.2)
        hurried = server.post({"context": PROMPT, "samples": 64, "timeout_ms": 1})
        assert hurried.status in (200, 504)
        if hurried.status == 504:
            hurried.error(504, "deadline_exceeded", None)
        for reply in crowd:
            assert reply.result(60).status == 200


@pytest.mark.parametrize(
    ("field", "param"),
    [({"heal": 1}, "heal"), ({"rank": "best"}, "rank"), ({"session": ""}, "session"), ({"session": "a b"}, "session"),
     ({"session": "x" * 65}, "session"), ({"min_length": -1}, "min_length"), ({"bad_words": ["  "]}, "bad_words"), ({"bad_words": "x"}, "bad_words"),
     ({"logit_bias": {"高血压": 101}}, "logit_bias"), ({"choices": ["x"] * 65}, "choices"), ({"until": "word"}, "until"), ({"timeout_ms": 0}, "timeout_ms")],
    ids=str,
)  # fmt: skip
def test_wrong_values_are_refused_by_name(server: Server, field: dict[str, Any], param: str) -> None:
    server.post({"context": PROMPT} | field).error(400, "invalid_value", param)
