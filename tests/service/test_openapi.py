"""GET /openapi.json, GET /docs and docs/api.md: they name what there is, all of it, and real answers are as they say."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest
from aiohttp import hdrs, web
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import BaseModel

from promptgen.config import EngineSettings, ServeSettings
from promptgen.generation.async_engine import AsyncEngine, State
from promptgen.server.app import make_app
from promptgen.server.chat import ChatBody
from promptgen.server.docs_page import VIEWER
from promptgen.server.openapi import FAULTS, OPERATIONS, document
from promptgen.server.schema import GenerateBody

if TYPE_CHECKING:
    from tests.service.conftest import Server

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = document(needs_key=False)
OPEN = {"/", "/pages/{file}", "/promptgen.js", "/health", "/ready"}
CONTRACT = {400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 503, 504}
UNDOCUMENTED = {hdrs.METH_HEAD, hdrs.METH_OPTIONS}  # HEAD goes with every GET, OPTIONS is CORS


def served() -> set[tuple[str, str]]:
    app: web.Application = make_app(ServeSettings(), AsyncEngine(EngineSettings()))
    return {
        (route.method, re.sub(r"^/pages/.*", "/pages/{file}", route.resource.canonical))
        for route in app.router.routes()
        if route.resource is not None and route.method not in UNDOCUMENTED
    }


def check(value: Any, schema: str) -> None:
    """Raises ValidationError where a value is not as the document says."""
    Draft202012Validator({"$ref": f"#/components/schemas/{schema}", "components": DOCUMENT["components"]}).validate(
        value
    )


def test_the_document_is_openapi_3_1() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    OpenAPIV31SpecValidator(document(needs_key=True)).validate()
    assert DOCUMENT["openapi"] == "3.1.0"


def test_every_route_is_in_the_document_and_the_other_way_round() -> None:
    told = {(method.upper(), path) for path, item in DOCUMENT["paths"].items() for method in item}
    assert told == served()


def test_the_document_is_served(server: Server) -> None:
    reply = server.get("/openapi.json")
    assert reply.status == 200
    assert reply.headers["Content-Type"].startswith("application/json")
    assert reply.json == DOCUMENT
    assert server.get("/openapi.json?ascii=1").body.isascii()


def test_every_status_of_the_contract_is_told() -> None:
    assert set(FAULTS) >= CONTRACT
    responses = DOCUMENT["paths"]["/generate"]["post"]["responses"]
    assert {int(status) for status in responses} >= {200, 409, *CONTRACT - {404, 405}}
    assert DOCUMENT["components"]["responses"].keys() == {str(status) for status in FAULTS}


def test_keys_are_asked_for_where_the_guard_asks() -> None:
    for path, item in document(needs_key=True)["paths"].items():
        for method, operation in item.items():
            schemes = [name for alternative in operation["security"] for name in alternative]
            assert schemes == ([] if path in OPEN or (method, path) == ("get", "/chat") else ["bearer", "apiKey"])
    assert {} in DOCUMENT["paths"]["/generate"]["post"]["security"]


def test_operation_ids_are_unique() -> None:
    ids = [operation["operationId"] for item in DOCUMENT["paths"].values() for operation in item.values()]
    assert len(set(ids)) == len(ids) == len(OPERATIONS)


# -- real answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("details", [False, True])
def test_an_answer_is_as_the_document_says(server: Server, details: bool) -> None:
    answer = server.generate(context="高血压要注意", samples=2, maxlength=4, details=details)
    check(answer, "GenerateAnswer")
    assert ("candidates" in answer) is details
    check(server.generate(context=" "), "GenerateAnswer")


def test_a_schema_would_see_a_difference(server: Server) -> None:
    answer = server.generate(context="高血压要注意", samples=1, maxlength=2, details=True)
    for damaged in (answer | {"more": 1}, answer | {"time": "1"}, answer | {"usage": {}}, {"result": []}):
        assert not Draft202012Validator(
            {"$ref": "#/components/schemas/GenerateAnswer", "components": DOCUMENT["components"]}
        ).is_valid(damaged)


@pytest.mark.parametrize("details", [False, True])
def test_the_events_of_a_stream_are_as_the_document_says(server: Server, details: bool) -> None:
    reply = server.post({"context": "高血压要注意", "samples": 2, "maxlength": 4, "stream": True, "details": details})
    lines = [line.removeprefix("data: ") for line in reply.body.decode().split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    for event in events:
        check(event, "StreamEvent")
    assert ("candidates" in events[-1]) is details


@pytest.mark.parametrize("samples", [1, 4])
def test_the_answers_of_a_chat_are_as_the_document_says(server: Server, samples: int) -> None:
    asked = {"question": "高血压要注意什么？", "samples": samples}
    answer = server.post(asked, path="/chat").json
    check(answer, "ChatAnswer")
    assert ("candidates" in answer) is (samples > 1)
    reply = server.post({**asked, "stream": True}, path="/chat")
    lines = [line.removeprefix("data: ") for line in reply.body.decode().split("\n\n") if line.startswith("data: ")]
    for line in lines:
        check(json.loads(line), "ChatStreamEvent")


@pytest.mark.parametrize(
    ("method", "path", "body", "schema"),
    [
        ("GET", "/health", None, "StateAnswer"),
        ("GET", "/ready", None, "StateAnswer"),
        ("GET", "/version", None, "VersionAnswer"),
        ("POST", "/tokenize", {"text": "高血压 hello"}, "TokenizeAnswer"),
        ("POST", "/detokenize", {"ids": [7, 8, 9]}, "DetokenizeAnswer"),
        ("POST", "/generate", {"context": 1}, "ErrorAnswer"),
        ("POST", "/tokenize", {}, "ErrorAnswer"),
        ("GET", "/nothing", None, "ErrorAnswer"),
        ("PUT", "/generate", None, "ErrorAnswer"),
    ],
)
def test_other_answers_are_as_the_document_says(server: Server, method: str, path: str, body: Any, schema: str) -> None:
    sent = None if body is None else json.dumps(body)
    check(server.request(method, path, sent, {"Content-Type": "application/json"}).json, schema)


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.takes], ids=lambda operation: operation.path)
def test_the_examples_work(server: Server, operation: Any) -> None:
    [media] = DOCUMENT["paths"][operation.path]["post"]["requestBody"]["content"].values()
    for example in media["examples"].values():
        assert server.post(example["value"], path=operation.path).status == 200


# -- the page ------------------------------------------------------------------------------------------------------------


def test_the_page_asks_nothing_of_others(server: Server) -> None:
    reply = server.get("/docs")
    assert reply.status == 200
    assert reply.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = reply.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert not re.search(r"https?://", reply.body.decode())
    assert server.get("/docs/rapidoc-min.js").body == VIEWER.read_bytes()


def test_the_viewer_is_the_file_that_its_note_names() -> None:
    note = (VIEWER.parent / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(VIEWER.read_bytes()).hexdigest() in note
    assert VIEWER.with_name(VIEWER.name + ".LICENSE.txt").exists()
    assert VIEWER.stat().st_size < 1_000_000


# -- docs/api.md ---------------------------------------------------------------------------------------------------------


def test_the_reference_names_every_route_field_and_status() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    openai = (ROOT / "docs" / "openai.md").read_text(encoding="utf-8")
    routes = [f"{operation.method} {operation.path}" for operation in OPERATIONS]
    assert [route for route in routes if f"`{route}`" not in text and f"## {route}\n" not in text] == []
    fields = {field for schema in DOCUMENT["components"]["schemas"].values() for field in schema.get("properties", {})}
    assert [field for field in sorted(fields) if f"`{field}`" not in text + openai] == []
    assert [status for status in FAULTS if not re.search(rf"^\| [\d, ]*\b{status}\b", text, re.MULTILINE)] == []


@pytest.mark.parametrize(("title", "body"), [("POST /generate", GenerateBody), ("POST /chat", ChatBody)])
def test_a_table_has_every_field_of_its_body(title: str, body: type[BaseModel]) -> None:
    assert set(body.model_fields) - set(re.findall(r"^\| `(\w+)` \|", section(title), re.MULTILINE)) == set()


def test_the_reference_names_every_state() -> None:
    text = section("GET /health, GET /ready, GET /version")
    assert [state for state in get_args(State) if f"`{state}`" not in text] == []


def section(title: str) -> str:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_reference_names_every_error_code() -> None:
    sources = [*(ROOT / "promptgen" / "server").rglob("*.py"), ROOT / "promptgen" / "errors.py"]
    source = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    codes = set(re.findall(r'HttpFault\(\s*(?:\d+|status),\s*"([a-z_]+)"', source))
    codes |= set(re.findall(r'^    code(?:: str)? = "([a-z_]+)"', source, re.MULTILINE))
    assert {"invalid_json", "overloaded", "host_not_allowed", "engine_failure"} <= codes
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    never_sent = {"request_error"}
    assert [code for code in sorted(codes - never_sent) if f"`{code}`" not in text] == []
