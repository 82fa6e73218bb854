"""GET /openapi.json: OpenAPI 3.1, made of the pydantic models and the table of operations below.

A new route needs a line in OPERATIONS; a test compares the table with the routes of the application.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import promptgen
from promptgen.server import answers, pages
from promptgen.server.chat import ChatBody
from promptgen.server.guards import is_open_without_key
from promptgen.server.openai import answers as openai
from promptgen.server.openai.models import ChatCompletionBody, CompletionBody, EmbeddingBody
from promptgen.server.schema import GenerateBody
from promptgen.server.text_routes import DetokenizeBody, TokenizeBody

JSON, EVENTS, HTML, SCRIPT = "application/json", "text/event-stream", "text/html", "text/javascript"
PLAIN = "text/plain; version=0.0.4"
_MODE: Literal["validation"] = "validation"
_REF = "#/components/schemas/{model}"
_EVENTS_TEXT = (
    "With `stream: true`: lines `data: ` + JSON, each a {event}, then `data: [DONE]`. The joined texts of an index are its result. "
    "Lines that begin with a colon are to be ignored."
)
_CHAT_EVENTS_TEXT = (
    "With `stream: true`: lines `data: ` + JSON, each a ChatStreamEvent, then `event: end` with `data: [DONE]`. The joined texts are the answer. "
    "Lines that begin with a colon are to be ignored."
)
_BODY_TEXT = "UTF-8, 64 KiB at most. Anything but a browser may also send it as text/plain, as a form (curl's default) or without a type."

# What a status means, wherever it comes.
FAULTS: Mapping[int, str] = {
    400: "The request is wrong; `param` names the field.",
    401: "A key is set and was not sent.",
    403: "The Host or the Origin is not allowed.",
    404: "There is nothing at this path, or no such model.",
    405: "The path does not answer this method.",
    408: "The body did not arrive in time.",
    409: "A newer request of the session took over.",
    413: "The body is over 64 KiB.",
    415: "The content type, charset or encoding is not read.",
    417: "An expectation other than 100-continue.",
    422: "The files of a model cannot be used; what was served before is served on.",
    429: "The caller is over its own limit.",
    500: "Something unforeseen; look for the request id in the log.",
    503: "Loading, draining, or too many requests.",
    504: "No token before the deadline.",
}
_FAULT_HEADERS = {401: "WWW-Authenticate", 405: "Allow", 429: "Retry-After", 503: "Retry-After"}
_ALWAYS = (403, 500)
_WITH_BODY = (400, 408, 413, 415, 417, 429, 503)

STREAM_EVENTS: Mapping[str, tuple[type[BaseModel], ...]] = {
    "StreamEvent": (
        answers.PieceEvent,
        answers.ResetEvent,
        answers.FinishEvent,
        answers.ResultEvent,
        answers.ErrorAnswer,
    ),
    "ChatStreamEvent": (answers.ChatPieceEvent, answers.ChatAnswer, answers.ErrorAnswer),
}

Content = type[BaseModel] | None  # None is text


@dataclass(frozen=True, slots=True)
class Operation:
    """One line of the table. `gives` are the media types of a 200, `faults` the statuses beyond those that all have."""

    method: str
    path: str
    tag: str
    summary: str
    gives: Mapping[str, Content]
    takes: type[BaseModel] | None = None
    faults: tuple[int, ...] = ()
    otherwise: Mapping[int, type[BaseModel]] | None = None  # an answer, not an error, with another status
    example: Mapping[str, Any] | None = None
    has_ascii: bool = True
    event: str = "StreamEvent"  # of a stream
    events_text: str = _EVENTS_TEXT

    @property
    def id(self) -> str:
        name = self.path.strip("/").translate(str.maketrans("/.-{}", "_____")) or "page"
        return f"{name}_page" if self.tag == "page" and name == "chat" else name


PAGE_FILES = "/pages/{file}"  # many routes, one line
_PAGE_FILE = {
    "type": "string",
    "enum": sorted(path.rpartition("/")[2] for path in pages.PATHS if path.startswith("/pages/")),
}

OPERATIONS = (
    Operation(
        "POST", "/generate", "text", "Several ways a prompt could go on.",
        {JSON: answers.GenerateAnswer, EVENTS: None}, GenerateBody, (404, 409, 504),
        example={"context": "高血压要注意", "samples": 2, "maxlength": 20},
    ),
    Operation(
        "POST", "/chat", "text", "An answer to a question, with what was said before.",
        {JSON: answers.ChatAnswer, EVENTS: None}, ChatBody, (404, 504),
        example={"question": "高血压要注意什么？"}, event="ChatStreamEvent", events_text=_CHAT_EVENTS_TEXT,
    ),
    Operation(
        "POST", "/tokenize", "text", "The tokens of a text.",
        {JSON: answers.TokenizeAnswer}, TokenizeBody, (404,), example={"text": "高血压要注意"},
    ),
    Operation(
        "POST", "/detokenize", "text", "The text of tokens.",
        {JSON: answers.DetokenizeAnswer}, DetokenizeBody, (404,), example={"ids": [120, 121, 122]},
    ),
    Operation("GET", "/models", "models", "The models that are served.", {JSON: answers.ModelsAnswer}),
    Operation(
        "POST", "/models/{name}/load", "models", "Puts a model into memory. Wants an admin key.",
        {JSON: answers.ModelState}, faults=(401, 404, 422, 503),
    ),
    Operation(
        "POST", "/models/{name}/unload", "models", "Takes a model out of memory when what runs has ended. Wants an admin key.",
        {JSON: answers.ModelState}, faults=(401, 404, 503),
    ),
    Operation(
        "POST", "/models/{name}/reload", "models", "Reads a model's folder anew; what runs ends with the old one. Wants an admin key.",
        {JSON: answers.ModelState}, faults=(401, 404, 422, 503),
    ),
    Operation("GET", "/v1/models", "openai", "The models that are served.", {JSON: openai.ModelList}, faults=(503,)),
    Operation("GET", "/v1/models/{model}", "openai", "One of them.", {JSON: openai.ModelEntry}, faults=(404, 503)),
    Operation(
        "POST", "/v1/completions", "openai", "Completions as OpenAI has them.",
        {JSON: openai.CompletionAnswer, EVENTS: openai.CompletionChunk}, CompletionBody, (404, 504),
        example={"prompt": "高血压要注意", "n": 2, "max_tokens": 20},
    ),
    Operation(
        "POST", "/v1/chat/completions", "openai", "Answers in a dialogue, as OpenAI has them.",
        {JSON: openai.ChatCompletion, EVENTS: openai.ChatCompletionChunk}, ChatCompletionBody, (404, 504),
        example={"messages": [{"role": "user", "content": "高血压要注意什么？"}]},
    ),
    Operation(
        "POST", "/v1/embeddings", "openai", "Texts as vectors, as OpenAI has them.",
        {JSON: openai.EmbeddingsAnswer}, EmbeddingBody, (404, 504), example={"input": ["高血压", "血压高"]},
    ),
    Operation(
        "GET", "/health", "state", "Whether the process answers or can still come to answer.",
        {JSON: answers.StateAnswer}, otherwise={503: answers.StateAnswer},
    ),
    Operation(
        "GET", "/ready", "state", "Whether a request sent now is answered.",
        {JSON: answers.StateAnswer}, otherwise={503: answers.StateAnswer},
    ),
    Operation("GET", "/version", "state", "Version, model and packages.", {JSON: answers.VersionAnswer}),
    Operation("GET", "/metrics", "state", "Metrics for Prometheus.", {PLAIN: None}, has_ascii=False),
    Operation("GET", "/", "page", "The page.", {HTML: None}, has_ascii=False),
    Operation("GET", "/chat", "page", "The page to ask questions.", {HTML: None}, has_ascii=False),
    Operation("GET", PAGE_FILES, "page", "A file of the page.", {SCRIPT: None, "text/css": None, "image/svg+xml": None}, has_ascii=False),
    Operation("GET", "/promptgen.js", "page", "A client for pages of any origin.", {SCRIPT: None}, has_ascii=False),
    Operation("GET", "/openapi.json", "reference", "This document.", {JSON: None}),
    Operation("GET", "/docs", "reference", "This document as a page.", {HTML: None}, has_ascii=False),
    Operation("GET", "/docs/rapidoc-min.js", "reference", "The script of that page.", {SCRIPT: None}, has_ascii=False),
)  # fmt: skip


def document(*, needs_key: bool) -> dict[str, Any]:
    """The whole document. Without `needs_key` the security schemes are told, but not asked for."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, needs_key)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "promptgen",
            "version": promptgen.__version__,
            "description": "Give it the beginning of a prompt, it answers several ways the prompt could go on.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(operation.tag for operation in OPERATIONS)],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "responses": {str(status): _fault(status) for status in FAULTS},
            "parameters": {"ascii": _ASCII, "requestId": _REQUEST_ID},
            "headers": {name: {"description": text, "schema": {"type": kind}} for name, kind, text in _HEADERS},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
    }


