"""GET /docs in a browser: the reference is shown, with nothing from another host, and within its own policy."""

from __future__ import annotations

import time

import pytest
from selenium import webdriver

from promptgen.server.openapi import OPERATIONS

pytestmark = pytest.mark.browser

TEXT = """
const walk = node => [...node.childNodes].map(child =>
  (child.nodeType === 3 ? child.data : "") + (child.shadowRoot ? walk(child.shadowRoot) : "") + (["STYLE", "SCRIPT"].includes(child.tagName) ? "" : walk(child))
).join(" ");
return walk(document.body);
"""
SOURCES = "return performance.getEntriesByType('resource').map(entry => entry.name);"


def test_the_reference_is_shown_offline(chromium: webdriver.Chrome, service: str) -> None:
    chromium.get_log("browser")  # what other pages left
    chromium.get(service + "/docs")
    deadline = time.monotonic() + 20
    text = ""
    while time.monotonic() < deadline and "repetition_penalty" not in text:
        time.sleep(0.1)
        text = chromium.execute_script(TEXT)
    missing = [operation.path for operation in OPERATIONS if operation.path not in text]
    assert missing == []
    assert "repetition_penalty" in text
    sources = chromium.execute_script(SOURCES)
    assert {source.removeprefix(service) for source in sources} >= {"/docs/rapidoc-min.js", "/openapi.json"}
    assert [source for source in sources if not source.startswith((service, "data:", "blob:"))] == []
    assert [entry["message"] for entry in chromium.get_log("browser")] == []
