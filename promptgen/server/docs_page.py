"""GET /openapi.json and GET /docs: the reference that this service gives of itself. Works offline: nothing is asked of another host."""

from __future__ import annotations

import json
from pathlib import Path

from aiohttp import web

from promptgen.server.guards import wants_ascii
from promptgen.server.openapi import document

VIEWER = Path(__file__).parent / "vendor" / "rapidoc-min.js"
# The viewer styles its elements in place, hence 'unsafe-inline' for styles; scripts come from this service alone.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE = b"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>promptgen: HTTP API</title>
<link rel="icon" href="data:,">
<script type="module" src="docs/rapidoc-min.js"></script>
<rapi-doc spec-url="openapi.json" load-fonts="false" show-header="false" render-style="read" theme="light"
 allow-spec-url-load="false" allow-spec-file-load="false" allow-server-selection="false" regular-font="sans-serif"
 mono-font="monospace" schema-style="table" use-path-in-nav-bar="true" primary-color="#2b6cb0"></rapi-doc>
</html>
"""


class DocsPage:
    """The three routes. With `needs_key` they want a key, as the document says."""

    def __init__(self, *, needs_key: bool) -> None:
        self._document = document(needs_key=needs_key)

    async def description(self, request: web.Request) -> web.Response:
        body = json.dumps(self._document, ensure_ascii=wants_ascii(request))
        return web.Response(body=body.encode(), content_type="application/json", headers={"Cache-Control": "no-cache"})

    async def page(self, _: web.Request) -> web.Response:
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
        return web.Response(body=_PAGE, content_type="text/html", charset="utf-8", headers=headers)

    async def viewer(self, _: web.Request) -> web.FileResponse:
        return web.FileResponse(
            VIEWER, headers={"Content-Type": "text/javascript; charset=utf-8", "Cache-Control": "max-age=86400"}
        )
