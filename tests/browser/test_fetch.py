"""A page of another origin uses the service with fetch: JSON, errors and streams are readable, what the policy forbids is not."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import KEY
from selenium import webdriver

pytestmark = pytest.mark.browser

CONTEXT = "高血压要注意"
FETCH = """
const [url, options, done] = arguments;
fetch(url, options).then(
  async response => done({
    status: response.status,
    type: response.headers.get("content-type"),
    requestId: response.headers.get("x-request-id"),
    body: await response.json(),
  }),
  fault => done({refused: fault.name}),
);
"""
READ_STREAM = """
const [url, options, done] = arguments;
(async () => {
  const response = await fetch(url, options);
  const reader = response.body.getReader(), decoder = new TextDecoder();
  let text = "", chunks = 0;
  for (let part; !(part = await reader.read()).done; chunks++) text += decoder.decode(part.value, {stream: true});
  const data = text.split("\\n").filter(line => line.startsWith("data: ")).map(line => line.slice(6));
  const events = data.slice(0, -1).map(line => JSON.parse(line));
  done({type: response.headers.get("content-type"), chunks, last: data.at(-1), events});
})().catch(fault => done({refused: fault.name}));
"""
HURRIED = """
const [url, options, done] = arguments;
(async () => {
  const hurry = new AbortController();
  const first = fetch(url, {...options, signal: hurry.signal}).then(() => "answered", fault => fault.name);
  hurry.abort();
  const second = await fetch(url, options);
  done([await first, second.status]);
})().catch(fault => done([fault.name]));
"""


def post(body: str, content_type: str = "application/json") -> dict[str, Any]:
    return {"method": "POST", "headers": {"Content-Type": content_type}, "body": body}


def test_a_page_elsewhere_reads_the_answer(elsewhere: webdriver.Chrome, service: str) -> None:
    answer = elsewhere.execute_async_script(FETCH, service + "/generate", post(f'{{"context": "{CONTEXT}"}}'))
    assert answer["status"] == 200
    assert answer["type"] == "application/json; charset=utf-8"
    assert answer["requestId"]
    assert [text.startswith(CONTEXT) for text in answer["body"]["result"]] == [True] * 5


def test_json_sent_as_plain_text_is_refused_readably(elsewhere: webdriver.Chrome, service: str) -> None:
    body = f'{{"context": "{CONTEXT}"}}'
    answer = elsewhere.execute_async_script(FETCH, service + "/generate", post(body, "text/plain"))
    assert answer["status"] == 415
    assert "application/json" in answer["body"]["error"]["message"]


def test_errors_are_readable_elsewhere(elsewhere: webdriver.Chrome, service: str) -> None:
    missing = elsewhere.execute_async_script(FETCH, service + "/nothing", {})
    assert (missing["status"], missing["body"]["error"]["code"]) == (404, "not_found")
    wrong = elsewhere.execute_async_script(FETCH, service + "/generate", post('{"context": "x", "samples": 65}'))
    assert (wrong["status"], wrong["body"]["error"]["param"]) == (400, "samples")
    method = elsewhere.execute_async_script(FETCH, service + "/generate", {"method": "GET"})
    assert method["status"] == 405


def test_the_pieces_of_a_stream_join_to_its_result(elsewhere: webdriver.Chrome, service: str) -> None:
    body = f'{{"context": "{CONTEXT}", "samples": 3, "maxlength": 20, "stream": true, "distinct": false}}'
    read = elsewhere.execute_async_script(READ_STREAM, service + "/generate", post(body))
    assert read["type"].startswith("text/event-stream")
    assert read["last"] == "[DONE]"
    *pieces, final = read["events"]
    assert len(final["result"]) == 3
    for index, result in enumerate(final["result"]):
        assert "".join(e["text"] for e in pieces if e["index"] == index and "text" in e) == result
    assert sum("finish_reason" in event for event in pieces) == 3


def test_a_newer_keystroke_may_abort_the_older_request(elsewhere: webdriver.Chrome, service: str) -> None:
    body = post(f'{{"context": "{CONTEXT}", "maxlength": 100}}')
    assert elsewhere.execute_async_script(HURRIED, service + "/generate", body) == ["AbortError", 200]


def test_an_origin_that_is_not_listed_cannot_call(elsewhere: webdriver.Chrome, guarded: str) -> None:
    elsewhere.get(elsewhere.current_url.replace("127.0.0.1", "localhost"))
    answer = elsewhere.execute_async_script(FETCH, guarded + "/generate", post(f'{{"context": "{CONTEXT}"}}'))
    assert answer == {"refused": "TypeError"}


def test_a_listed_origin_can_call(elsewhere: webdriver.Chrome, guarded: str) -> None:
    request = post(f'{{"context": "{CONTEXT}", "samples": 1}}')
    refused = elsewhere.execute_async_script(FETCH, guarded + "/generate", request)
    assert (refused["status"], refused["body"]["error"]["code"]) == (401, "invalid_api_key")
    request["headers"]["Authorization"] = f"Bearer {KEY}"
    answer = elsewhere.execute_async_script(FETCH, guarded + "/generate", request)
    assert (answer["status"], len(answer["body"]["result"])) == (200, 1)
