"""Bodies that no client should send: each is refused with an exact status, code and param, in one shape, and echoes nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.service.conftest import Server

MARK = "EchoedInput7f3a"
JSON = {"Content-Type": "application/json"}
TOO_MANY_DIGITS = "1" + "0" * 10_000
INTS = ("maxlength", "samples", "top_k", "seed")
FLOATS = ("temperature", "top_p", "repetition_penalty")
BOOLS = ("echo", "stream", "details")

WRONG: dict[str, tuple[str, ...]] = {
    "int": (f'"{MARK}"', '"5"', "1.5", "5.0", "true", "[]", "[1]", "{}", f'{{"{MARK}": 1}}', "1e2"),
    "float": (f'"{MARK}"', '"1.0"', "true", "false", "null", "[]", "[0.5]", f'{{"a": "{MARK}"}}', "1e999", "-1e999"),
    "bool": (f'"{MARK}"', '"true"', "1", "0", "1.0", "null", "[]", "[true]", f'["{MARK}"]', "{}"),
    "context": ("1", "1.5", "true", "null", "[1]", f'["{MARK}", null]', f'[["{MARK}"]]', "[" + ",".join(['"x"'] * 65) + "]", f'{{"a": "{MARK}"}}', "-0", "123456789012345678901234"),
    "stop": ("1", "1.5", "true", f'{{"a": "{MARK}"}}', "[1]", "[null]", f'[["{MARK}"]]', f'["{MARK}", 1]', '""', '[""]',
             '"' + MARK * 20 + '"', "[" + ",".join(['"x"'] * 17) + "]"),
}  # fmt: skip
RANGES = {
    "maxlength": ("0", "-1", "-99999999999999999999"),
    "samples": ("-1", "65", "1000000000", "99999999999999999999", "1" + "0" * 300),
    "top_k": ("-1", "1000000000", "18446744073709551616", "1" + "0" * 300),
    "seed": ("9223372036854775808", "-9223372036854775809", "1" + "0" * 300),
    "temperature": ("-0.1", "-1e-9", "2.1", "2.0000001", "100", "1" + "0" * 300, "1" + "0" * 400),
    "top_p": ("-0.01", "1.01", "1.0000001", "2", "1" + "0" * 400),
    "repetition_penalty": ("0", "0.09", "-1", "10.1", "11", "1" + "0" * 400),
}
NOT_JSON = {
    "empty": "",
    "white space": " \n\t ",
    "bom only": "\ufeff",
    "array": "[]",
    "array of object": '[{"context": "a"}]',
    "string": f'"{MARK}"',
    "number": "5",
    "true": "true",
    "null": "null",
    "word": MARK,
    "cut object": '{"context": "a"',
    "cut string": f'{{"context": "{MARK}',
    "cut escape": '{"context": "\\u12',
    "cut after colon": '{"context":',
    "open brace": "{",
    "trailing comma": '{"context": "a",}',
    "trailing comma in list": '{"context": "a", "stop": ["x",]}',
    "leading comma": '{,"context": "a"}',
    "line comment": '{"context": "a"} // ' + MARK,
    "block comment": '{/* x */"context": "a"}',
    "single quotes": f"{{'context': '{MARK}'}}",
    "bare key": '{context: "a"}',
    "two objects": '{"context": "a"}{"context": "b"}',
    "object and text": '{"context": "a"} ' + MARK,
    "raw newline": f'{{"context": "{MARK}\nb"}}',
    "raw tab": '{"context": "a\tb"}',
    "raw NUL": '{"context": "a\0b"}',
    "NUL after": '{"context": "a"}\0',
    "bad escape": '{"context": "\\x41"}',
    "bad unicode escape": '{"context": "\\uZZZZ"}',
    "NaN": '{"context": "a", "temperature": NaN}',
    "Infinity": '{"context": "a", "temperature": Infinity}',
    "-Infinity": '{"context": "a", "top_p": -Infinity}',
    "nested NaN": '{"context": "a", "stop": [NaN]}',
    "leading zero": '{"context": "a", "samples": 05}',
    "plus sign": '{"context": "a", "samples": +5}',
    "hex": '{"context": "a", "samples": 0x5}',
    "bare point": '{"context": "a", "top_p": .5}',
    "Python literals": '{"context": "a", "echo": True}',
    "form": f"context={MARK}&samples=5",
    "xml": f"<context>{MARK}</context>",
    "60 000 lists": '{"context": "a", "x": ' + "[" * 60_000,
    "closed lists": '{"context": ' + "[" * 30_000 + "]" * 30_000 + "}",
    "deep objects": '{"context": ' + '{"a":' * 10_000 + "1" + "}" * 10_000 + "}",
    "bare lists": "[" * 65_000,
    "10 000 digits": f'{{"context": "a", "seed": {TOO_MANY_DIGITS}}}',
    "-10 000 digits": f'{{"context": "a", "samples": -{TOO_MANY_DIGITS}}}',
    "10 000 digits in a float field": f'{{"context": "a", "temperature": {TOO_MANY_DIGITS}}}',
    "10 000 digits in an unknown field": f'{{"context": "a", "x": {TOO_MANY_DIGITS}}}',
}
UNKNOWN = ("prompt", "Context", "max_tokens", "n", "", "__proto__", "__class__", "models", "context ", "上下文", "😀")
BAD_TEXT = {
    "NUL": r"\u0000",
    "NUL within": r"a\u0000b",
    "high surrogate": r"\ud800",
    "low surrogate": r"\udc00",
    "half at the end": r"a\ud83d",
    "pair the wrong way": r"\ude00\ud83d",
    "two high": r"\ud83d\ud83d\ude00",
}


def refuse(server: Server, body: str, status: int, code: str, param: str | None) -> str:
    reply = server.request("POST", "/generate", body.encode("utf-8", "surrogatepass"), JSON)
    message = reply.error(status, code, param)
    assert MARK not in reply.body.decode()
    assert reply.headers["X-Request-Id"]
    return message


def field_cases() -> list[Any]:
    kinds = dict.fromkeys(INTS, "int") | dict.fromkeys(FLOATS, "float") | dict.fromkeys(BOOLS, "bool")
    kinds |= {"context": "context", "stop": "stop"}
    cases = [(name, value) for name, kind in kinds.items() for value in WRONG[kind]]
    cases += [(name, "null") for name in ("maxlength", "samples", "top_k")]
    cases += [(name, value) for name, values in RANGES.items() for value in values]
    return [pytest.param(name, value, id=f"{name}={value[:24]}") for name, value in cases]


@pytest.mark.parametrize(("name", "value"), field_cases())
def test_a_wrong_type_or_a_value_out_of_range_names_its_field(server: Server, name: str, value: str) -> None:
    first = "" if name == "context" else f'"context": "{MARK}", '
    assert name in refuse(server, f'{{{first}"{name}": {value}}}', 400, "invalid_value", name)


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_what_is_not_one_json_object_is_refused(server: Server, body: str) -> None:
    refuse(server, body, 400, "invalid_json", None)


def test_nesting_beyond_the_size_limit_is_too_large(server: Server) -> None:
    reply = server.exchange(server.http('{"context": ' + "[" * 100_000, "Content-Type: application/json"))
    assert reply.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("name", UNKNOWN, ids=ascii)
def test_an_unknown_field_is_refused_by_name(server: Server, name: str) -> None:
    refuse(server, json.dumps({"context": MARK, name: MARK}), 400, "unknown_field", name)


def test_a_long_or_unprintable_name_is_sent_back_short_and_plain(server: Server) -> None:
    refuse(server, json.dumps({"context": "a", "x" * 5000: 1}), 400, "unknown_field", "x" * 64)
    refuse(server, json.dumps({"context": "a", "a\n\x1b[31m": 1}), 400, "unknown_field", "a??[31m")


def test_a_name_with_half_a_surrogate_pair_is_refused_by_name(server: Server) -> None:
    reply = server.request("POST", "/generate", rb'{"context": "a", "x\ud800": 1}', JSON)
    assert reply.status == 400
    assert reply.json["error"]["param"] == "x?"


def test_a_missing_context_is_named(server: Server) -> None:
    refuse(server, "{}", 400, "missing_field", "context")
    refuse(server, f'{{"seed": 1, "stop": "{MARK}"}}', 400, "missing_field", "context")


@pytest.mark.parametrize("name", ["context", *INTS, *FLOATS, *BOOLS, "stop", "unknown"])
def test_a_key_that_stands_twice_is_refused(server: Server, name: str) -> None:
    refuse(server, f'{{"{name}": "{MARK}", "{name}": "{MARK}"}}', 400, "duplicate_key", name)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ('{"context": "a", "stop": {"k": 1, "k": 1}}', "k"),
        ('{"context": "a", "x": [[{"y": {"z": 1, "z": 2}}]]}', "z"),
        (r'{"context": "a", "\u0063ontext": "b"}', "context"),
    ],
)
def test_duplicates_are_found_in_the_depth_and_behind_escapes(server: Server, body: str, param: str) -> None:
    refuse(server, body, 400, "duplicate_key", param)


@pytest.mark.parametrize("text", BAD_TEXT.values(), ids=BAD_TEXT.keys())
@pytest.mark.parametrize("name", ["context", "stop"])
def test_nul_and_half_surrogates_are_refused_in_text(server: Server, name: str, text: str) -> None:
    first = "" if name == "context" else '"context": "a", '
    refuse(server, f'{{{first}"{name}": "{MARK}{text}"}}', 400, "invalid_text", name)


@pytest.mark.parametrize("text", BAD_TEXT.values(), ids=BAD_TEXT.keys())
def test_nul_and_half_surrogates_are_refused_in_lists(server: Server, text: str) -> None:
    refuse(server, f'{{"context": "a", "stop": ["x", "{text}"]}}', 400, "invalid_text", "stop")


@pytest.mark.parametrize("value", ["100000", "1000000000"])
def test_a_maxlength_beyond_any_window_is_refused(server: Server, value: str) -> None:
    refuse(server, f'{{"context": "a", "maxlength": {value}}}', 400, "context_length_exceeded", "context")


def test_a_maxlength_of_30_digits_is_out_of_range(server: Server) -> None:
    refuse(server, f'{{"context": "a", "maxlength": {"9" * 30}}}', 400, "invalid_value", "maxlength")


def test_a_maxlength_of_4000_digits_is_not_sent_back(server: Server) -> None:
    reply = server.request("POST", "/generate", f'{{"context": "a", "maxlength": {"9" * 4000}}}', JSON)
    assert reply.status == 400
    assert len(reply.body) < 1000


def test_top_k_beyond_the_vocabulary_is_refused(server: Server) -> None:
    refuse(server, f'{{"context": "a", "top_k": {server.vocabulary + 1}}}', 400, "invalid_value", "top_k")


def test_the_log_holds_no_prompt_and_no_traceback(server: Server) -> None:
    server.generate(context=f"{MARK} 高血压", maxlength=1)
    assert MARK not in server.log()
    assert "unforeseen" not in server.log()
