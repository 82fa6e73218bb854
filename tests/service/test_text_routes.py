"""POST /tokenize and /detokenize: what the vocabulary makes of a text and of ids, their bounds, and that long texts hold nobody up."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from promptgen.config import DEFAULT_MODEL, EngineSettings
from promptgen.errors import Overloaded
from promptgen.generation.async_engine import AsyncEngine
from promptgen.server.text_routes import MAX_LONG_TEXTS, check_ids, tokens_json
from promptgen.text.bytepair import BYTE_OF, BytePairTokenizer
from promptgen.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.service.conftest import Server

TOKENIZER = load_tokenizer(DEFAULT_MODEL)
TEXTS = [
    "高血压要注意",
    "Playing good, 你好 3.14",
    "囧 no 𠀀 such 字",
    "",
    "   ",
    "a\nb\tc",
    "[SEP] 今天 [UNK]",
    "ＦＵＬＬ ｗｉｄｔｈ",
    "😀" * 10,
    "x" * 500,
]


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_those_the_model_reads(server: Server, text: str) -> None:
    reply = server.post({"text": text}, path="/tokenize")
    assert reply.status == 200
    ids = TOKENIZER.encode(text)
    expected = [{"id": i, "token": token} for i, token in zip(ids, TOKENIZER.convert(ids), strict=True)]
    assert reply.json == {"tokens": expected, "count": len(ids)}


def test_the_prompt_of_a_request_has_one_token_more_the_one_that_begins_it(server: Server) -> None:
    text = "高血压要注意 "
    count = server.post({"text": text}, path="/tokenize").json["count"]
    usage = server.generate(context=text, maxlength=1, samples=1, details=True)["usage"]
    assert usage["prompt_tokens"] == count + 1


@pytest.mark.parametrize("text", ["高血压要注意饮食。", "how can i lower my risk of malaria?"])
def test_detokenize_gives_the_text_back(server: Server, text: str) -> None:
    ids = [token["id"] for token in server.post({"text": text}, path="/tokenize").json["tokens"]]
    reply = server.post({"ids": ids}, path="/detokenize")
    assert (reply.status, reply.json) == (200, {"text": text})


def test_no_ids_are_no_text(server: Server) -> None:
    assert server.post({"ids": []}, path="/detokenize").json == {"text": ""}


def test_the_last_id_of_the_vocabulary_is_one_and_the_next_is_not(server: Server) -> None:
    assert server.post({"ids": [server.vocabulary - 1]}, path="/detokenize").status == 200
    message = server.post({"ids": [0, server.vocabulary]}, path="/detokenize").error(400, "invalid_value", "ids")
    assert message.startswith(f"ids[1] is {server.vocabulary}, which is outside the vocabulary of {server.vocabulary}")


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        ("/tokenize", {}, "missing_field", "text"),
        ("/tokenize", {"text": 1}, "invalid_value", "text"),
        ("/tokenize", {"text": None}, "invalid_value", "text"),
        ("/tokenize", {"text": ["a"]}, "invalid_value", "text"),
        ("/tokenize", {"text": "a", "context": "b"}, "unknown_field", "context"),
        ("/detokenize", {}, "missing_field", "ids"),
        ("/detokenize", {"ids": 1}, "invalid_value", "ids"),
        ("/detokenize", {"ids": "1"}, "invalid_value", "ids"),
        ("/detokenize", {"ids": [-1]}, "invalid_value", "ids"),
        ("/detokenize", {"ids": [1.0]}, "invalid_value", "ids"),
        ("/detokenize", {"ids": [True]}, "invalid_value", "ids"),
        ("/detokenize", {"ids": [None]}, "invalid_value", "ids"),
        ("/detokenize", {"ids": [[1]]}, "invalid_value", "ids"),
        ("/detokenize", {"ids": [10**300]}, "invalid_value", "ids"),
        ("/detokenize", {"ids": [1], "text": ""}, "unknown_field", "text"),
    ],
)
def test_what_is_wrong_is_named(server: Server, path: str, body: dict[str, Any], code: str, param: str) -> None:
    server.post(body, path=path).error(400, code, param)


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"nonsense", 400, "invalid_json"),
        (b"[]", 400, "invalid_json"),
        (b'{"text": "a", "text": "b"}', 400, "duplicate_key"),
        (b'{"text": "\\u0000"}', 400, "invalid_text"),
        (b'{"text": "\\ud800"}', 400, "invalid_text"),
        (b'{"text": "' + b"a" * 66_000 + b'"}', 413, "body_too_large"),
    ],
)
@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_bodies_pass_the_same_door(server: Server, path: str, raw: bytes, status: int, code: str) -> None:
    reply = server.request("POST", path, raw, {"Content-Type": "application/json"})
    assert reply.status == status
    assert reply.json["error"]["code"] == code


def test_ascii_is_for_consoles(server: Server) -> None:
    reply = server.post({"text": "高血压"}, path="/tokenize?ascii=1")
    assert reply.body.isascii()
    assert reply.json["tokens"][0]["token"] == "高血压"
    ids = [token["id"] for token in reply.json["tokens"]]
    assert server.post({"ids": ids}, path="/detokenize?ascii=1").body.isascii()


def test_gbk_is_read_here_too(server: Server) -> None:
    body = json.dumps({"text": "高血压"}, ensure_ascii=False).encode("gbk")
    assert server.request("POST", "/tokenize", body).json["tokens"][0]["token"] == "高血压"


def test_a_long_text_is_whole(server: Server) -> None:
    text = "高血压要注意饮食，" * 1000
    reply = server.post({"text": text}, path="/tokenize")
    assert [token["id"] for token in reply.json["tokens"]] == TOKENIZER.encode(text)
    ids = [token["id"] for token in reply.json["tokens"]]
    assert server.post({"ids": ids}, path="/detokenize").json == {"text": text}


def test_long_texts_hold_nobody_up_and_too_many_are_refused(server: Server) -> None:
    body = json.dumps({"text": "a b " * 16_000}).encode()
    waits: list[float] = []
    over = threading.Event()

    def probe() -> None:
        while not over.is_set():
            began = time.monotonic()
            assert server.get("/health").status == 200
            waits.append(time.monotonic() - began)

    probing = threading.Thread(target=probe)
    probing.start()
    with ThreadPoolExecutor(3 * MAX_LONG_TEXTS) as pool:
        replies = list(pool.map(lambda _: server.request("POST", "/tokenize", body), range(3 * MAX_LONG_TEXTS)))
    over.set()
    probing.join()
    served = [reply for reply in replies if reply.status == 200]
    assert len({reply.body for reply in served}) == 1
    assert served[0].json["count"] == 32_000
    for reply in replies:
        if reply.status != 200:
            reply.error(503, "overloaded")
            assert reply.headers["Retry-After"] == "1"
    assert sorted(waits)[len(waits) // 2] < 0.5


# -- without a process ---------------------------------------------------------------------------------------------------


def test_stretches_join_to_one_document() -> None:
    text = "高血压要注意 " * 700
    value = json.loads(tokens_json(TOKENIZER, text, ascii_only=False))
    assert [token["id"] for token in value["tokens"]] == TOKENIZER.encode(text)
    assert value["count"] == len(value["tokens"]) > 1000


def test_an_id_too_large_to_show_is_told_by_its_place() -> None:
    with pytest.raises(Exception, match=r"^ids\[0\] is outside the vocabulary of 5 tokens$"):
        check_ids([10**40], 5)


def test_byte_level_tokens_have_entries_too(tmp_path: Path) -> None:
    entries = {char: index for index, char in enumerate([*BYTE_OF, "he", "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(entries), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("h e\n", encoding="utf-8")
    tokenizer = BytePairTokenizer(tmp_path)
    value = json.loads(tokens_json(tokenizer, "he é", ascii_only=False))
    assert [token["token"] for token in value["tokens"]] == ["he", "Ġ", "Ã", "©"]
    assert tokenizer.decode([token["id"] for token in value["tokens"]]) == "he é"


def test_an_engine_that_answers_nothing_lends_no_vocabulary() -> None:
    with pytest.raises(Overloaded, match="the service is new"):
        AsyncEngine(EngineSettings()).tokenizer  # noqa: B018