def _operation(operation: Operation, needs_key: bool) -> dict[str, Any]:
    is_open = is_open_without_key(operation.method, operation.path) or operation.path == PAGE_FILES
    statuses = {*_ALWAYS, *operation.faults, *(_WITH_BODY if operation.takes else ()), *(() if is_open else (401,))}
    responses: dict[str, Any] = {"200": _success(operation)}
    for status, model in (operation.otherwise or {}).items():
        responses[str(status)] = {"description": "Not now.", "content": {JSON: {"schema": _ref(model)}}}
    responses |= {str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(statuses)}
    result: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [operation.tag],
        "parameters": [{"$ref": "#/components/parameters/requestId"}],
        "responses": responses,
        "security": [] if is_open else [*([] if needs_key else [{}]), {"bearer": []}, {"apiKey": []}],
    }
    if operation.path == PAGE_FILES:
        result["parameters"].append({"name": "file", "in": "path", "required": True, "schema": _PAGE_FILE})
    for name in ("model", "name"):
        if f"{{{name}}}" in operation.path:
            result["parameters"].append({"name": name, "in": "path", "required": True, "schema": {"type": "string"}})
    if operation.has_ascii:
        result["parameters"].append({"$ref": "#/components/parameters/ascii"})
    if operation.takes is not None:
        content = {"schema": _ref(operation.takes), "examples": {"short": {"value": operation.example}}}
        result["requestBody"] = {"required": True, "description": _BODY_TEXT, "content": {JSON: content}}
    return result


