"""The page's files over HTTP: which there are, how they are typed, cached and guarded, and that they are open without a key."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from promptgen.config import ServeSettings
from promptgen.generation.async_engine import AsyncEngine
from promptgen.server import pages
from promptgen.server.app import make_app

pytestmark = pytest.mark.filterwarnings("ignore::aiohttp.web_exceptions.NotAppKeyWarning")

FOLDER = Path(pages.__file__).parent / "pages"
ADDRESSES = re.compile(r"(?:src|href)=\"([^\"#]+)\"|from \"([^\"]+)\"")


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    text: str


def ask(path: str, method: str = "GET", settings: Mapping[str, Any] = {}, **headers: str) -> Reply:
    """What the service answers while its model has not been loaded."""

    async def over_http() -> Reply:
        chosen = ServeSettings(**settings)
        async with TestClient(TestServer(make_app(chosen, AsyncEngine(chosen)))) as client:
            response = await client.request(method, path, headers=headers)
            return Reply(response.status, response.headers, await response.text())

    return asyncio.run(over_http())


def test_every_file_of_the_folder_is_served_and_nothing_else() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert sorted(pages.FILES.values()) == sorted(names)


@pytest.mark.parametrize("path", sorted(pages.PATHS))
def test_what_a_file_refers_to_is_served(path: str) -> None:
    name = pages.FILES[path]
    addresses = {
        found for pair in ADDRESSES.findall((FOLDER / name).read_text(encoding="utf-8")) for found in pair if found
    }
    local = {address for address in addresses if "://" not in address}
    base = "/pages/" if path.startswith("/pages/") else "/"
    resolved = {base + a.removeprefix("./") if not a.startswith("../") else "/" + a.removeprefix("../") for a in local}
    assert resolved <= pages.PATHS


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/", "text/html"),
        ("/chat", "text/html"),
        ("/promptgen.js", "text/javascript"),
        ("/pages/app.js", "text/javascript"),
        ("/pages/common.css", "text/css"),
        ("/pages/icon.svg", "image/svg+xml"),
    ],
)
def test_a_file_and_its_head(path: str, content_type: str) -> None:
    whole, head = ask(path), ask(path, "HEAD")
    assert whole.status == head.status == 200
    assert whole.headers["Content-Type"] == f"{content_type}; charset=utf-8"
    assert whole.headers["X-Content-Type-Options"] == "nosniff"
    assert whole.headers["Referrer-Policy"] == "no-referrer"
    assert (head.text, head.headers["Content-Length"]) == ("", str(len(whole.text.encode())))
    assert head.headers["ETag"] == whole.headers["ETag"]


def test_a_file_that_is_known_is_not_sent_again() -> None:
    etag = ask("/pages/app.js").headers["ETag"]
    same = ask("/pages/app.js", **{"If-None-Match": f'"other", {etag}'})
    assert (same.status, same.text, same.headers["ETag"]) == (304, "", etag)
    assert same.headers["Cache-Control"] == "no-cache"
    assert ask("/pages/app.js", **{"If-None-Match": '"other"'}).status == 200
    assert ask("/pages/box.js").headers["ETag"] != etag


@pytest.mark.parametrize("path", ["/", "/chat"])
def test_the_policy_of_a_page_allows_nothing_inline_and_nothing_foreign(path: str) -> None:
    policy = dict(part.split(" ", 1) for part in ask(path).headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert set(policy.values()) <= {"'none'", "'self'", "'script'"}
    assert policy["require-trusted-types-for"] == "'script'"
    text = (FOLDER / pages.FILES[path]).read_text(encoding="utf-8")
    assert not re.search(r"\sstyle=|\son[a-z]+=|<style|<script(?![^>]*\ssrc=)|https?://", text)


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.js")))
def test_no_script_makes_markup_from_strings(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text)


def test_other_origins_may_include_the_module() -> None:
    reply = ask("/promptgen.js", Origin="https://page.example")
    assert reply.headers["Access-Control-Allow-Origin"] == "*"
    assert reply.headers["Cross-Origin-Resource-Policy"] == "cross-origin"


def test_the_files_need_no_key_and_what_is_beside_them_does() -> None:
    locked = {"api_keys": "k"}
    assert [ask(path, settings=locked).status for path in sorted(pages.PATHS)] == [200] * len(pages.PATHS)
    beside = (
        "/pages",
        "/pages/",
        "/pages/index.html",
        "/pages/../version",
        "/pages/%2e%2e/version",
        "/promptgen.js/",
        "/version",
    )
    assert [ask(path, settings=locked).status for path in beside] == [401] * len(beside)
    assert ask("/generate", "POST", locked).status == 401


@pytest.mark.parametrize(
    "path", ["/pages/nothing.js", "/pages/../app.py", "/pages/%2e%2e/app.py", "/pages/..%2fapp.py", "/pages/index.html"]
)
def test_there_is_nothing_else(path: str) -> None:
    assert ask(path).status == 404


def test_a_page_takes_nothing() -> None:
    reply = ask("/", "POST")
    assert reply.status == 405
    assert {"GET", "HEAD"} <= set(reply.headers["Allow"].split(", ")) <= {"GET", "HEAD", "OPTIONS"}


def test_the_colours_can_be_read() -> None:
    """Text on every background it stands on, in light and in dark: 4.5 to 1, as WCAG wants for small text."""
    text = (FOLDER / "common.css").read_text(encoding="utf-8")
    pairs: dict[str, tuple[str, str]] = {
        name: (light, dark) for name, light, dark in re.findall(r"--(\w[\w-]*): light-dark\((#\w+), (#\w+)\)", text)
    }
    for theme in (0, 1):
        for ink in ("ink", "dim", "seal"):
            for paper in ("paper", "raised"):
                assert contrast(pairs[ink][theme], pairs[paper][theme]) >= 4.5, (theme, ink, paper)
        assert contrast(pairs["on-seal"][theme], pairs["seal"][theme]) >= 4.5


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """Of #rgb or #rrggbb, by WCAG 2."""
    digits = colour[1:] if len(colour) == 7 else "".join(c * 2 for c in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear: Callable[[float], float] = lambda c: c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4  # noqa: E731
    red, green, blue = map(linear, channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
