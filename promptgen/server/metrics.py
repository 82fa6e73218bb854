"""What Prometheus reads at GET /metrics. A registry for each application; nothing is global.

What the engines count themselves is read when somebody asks (`_EngineCollector`); what a request tells is observed once, when it ends
(`Metrics.observe`). Labels are templates of routes, statuses, names of models and words of this program: never a prompt, a path or a key.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import get_args

from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry, Counter, Histogram, Info, ProcessCollector, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

import promptgen
from promptgen.generation.async_engine import State
from promptgen.generation.pool import ModelPool
from promptgen.generation.request import Answer
from promptgen.server.outcome import Outcome, route_of

LAG_INTERVAL_S = 0.1
LAG_WINDOW_S = 30.0
_METHODS = frozenset(hdrs.METH_ALL)
_FROM_100_US = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_FROM_1_MS = (*_FROM_100_US[3:], 2.0, 5.0, 10.0, 30.0, 60.0)
_SUPERSEDED = "superseded"


class Metrics:
    """The metrics of one application over its models."""

    def __init__(self, pool: ModelPool) -> None:
        self.registry = registry = CollectorRegistry()
        self.lag = LoopLag(registry)
        registry.register(_EngineCollector(pool))
        ProcessCollector(registry=registry)
        Info("promptgen_build", "This program.", registry=registry).info({"version": promptgen.__version__})

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"promptgen_{name}", help, labels, registry=registry)

        def seconds(name: str, help: str, *labels: str, buckets: tuple[float, ...] = _FROM_100_US) -> Histogram:
            return Histogram(f"promptgen_{name}_seconds", help, labels, buckets=buckets, registry=registry)

        self._requests = counter("http_requests", "Requests, by how they ended.", "method", "route", "status")
        self._request = seconds("http_request", "From the head of a request to its end.", "route", buckets=_FROM_1_MS)
        self._errors = counter("errors", "Error answers and failed streams, by code.", "code")
        self._cancelled = counter("requests_cancelled", "Requests whose caller left or was cut off before the end.")
        self._superseded = counter("requests_superseded", "Requests given up for a newer one of their session.")
        self._queue = seconds("queue", "From submission to the first step.", buckets=_FROM_1_MS)
        self._prefill = seconds("prefill", "From the first step to the first token.")
        self._decode = seconds("decode", "From the first token to the last.", buckets=_FROM_1_MS)
        self._first_token = seconds("time_to_first_token", "From submission to the first token.", buckets=_FROM_1_MS)
        self._inter_token = seconds("inter_token", "Seconds a token of an answer's longest candidate, on average.")
        self._candidates = counter("candidates", "Finished candidates, by reason.", "finish_reason")
        self._answered = counter("answered_prompt_tokens", "Tokens in prompts of answered requests.")
        self._unknown = counter("answered_unknown_tokens", "Those of them that the vocabulary lacks.")

    def observe(self, request: web.Request, status: int, took_s: float, outcome: Outcome) -> None:
        """A request has ended."""
        method = request.method if request.method in _METHODS else "other"
        route = route_of(request)
        self._requests.labels(method, route, str(status)).inc()
        self._request.labels(route).observe(took_s)
        if outcome.left:
            self._cancelled.inc()
        if outcome.code is not None:
            self._errors.labels(outcome.code).inc()
        if outcome.code == _SUPERSEDED:
            self._superseded.inc()
        if outcome.answer is not None:
            self.observe_answer(outcome.answer)

    def observe_answer(self, answer: Answer) -> None:
        self._queue.observe(answer.queue_s)
        self._prefill.observe(answer.prefill_s)
        self._decode.observe(answer.decode_s)
        self._first_token.observe(answer.queue_s + answer.prefill_s)
        longest = max((candidate.num_tokens for candidate in answer.candidates), default=0)
        if longest > 1:
            self._inter_token.observe(answer.decode_s / (longest - 1))
        for candidate in answer.candidates:
            self._candidates.labels(candidate.finish_reason).inc()
        self._answered.inc(answer.num_prompt_tokens)
        self._unknown.inc(answer.num_unknown_tokens)


METRICS = web.AppKey("metrics", Metrics)


async def show(request: web.Request) -> web.Response:
    """GET /metrics: Prometheus's text format, or OpenMetrics for whoever accepts it."""
    registry = request.app[METRICS].registry
    if "application/openmetrics-text" in request.headers.get(hdrs.ACCEPT, ""):
        body: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
        kind = openmetrics.CONTENT_TYPE_LATEST
    else:
        body, kind = exposition.generate_latest(registry), exposition.CONTENT_TYPE_PLAIN_0_0_4
    return web.Response(body=body, headers={hdrs.CONTENT_TYPE: kind, hdrs.CACHE_CONTROL: "no-store"})


