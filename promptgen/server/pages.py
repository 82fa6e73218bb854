"""The pages at `/` and `/chat`, their files, and promptgen.js, which pages of other origins include: read once, answered from memory.

All of it is open without a key. It holds nothing of anybody's, and a browser has no key to send before the page has asked for one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files

from aiohttp import ETag, hdrs, web

_NAMES = (
    "app.js",
    "box.js",
    "bubbles.js",
    "chat-words.js",
    "chat.css",
    "chat.js",
    "clipboard.js",
    "common.css",
    "faults.js",
    "icon.svg",
    "list.js",
    "live.js",
    "look.js",
    "notices.js",
    "pace.js",
    "segments.js",
    "settings.js",
    "store.js",
    "style.css",
    "suggester.js",
    "taken.js",
    "talk.js",
    "words.js",
)
FILES = {
    "/": "index.html",
    "/chat": "chat.html",
    "/promptgen.js": "promptgen.js",
    **{f"/pages/{name}": name for name in _NAMES},
}
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

PATHS = frozenset(FILES)

# Only files of this service, no inline script or style, no HTML from strings (trusted types), in nobody's frame.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def routes() -> list[tuple[str, str, Handler]]:
    """(method, path, handler) of every file."""
    return [("GET", path, _handler(name)) for path, name in FILES.items()]


def _handler(name: str) -> Handler:
    body = (files("promptgen.server") / "pages" / name).read_bytes()
    etag = ETag(hashlib.sha256(body).hexdigest()[:32])
    content_type = _TYPES["." + name.rpartition(".")[2]]

    async def answer(request: web.Request) -> web.Response:
        known = any(tag.value in (etag.value, "*") for tag in request.if_none_match or ())
        response = (
            web.Response(status=304) if known else web.Response(body=body, content_type=content_type, charset="utf-8")
        )
        response.etag = etag
        response.headers.update(_headers(name))
        return response

    return answer


def _headers(name: str) -> dict[str, str]:
    """A changed file is seen at the next load: every use asks, and is answered 304 while it is the same."""
    headers = {hdrs.CACHE_CONTROL: "no-cache", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}
    if name.endswith(".html"):
        headers["Content-Security-Policy"] = _POLICY
    if name == "promptgen.js":
        headers["Cross-Origin-Resource-Policy"] = "cross-origin"
    return headers
