"""Puts the service together: routes, the door, CORS. `make_app` starts nothing; server/lifecycle.py does."""

from __future__ import annotations

from aiohttp import web

from promptgen.config import ServeSettings
from promptgen.generation.async_engine import AsyncEngine
from promptgen.server import chat, guards, handlers, pages
from promptgen.server.body import defer_expectation


def make_app(settings: ServeSettings, engine: AsyncEngine) -> web.Application:
    """The application over an engine that may still be loading. Raises UsageError for settings that contradict each other."""
    app = web.Application(middlewares=[guards.outer(), guards.check_host(settings), guards.check_key(settings)])
    app[handlers.ENGINE] = engine
    app[handlers.SETTINGS] = settings
    routes = (
        ("POST", "/generate", handlers.generate),
        ("POST", "/chat", chat.chat),
        ("GET", "/health", handlers.health),
        ("GET", "/ready", handlers.ready),
        ("GET", "/version", handlers.version_of),
        *pages.routes(),
    )
    for method, path, handler in sorted(
        routes, key=lambda route: route[1]
    ):  # methods of a path side by side are one resource
        app.router.add_route(method, path, handler, expect_handler=defer_expectation)
        if method == "GET":
            app.router.add_route("HEAD", path, handler, expect_handler=defer_expectation)
    guards.add_cors(app, settings)
    return app
