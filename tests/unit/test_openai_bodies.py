"""The bodies of /v1: what is taken, ignored and refused, as docs/openai.md has it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from promptgen.server.faults import HttpFault
from promptgen.server.openai.models import IGNORED, REFUSED, ChatCompletionBody, CompletionBody, EmbeddingBody, parse

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "openai.md").read_text(encoding="utf-8")
ROUTES: dict[str, type[BaseModel]] = {
    "/v1/completions": CompletionBody,
    "/v1/chat/completions": ChatCompletionBody,
    "/v1/embeddings": EmbeddingBody,
}
LEAST: dict[type[BaseModel], dict[str, Any]] = {
    CompletionBody: {"prompt": "a"},
    ChatCompletionBody: {"messages": [{"role": "user", "content": "a"}]},
    EmbeddingBody: {"input": "a"},
}
EXTENSIONS = {"top_k", "repetition_penalty", "min_tokens", "ignore_eos", "heal", "distinct", "rank"}
ANYTHING: list[Any] = [True, 7, "text", ["x"], {"a": 1}]


def table(route: str) -> dict[str, str]:
    """Field to state, as the document says."""
    section = DOCUMENT.partition(f"## POST {route}\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", section, re.MULTILINE))


def checked(model: type[BaseModel], **fields: Any) -> None:
    body = parse(model, LEAST[model] | fields)
    if not isinstance(body, EmbeddingBody):
        body.check()  # type: ignore[attr-defined]


def refusal(model: type[BaseModel], **fields: Any) -> HttpFault:
    with pytest.raises(HttpFault) as refused:
        checked(model, **fields)
    assert refused.value.status == 400
    return refused.value


@pytest.mark.parametrize("route", ROUTES)
def test_the_document_tells_what_the_code_does(route: str) -> None:
    model = ROUTES[route]
    told = table(route)
    states = {name: "extension" if name in EXTENSIONS else "implemented" for name in model.model_fields}
    states |= dict.fromkeys(IGNORED[model], "ignored") | dict.fromkeys(REFUSED[model], "refused")
    if model is EmbeddingBody:
        states["dimensions"] = "refused"  # but for one value
    assert told == states


@pytest.mark.parametrize(("model", "name"), [(model, name) for model, names in IGNORED.items() for name in names])
def test_what_is_ignored_may_be_anything(model: type[BaseModel], name: str) -> None:
    plain = parse(model, LEAST[model])
    assert all(parse(model, LEAST[model] | {name: value}) == plain for value in [None, *ANYTHING])


@pytest.mark.parametrize(
    ("model", "name", "harmless"), [(m, name, values) for m, names in REFUSED.items() for name, values in names.items()]
)
def test_what_is_refused_names_itself_unless_it_asks_for_nothing(
    model: type[BaseModel], name: str, harmless: tuple[Any, ...]
) -> None:
    plain = parse(model, LEAST[model])
    assert all(parse(model, LEAST[model] | {name: value}) == plain for value in harmless)
    for value in ANYTHING:
        fault = refusal(model, **{name: value})
        assert (fault.param, fault.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize("model", ROUTES.values())
def test_an_unknown_field_is_refused_and_a_null_one_left_out(model: type[BaseModel]) -> None:
    fault = refusal(model, foo=1)
    assert (fault.param, fault.code) == ("foo", "unknown_field")
    assert refusal(model, foo=None).param == "foo"
    optional = {name: None for name, field in model.model_fields.items() if not field.is_required()}
    assert parse(model, LEAST[model] | optional) == parse(model, LEAST[model])
    (required,) = LEAST[model]
    with pytest.raises(HttpFault) as missing:
        parse(model, {})
    assert (missing.value.code, missing.value.param) == ("missing_field", required)
    assert refusal(model, **{required: None}).param == required


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ("text", ["text"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [(1, 2)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
    ],
)
def test_prompts_come_in_four_ways(given: Any, texts: list[Any]) -> None:
    assert parse(CompletionBody, {"prompt": given}).prompts == texts
    assert parse(EmbeddingBody, {"input": given}).inputs == texts


@pytest.mark.parametrize(
    "given", [[], [[]], [1, "a"], [[1], "a"], 7, {"a": 1}, [-1], [1.5], [True], [[[1]]], ["a"] * 257]
)
def test_what_is_no_prompt_is_refused_with_what_one_is(given: Any) -> None:
    fault = refusal(CompletionBody, prompt=given)
    assert fault.param == "prompt"
    assert "token ids" in fault.message
    assert refusal(EmbeddingBody, input=given).param == "input"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"distinct": True, "stream": True}, "distinct"),
        ({"distinct": True, "logprobs": 1}, "distinct"),
        ({"distinct": True, "presence_penalty": 1.0}, "distinct"),
        ({"distinct": True, "frequency_penalty": 1.0}, "distinct"),
        ({"rank": "likelihood", "stream": True}, "rank"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"heal": True, "logprobs": 1}, "heal"),
        ({"heal": True, "prompt": [1]}, "heal"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"prompt": ["a"] * 100, "n": 3}, "n"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options"),
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"n": True}, "n"),
        ({"n": 1.0}, "n"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"stop": ""}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"seed": 2**63}, "seed"),
        ({"rank": "best"}, "rank"),
    ],
)
def test_faults_of_completions_name_their_field(fields: dict[str, Any], param: str) -> None:
    assert refusal(CompletionBody, **fields).param == param


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "a"} | fields]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "a"}, "messages"),
        (message(role="tool"), "messages"),
        (message(content=None), "messages"),
        (message(content=[]), "messages"),
        (message(content=[{"type": "image_url", "image_url": {"url": "a"}}]), "messages"),
        (message(content=[{"type": "text", "text": 1}]), "messages"),
        (message(tool_calls=[{"id": "1"}]), "messages"),
        (message(foo=1), "messages"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 2}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 3, "min_tokens": 4}, "min_tokens"),
        ({"distinct": True, "stream": True}, "distinct"),
        ({"distinct": True, "logprobs": True}, "distinct"),
        ({"distinct": True, "presence_penalty": 1.0}, "distinct"),
        ({"distinct": True, "frequency_penalty": 1.0}, "distinct"),
        ({"heal": True}, "heal"),
    ],
)
def test_faults_of_chat_name_their_field(fields: dict[str, Any], param: str) -> None:
    assert refusal(ChatCompletionBody, **fields).param == param


def test_a_message_may_be_parts_and_may_come_back_as_it_was_given() -> None:
    given = {"role": "assistant", "content": "b", "refusal": None, "tool_calls": None, "annotations": [], "audio": None}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = parse(ChatCompletionBody, {"messages": [{"role": "user", "content": parts, "name": "n"}, given]})
    assert [(m.role, m.text) for m in body.messages] == [("user", "ab"), ("assistant", "b")]


def test_the_newer_name_of_the_bound_goes_over_the_older() -> None:
    assert parse(ChatCompletionBody, message() | {"max_tokens": 5}).most_tokens == 5
    assert parse(ChatCompletionBody, message() | {"max_tokens": 5, "max_completion_tokens": 7}).most_tokens == 7
