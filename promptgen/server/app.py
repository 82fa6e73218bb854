"""Puts the service together: routes, the door, CORS. `make_app` starts nothing; server/lifecycle.py does."""

from __future__ import annotations

from aiohttp import web

from promptgen.config import ServeSettings
from promptgen.generation.async_engine import AsyncEngine
from promptgen.server import guards, handlers
from promptgen.server.body import refuse_large_expectation


def make_app(settings: ServeSettings, engine: AsyncEngine) -> web.Application:
    """The application over an engine that may still be loading. Raises UsageError for settings that contradict each other."""
    app = web.Application(middlewares=[guards.outer(), guards.check_host(settings), guards.check_key(settings)])
    app[handlers.ENGINE] = engine
    app[handlers.SETTINGS] = settings
    app.router.add_route("POST", "/generate", handlers.generate, expect_handler=refuse_large_expectation)
    app.router.add_get("/health", handlers.health)
    app.router.add_get("/ready", handlers.ready)
    app.router.add_get("/version", handlers.version_of)
    guards.add_cors(app, settings)
    return app
