"""Reads a request body as people really send it, and no more of it than allowed.

UTF-8, with or without a byte-order mark; GB18030 when the bytes are not UTF-8 (a Windows console in code page 936); an explicit
charset. curl's default content type is accepted from anything that is not a browser: a browser must send application/json,
which costs it a preflight, so that no foreign page can spend this machine's time.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Never

from aiohttp import HttpVersion11, hdrs, web

from promptgen.server.faults import HttpFault
from promptgen.server.outcome import EXPECTED

MAX_BODY_BYTES = 64 * 1024
_CLOSE = {"Connection": "close"}
_LOOSE_TYPES = ("application/x-www-form-urlencoded", "text/plain", "application/octet-stream")
_CHARSETS = {"utf-8": "utf-8-sig", "utf8": "utf-8-sig", "gbk": "gb18030", "gb2312": "gb18030", "gb18030": "gb18030"}


async def read_json_object(request: web.Request, timeout_s: float) -> dict[str, Any]:
    """The JSON object of a request. Raises HttpFault 400, 408, 413 or 415."""
    charset = _check_type(request)
    data = await _read(request, timeout_s)
    return parse_json_object(_decode(data, charset))


def _check_type(request: web.Request) -> str | None:
    """The charset named in Content-Type, or None. Raises 415 for a type or encoding that is not read."""
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise HttpFault(415, "unsupported_encoding", "compressed bodies are not read; send it as it is")
    is_browser = hdrs.ORIGIN in request.headers or "Sec-Fetch-Site" in request.headers
    declared = request.headers.get(hdrs.CONTENT_TYPE)
    if (
        declared is not None
        and request.content_type != "application/json"
        and (is_browser or request.content_type not in _LOOSE_TYPES)
    ):
        raise HttpFault(415, "unsupported_content_type", "send the body as Content-Type: application/json")
    if declared is None and is_browser and request.can_read_body:
        raise HttpFault(415, "unsupported_content_type", "send the body as Content-Type: application/json")
    charset = (request.charset or "").lower().strip("\"' ") or None
    if charset is not None and charset not in _CHARSETS:
        raise HttpFault(415, "unsupported_charset", "the charset must be utf-8, gbk, gb18030 or gb2312")
    return charset


async def _read(request: web.Request, timeout_s: float) -> bytes:
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise _too_large()
    _grant_expectation(request)
    data = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.content.iter_any():
                data += chunk
                if len(data) > MAX_BODY_BYTES:
                    raise _too_large()
    except TimeoutError as fault:
        raise HttpFault(
            408, "body_timeout", f"the body did not arrive within {timeout_s:g} s", headers=_CLOSE
        ) from fault
    except (web.RequestPayloadError, ValueError) as fault:
        raise HttpFault(400, "invalid_body", "the body could not be read to its end", headers=_CLOSE) from fault
    return bytes(data)


def _grant_expectation(request: web.Request) -> None:
    """Answers Expect: 100-continue once host, key and length have been looked at. Raises 417 for any other expectation."""
    expected = request.get(EXPECTED, "").lower()
    if expected and expected != "100-continue":
        raise HttpFault(417, "expectation_failed", "the only expectation that is met is 100-continue")
    if expected and request.version >= HttpVersion11 and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _too_large() -> HttpFault:
    return HttpFault(413, "body_too_large", f"a body may have {MAX_BODY_BYTES} bytes at most", headers=_CLOSE)


def _decode(data: bytes, charset: str | None) -> str:
    for encoding in (_CHARSETS[charset],) if charset else ("utf-8-sig", "gb18030"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise HttpFault(
        400,
        "invalid_encoding",
        "the body is neither UTF-8 nor GBK; on Windows run chcp 65001 first, or put the JSON into a UTF-8 file and send it with --data-binary @file.json",
    )


def parse_json_object(text: str) -> dict[str, Any]:
    """Strict JSON: no duplicate keys, no NaN, no NUL, no lone surrogates, no bottomless nesting. Raises HttpFault 400."""
    if not text.strip():
        raise HttpFault(400, "invalid_json", "the body is empty; send a JSON object")
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except json.JSONDecodeError as fault:
        raise HttpFault(
            400, "invalid_json", f"the body is not JSON: {fault.msg} (line {fault.lineno}, column {fault.colno})"
        ) from fault
    except RecursionError as fault:
        raise HttpFault(400, "invalid_json", "the body nests too deep") from fault
    except ValueError as fault:  # an int of more digits than Python converts
        raise HttpFault(400, "invalid_json", "the body holds a number with too many digits") from fault
    if not isinstance(value, dict):
        raise HttpFault(400, "invalid_json", 'the body must be a JSON object, for example {"context": "..."}')
    for key, item in value.items():
        _check_strings(key, key)
        _check_strings(item, key)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise HttpFault(400, "duplicate_key", "a key stands twice in the body", param=_printable(key))
        result[key] = value
    return result


def _refuse_constant(_: str) -> Never:
    raise HttpFault(400, "invalid_json", "NaN and Infinity are not JSON")


def _check_strings(value: Any, param: str) -> None:
    """Refuses what no text should hold. Walks without recursion; depth is bounded by the parser already."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            if "\0" in item:
                raise HttpFault(400, "invalid_text", "the text holds a NUL character", param=_printable(param))
            if any("\ud800" <= c <= "\udfff" for c in item):
                raise HttpFault(400, "invalid_text", "the text holds half of a surrogate pair", param=_printable(param))
        elif isinstance(item, list):
            todo += item
        elif isinstance(item, dict):
            todo += [*item.keys(), *item.values()]


def _printable(key: str) -> str:
    """A field's name as it may be sent back: short, and without what cannot be shown."""
    return "".join(c if c.isprintable() else "?" for c in key[:64])
