"""GET /metrics, Server-Timing, access lines and spans: each tells what a request was, and none of them what it said.

One process of its own, so that counts are those of these tests; it logs JSON and sends its spans to a listener here.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from promptgen.config import EngineSettings, ServeSettings
from promptgen.errors import UsageError
from promptgen.generation.async_engine import AsyncEngine, State
from promptgen.generation.pool import ModelPool
from promptgen.generation.request import Answer, Candidate
from promptgen.server import metrics
from promptgen.server.app import make_app
from promptgen.server.outcome import server_timing

if TYPE_CHECKING:
    from tests.service.conftest import Reply, Server, ServerFactory

ROOT = Path(__file__).resolve().parents[2]
SECRET = "绝密文字"  # stands in prompts; must never be told on
MODEL = "final_model"
WILD = {"temperature": 2, "top_k": 0, "top_p": 0}
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass
class Listener:
    """Takes spans as an OpenTelemetry collector does."""

    port: int
    batches: list[bytes]

    def spans(self) -> list[Any]:
        return [
            span
            for batch in list(self.batches)
            for resource in ExportTraceServiceRequest.FromString(batch).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    batches: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            batches.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Listener(server.server_port, batches)
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def seen(start_server: ServerFactory, listener: Listener) -> Iterator[Server]:
    server = start_server(
        "--log-json",
        "--otel",
        "--max-queue",
        "4",
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{listener.port}",
        OTEL_BSP_SCHEDULE_DELAY="100",
        NO_PROXY="127.0.0.1",
    )
    yield server
    assert server.stop() == 0  # while somebody takes its last spans


def scrape(server: Server) -> Samples:
    reply = server.get("/metrics")
    assert reply.status == 200
    return samples_of(text_string_to_metric_families(reply.body.decode()))


def samples_of(families: Iterator[Metric]) -> Samples:
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((f"promptgen_{name}", frozenset(labels.items())), 0.0)


def grown(before: Samples, after: Samples, name: str, **labels: str) -> float:
    return value(after, name, **labels) - value(before, name, **labels)


def access_lines(server: Server, request_id: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in server.log().splitlines()]
    return [line for line in lines if line.get("request_id") == request_id and "took_ms" in line]


# -- what is counted -----------------------------------------------------------------------------------------------------


def test_an_answer_is_counted_in_every_way(seen: Server) -> None:
    before = scrape(seen)
    answer = seen.generate(context="高血压要注意囧囧 ", samples=3, maxlength=8, seed=1, details=True)
    after = scrape(seen)
    assert grown(before, after, "http_requests_total", method="POST", route="/generate", status="200") == 1
    for name in ("queue", "prefill", "decode", "time_to_first_token", "inter_token"):
        assert grown(before, after, f"{name}_seconds_count") == 1, name
    assert grown(before, after, "http_request_seconds_count", route="/generate") == 1
    timing, usage = answer["timing"], answer["usage"]
    for name in ("queue", "prefill", "decode"):
        assert grown(before, after, f"{name}_seconds_sum") == pytest.approx(timing[name], abs=2e-6)
    first = timing["queue"] + timing["prefill"]
    assert grown(before, after, "time_to_first_token_seconds_sum") == pytest.approx(first, abs=3e-6)
    longest = max(candidate["num_tokens"] for candidate in answer["candidates"])
    pace = timing["decode"] / (longest - 1)
    assert grown(before, after, "inter_token_seconds_sum") == pytest.approx(pace, abs=2e-6)
    assert grown(before, after, "answered_prompt_tokens_total") == usage["prompt_tokens"]
    assert grown(before, after, "answered_unknown_tokens_total") == 2
    assert grown(before, after, "generated_tokens_total", model=MODEL) >= usage["completion_tokens"]
    reasons = [candidate["finish_reason"] for candidate in answer["candidates"]]
    for reason in ("stop", "length"):
        assert grown(before, after, "candidates_total", finish_reason=reason) == reasons.count(reason)


def test_a_streamed_answer_is_counted_alike(seen: Server) -> None:
    before = scrape(seen)
    assert seen.post({"context": "高血压要注意", "samples": 2, "stream": True}).status == 200
    after = scrape(seen)
    assert grown(before, after, "time_to_first_token_seconds_count") == 1
    assert grown(before, after, "http_requests_total", method="POST", route="/generate", status="200") == 1
    assert sum(grown(before, after, "candidates_total", finish_reason=r) for r in ("stop", "length")) == 2


def test_several_contexts_are_counted_as_one_answer_of_all_their_candidates(seen: Server) -> None:
    before = scrape(seen)
    reply = seen.post({"context": ["高血压要注意", " ", "写一首诗"], "samples": 2, "maxlength": 4, "details": True})
    after = scrape(seen)
    assert list(timing_of(reply)) == ["queue", "prefill", "decode", "total"]
    assert sum(grown(before, after, "candidates_total", finish_reason=r) for r in ("stop", "length")) == 4
    assert grown(before, after, "answered_prompt_tokens_total") == reply.json["usage"]["prompt_tokens"]
    for name in ("queue", "prefill", "decode", "time_to_first_token"):
        assert grown(before, after, f"{name}_seconds_count") == 1, name


def test_a_prompt_that_was_read_before_is_reused(seen: Server) -> None:
    fields = {"context": "今天我们要去公园散步，顺便 ", "samples": 1, "maxlength": 2}
    first, second = [], []
    for times in (first, second):
        times.append(scrape(seen))
        seen.generate(**fields)
        times.append(scrape(seen))
    computed = grown(*first, "prompt_tokens_total", model=MODEL, source="computed")
    assert computed > 2
    assert grown(*second, "prompt_tokens_total", model=MODEL, source="reused") > grown(
        *first, "prompt_tokens_total", model=MODEL, source="reused"
    )
    assert grown(*second, "prompt_tokens_total", model=MODEL, source="computed") < computed


def test_errors_are_counted_by_status_and_code(seen: Server) -> None:
    before = scrape(seen)
    seen.post({"context": "a", "samples": 65})
    seen.get("/nothing/here")
    seen.request("DELETE", "/generate")
    seen.request("REPORT", "/nothing/there")
    after = scrape(seen)
    requests = "http_requests_total"
    assert grown(before, after, requests, method="POST", route="/generate", status="400") == 1
    assert grown(before, after, requests, method="GET", route="none", status="404") == 1
    assert grown(before, after, requests, method="DELETE", route="none", status="405") == 1
    assert grown(before, after, requests, method="other", route="none", status="404") == 1
    for code, count in (("invalid_value", 1), ("not_found", 2), ("method_not_allowed", 1)):
        assert grown(before, after, "errors_total", code=code) == count
    assert grown(before, after, "decode_seconds_count") == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_who_leaves_is_cancelled_and_leaves_nothing_running(seen: Server, stream: bool) -> None:
    before = scrape(seen)
    body = json.dumps({"context": "高血压要注意", "samples": 64, "maxlength": 240, "stream": stream, **WILD})
    request_id = f"leaver-{stream}"
    with seen.connect() as connection:
        connection.sendall(seen.http(body, "Content-Type: application/json", f"X-Request-Id: {request_id}"))
        running = wait_for(seen, lambda now: value(now, "requests_running") == 1 and value(now, "engine_rows") > 0)
    assert 0 < value(running, "batch_fill_ratio") <= 1
    after = wait_for(seen, lambda now: grown(before, now, "requests_cancelled_total") == 1)
    assert grown(before, after, "http_requests_total", method="POST", route="/generate", status="499") == 1
    wait_for(seen, lambda now: value(now, "requests_running") == value(now, "engine_rows") == 0)
    assert [line["status"] for line in access_lines(seen, request_id)] == [499]


def wait_for(server: Server, is_so: Any) -> Samples:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if is_so(samples := scrape(server)):
            return samples
        time.sleep(0.02)
    raise AssertionError("it did not come to that")


@pytest.mark.parametrize("stream", [False, True])
def test_a_superseded_request_is_counted(seen: Server, stream: bool) -> None:
    before = scrape(seen)
    body = json.dumps(
        {"context": "高血压要注意", "samples": 64, "maxlength": 240, "session": "s-1", "stream": stream, **WILD}
    )
    with seen.connect() as connection:
        connection.sendall(seen.http(body, "Content-Type: application/json"))
        wait_for(seen, lambda now: value(now, "engine_rows") > 0)
        seen.generate(context="高血压要注意饮食", session="s-1", maxlength=2)
        assert b'"superseded"' in seen.read_to_end(connection)
    after = wait_for(seen, lambda now: grown(before, now, "requests_superseded_total") == 1)
    assert grown(before, after, "errors_total", code="superseded") == 1
    assert grown(before, after, "requests_cancelled_total") == 0


def test_an_overloaded_service_says_so(seen: Server) -> None:
    before = scrape(seen)
    assert value(before, "requests_limit") == 4
    body = json.dumps({"context": "高血压要注意", "samples": 64, "maxlength": 240, **WILD})
    busy = [seen.connect() for _ in range(4)]
    for connection in busy:
        connection.sendall(seen.http(body, "Content-Type: application/json"))
    crowded = wait_for(seen, lambda now: value(now, "requests_running") + value(now, "requests_waiting") == 4)
    assert value(crowded, "engine_rows") <= value(crowded, "engine_rows_limit") == 128
    seen.post({"context": "a"}).error(503, "overloaded")
    for connection in busy:
        connection.close()
    after = wait_for(seen, lambda now: grown(before, now, "requests_cancelled_total") == 4)
    assert grown(before, after, "errors_total", code="overloaded") == 1


def test_the_process_and_the_engine_tell_of_themselves(seen: Server) -> None:
    samples = scrape(seen)
    states = {dict(labels)["state"]: v for (name, labels), v in samples.items() if name == "promptgen_engine_state"}
    assert [state for state, v in states.items() if v] == ["ready"]
    named = {name: dict(labels) for name, labels in samples}
    assert named["promptgen_model_info"]["model"] == "final_model"
    assert samples[("process_resident_memory_bytes", frozenset())] > 10_000_000
    assert 5 < samples[("process_open_fds", frozenset())] < samples[("process_max_fds", frozenset())]
    assert value(samples, "event_loop_lag_seconds_count") > 0
    assert 0 < value(samples, "event_loop_lag_max_seconds") < 5


def test_openmetrics_is_given_to_whom_accepts_it(seen: Server) -> None:
    reply = seen.get("/metrics", {"Accept": "application/openmetrics-text; version=nonsense, text/plain"})
    assert reply.headers["Content-Type"].startswith("application/openmetrics-text")
    names = {name for name, _ in samples_of(parse_openmetrics(reply.body.decode()))}
    assert {"promptgen_http_requests_total", "promptgen_decode_seconds_bucket"} <= names


def test_labels_are_bounded_and_hold_nothing_that_was_sent(seen: Server) -> None:
    for method in ("REPORT", "PROPFIND", "MKCOL", "LOCK"):
        seen.request(method, "/generate")
    for number in range(30):
        seen.get(f"/made/up/{number}?q={number}")
        seen.post({"context": SECRET, "samples": 1, "maxlength": 1}, {"X-Api-Key": f"key-{number}"})
    reply = seen.get("/metrics")
    text = reply.body.decode()
    assert SECRET not in text
    assert "key-" not in text
    assert "made" not in text
    labels = {label for _, labels in samples_of(text_string_to_metric_families(text)) for label in labels}
    methods = {given for name, given in labels if name == "method"}
    assert {"GET", "POST", "other"} <= methods <= {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "other"}
    assert {given for name, given in labels if name == "route"} <= {*routes(), "none"}


def routes() -> set[str]:
    app = make_app(ServeSettings(), AsyncEngine(EngineSettings()))
    return {resource.canonical for resource in app.router.resources()}


@pytest.fixture(scope="module")
def locked(start_server: ServerFactory) -> Server:
    """A service with a key, whose collector of spans is gone."""
    nobody = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "NO_PROXY": "127.0.0.1"}
    server = start_server("--otel", ready=False, PROMPTGEN_API_KEYS="s3cret", **nobody)
    server.wait_until("/ready", 200)
    return server


def test_metrics_want_the_key_when_there_is_one(locked: Server) -> None:
    for path in ("/metrics", "/openapi.json", "/docs"):
        locked.get(path).error(401, "invalid_api_key")
    assert locked.get("/metrics", {"Authorization": "Bearer s3cret"}).status == 200
    told = locked.get("/openapi.json", {"X-Api-Key": "s3cret"}).json["paths"]
    assert told["/generate"]["post"]["security"] == [{"bearer": []}, {"apiKey": []}]


# -- Server-Timing -------------------------------------------------------------------------------------------------------


def timing_of(reply: Reply) -> dict[str, float]:
    parts = (part.split(";dur=") for part in reply.headers["Server-Timing"].split(", "))
    return {name: float(duration) for name, duration in parts}


def test_server_timing_is_that_of_the_answer(seen: Server) -> None:
    reply = seen.post({"context": "高血压要注意", "details": True})
    timing = timing_of(reply)
    assert list(timing) == ["queue", "prefill", "decode", "total"]
    for name in ("queue", "prefill", "decode"):
        assert timing[name] == pytest.approx(reply.json["timing"][name] * 1000, abs=0.01)
    assert timing["total"] >= reply.json["timing"]["total"] * 1000


def test_server_timing_is_on_answers_alone(seen: Server) -> None:
    assert seen.post({"context": " "}).headers["Server-Timing"] is None
    assert seen.post({"context": 1}).headers["Server-Timing"] is None
    assert seen.get("/health").headers["Server-Timing"] is None
    assert seen.post({"context": "高血压", "stream": True}).headers["Server-Timing"] is None


def test_server_timing_is_in_milliseconds() -> None:
    assert server_timing(Answer((), 1, queue_s=0.001, prefill_s=0.0025, decode_s=1.5), 2.0) == (
        "queue;dur=1.000, prefill;dur=2.500, decode;dur=1500.000, total;dur=2000.000"
    )


# -- logs ----------------------------------------------------------------------------------------------------------------


def test_a_request_has_one_access_line_without_its_text(seen: Server) -> None:
    answer = seen.post({"context": SECRET, "maxlength": 5, "details": True}, {"X-Request-Id": "line-1"}).json
    seen.post({"context": SECRET, "stream": True}, {"X-Request-Id": "line-2"})
    seen.post({"context": SECRET, "samples": SECRET}, {"X-Request-Id": "line-3"})
    [line] = access_lines(seen, "line-1")
    assert (line["method"], line["route"], line["status"]) == ("POST", "/generate", 200)
    assert line["took_ms"] >= answer["timing"]["total"] * 1000 - 0.1
    assert (line["prompt_tokens"], line["tokens"]) == tuple(answer["usage"].values())
    [streamed] = access_lines(seen, "line-2")
    assert streamed["tokens"] > 0
    [refused] = access_lines(seen, "line-3")
    assert (refused["status"], refused["code"]) == (400, "invalid_value")
    assert "tokens" not in refused
    assert SECRET not in seen.log()
    assert SECRET.encode("unicode_escape").decode() not in seen.log()


def test_plain_lines_have_the_same(server: Server) -> None:
    server.post({"context": SECRET, "maxlength": 2, "samples": 1}, {"X-Request-Id": "plain-1"})
    server.get("/nothing", {"X-Request-Id": "plain-2"})
    lines = {key: line for line in server.log().splitlines() for key in ("plain-1", "plain-2") if f"={key}" in line}
    told = (
        r"\d\d:\d\d:\d\d info +POST /generate status=200 took_ms=[\d.]+ request_id=plain-1 prompt_tokens=\d+ tokens=\d+"
    )
    assert re.fullmatch(told, lines["plain-1"])
    assert lines["plain-2"].endswith("request_id=plain-2 code=not_found")
    assert SECRET not in server.log()


# -- spans ---------------------------------------------------------------------------------------------------------------


def test_a_request_is_a_span_without_its_text(seen: Server, listener: Listener) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace}-{parent}-01"}
    usage = seen.post({"context": SECRET, "maxlength": 3, "samples": 2, "details": True}, headers).json["usage"]
    seen.post({"context": SECRET, "samples": 99}, headers)
    end = time.monotonic() + 20
    while len(found := [span for span in listener.spans() if span.trace_id.hex() == trace]) < 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    answered, refused = sorted(found, key=lambda span: span.start_time_unix_nano)
    assert answered.name == "POST /generate"
    assert answered.parent_span_id.hex() == parent
    told = {attribute.key: attribute.value for attribute in answered.attributes}
    assert told["http.request.method"].string_value == "POST"
    assert told["http.route"].string_value == "/generate"
    assert told["http.response.status_code"].int_value == 200
    assert told["gen_ai.usage.input_tokens"].int_value == usage["prompt_tokens"]
    assert told["gen_ai.usage.output_tokens"].int_value == usage["completion_tokens"]
    refusal = {attribute.key: attribute.value for attribute in refused.attributes}
    assert refusal["http.response.status_code"].int_value == 400
    assert refusal["error.type"].string_value == "invalid_value"
    assert SECRET.encode() not in b"".join(listener.batches)


def test_the_spans_are_named_after_this_service(seen: Server, listener: Listener) -> None:
    seen.get("/health")
    end = time.monotonic() + 20
    while not listener.batches:
        assert time.monotonic() < end
        time.sleep(0.05)
    [resource] = ExportTraceServiceRequest.FromString(listener.batches[0]).resource_spans
    told = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
    assert told["service.name"] == "promptgen"


def test_a_collector_that_is_gone_does_not_hold_up_the_end(locked: Server) -> None:
    locked.get("/health")
    began = time.monotonic()
    assert locked.stop() == 0
    assert time.monotonic() - began < 8
    assert "Traceback" not in locked.log()


def test_without_the_extra_otel_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "promptgen.server.tracing", raising=False)
    monkeypatch.delitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", raising=False)
    with pytest.raises(UsageError, match=r"pip install 'promptgen\[otel\]'"):
        make_app(ServeSettings(otel=True), AsyncEngine(EngineSettings()))


# -- without a process ---------------------------------------------------------------------------------------------------


def pool_of(*names: str) -> ModelPool:
    return ModelPool({name: AsyncEngine(EngineSettings()) for name in names})


@pytest.mark.parametrize(
    ("states", "told"),
    [(("ready", "ready"), "ready"), (("ready", "failed"), "failed"), (("ready", "unloaded"), "ready")],
)
def test_the_state_is_that_of_the_model_that_is_furthest_from_answering(states: tuple[State, State], told: str) -> None:
    pool = pool_of("one", "other")
    for (_, engine), state in zip(pool, states, strict=True):
        engine.state = state
    families = metrics.Metrics(pool).registry.collect()
    shown = {s.labels["state"] for f in families for s in f.samples if s.name == "promptgen_engine_state" and s.value}
    assert shown == {told}


def test_two_applications_count_apart() -> None:
    one, other = (metrics.Metrics(pool_of("one")) for _ in range(2))
    one.observe_answer(Answer((Candidate("a", 3, None, "stop"),), 5, 0.1, 0.2, 0.3, num_unknown_tokens=2))
    name = "promptgen_answered_unknown_tokens_total"
    assert (one.registry.get_sample_value(name), other.registry.get_sample_value(name)) == (2, 0)


def test_an_answer_of_one_token_has_no_pace() -> None:
    seen = metrics.Metrics(pool_of("one"))
    seen.observe_answer(Answer((Candidate("a", 1, None, "length"),), 5, 0.1, 0.2, 0.0))
    seen.observe_answer(Answer((), 5))
    assert seen.registry.get_sample_value("promptgen_inter_token_seconds_count") == 0
    assert seen.registry.get_sample_value("promptgen_decode_seconds_count") == 2


def test_the_largest_lag_is_forgotten_after_two_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    registry = CollectorRegistry()
    lag = metrics.LoopLag(registry)

    def largest() -> float | None:
        return registry.get_sample_value("promptgen_event_loop_lag_max_seconds")

    lag.note(0.5)
    now[0] += metrics.LAG_WINDOW_S + 1
    lag.note(0.1)
    assert largest() == 0.5
    now[0] += metrics.LAG_WINDOW_S + 1
    lag.note(-0.001)
    assert largest() == 0.1
    assert registry.get_sample_value("promptgen_event_loop_lag_seconds_bucket", {"le": "0.001"}) == 1


# -- the dashboard -------------------------------------------------------------------------------------------------------


def test_the_dashboard_names_exported_metrics_and_labels_only(seen: Server) -> None:
    seen.generate(context="高血压", maxlength=2)
    seen.get("/nothing")
    exported = {name for name, _ in scrape(seen)}
    dashboard = json.loads((ROOT / "deploy" / "grafana.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    named = {name for expr in expressions for name in re.findall(r"\b(?:promptgen|process)_[a-z0-9_]+", expr)}
    assert len(named) > 20
    assert named - exported == set()


def test_the_operations_manual_names_every_metric_and_no_other(seen: Server) -> None:
    exported = {name for name, _ in scrape(seen)}
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:promptgen|process)_[a-z0-9_]+(?=[^a-z0-9_/.-])", text))
    parts = re.compile(r"_(bucket|sum|count|created)$")
    wanted = {
        parts.sub("", name) for name in exported if name.startswith("promptgen_") and not name.endswith("_created")
    }
    assert wanted - named == set()
    known = exported | {parts.sub("", name) for name in exported}
    assert named - known == set()
