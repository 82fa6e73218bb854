"""Puts the service together: routes, the door, CORS. `make_app` starts nothing; server/lifecycle.py does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from promptgen.config import ServeSettings
from promptgen.errors import UsageError
from promptgen.generation.async_engine import AsyncEngine
from promptgen.generation.pool import ModelPool
from promptgen.server import chat, docs_page, guards, handlers, metrics, models, pages, text_routes
from promptgen.server.keys import Keys, limits_of
from promptgen.server.openai import routes as openai

if TYPE_CHECKING:
    from promptgen.server.tracing import Tracer


def make_app(settings: ServeSettings, engine: AsyncEngine, pool: ModelPool | None = None) -> web.Application:
    """The application over an engine that may still be loading, the default of the pool. Raises UsageError for settings that contradict each
    other."""
    pool = pool or ModelPool({"default": engine})
    keys = Keys(settings)
    seen = metrics.Metrics(pool)
    tracers = _tracers(settings)
    app = web.Application(
        middlewares=[
            *(each.middleware for each in tracers),
            guards.outer(seen),
            guards.check_host(settings),
            guards.check_key(keys, limits_of(settings, keys)),
        ]
    )
    app[handlers.ENGINE] = engine
    app[handlers.MODELS] = pool
    app[handlers.KEYS] = keys
    app[handlers.SETTINGS] = settings
    app[metrics.METRICS] = seen
    app.cleanup_ctx.append(seen.lag.run)
    texts = text_routes.TextRoutes(pool, settings.body_timeout_s)
    docs = docs_page.DocsPage(needs_key=keys.are_wanted)
    app.on_cleanup.extend([texts.close, *(each.close for each in tracers)])
    routes = (
        ("POST", "/generate", handlers.generate),
        ("POST", "/chat", chat.chat),
        ("GET", "/health", handlers.health),
        ("GET", "/ready", handlers.ready),
        ("GET", "/version", handlers.version_of),
        ("GET", "/models", models.models),
        ("POST", "/models/{name}/load", models.load),
        ("POST", "/models/{name}/unload", models.unload),
        ("POST", "/models/{name}/reload", models.reload),
        ("POST", "/tokenize", texts.tokenize),
        ("POST", "/detokenize", texts.detokenize),
        ("GET", "/metrics", metrics.show),
        ("GET", "/openapi.json", docs.description),
        ("GET", "/docs", docs.page),
        ("GET", "/docs/rapidoc-min.js", docs.viewer),
        *pages.routes(),
        *openai.ROUTES,
    )
    # The methods of a path stand side by side, so that they are one resource, and a preflight knows them all.
    for method, path, handler in sorted(routes, key=lambda route: route[1]):
        app.router.add_route(method, path, handler)
        if method == "GET":
            app.router.add_route("HEAD", path, handler)
    guards.add_cors(app, settings)
    return app


def _tracers(settings: ServeSettings) -> list[Tracer]:
    """What --otel asks for. Raises UsageError when the extra is not installed; without the option it is not even loaded."""
    if not settings.otel:
        return []
    try:
        from promptgen.server.tracing import Tracer
    except ModuleNotFoundError as fault:
        raise UsageError(
            f"--otel needs OpenTelemetry ({fault.name} is missing): pip install 'promptgen[otel]', "
            "in a checkout pip install -e '.[otel]'"
        ) from fault
    return [Tracer()]
