"""The life of the process: bind, load, serve, drain, stop.

The port answers at once (/health 200, /ready 503) while the models load. SIGTERM and SIGINT drain: /ready turns 503, new work is refused,
accepted work ends, exit 0. A second signal ends now. SIGHUP reads the key files again. An engine that cannot be helped any more (it died too
often, or hangs) ends the process with 70.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from typing import Any

from aiohttp import web

from promptgen.config import ServeSettings, describe
from promptgen.errors import UsageError
from promptgen.generation.pool import ModelPool
from promptgen.server.app import make_app
from promptgen.server.handlers import KEYS
from promptgen.server.keys import Keys, read_keys
from promptgen.server.protocol import QuietRunner

KEEPALIVE_S = 75.0
LINGERING_S = 1.0
LAST_WORDS_S = 0.2  # from the last connection taken to the end of all
INTERNAL_FAILURE = 70
_log = logging.getLogger(__name__)


async def serve(settings: ServeSettings) -> int:
    """Serves until a signal; returns the exit code. Raises UsageError (port in use) and FileFault (model unusable)."""
    pool = ModelPool.of(settings.engines(), unload_after_s=settings.unload_after_s)
    app = make_app(settings, pool.default, pool)
    runner = QuietRunner(
        app,
        handler_cancellation=True,
        auto_decompress=False,
        keepalive_timeout=KEEPALIVE_S,
        lingering_time=LINGERING_S,
        access_log=None,
        handle_signals=False,
        shutdown_timeout=5.0,
    )
    await runner.setup()
    signals = _Signals(asyncio.get_running_loop())
    _reload_on_sighup(asyncio.get_running_loop(), app[KEYS])
    try:
        await _bind(runner, settings)
        _announce(settings)
        loading = asyncio.ensure_future(pool.start())
        await _first_of(loading, signals.first)
        if loading.done():
            loading.result()
            _log.info("ready: %s", _url(runner))
            dead = asyncio.ensure_future(pool.died.wait())
            await _first_of(signals.first, dead)
            if dead.done():
                _log.critical(
                    "an engine is lost; ending with %d, so that whoever started this starts it anew", INTERNAL_FAILURE
                )
                return INTERNAL_FAILURE
            dead.cancel()
        await pool.drain(settings.drain_timeout_s)
        for site in list(runner.sites):
            await site.stop()
        await asyncio.sleep(LAST_WORDS_S)  # whoever was let in last is still told so
        return 0
    finally:
        await runner.cleanup()
        await pool.stop()
        _log.info("stopped")
        if pool.is_hung:  # a thread that hangs in native code would keep the interpreter from ending
            logging.shutdown()
            os._exit(INTERNAL_FAILURE)


async def _first_of(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


class _Signals:
    """The first SIGTERM or SIGINT, as a future of the signal's number. A second one ends the process now, whatever still runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.first: asyncio.Future[int] = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._note, number)

    def _note(self, number: int) -> None:
        if self.first.done():
            logging.shutdown()
            os._exit(128 + number)
        self.first.set_result(number)


def _reload_on_sighup(loop: asyncio.AbstractEventLoop, keys: Keys) -> None:
    """Keys that cannot be read stay as they were: a slip of the pen locks nobody out."""

    def reload() -> None:
        try:
            keys.reload()
            _log.info("the key files were read again")
        except UsageError as fault:
            _log.error("the keys stay as they were: %s", fault)

    if hasattr(signal, "SIGHUP"):
        loop.add_signal_handler(signal.SIGHUP, reload)


async def _bind(runner: web.AppRunner, settings: ServeSettings) -> None:
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
    except (OSError, OverflowError) as fault:
        reason = (
            "is in use already; choose another with --port"
            if getattr(fault, "errno", 0) in (98, 48, 10048)
            else f"cannot be bound: {fault}"
        )
        raise UsageError(f"port {settings.port} on {settings.host} {reason}") from fault


def _url(runner: web.AppRunner) -> str:
    """Where it listens: with --port 0 the system has chosen the port."""
    host, port, *_ = runner.addresses[0]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _announce(settings: ServeSettings) -> None:
    for name, value in describe(settings).items():
        _log.info("setting %s = %s", name, value)
    if not _is_loopback(settings.host) and not read_keys(settings):
        _log.warning(
            "bound to %s without a key: anyone who can reach it can use it; set PROMPTGEN_API_KEYS or --api-key-file",
            settings.host,
        )


def _is_loopback(host: str) -> bool:
    try:
        return all(str(info[4][0]).startswith("127.") or info[4][0] == "::1" for info in socket.getaddrinfo(host, None))
    except OSError:
        return False
