"""Several contexts in one request: a list of results for each, each as if it had been asked alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.service.conftest import Server

CONTEXTS = ["高血压要注意", "写一首诗", "hello", "高血压要注意"]
SHORT = {"samples": 2, "maxlength": 6}


def test_each_context_is_answered_as_it_is_alone_with_the_seed_plus_its_place(server: Server) -> None:
    together = server.generate(context=CONTEXTS, seed=7, **SHORT)["result"]
    alone = [server.generate(context=text, seed=7 + k, **SHORT)["result"] for k, text in enumerate(CONTEXTS)]
    assert together == alone
    assert together[0] != together[3]
    assert server.generate(context=CONTEXTS, seed=7, **SHORT)["result"] == together


def test_a_list_of_one_is_a_list(server: Server) -> None:
    assert server.generate(context=["高血压"], seed=1, **SHORT)["result"] == [
        server.generate(context="高血压", seed=1, **SHORT)["result"]
    ]


def test_blank_contexts_give_empty_lists_and_no_context_gives_none(server: Server) -> None:
    result = server.generate(context=["", "高血压", " \n\u3000"], seed=3, **SHORT)["result"]
    assert [len(each) for each in result] == [0, 2, 0]
    assert result[1] == server.generate(context="高血压", seed=4, **SHORT)["result"]
    assert server.generate(context=[" ", ""], **SHORT)["result"] == [[], []]
    assert server.generate(context=[])["result"] == []


def test_details_are_those_of_each_and_their_sum(server: Server) -> None:
    answer = server.generate(context=[*CONTEXTS, " "], details=True, **SHORT)
    assert set(answer) == {"result", "time", "contexts", "usage", "model"}
    assert len(answer["contexts"]) == 5
    for one, result in zip(answer["contexts"], answer["result"], strict=True):
        assert [candidate["text"] for candidate in one["candidates"]] == result
        assert one["timing"]["total"] >= 0
    assert answer["contexts"][4]["usage"] == {"prompt_tokens": 0, "completion_tokens": 0}
    seeds = [one["seed"] for one in answer["contexts"]]
    assert seeds == list(range(seeds[0], seeds[0] + 5))
    for name in ("prompt_tokens", "completion_tokens"):
        assert answer["usage"][name] == sum(one["usage"][name] for one in answer["contexts"])
    again = server.generate(context=CONTEXTS[2], seed=seeds[2], **SHORT)
    assert again["result"] == answer["result"][2]


def test_seeds_go_round_at_the_end_of_the_range(server: Server) -> None:
    answer = server.generate(context=["高", "血"], seed=2**63 - 1, details=True, **SHORT)
    assert [one["seed"] for one in answer["contexts"]] == [2**63 - 1, -(2**63)]


def test_everything_else_of_a_request_holds_for_all(server: Server) -> None:
    result = server.generate(context=CONTEXTS, choices=["饮食", "运动"], echo=False)["result"]
    assert [sorted(each) for each in result] == [["运动", "饮食"]] * 4
    greedy = server.generate(context=["高血压", "高血压"], temperature=0, distinct=False, samples=1, maxlength=5)
    assert greedy["result"][0] == greedy["result"][1]


def test_sixty_four_contexts_are_answered(server: Server) -> None:
    contexts = [f"第{k}件事" for k in range(64)]
    result = server.generate(context=contexts, samples=16, maxlength=2, distinct=False)["result"]
    assert [len(each) for each in result] == [16] * 64
    assert all(text.startswith(context) for context, each in zip(contexts, result, strict=True) for text in each)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"context": ["高血压"] * 65}, "context"),
        ({"context": ["高血压", 5]}, "context"),
        ({"context": ["高血压", None]}, "context"),
        ({"context": [["高血压"]]}, "context"),
        ({"context": ["高血压", "\0"]}, "context"),
        ({"context": ["高血压"] * 17, "samples": 64}, "samples"),
        ({"context": ["高血压"] * 52, "choices": ["一", "二"] * 10}, "samples"),
        ({"context": ["高血压"], "stream": True}, "stream"),
        ({"context": ["高血压"], "session": "me"}, "session"),
    ],
)
def test_what_cannot_be_asked_of_several_is_refused(server: Server, fields: dict[str, Any], param: str) -> None:
    reply = server.post(fields)
    reply.error(400, reply.json["error"]["code"], param)


def test_the_context_that_is_too_long_is_named_and_nothing_is_begun(server: Server) -> None:
    reply = server.post({"context": ["", "高血压", "高血压" * 300], "samples": 2})
    assert "context[2]" in reply.error(400, "context_length_exceeded", "context")
    reply = server.post({"context": ["高血压", "写一首诗"], "maxlength": 10_000})
    assert "context[0]" in reply.error(400, "context_length_exceeded", "context")


def test_a_list_in_a_foreign_encoding_is_read_as_one_text_is(server: Server) -> None:
    body = json.dumps({"context": ["高血压要注意"], "seed": 7, **SHORT}, ensure_ascii=False).encode("gb18030")
    reply = server.request("POST", "/generate", body, {"Content-Type": "application/json"})
    assert reply.json["result"] == server.generate(context=["高血压要注意"], seed=7, **SHORT)["result"]
