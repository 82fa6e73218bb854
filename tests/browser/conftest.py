"""What the browser tests need: a service process, one whose answers are written by the test, a page of another origin, and Debian's
chromium, headless. All of them are started once and shared."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from scripted import ScriptedService
from selenium import webdriver

CHROMIUM, CHROMEDRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--no-proxy-server",
]
KEY = "open-sesame"
LEAN = ("--threads", "1", "--precision", "float32")  # nothing is measured at the start
Serve = Callable[..., str]


@pytest.fixture(scope="session")
def serve() -> Iterator[Serve]:
    """serve(*options) starts a service process and returns its origin once it is ready."""
    with contextlib.ExitStack() as stack:
        yield partial(start_service, stack)


def start_service(stack: contextlib.ExitStack, *options: str) -> str:
    """The origin of a service process that ends with the stack."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PROMPTGEN_")}
    command = [sys.executable, "-m", "promptgen.cli", "serve", "--port", str(port), *LEAN, *options]
    process = stack.enter_context(subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL))
    stack.callback(process.kill)  # how it ends is tested elsewhere
    origin = f"http://127.0.0.1:{port}"
    _wait_until_ready(origin, process)
    return origin


def _wait_until_ready(origin: str, process: subprocess.Popen[bytes]) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the service ended while starting"
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            opener.open(origin + "/ready", timeout=5).close()
            return
        time.sleep(0.1)
    raise AssertionError("the service was not ready within 60 s")


@pytest.fixture(scope="session")
def service(serve: Serve) -> str:
    return serve()


@pytest.fixture(scope="session")
def guarded(serve: Serve, foreign_page: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A service that wants KEY, and answers the foreign page's origin alone."""
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(KEY, encoding="utf-8")
    return serve(
        "--api-key-file", str(keys), "--cors-origin", "https://elsewhere.example", "--cors-origin", foreign_page.rstrip("/")
    )  # fmt: skip


class _QuietFiles(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="session")
def foreign_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What lies here is served at foreign_page."""
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="session")
def foreign_page(foreign_folder: Path) -> Iterator[str]:
    """The address of an empty page whose origin is not the service's."""
    (foreign_folder / "index.html").write_text(
        '<!doctype html><link rel="icon" href="data:,"><title>another origin</title>', encoding="utf-8"
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietFiles, directory=str(foreign_folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def _scripted_service() -> Iterator[ScriptedService]:
    service = ScriptedService()
    service.start()
    yield service
    service.stop()


@pytest.fixture
def scripted(_scripted_service: ScriptedService) -> ScriptedService:
    """Answers nothing, until the test sets `answer`."""
    _scripted_service.reset()
    return _scripted_service


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    if not (Path(CHROMIUM).exists() and Path(CHROMEDRIVER).exists()):
        advice = "the browser tests need: apt-get install chromium chromium-driver"
        if os.environ.get("CI"):
            pytest.fail(advice)
        pytest.skip(advice)
    profile = tmp_path_factory.mktemp("profile")
    driver = new_chromium(profile)
    yield driver
    driver.quit()
    shutil.rmtree(profile, ignore_errors=True)


def new_chromium(profile: Path) -> webdriver.Chrome:
    """Whoever calls it quits it."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in [*FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        driver = webdriver.Chrome(options, webdriver.ChromeService(CHROMEDRIVER))
    driver.set_script_timeout(30)
    return driver


@pytest.fixture
def elsewhere(chromium: webdriver.Chrome, foreign_page: str) -> webdriver.Chrome:
    """The browser at the foreign page."""
    chromium.get(foreign_page)
    return chromium
