"""Encodings and content types as they really come: Windows consoles, curl's defaults, browsers, forms."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.service.conftest import Server

CONTEXT = "高血压要注意"
BODY = json.dumps({"context": CONTEXT, "seed": 5, "maxlength": 3}, ensure_ascii=False)
BROWSER = [
    {"Origin": "http://page.example"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "none"},
]


def accepted(server: Server, data: bytes, headers: dict[str, str]) -> None:
    reply = server.request("POST", "/generate", data, headers)
    assert reply.status == 200, reply.body
    assert len(reply.json["result"]) == 5
    assert all(text.startswith(CONTEXT) for text in reply.json["result"])


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "gbk", "gb2312", "gb18030"])
def test_utf8_bom_and_gbk_are_read_without_a_charset(server: Server, codec: str) -> None:
    accepted(server, BODY.encode(codec), {"Content-Type": "application/json"})


def test_all_encodings_are_the_same_request(server: Server) -> None:
    headers = {"Content-Type": "application/json"}
    results = [
        server.request("POST", "/generate", BODY.encode(c), headers).json["result"]
        for c in ("utf-8", "gbk", "utf-8-sig")
    ]
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize(
    ("charset", "codec"),
    [("utf-8", "utf-8"), ("UTF-8", "utf-8"), ("utf8", "utf-8"), ("utf-8", "utf-8-sig"), ("gbk", "gbk"), ("GBK", "gbk"),
     ("gb2312", "gbk"), ("gb18030", "gb18030"), ('"gbk"', "gbk"), ('"utf-8"', "utf-8")],
)  # fmt: skip
def test_an_explicit_charset_is_honoured(server: Server, charset: str, codec: str) -> None:
    accepted(server, BODY.encode(codec), {"Content-Type": f"application/json; charset={charset}"})


def test_utf8_bytes_declared_as_gbk_are_read_as_gbk(server: Server) -> None:
    data = '{"context": "高血压要", "maxlength": 1}'.encode()
    reply = server.request("POST", "/generate", data, {"Content-Type": "application/json; charset=gbk"})
    read_as = "高血压要".encode().decode("gb18030")
    assert reply.json["result"][0].startswith(read_as)


def test_four_byte_gb18030_is_read(server: Server) -> None:
    data = '{"context": "高血压😀𠀀", "maxlength": 1}'.encode("gb18030")
    reply = server.request("POST", "/generate", data, {"Content-Type": "application/json"})
    assert reply.json["result"][0].startswith("高血压😀𠀀")


@pytest.mark.parametrize(
    "charset", ["utf-16", "utf-32", "latin-1", "iso-8859-1", "big5", "shift_jis", "utf-7", "x-unknown", "idna", "rot13"]
)
def test_other_charsets_are_415(server: Server, charset: str) -> None:
    reply = server.request("POST", "/generate", BODY, {"Content-Type": f"application/json; charset={charset}"})
    reply.error(415, "unsupported_charset")


UNREADABLE = {
    "utf-16": BODY.encode("utf-16"),
    "utf-16 big end": b"\xfe\xff" + BODY.encode("utf-16-be"),
    "latin-1": '{"context": "café"}'.encode("latin-1"),
    "0xff": b'{"context": "\xff"}',
    "cut utf-8": '{"context": "高'.encode()[:-1] + b'\xff"}',
    "surrogate as bytes": b'{"context": "\xed\xa0\x80"}',
    "random": bytes(range(128, 256)),
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_undecodable_bytes_get_advice_that_works(server: Server, data: bytes) -> None:
    message = server.request("POST", "/generate", data, {"Content-Type": "application/json"}).error(
        400, "invalid_encoding"
    )
    assert "chcp 65001" in message
    assert "--data-binary @" in message


@pytest.mark.parametrize("charset", ["utf-8", "gbk"])
def test_bytes_that_are_not_of_the_declared_charset_are_400(server: Server, charset: str) -> None:
    headers = {"Content-Type": f"application/json; charset={charset}"}
    server.request("POST", "/generate", b'{"context": "\xff\xff"}', headers).error(400, "invalid_encoding")


def test_utf16_without_a_mark_is_refused(server: Server) -> None:
    reply = server.request(
        "POST", "/generate", '{"context": "abc"}'.encode("utf-16-le"), {"Content-Type": "application/json"}
    )
    assert reply.status == 400
    assert reply.json["error"]["code"] in {"invalid_json", "invalid_encoding"}


@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "text/plain", "text/plain;charset=UTF-8", None]
)
def test_json_under_a_loose_type_is_read_from_anything_but_a_browser(server: Server, content_type: str | None) -> None:
    accepted(server, BODY.encode(), {} if content_type is None else {"Content-Type": content_type})


@pytest.mark.parametrize("browser", BROWSER, ids=str)
@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "text/plain", "text/plain;charset=UTF-8", None]
)
def test_json_under_a_loose_type_is_415_from_a_browser(
    server: Server, browser: dict[str, str], content_type: str | None
) -> None:
    headers = browser if content_type is None else {**browser, "Content-Type": content_type}
    server.request("POST", "/generate", BODY, headers).error(415, "unsupported_content_type")


@pytest.mark.parametrize("browser", BROWSER, ids=str)
def test_application_json_is_read_from_a_browser(server: Server, browser: dict[str, str]) -> None:
    accepted(server, BODY.encode(), {**browser, "Content-Type": "application/json"})


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data; boundary=x",
        "multipart/form-data",
        "application/xml",
        "text/html",
        "image/png",
        "application/jsonp",
    ],
)
def test_other_content_types_are_415(server: Server, content_type: str) -> None:
    server.request("POST", "/generate", BODY, {"Content-Type": content_type}).error(415, "unsupported_content_type")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "GZIP", "gzip, identity"])
def test_compressed_bodies_are_415(server: Server, encoding: str) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    server.request("POST", "/generate", b"\x1f\x8b\x08\x00 whatever", headers).error(415, "unsupported_encoding")


def test_identity_is_not_compressed(server: Server) -> None:
    accepted(server, BODY.encode(), {"Content-Type": "application/json", "Content-Encoding": "identity"})


def test_what_curl_sends_by_default_byte_for_byte(server: Server) -> None:
    data = BODY.encode()
    raw = (
        f"POST /generate HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\nConnection: close\r\n"
        f"Content-Length: {len(data)}\r\nContent-Type: application/x-www-form-urlencoded\r\n\r\n"
    )
    answer = server.exchange(raw.encode() + data)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert CONTEXT.encode() in answer
