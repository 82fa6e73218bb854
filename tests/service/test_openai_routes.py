"""/v1 over the wire: shapes, prompts by ids, scores of prompts, penalties, refusals, and that other work goes on beside it."""

from __future__ import annotations

import base64
import json
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from promptgen.generation.dialogue import MAX_TURNS
from tests.service.conftest import Server, ServerFactory
from tests.service.test_openapi import check

COMPLETIONS, CHAT, EMBEDDINGS = "/v1/completions", "/v1/chat/completions", "/v1/embeddings"
PROMPT = "高血压要注意"
BEGIN, END, SEPARATOR = 2, 1, 0


def ask(server: Server, path: str, **fields: Any) -> dict[str, Any]:
    reply = server.post(fields, path=path)
    assert reply.status == 200, reply.body
    answer: dict[str, Any] = reply.json
    return answer


def texts(answer: dict[str, Any]) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


def chunks(server: Server, path: str, **fields: Any) -> list[dict[str, Any]]:
    reply = server.post(fields | {"stream": True}, path=path)
    assert reply.headers["Content-Type"] == "text/event-stream"
    assert reply.headers["Cache-Control"] == "no-store"
    lines = [line for line in reply.body.decode().split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def ids_of(server: Server, text: str) -> list[int]:
    """The ids of a text's words, found in the vocabulary file of the shipped model."""
    from promptgen.config import DEFAULT_MODEL
    from promptgen.text.tokenizer import load_tokenizer

    return load_tokenizer(DEFAULT_MODEL).encode(text)


def user(*turns: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": turn} for place, turn in enumerate(turns)]


def test_the_shapes_of_whole_answers(server: Server) -> None:
    answer = ask(server, COMPLETIONS, prompt=PROMPT, max_tokens=3)
    assert set(answer) == {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}
    assert answer["id"].startswith("cmpl-")
    (choice,) = answer["choices"]
    assert set(choice) == {"index", "text", "logprobs", "finish_reason"}
    assert choice["logprobs"] is None
    chat = ask(server, CHAT, messages=user(PROMPT), max_tokens=3)
    assert (chat["object"], chat["id"][:9]) == ("chat.completion", "chatcmpl-")
    assert set(chat["choices"][0]) == {"index", "message", "logprobs", "finish_reason"}
    assert chat["choices"][0]["message"] == {
        "role": "assistant",
        "content": chat["choices"][0]["message"]["content"],
        "refusal": None,
    }
    for one in (answer, chat):
        assert one["usage"]["total_tokens"] == one["usage"]["prompt_tokens"] + one["usage"]["completion_tokens"]
    assert chat["choices"][0]["finish_reason"] == "length"
    assert chat["usage"]["completion_tokens"] == 3


def test_defaults_are_sixteen_tokens_one_choice_no_more_than_fits(server: Server) -> None:
    answer = ask(server, COMPLETIONS, prompt=PROMPT, ignore_eos=True)
    assert (len(answer["choices"]), answer["usage"]["completion_tokens"]) == (1, 16)
    long = [BEGIN, *[9] * (server.window - 4)]
    assert ask(server, COMPLETIONS, prompt=long, ignore_eos=True)["usage"]["completion_tokens"] == 3


def test_ids_are_read_as_they_are(server: Server) -> None:
    ids = ids_of(server, PROMPT)
    fields: dict[str, Any] = {"max_tokens": 8, "seed": 5, "n": 2}
    by_text = ask(server, COMPLETIONS, prompt=PROMPT, **fields)
    by_ids = ask(server, COMPLETIONS, prompt=[BEGIN, *ids], **fields)
    assert texts(by_ids) == texts(by_text)
    assert by_ids["usage"] == by_text["usage"]
    several = ask(server, COMPLETIONS, prompt=[[BEGIN, *ids], ids], **fields)
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2, 3]
    assert texts(several)[:2] == texts(by_text)
    assert several["usage"]["prompt_tokens"] == 2 * len(ids) + 1
    echoed = ask(server, COMPLETIONS, prompt=ids, echo=True, **fields)
    assert all(text.startswith(PROMPT) for text in texts(echoed))


def test_a_completion_is_what_generate_gives(server: Server) -> None:
    plain = server.generate(
        context=PROMPT, samples=3, seed=8, maxlength=10, echo=False, heal=False, distinct=False, rank="none"
    )
    answer = ask(server, COMPLETIONS, prompt=PROMPT, n=3, seed=8, max_tokens=10)
    assert texts(answer) == plain["result"]
    healed = ask(server, COMPLETIONS, prompt="高血压要注", n=3, seed=8, max_tokens=10, heal=True, echo=True)
    assert texts(healed) == server.generate(
        context="高血压要注", samples=3, seed=8, maxlength=10, distinct=False, rank="none"
    )["result"]  # fmt: skip


def test_a_prompt_is_scored_as_evaluation_harnesses_do(server: Server) -> None:
    ids = [BEGIN, *ids_of(server, PROMPT)]
    fields: dict[str, Any] = {"echo": True, "logprobs": 1, "temperature": 0, "seed": 1}
    scored = ask(server, COMPLETIONS, prompt=[ids, ids[:2]], max_tokens=0, **fields)
    first, second = (choice["logprobs"] for choice in scored["choices"])
    assert texts(scored)[0] == PROMPT
    assert first["token_logprobs"][0] is first["top_logprobs"][0] is None
    assert len(first["tokens"]) == len(first["token_logprobs"]) == len(first["text_offset"]) == len(ids)
    assert second["token_logprobs"] == first["token_logprobs"][:2]
    assert scored["usage"] == {"prompt_tokens": len(ids) + 2, "completion_tokens": 0, "total_tokens": len(ids) + 2}
    with_one = ask(server, COMPLETIONS, prompt=ids, max_tokens=1, **fields)["choices"][0]["logprobs"]
    assert len(with_one["tokens"]) == len(ids) + 1
    assert with_one["token_logprobs"][:-1] == first["token_logprobs"]
    for logprob, top in zip(with_one["token_logprobs"][1:], with_one["top_logprobs"][1:], strict=True):
        assert logprob <= max(top.values())
    assert with_one["token_logprobs"][-1] == max(with_one["top_logprobs"][-1].values())  # greedy
    by_text = ask(server, COMPLETIONS, prompt=PROMPT, max_tokens=0, **fields)["choices"][0]
    assert by_text["logprobs"]["token_logprobs"] == first["token_logprobs"][1:]
    assert by_text["finish_reason"] == "length"
    whole = server.generate(context="高血压", choices=["要注意"], details=True)["candidates"][0]["logprob"]
    assert sum(first["token_logprobs"][2:]) == pytest.approx(whole, abs=1e-3)


def test_a_prompt_that_fills_the_window_can_be_scored(server: Server) -> None:
    ids = [BEGIN, *range(5, 4 + server.window)]
    assert len(ids) == server.window
    (choice,) = ask(server, COMPLETIONS, prompt=ids, max_tokens=0, echo=True, logprobs=0)["choices"]
    assert len(choice["logprobs"]["tokens"]) == server.window
    assert choice["logprobs"]["top_logprobs"] is None


def test_the_token_that_ends_a_text_is_listed_with_its_logprob(server: Server) -> None:
    fields: dict[str, Any] = {"prompt": PROMPT, "logit_bias": {str(END): 100}, "logprobs": 2, "max_tokens": 5}
    (choice,) = ask(server, COMPLETIONS, **fields)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")
    assert choice["logprobs"]["tokens"] == ["[CLS]"]
    assert choice["logprobs"]["token_logprobs"] == [pytest.approx(0, abs=1e-4)]
    late = ask(server, COMPLETIONS, **fields, min_tokens=3)
    assert (late["usage"]["completion_tokens"], late["choices"][0]["logprobs"]["tokens"][-1]) == (3, "[CLS]")


def test_best_of_gives_the_likeliest(server: Server) -> None:
    fields: dict[str, Any] = {"prompt": PROMPT, "seed": 3, "max_tokens": 6, "logprobs": 0}
    drawn = ask(server, COMPLETIONS, n=8, **fields)["choices"]
    best = ask(server, COMPLETIONS, n=2, best_of=8, **fields)

    def score(choice: dict[str, Any]) -> float:
        return float(np.mean(choice["logprobs"]["token_logprobs"]))

    wanted = sorted(map(score, drawn))[::-1][:2]
    assert [score(choice) for choice in best["choices"]] == pytest.approx(wanted)
    assert [choice["index"] for choice in best["choices"]] == [0, 1]
    assert best["usage"]["completion_tokens"] > sum(len(c["logprobs"]["tokens"]) - 1 for c in best["choices"])
    ranked = ask(server, COMPLETIONS, n=8, rank="likelihood", **fields)["choices"]
    assert [score(c) for c in ranked] == sorted((score(c) for c in ranked), reverse=True)


def test_equal_choices_are_kept_unless_distinct(server: Server) -> None:
    greedy: dict[str, Any] = {"prompt": PROMPT, "n": 3, "temperature": 0, "max_tokens": 4}
    assert len(set(texts(ask(server, COMPLETIONS, **greedy)))) == 1
    assert len(texts(ask(server, COMPLETIONS, **greedy))) == 3
    distinct = texts(ask(server, COMPLETIONS, distinct=True, **greedy))
    assert len(set(distinct)) == len(distinct) == 3
    answers = ask(server, CHAT, messages=user("失眠怎么办？"), n=5, temperature=0, distinct=True, seed=1)["choices"]
    contents = [choice["message"]["content"] for choice in answers]
    assert len(set(contents)) == 5
    assert not any("\n" in content for content in contents)


def test_logit_bias_forbids_and_forces_tokens(server: Server) -> None:
    greedy: dict[str, Any] = {"prompt": PROMPT, "temperature": 0, "max_tokens": 1}
    (plain,) = texts(ask(server, COMPLETIONS, **greedy))
    (banned,) = ids_of(server, plain)
    assert texts(ask(server, COMPLETIONS, logit_bias={str(banned): -100}, **greedy)) != [plain]
    (wanted,) = ids_of(server, "高血压")
    assert texts(ask(server, COMPLETIONS, logit_bias={str(wanted): 100}, **greedy)) == ["高血压"]
    for path, body in ((COMPLETIONS, {"prompt": PROMPT}), (CHAT, {"messages": user(PROMPT)})):
        wrong = {"logit_bias": {str(server.vocabulary): 1}}
        server.post(body | wrong, path=path).error(400, "invalid_value", "logit_bias")


def test_a_long_prompt_with_its_log_probabilities_comes_in_short_lines(server: Server) -> None:
    fields: dict[str, Any] = {
        "prompt": "高血压要注意，" * 60, "max_tokens": 2, "echo": True, "logprobs": 20, "temperature": 0, "ignore_eos": True,
    }  # fmt: skip
    (whole,) = ask(server, COMPLETIONS, **fields)["choices"]
    assert len(json.dumps(whole)) > 64 * 1024
    pieces = [chunk["choices"][0] for chunk in chunks(server, COMPLETIONS, **fields)]
    assert max(len(json.dumps(piece)) for piece in pieces) < 64 * 1024 - 1000
    assert "".join(piece["text"] for piece in pieces) == whole["text"]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [value for piece in pieces for value in piece["logprobs"][name]] == whole["logprobs"][name]


def test_penalties_keep_from_saying_it_again(server: Server) -> None:
    (word,) = ids_of(server, "高血压")
    fields: dict[str, Any] = {
        "prompt": PROMPT, "temperature": 0, "max_tokens": 6, "logit_bias": {str(word): 60}, "ignore_eos": True,
    }  # fmt: skip
    assert texts(ask(server, COMPLETIONS, **fields)) == ["高血压" * 6]
    # 60 nats more than its own: with 2 + 2 a time it has its lead for a while only.
    (text,) = texts(ask(server, COMPLETIONS, frequency_penalty=2, presence_penalty=2, **fields | {"max_tokens": 60}))
    assert 2 <= text.count("高血压") < 60


def test_the_chunks_of_a_stream(server: Server) -> None:
    whole = ask(server, CHAT, messages=user(PROMPT), n=2, seed=1)
    streamed = chunks(server, CHAT, messages=user(PROMPT), n=2, seed=1)
    assert {chunk["object"] for chunk in streamed} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in streamed}) == 1
    assert all("usage" not in chunk for chunk in streamed)
    for index in range(2):
        own = [c for chunk in streamed for c in chunk["choices"] if c["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
        assert own[-1]["delta"] == {}
        assert [c["finish_reason"] for c in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1]["finish_reason"] == whole["choices"][index]["finish_reason"]
        text = "".join(c["delta"].get("content", "") for c in own)
        assert text == whole["choices"][index]["message"]["content"]
    with_usage = chunks(server, CHAT, messages=user(PROMPT), n=2, seed=1, stream_options={"include_usage": True})
    assert [chunk["usage"] for chunk in with_usage] == [None] * (len(with_usage) - 1) + [whole["usage"]]
    assert with_usage[-1]["choices"] == []


def test_an_empty_answer_is_a_whole_one_in_streams_too(server: Server) -> None:
    bias = {"logit_bias": {str(SEPARATOR): 100}}
    (choice,) = ask(server, CHAT, messages=user(PROMPT), **bias)["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "stop")
    streamed = chunks(server, CHAT, messages=user(PROMPT), **bias)
    assert [c["choices"][0]["finish_reason"] for c in streamed] == [None, "stop"]
    scored = chunks(server, COMPLETIONS, prompt=PROMPT, max_tokens=0, echo=True, logprobs=1)
    assert [(c["choices"][0]["text"], c["choices"][0]["finish_reason"]) for c in scored] == [(PROMPT, "length")]


def test_an_answer_ends_where_the_turn_does(server: Server) -> None:
    (choice,) = ask(server, CHAT, messages=user("失眠怎么办？"), seed=2, logprobs=True)["choices"]
    assert choice["finish_reason"] == "stop"
    assert "\n" not in choice["message"]["content"]
    (endless,) = ask(server, CHAT, messages=user("失眠怎么办？"), seed=2, ignore_eos=True, max_tokens=60)["choices"]
    assert endless["finish_reason"] == "length"
    assert "\n" not in endless["message"]["content"]


def test_history_is_read_and_what_does_not_fit_is_left_out_turn_by_turn(server: Server) -> None:
    question = "那饮食要注意什么？"
    counts = [
        ask(server, CHAT, messages=user(*["高血压怎么办？", "要少吃盐，多运动。"] * turns, question), max_tokens=1)["usage"]["prompt_tokens"]
        for turns in (0, 1, 2, MAX_TURNS, MAX_TURNS + 1, 60)
    ]  # fmt: skip
    step = counts[1] - counts[0]
    assert counts[2] - counts[1] == step
    assert counts[3] == counts[4] == counts[5] == counts[0] + MAX_TURNS * step
    long = user("高血压怎么办？", "要少吃盐，" * 80, question, "好。", question)
    newest = user(question, "好。", question)
    prompts = [ask(server, CHAT, messages=m, max_tokens=1)["usage"]["prompt_tokens"] for m in (long, newest)]
    assert prompts[0] == prompts[1] < server.window
    for role in ("system", "developer"):
        with_system = [{"role": role, "content": "你是医生。"}, *user(question)]
        assert ask(server, CHAT, messages=with_system, max_tokens=1)["usage"]["prompt_tokens"] == counts[0]


def test_a_bound_beyond_the_window_is_the_window(server: Server) -> None:
    answer = ask(server, CHAT, messages=user(PROMPT), max_tokens=10**6, ignore_eos=True)
    assert answer["usage"]["total_tokens"] == server.window
    assert answer["choices"][0]["finish_reason"] == "length"


def test_refusals_name_the_field_and_the_numbers(server: Server) -> None:
    window = server.window
    message = server.post({"prompt": [9] * window, "max_tokens": 1}, path=COMPLETIONS).error(
        400, "context_length_exceeded", "prompt"
    )
    assert all(str(number) in message for number in (window, 1))
    long = {"messages": user("盐" * 9 * window)}
    message = server.post(long, path=CHAT).error(400, "context_length_exceeded", "messages")
    assert str(window) in message
    message = server.post({"input": ["a", [9] * (window + 1)]}, path=EMBEDDINGS).error(400, "invalid_value", "input")
    message = server.post({"input": [9] * (window + 1)}, path=EMBEDDINGS).error(400, "context_length_exceeded", "input")
    assert str(window + 1) in message
    wrong: list[tuple[str, str, dict[str, Any]]] = [
        (COMPLETIONS, "prompt", {"prompt": [server.vocabulary]}),
        (EMBEDDINGS, "input", {"input": [server.vocabulary]}),
        (EMBEDDINGS, "input", {"input": " "}),
        (EMBEDDINGS, "dimensions", {"input": "a", "dimensions": 3}),
        (CHAT, "messages", {"messages": user("a", "b")}),
        (CHAT, "messages", {"messages": user("")}),
        (CHAT, "messages", {"messages": [{"role": "system", "content": "a"}]}),
    ]
    for path, name, fields in wrong:
        server.post(fields, path=path).error(400, "invalid_value", name)
    right: dict[str, dict[str, Any]] = {
        COMPLETIONS: {"prompt": "a"},
        CHAT: {"messages": user("a")},
        EMBEDDINGS: {"input": "a"},
    }
    for path, fields in right.items():
        server.post(fields | {"model": "x"}, path=path).error(404, "model_not_found", "model")
        server.get(path).error(405, "method_not_allowed")
        server.request("POST", path, b"{").error(400, "invalid_json")
    server.get("/v1/models/x").error(404, "model_not_found", "model")


def test_a_refusal_of_a_stream_is_a_plain_one(server: Server) -> None:
    server.post({"prompt": "a", "max_tokens": 10**6, "stream": True}, path=COMPLETIONS).error(
        400, "context_length_exceeded", "prompt"
    )


def test_browsers_may_call(server: Server) -> None:
    origin = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    asked = {"Access-Control-Request-Headers": "authorization,content-type,x-stainless-os"}
    preflight = server.request("OPTIONS", CHAT, headers=origin | asked)
    assert preflight.headers["Access-Control-Allow-Origin"] == "*"
    assert preflight.headers["Access-Control-Allow-Headers"] == "authorization,content-type,x-stainless-os"
    reply = server.post({"messages": user(PROMPT), "stream": True, "max_tokens": 1}, {"Origin": "null"}, path=CHAT)
    assert reply.headers["Access-Control-Allow-Origin"] == "*"


def test_embeddings_by_ids_and_in_both_encodings(server: Server) -> None:
    ids = [BEGIN, *ids_of(server, PROMPT)]
    answer = ask(server, EMBEDDINGS, input=[PROMPT, "hello"], user="u")
    vectors = [np.array(entry["embedding"], np.float32) for entry in answer["data"]]
    assert [entry["index"] for entry in answer["data"]] == [0, 1]
    assert np.linalg.norm(vectors[0]) == pytest.approx(1, abs=1e-5)
    (one,) = ask(server, EMBEDDINGS, input=ids, encoding_format="base64", dimensions=len(vectors[0]))["data"]
    assert np.frombuffer(base64.b64decode(one["embedding"]), "<f4") == pytest.approx(vectors[0], abs=1e-7)
    assert answer["usage"]["prompt_tokens"] > len(ids)


def assert_alike(one: Any, other: Any) -> None:
    """The same but for rounding: the step in torch sums in another order for another company."""
    if isinstance(one, float):
        assert one == pytest.approx(other, abs=1e-3)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_alike(*pair)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert_alike(value, other[name])
    else:
        assert one == other


def test_many_kinds_of_requests_at_once_give_what_each_gives_alone(server: Server) -> None:
    asked: list[tuple[str, dict[str, Any]]] = [
        (COMPLETIONS, {"prompt": [PROMPT, "春天"], "n": 4, "seed": 1, "max_tokens": 20, "logprobs": 3, "echo": True}),
        (COMPLETIONS, {"prompt": PROMPT, "n": 4, "seed": 2, "max_tokens": 20, "frequency_penalty": 1.0}),
        (CHAT, {"messages": user("失眠怎么办？"), "n": 3, "seed": 3, "logprobs": True, "top_logprobs": 2}),
        (CHAT, {"messages": user("糖尿病吃什么？"), "n": 3, "seed": 4, "stop": ["。"]}),
        (EMBEDDINGS, {"input": [PROMPT, "春天"] * 4}),
    ]

    def answer(one: tuple[str, dict[str, Any]]) -> Any:
        given = ask(server, one[0], **one[1])
        return given.get("choices") or given["data"]

    alone = [answer(one) for one in asked]
    with ThreadPoolExecutor(10) as pool:
        together = list(pool.map(answer, asked * 4))
    assert_alike(together, alone * 4)


def test_many_prompts_do_not_fill_the_queue(server: Server) -> None:
    fields: dict[str, Any] = {"prompt": [PROMPT] * 256, "max_tokens": 2, "seed": 1}

    def whole(_: int) -> set[str]:
        return set(texts(ask(server, COMPLETIONS, **fields)))

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(whole, range(3)))
    assert results == [results[0]] * 3
    assert len(results[0]) == 1
    streamed = chunks(server, COMPLETIONS, **fields)
    assert {choice["index"] for chunk in streamed for choice in chunk["choices"]} == set(range(256))


@pytest.mark.parametrize("streams", [False, True])
def test_a_drain_waits_for_all_prompts_of_a_request(start_slow_server: ServerFactory, streams: bool) -> None:
    server = start_slow_server("--max-rows", "64")
    server.slow_down()
    fields: dict[str, Any] = {"prompt": [PROMPT] * 128, "max_tokens": 50, "ignore_eos": True, "seed": 1}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            lambda: chunks(server, COMPLETIONS, **fields) if streams else ask(server, COMPLETIONS, **fields)
        )
        server.wait_for_rows(lambda rows: rows > 0)
        server.process.send_signal(signal.SIGTERM)
        server.wait_until("/ready", 503)
        assert not waiting.done()  # most prompts have not been given to the engine
        answer: Any = waiting.result(60)
    choices = [choice for chunk in answer for choice in chunk["choices"]] if streams else answer["choices"]
    finished = [choice["index"] for choice in choices if choice["finish_reason"] == "length"]
    assert sorted(finished) == list(range(128))
    assert server.process.wait(15) == 0


def test_a_reader_who_leaves_frees_the_engine(server: Server) -> None:
    body = json.dumps({"prompt": [PROMPT] * 8, "n": 8, "max_tokens": 200, "ignore_eos": True, "stream": True})
    for _ in range(3):
        with server.connect() as connection:
            connection.sendall(server.http(body, "Content-Type: application/json", line=f"POST {COMPLETIONS} HTTP/1.1"))
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    assert ask(server, COMPLETIONS, prompt=PROMPT, max_tokens=1)["choices"]


@pytest.mark.parametrize(
    ("path", "fields", "answer", "event"),
    [
        (COMPLETIONS, {"prompt": PROMPT, "n": 2, "max_tokens": 3}, "CompletionAnswer", "CompletionChunk"),
        (
            COMPLETIONS,
            {"prompt": [[BEGIN, 9]], "max_tokens": 3, "echo": True, "logprobs": 2},
            "CompletionAnswer",
            "CompletionChunk",
        ),
        (CHAT, {"messages": user(PROMPT), "n": 2}, "ChatCompletion", "ChatCompletionChunk"),
        (
            CHAT,
            {"messages": user(PROMPT), "logprobs": True, "top_logprobs": 2},
            "ChatCompletion",
            "ChatCompletionChunk",
        ),
        (EMBEDDINGS, {"input": ["a", "b"]}, "EmbeddingsAnswer", None),
        (EMBEDDINGS, {"input": "a", "encoding_format": "base64"}, "EmbeddingsAnswer", None),
    ],
)
def test_answers_are_as_the_openapi_document_says(
    server: Server, path: str, fields: dict[str, Any], answer: str, event: str | None
) -> None:
    check(ask(server, path, **fields), answer)
    for options in ({}, {"stream_options": {"include_usage": True}}) if event else ():
        for chunk in chunks(server, path, **fields, **options):
            check(chunk, str(event))
    (model,) = server.get("/v1/models").json["data"]
    check(server.get("/v1/models").json, "ModelList")
    check(server.get(f"/v1/models/{model['id']}").json, "ModelEntry")


def test_what_became_of_a_request_is_told(server: Server) -> None:
    def counted(name: str) -> float:
        lines = server.get("/metrics").body.decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    before = counted("promptgen_answered_prompt_tokens")
    reply = server.post({"prompt": [PROMPT, PROMPT], "max_tokens": 2}, path=COMPLETIONS)
    assert "decode;dur=" in reply.headers["Server-Timing"]
    chunks(server, CHAT, messages=user(PROMPT), max_tokens=2)
    after = counted("promptgen_answered_prompt_tokens")
    chat = ask(server, CHAT, messages=user(PROMPT), max_tokens=2)["usage"]["prompt_tokens"]
    assert after - before == reply.json["usage"]["prompt_tokens"] + chat