def _success(operation: Operation) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for media_type, model in operation.gives.items():
        content[media_type] = {
            "schema": _ref(model) if model else {"type": "object" if media_type == JSON else "string"}
        }
    headers = {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}}
    description = operation.summary
    if EVENTS in content:
        event = operation.gives[EVENTS]
        name = operation.event if event is None else event.__name__
        description = operation.events_text.format(event=name)
        content[EVENTS]["schema"] = {
            "type": "string",
            "description": description,
            "x-event": {"$ref": _REF.format(model=name)},
        }
        headers["Server-Timing"] = {"$ref": "#/components/headers/Server-Timing"}
    return {"description": description, "headers": headers, "content": content}


def _fault(status: int) -> dict[str, Any]:
    names = ["X-Request-Id", *([_FAULT_HEADERS[status]] if status in _FAULT_HEADERS else [])]
    return {
        "description": FAULTS[status],
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
        "content": {JSON: {"schema": _ref(answers.ErrorAnswer)}},
    }


def _schemas() -> dict[str, Any]:
    bodies: set[type[BaseModel]] = {operation.takes for operation in OPERATIONS if operation.takes}
    given: set[type[BaseModel]] = {model for operation in OPERATIONS for model in operation.gives.values() if model}
    given |= {model for operation in OPERATIONS for model in (operation.otherwise or {}).values()}
    streamed = {event for events in STREAM_EVENTS.values() for event in events}
    ordered = sorted(bodies | given | streamed, key=lambda model: model.__name__)
    whole: dict[str, Any] = models_json_schema([(model, _MODE) for model in ordered], ref_template=_REF)[1]
    schemas: dict[str, Any] = whole["$defs"]
    names = {body.__name__ for body in bodies}
    for name, schema in schemas.items():
        for field in schema.get("properties", {}).values():
            field.pop("title", None)
            if name not in names and field.get("default", ...) is None:
                del field["default"]  # of a field that may be missing from an answer, and is never null
    for name, events in STREAM_EVENTS.items():
        schemas[name] = {
            "description": "The JSON of one line of a stream.",
            "oneOf": [_ref(event) for event in events],
        }
    return schemas


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}


_ASCII = {
    "name": "ascii",
    "in": "query",
    "description": "1 escapes everything beyond ASCII, for consoles that cannot show it",
    "schema": {"type": "string", "enum": ["1"]},
}
_REQUEST_ID = {
    "name": "X-Request-Id",
    "in": "header",
    "description": "comes back and stands in the log; one of another form is replaced",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
}
_HEADERS = (
    ("X-Request-Id", "string", "the request's, or a new one"),
    ("Retry-After", "integer", "seconds, 1 to 60"),
    ("Server-Timing", "string", "queue, prefill, decode and total in milliseconds; not on streams"),
    ("WWW-Authenticate", "string", "Bearer"),
    ("Allow", "string", "the methods that the path answers"),
)
