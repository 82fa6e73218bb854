"""The official openai package, unmodified, against a real process: what it sends is understood, what it gets it can read."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import openai
import pytest
from openai import OpenAI

from tests.service.conftest import Server, ServerFactory

PROMPT = "高血压要注意"
QUESTION = [{"role": "user", "content": "高血压要注意什么？"}]
KEY = "sk-0123456789"


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with open_client(server) as opened:
        yield opened


def open_client(server: Server, key: str = "none", **options: object) -> OpenAI:
    http = openai.DefaultHttpxClient(trust_env=False)
    return OpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1", api_key=key, max_retries=0, http_client=http, **options
    )  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(client: OpenAI) -> str:
    (only,) = client.models.list().data
    assert client.models.retrieve(only.id) == only
    return only.id


def test_a_completion_and_its_usage(client: OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=6, n=3, seed=1, temperature=1)
    assert answer.object == "text_completion"
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert all(choice.finish_reason in ("stop", "length") for choice in answer.choices)
    assert all(choice.text and not choice.text.startswith(PROMPT) for choice in answer.choices)
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    again = client.completions.create(model=model, prompt=PROMPT, max_tokens=6, n=3, seed=1, temperature=1)
    assert [choice.text for choice in again.choices] == [choice.text for choice in answer.choices]
    assert again.system_fingerprint == answer.system_fingerprint


def test_a_streamed_completion_is_the_whole_one(client: OpenAI, model: str) -> None:
    asked = {
        "model": model,
        "prompt": [PROMPT, "春天"],
        "max_tokens": 12,
        "n": 2,
        "seed": 3,
        "echo": True,
        "logprobs": 2,
    }
    whole = client.completions.create(**asked)  # type: ignore[call-overload]
    texts: dict[int, str] = defaultdict(str)
    tokens: dict[int, list[str]] = defaultdict(list)
    logprobs: dict[int, list[float | None]] = defaultdict(list)
    reasons: dict[int, str] = {}
    usage = None
    for chunk in client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):  # type: ignore[call-overload]
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            tokens[choice.index] += choice.logprobs.tokens
            logprobs[choice.index] += choice.logprobs.token_logprobs
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert usage == whole.usage
    for choice in whole.choices:
        assert texts[choice.index] == choice.text
        assert tokens[choice.index] == choice.logprobs.tokens
        assert logprobs[choice.index] == choice.logprobs.token_logprobs
        assert reasons[choice.index] == choice.finish_reason


def test_a_chat_answer(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=QUESTION, n=2, seed=4, max_completion_tokens=40)  # type: ignore[arg-type]
    assert len(answer.choices) == 2
    for choice in answer.choices:
        assert choice.message.role == "assistant"
        assert choice.message.content
        assert choice.message.tool_calls is None
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 2


def test_a_streamed_chat_answer_is_the_whole_one(client: OpenAI, model: str) -> None:
    asked = {
        "model": model,
        "messages": QUESTION,
        "n": 2,
        "seed": 5,
        "max_tokens": 40,
        "logprobs": True,
        "top_logprobs": 3,
    }
    whole = client.chat.completions.create(**asked)  # type: ignore[call-overload]
    texts: dict[int, str] = defaultdict(str)
    content: dict[int, list[object]] = defaultdict(list)
    first: dict[int, object] = {}
    reasons: dict[int, str] = {}
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))  # type: ignore[call-overload]
    for chunk in chunks:
        for choice in chunk.choices:
            first.setdefault(choice.index, choice.delta)
            texts[choice.index] += choice.delta.content or ""
            content[choice.index] += choice.logprobs.content if choice.logprobs else []
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert chunks[-1].usage == whole.usage
    assert chunks[-1].choices == []
    for choice in whole.choices:
        assert (first[choice.index].role, first[choice.index].content) == ("assistant", "")  # type: ignore[attr-defined]
        assert texts[choice.index] == choice.message.content == "".join(t.token for t in choice.logprobs.content)
        assert content[choice.index] == choice.logprobs.content
        assert reasons[choice.index] == choice.finish_reason


def test_the_accumulating_stream_helper(client: OpenAI, model: str) -> None:
    with client.chat.completions.stream(model=model, messages=QUESTION, seed=6) as stream:  # type: ignore[arg-type]
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    whole = client.chat.completions.create(model=model, messages=QUESTION, seed=6)  # type: ignore[arg-type]
    assert final.choices[0].message.content == whole.choices[0].message.content


def test_embeddings_are_alike_for_what_is_alike_in_both_encodings(client: OpenAI, model: str) -> None:
    texts = ["高血压要少吃盐", "高血压患者要少吃盐", "写一首关于春天的诗"]
    by_default = client.embeddings.create(model=model, input=texts)  # the package asks for base64
    as_floats = client.embeddings.create(model=model, input=texts, encoding_format="float")
    vectors = np.array([entry.embedding for entry in by_default.data])
    assert np.allclose(vectors, [entry.embedding for entry in as_floats.data], atol=1e-7)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > far
    assert by_default.usage.prompt_tokens == by_default.usage.total_tokens > 3


def test_errors_are_the_classes_that_clients_catch(client: OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError) as not_found:
        client.completions.create(model="gpt-9", prompt=PROMPT)
    assert not_found.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model=model,
            messages=QUESTION,
            tools=[{"type": "function", "function": {"name": "f"}}],  # type: ignore[arg-type]
        )
    assert (refused.value.param, refused.value.code) == ("tools", "unsupported_parameter")
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=model, prompt=PROMPT, max_tokens=10**6)
    assert (refused.value.param, refused.value.code) == ("prompt", "context_length_exceeded")
    assert refused.value.type == "invalid_request_error"


def test_a_wrong_key_and_a_right_one(start_server: ServerFactory) -> None:
    server = start_server(PROMPTGEN_API_KEYS=KEY)
    with open_client(server, "sk-wrong") as wrong, pytest.raises(openai.AuthenticationError):
        wrong.models.list()
    with open_client(server, KEY) as right:
        (model,) = right.models.list().data
        assert right.completions.create(model=model.id, prompt=PROMPT, max_tokens=1).choices


@pytest.mark.parametrize("seed", range(8))
def test_a_stop_string_that_falls_across_tokens_is_never_partly_shown(client: OpenAI, model: str, seed: int) -> None:
    asked = {"model": model, "messages": QUESTION, "seed": seed, "max_tokens": 30}
    tokens = client.chat.completions.create(**asked, logprobs=True).choices[0].logprobs.content  # type: ignore[call-overload]
    pieces = [token.token for token in tokens]
    at = len(pieces) // 2
    stop = pieces[at][-1:] + pieces[at + 1][:1]  # the end of a token and the beginning of the next
    before = "".join(pieces).partition(stop)[0]
    shown = [
        choice.delta.content or ""
        for chunk in client.chat.completions.create(**asked, stop=[stop], stream=True)  # type: ignore[call-overload]
        for choice in chunk.choices
    ]
    assert all(before.startswith(text) for text in itertools.accumulate(shown))
    assert "".join(shown) == before
    whole = client.chat.completions.create(**asked, stop=[stop]).choices[0]  # type: ignore[call-overload]
    assert (whole.message.content, whole.finish_reason) == (before, "stop")


def test_a_stop_string_that_never_comes_holds_nothing_back(client: OpenAI, model: str) -> None:
    asked = {"model": model, "messages": QUESTION, "seed": 1, "max_tokens": 30}
    whole = client.chat.completions.create(**asked).choices[0].message.content  # type: ignore[call-overload]
    stop = whole[-1] + "绝不会有"  # the answer ends in its beginning
    shown = [
        choice.delta.content or ""
        for chunk in client.chat.completions.create(**asked, stop=stop, stream=True)  # type: ignore[call-overload]
        for choice in chunk.choices
    ]
    assert "".join(shown) == whole
