"""POST /generate to the letter of docs: each field, its default and its effect, whatever the model says."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

import pytest

from promptgen.config import DEFAULT_MODEL as MODEL

if TYPE_CHECKING:
    from tests.service.conftest import Server

PROMPT = "高血压要注意"
SPECIAL = ("[UNK]", "[PAD]", "[MASK]", "[CLS]", "[SEP]")
AS_DRAWN = {"heal": False, "distinct": False, "rank": "none"}
WILD = {"temperature": 2, "top_k": 0, "top_p": 0}  # near uniform: no trained model ends such candidates soon
CONTEXTS = {
    "upper case": "How To TREAT High Blood PRESSURE",
    "full-width": "ＡＢＣ１２３，ｈｅｌｌｏ！　高血压",
    "emoji": "😀👩‍👩‍👧 高血压🇨🇳",
    "accents": "café naïve Ångström e\u0301 Việt",
    "trailing spaces": "高血压  ",
    "leading spaces": "   高血压",
    "inner spaces": "高  血   压\t要",
    "crlf": "第一行\r\n第二行\r\n",
    "lone cr": "a\rb",
    "1000 digits": "0123456789" * 100,
    "spaced digits": "2 0 2 6 年 3.14 1,000",
    "unknown only": "𠀀𪚥𪜀",
    "private use": "\ue000\uf8ff",
    "control": "a\x01\x7fb",
    "replacement": "\ufffd高",
    "byte-order mark": "\ufeff高血压",
    "zero width": "高\u200b血\u200d压",
    "right to left": "שלום مرحبا",
    "quotes": "\"'\\/<script>alert(1)</script>&amp;",
    "specials": "[CLS] [SEP][MASK] [PAD] [UNK] 高血压",
    "unknown special": "<|endoftext|> ##高 ##",
    "long word": "pneumono" * 200,
    "long white space": "高" + " " * 5000 + "血",
}
BLANK = ["", " ", "\n", "\t \r\n", "\u3000\u3000", "\u00a0", "\u2003\u2028\u2029", "\x0b\x0c", " " * 50_000]


def test_the_least_request_gives_five_candidates_that_begin_with_the_context(server: Server) -> None:
    started = time.perf_counter()
    answer = server.generate(context=PROMPT)
    took_s = time.perf_counter() - started
    assert set(answer) == {"result", "time"}
    assert len(answer["result"]) == 5
    assert all(isinstance(text, str) and text.startswith(PROMPT) for text in answer["result"])
    assert isinstance(answer["time"], float)
    assert 0 < answer["time"] < took_s


def test_fifty_tokens_are_the_default(server: Server) -> None:
    answer = server.generate(context=PROMPT, details=True, min_length=50)
    assert [candidate["num_tokens"] for candidate in answer["candidates"]] == [50] * 5
    assert {candidate["finish_reason"] for candidate in answer["candidates"]} == {"length"}


def test_defaults_written_out_are_the_defaults(server: Server) -> None:
    of_model = json.loads((MODEL / "generation_config.json").read_text(encoding="utf-8"))
    written = {"maxlength": 50, "samples": 5}
    written |= {name: of_model[name] for name in ("temperature", "top_k", "top_p", "repetition_penalty")}
    plain = server.generate(context=PROMPT, seed=3)
    spelt = server.generate(context=PROMPT, seed=3, echo=True, stream=False, details=False, stop=None, **written)
    assert plain["result"] == spelt["result"]


@pytest.mark.parametrize(("samples", "count"), [(0, 1), (1, 1), (2, 2), (7, 7), (64, 64)])
def test_samples_are_counted_and_zero_means_one(server: Server, samples: int, count: int) -> None:
    assert len(server.generate(context=PROMPT, samples=samples, maxlength=2, distinct=False)["result"]) == count


def test_zero_and_one_sample_are_the_same_candidate(server: Server) -> None:
    base = {"context": PROMPT, "maxlength": 8, "seed": 5, "rank": "none"}
    zero, one, two = (server.generate(**base, samples=n)["result"] for n in (0, 1, 2))
    assert zero == one == two[:1]


def test_maxlength_counts_new_tokens(server: Server) -> None:
    answer = server.generate(context=PROMPT, maxlength=9, samples=8, details=True, **WILD)
    for candidate in answer["candidates"]:
        assert candidate["num_tokens"] <= 9
        assert (candidate["num_tokens"] == 9) or candidate["finish_reason"] == "stop"
    assert "length" in {candidate["finish_reason"] for candidate in answer["candidates"]}


def test_a_shorter_maxlength_is_the_beginning_of_a_longer_one(server: Server) -> None:
    base = {"context": PROMPT, "seed": 9, "echo": False, **AS_DRAWN}
    short, long = (server.generate(**base, maxlength=n)["result"] for n in (4, 12))
    assert all(b.startswith(a) for a, b in zip(short, long, strict=True))
    assert short != long


def test_echo_off_leaves_the_context_out(server: Server) -> None:
    on, off = (server.generate(context=PROMPT, seed=4, maxlength=6, echo=echo)["result"] for echo in (True, False))
    assert on == [PROMPT + text for text in off]


def test_details_have_the_promised_fields_and_types(server: Server) -> None:
    answer = server.generate(context=PROMPT, details=True, maxlength=6, samples=3, seed=11)
    assert set(answer) == {"result", "time", "candidates", "usage", "timing", "model", "seed", "redrawn", "missing"}
    assert (answer["seed"], answer["missing"]) == (11, 0)
    assert answer["model"] == server.get("/version").json["model"]["name"] == "final_model"
    assert len(answer["candidates"]) == 3
    for text, candidate in zip(answer["result"], answer["candidates"], strict=True):
        assert set(candidate) == {"text", "completion", "num_tokens", "logprob", "score", "finish_reason"}
        assert candidate["text"] == text == PROMPT + candidate["completion"]
        assert type(candidate["num_tokens"]) is int
        assert candidate["num_tokens"] <= 6
        assert isinstance(candidate["logprob"], float)
        assert candidate["logprob"] <= 0
        assert candidate["finish_reason"] in {"stop", "length"}
    assert set(answer["usage"]) == {"prompt_tokens", "completion_tokens"}
    assert answer["usage"]["completion_tokens"] == sum(c["num_tokens"] for c in answer["candidates"])
    assert answer["usage"]["prompt_tokens"] >= 2
    assert set(answer["timing"]) == {"queue", "prefill", "decode", "total"}
    assert all(isinstance(seconds, float) and seconds >= 0 for seconds in answer["timing"].values())
    parts = answer["timing"]["queue"] + answer["timing"]["prefill"] + answer["timing"]["decode"]
    assert parts <= answer["timing"]["total"] + 1e-5
    assert answer["timing"]["total"] == pytest.approx(answer["time"], abs=0.01)


def test_details_change_no_text(server: Server) -> None:
    without, with_details = (server.generate(context=PROMPT, seed=2, details=d)["result"] for d in (False, True))
    assert without == with_details


def test_details_without_echo_have_the_completion_as_text(server: Server) -> None:
    answer = server.generate(context=PROMPT, details=True, echo=False, maxlength=3, samples=2)
    assert (
        [c["completion"] for c in answer["candidates"]] == [c["text"] for c in answer["candidates"]] == answer["result"]
    )


@pytest.mark.parametrize("context", BLANK, ids=lambda text: ascii(text[:6]))
def test_a_blank_context_has_no_candidates(server: Server, context: str) -> None:
    reply = server.post({"context": context})
    assert (reply.status, reply.body) == (200, b'{"result": [], "time": 0}')


def test_a_blank_context_does_not_excuse_a_bad_field(server: Server) -> None:
    server.post({"context": " ", "samples": 65}).error(400, "invalid_value", "samples")


@pytest.mark.parametrize("seed", [0, 1, -1, 42, 2**53, 2**63 - 1, -(2**63)])
def test_the_same_seed_gives_the_same_text(server: Server, seed: int) -> None:
    first, second = (server.generate(context=PROMPT, seed=seed, maxlength=8, details=True) for _ in range(2))
    assert first["result"] == second["result"]
    assert first["seed"] == seed


def test_different_seeds_give_different_text(server: Server) -> None:
    texts = {tuple(server.generate(context=PROMPT, seed=seed, maxlength=12)["result"]) for seed in range(5)}
    assert len(texts) == 5


def test_a_random_seed_differs_each_time_and_can_be_used_again(server: Server) -> None:
    drawn = [server.generate(context=PROMPT, maxlength=6, details=True) for _ in range(4)]
    assert len({answer["seed"] for answer in drawn}) == 4
    assert all(0 <= answer["seed"] < 2**53 for answer in drawn)
    again = server.generate(context=PROMPT, maxlength=6, seed=drawn[0]["seed"])
    assert again["result"] == drawn[0]["result"]


def test_candidates_of_one_request_differ(server: Server) -> None:
    assert len(set(server.generate(context=PROMPT, seed=1, maxlength=12, samples=8)["result"])) > 1


@pytest.mark.parametrize(
    "greedy",
    [
        {"temperature": 0},
        {"temperature": 0.0, "top_k": 0},
        {"top_k": 1},
        {"top_p": 1e-9},
        {"temperature": 0, "top_p": 0.5},
    ],
    ids=str,
)
def test_greedy_is_the_same_for_all_seeds_and_candidates(server: Server, greedy: dict[str, Any]) -> None:
    expected = server.generate(context=PROMPT, temperature=0, samples=1, maxlength=10, seed=1)["result"][0]
    asked = {"context": PROMPT, "samples": 3, "maxlength": 10, "seed": 99, **greedy}
    assert server.generate(**asked, distinct=False)["result"] == [expected] * 3
    distinct = server.generate(**asked)["result"]
    assert expected in distinct
    assert len(set(distinct)) == 3


def test_top_k_zero_is_the_whole_vocabulary(server: Server) -> None:
    off, whole = (server.generate(context=PROMPT, seed=6, top_k=k)["result"] for k in (0, server.vocabulary))
    assert off == whole
    assert off != server.generate(context=PROMPT, seed=6, top_k=2)["result"]


def test_top_p_zero_and_one_are_off(server: Server) -> None:
    zero, one = (server.generate(context=PROMPT, seed=6, top_p=p)["result"] for p in (0, 1))
    assert zero == one
    assert zero != server.generate(context=PROMPT, seed=6, top_p=0.05)["result"]


def test_temperature_changes_the_draw(server: Server) -> None:
    cold, hot = (server.generate(context=PROMPT, seed=6, top_k=0, temperature=t)["result"] for t in (0.1, 2))
    assert cold != hot


def test_repetition_penalty_changes_the_draw(server: Server) -> None:
    contexts = [PROMPT, "好，好，好，好，好，", "com com com com"]
    greedy = {"temperature": 0, "samples": 1, "maxlength": 30}

    def texts(**penalty: float) -> tuple[str, ...]:
        return tuple(server.generate(context=context, **greedy, **penalty)["result"][0] for context in contexts)

    assert len({texts(repetition_penalty=penalty) for penalty in (0.1, 1, 10)}) > 1


@pytest.mark.parametrize(
    "field",
    [{"temperature": 2}, {"temperature": 0}, {"top_p": 1}, {"repetition_penalty": 0.1}, {"repetition_penalty": 10},
     {"top_k": 0}, {"maxlength": 1}, {"seed": None}, {"stop": None}, {"stop": []}, {"stop": "x" * 256}, {"stop": ["y"] * 16}],
    ids=str,
)  # fmt: skip
def test_the_ends_of_each_range_are_inside(server: Server, field: dict[str, Any]) -> None:
    assert len(server.generate(**({"context": PROMPT, "maxlength": 2, "distinct": False} | field))["result"]) == 5


def first_cut(text: str, stops: list[str]) -> str:
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


@pytest.mark.parametrize("as_list", [False, True], ids=["string", "list"])
def test_a_result_is_cut_before_its_first_stop_string(server: Server, as_list: bool) -> None:
    base = {"context": PROMPT, "seed": 8, "maxlength": 20, "echo": False, "details": True, **WILD, **AS_DRAWN}
    whole = server.generate(**base)["result"]
    longest = max(whole, key=len)
    stop = longest[len(longest) // 2 : len(longest) // 2 + 3]
    assert len(stop) == 3
    cut = server.generate(**base, stop=[stop] if as_list else stop)
    assert cut["result"] == [first_cut(text, [stop]) for text in whole]
    stopped = [c["finish_reason"] for c, text in zip(cut["candidates"], whole, strict=True) if stop in text]
    assert stopped
    assert set(stopped) == {"stop"}


def test_the_first_of_several_stop_strings_cuts(server: Server) -> None:
    base = {"context": PROMPT, "seed": 8, "maxlength": 20, "echo": False, **WILD, **AS_DRAWN}
    whole = server.generate(**base)["result"]
    longest = max(whole, key=len)
    stops = [longest[-2:], longest[len(longest) // 3 : len(longest) // 3 + 2], "no such text 0x7f"]
    assert server.generate(**base, stop=stops)["result"] == [first_cut(text, stops) for text in whole]


def test_a_stop_string_in_the_context_does_not_cut_the_echo(server: Server) -> None:
    base = {"context": PROMPT, "seed": 8, "maxlength": 5}
    cut = server.generate(**base, stop=PROMPT[:2])["result"]
    assert all(text.startswith(PROMPT) for text in cut)


def test_ascii_escapes_everything_beyond_ascii(server: Server) -> None:
    fields = {"context": "高血压😀é", "seed": 1, "maxlength": 4}
    raw, escaped = (server.post(fields, path=path) for path in ("/generate", "/generate?ascii=1"))
    assert "高血压😀é".encode() in raw.body
    assert escaped.body.isascii()
    assert rb"\u9ad8\u8840\u538b\ud83d\ude00\u00e9" in escaped.body
    assert raw.json["result"] == escaped.json["result"]


def test_headers_of_an_answer(server: Server) -> None:
    reply = server.post({"context": PROMPT, "maxlength": 1})
    assert reply.headers["Content-Type"] == "application/json; charset=utf-8"
    assert reply.headers["Cache-Control"] == "no-store"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert int(reply.headers["Content-Length"]) == len(reply.body)


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS.keys())
def test_the_context_stands_unchanged_at_the_start_of_every_result(server: Server, context: str) -> None:
    answer = server.generate(context=context, maxlength=3, samples=3, distinct=False)
    assert [text[: len(context)] for text in answer["result"]] == [context] * 3


@pytest.mark.parametrize("context", ["高血压😀", "café", "a\r\nb", "ＡＢＣ"])
def test_raw_utf8_and_escaped_bodies_are_the_same_request(server: Server, context: str) -> None:
    fields = {"context": context, "seed": 3, "maxlength": 4}
    headers = {"Content-Type": "application/json"}
    raw = server.request("POST", "/generate", json.dumps(fields, ensure_ascii=False), headers)
    escaped = server.request("POST", "/generate", json.dumps(fields, ensure_ascii=True), headers)
    assert raw.json["result"] == escaped.json["result"]
    assert context.encode() in raw.body or "\r" in context


@pytest.mark.parametrize("name", SPECIAL)
def test_a_special_token_typed_by_a_user_is_text(server: Server, name: str) -> None:
    answer = server.generate(context=f"高血压{name}要注意", maxlength=4, samples=2)
    assert all(text.startswith(f"高血压{name}要注意") for text in answer["result"])


def test_special_tokens_never_reach_a_candidate(server: Server) -> None:
    texts = server.generate(context=PROMPT, samples=64, maxlength=20, seed=1, echo=False, **WILD)["result"]
    assert [name for name in SPECIAL for text in texts if name in text] == []


def test_a_prompt_that_fills_the_window_is_answered(server: Server) -> None:
    answer = server.generate(context="，" * (server.window - 2), maxlength=1, samples=1, details=True)
    assert answer["usage"]["prompt_tokens"] == server.window - 1


def test_a_prompt_longer_than_the_window_names_the_three_numbers(server: Server) -> None:
    reply = server.post({"context": "，" * (server.window + 1), "maxlength": 3})
    message = reply.error(400, "context_length_exceeded", "context")
    assert [int(number) for number in re.findall(r"\d+", message)] == [server.window + 2, 3, server.window]
    assert "，" not in message


def test_maxlength_up_to_the_window_is_answered_and_beyond_is_refused(server: Server) -> None:
    tokens = server.generate(context=PROMPT, maxlength=1, details=True)["usage"]["prompt_tokens"]
    fits = {"context": PROMPT, "maxlength": server.window - tokens, "samples": 1}
    assert len(server.generate(**fits)["result"]) == 1
    reply = server.post(fits | {"maxlength": server.window - tokens + 2})
    reply.error(400, "context_length_exceeded", "context")