class LoopLag(Collector):
    """How late the event loop wakes a task that sleeps: what every answer waits for beside the engine.

    The largest is that of the last 30 to 60 seconds, so that no scrape takes it from another.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lags = Histogram(
            "promptgen_event_loop_lag_seconds",
            "How late the event loop wakes a sleeping task.",
            buckets=_FROM_100_US[3:],
            registry=registry,
        )
        self._largest = self._largest_before = 0.0
        self._window_began = time.monotonic()
        registry.register(self)

    async def run(self, _: web.Application) -> AsyncIterator[None]:
        """Measures for as long as the application lives (aiohttp's cleanup_ctx)."""
        task = asyncio.create_task(self._measure(), name="event loop lag")
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _measure(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(LAG_INTERVAL_S)
            self.note(time.monotonic() - began - LAG_INTERVAL_S)

    def note(self, lag_s: float) -> None:
        lag_s = max(0.0, lag_s)
        self._lags.observe(lag_s)
        if time.monotonic() - self._window_began > LAG_WINDOW_S:
            self._largest_before, self._largest = self._largest, 0.0
            self._window_began = time.monotonic()
        self._largest = max(self._largest, lag_s)

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "promptgen_event_loop_lag_max_seconds",
            "The largest lag of the event loop in the last 30 to 60 seconds.",
            max(self._largest, self._largest_before),
        )


class _EngineCollector(Collector):
    """What the engines count themselves, read when it is asked for. Gauges are sums over the models. Counters are each model's own: one that is
    loaded anew begins at 0, and in a sum that would look as if all did."""

    def __init__(self, pool: ModelPool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        state = GaugeMetricFamily(
            "promptgen_engine_state", "1 for the state of the model that is furthest from answering.", labels=["state"]
        )
        for name in get_args(State):
            state.add_metric([name], float(self._pool.state == name))
        yield state
        model = GaugeMetricFamily("promptgen_model_info", "The models that are served.", labels=["model", "step"])
        for _, engine in self._pool:
            if engine.info is not None:
                model.add_metric([engine.info.name, engine.stats.steps], 1)
        yield model
        yield from self._gauges()
        yield from self._counters()

    def _gauges(self) -> Iterator[Metric]:
        engines = [engine for _, engine in self._pool]
        waiting = sum(engine.num_waiting for engine in engines)
        active = sum(engine.num_active for engine in engines)
        rows = sum(engine.stats.num_rows for engine in engines)
        max_rows = sum(engine.stats.max_rows for engine in engines)
        max_queue = sum(engine.settings.max_queue for engine in engines)
        gauges: dict[str, tuple[str, float]] = {
            "requests_waiting": ("Requests none of whose candidates runs yet.", waiting),
            "requests_running": ("Requests being decoded.", active - waiting),
            "requests_limit": ("Requests that may wait or run at once.", max_queue),
            "engine_rows": ("Candidates being decoded.", rows),
            "engine_rows_limit": ("Candidates that can be decoded at once.", max_rows),
            "batch_fill_ratio": ("Rows in use, of those there are.", rows / max(1, max_rows)),
        }
        for name, (help, value) in gauges.items():
            yield GaugeMetricFamily(f"promptgen_{name}", help, value)

    def _counters(self) -> Iterator[Metric]:
        def counter(name: str, help: str, *labels: str) -> CounterMetricFamily:
            return CounterMetricFamily(f"promptgen_{name}", help, labels=["model", *labels])

        prompt = counter("prompt_tokens", "Prompt tokens: computed, or reused from the cache.", "source")
        generated = counter("generated_tokens", "Tokens drawn.")
        recalled = counter("recalled_tokens", "Tokens of candidates drawn for an earlier request.")
        shared = counter(
            "shared_tokens", "Tokens that were not computed: another one after the same tokens is, or was."
        )
        steps = counter("engine_steps", "Steps of the engine.")
        for model, engine in self._pool:
            stats = engine.stats
            prompt.add_metric([model, "computed"], stats.num_prompt_tokens)
            prompt.add_metric([model, "reused"], stats.num_reused_tokens)
            generated.add_metric([model], stats.num_generated_tokens)
            recalled.add_metric([model], stats.num_recalled_tokens)
            shared.add_metric([model], stats.num_shared_tokens)
            steps.add_metric([model], stats.num_steps)
        yield from (prompt, generated, recalled, shared, steps)
