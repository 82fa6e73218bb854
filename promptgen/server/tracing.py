"""A span for each request, by OpenTelemetry: the setting --otel and the extra promptgen[otel].

Where the spans go, how many and under which name is told by the standard OTEL_* variables (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME,
OTEL_TRACES_SAMPLER ...); they are sent by OTLP over HTTP. Attributes are those of the semantic conventions. No prompt text, no key.
"""

from __future__ import annotations

import asyncio
import threading

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import promptgen
from promptgen.server.outcome import OUTCOME, Outcome, route_of

LAST_SPANS_S = 3.0
_KNOWN_METHODS = frozenset(hdrs.METH_ALL)
_NAMED_BY_NOBODY = "unknown_service"


class Tracer:
    """Makes the spans of one application and sends them."""

    def __init__(self) -> None:
        resource = Resource.create({"service.version": promptgen.__version__})
        if str(resource.attributes.get("service.name", _NAMED_BY_NOBODY)).startswith(_NAMED_BY_NOBODY):
            resource = resource.merge(Resource({"service.name": "promptgen"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("promptgen", promptgen.__version__)
        self._propagator = TraceContextTextMapPropagator()

    async def close(self, _: web.Application) -> None:
        """Sends what has not been sent. A collector that is gone does not hold up the end."""
        sending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        sending.start()
        await asyncio.to_thread(sending.join, LAST_SPANS_S)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        method = request.method if request.method in _KNOWN_METHODS else "_OTHER"
        route = route_of(request)
        with self._tracer.start_as_current_span(
            f"{method} {route}",
            context=self._propagator.extract(request.headers),
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": method,
                "http.route": route,
                "url.scheme": request.scheme,
                "url.path": request.path[:200],
                "network.protocol.version": f"{request.version.major}.{request.version.minor}",
            },
        ) as span:
            try:
                response = await handler(request)
            finally:
                _describe(span, request[OUTCOME])
            span.set_attribute("http.response.status_code", response.status)
            if response.status >= 500:
                span.set_status(Status(StatusCode.ERROR))
            return response


def _describe(span: Span, outcome: Outcome) -> None:
    if outcome.left or outcome.code is not None:
        span.set_attribute("error.type", outcome.code or "client_left")
    if outcome.answer is not None:
        answer = outcome.answer
        span.set_attributes(
            {
                "gen_ai.operation.name": "text_completion",
                "gen_ai.usage.input_tokens": answer.num_prompt_tokens,
                "gen_ai.usage.output_tokens": answer.num_completion_tokens,
                "gen_ai.response.finish_reasons": [candidate.finish_reason for candidate in answer.candidates],
                "promptgen.queue_s": answer.queue_s,
                "promptgen.prefill_s": answer.prefill_s,
                "promptgen.decode_s": answer.decode_s,
            }
        )
