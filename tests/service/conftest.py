"""A real process on a real socket: `server` is shared by most tests, `start_server` gives one with other settings.

After each test that used `server`, /health must be 200 and a fixed seeded request must give the same bytes as at the start.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
JSON = {"Content-Type": "application/json"}
FIXED = {"context": "高血压要注意", "seed": 7, "samples": 2, "maxlength": 3}
START_TIMEOUT_S = 60.0
FAULTY = str(ROOT / "tests" / "service" / "faulty_server.py")


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def error(self, status: int, code: str, param: str | None = None) -> str:
        """Checks the one error shape and gives the message."""
        assert self.status == status, self.body
        assert self.headers["Content-Type"].startswith("application/json")
        assert list(self.json) == ["error"]
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["code"], error["param"]) == (code, param), error
        assert isinstance(error["type"], str)
        assert 0 < len(error["message"]) < 600
        assert "Traceback" not in error["message"]
        return str(error["message"])


@dataclass
class Server:
    port: int
    process: subprocess.Popen[bytes]
    log_path: Path
    window: int = 0
    vocabulary: int = 0
    baseline: bytes = field(default=b"", repr=False)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 60,
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(
                method,
                path,
                body.encode() if isinstance(body, str) else body,
                {"Connection": "close", **(headers or {})},
            )
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())
        finally:
            connection.close()

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Reply:
        return self.request("GET", path, None, headers)

    def post(
        self, fields: Mapping[str, Any], headers: Mapping[str, str] | None = None, path: str = "/generate"
    ) -> Reply:
        return self.request("POST", path, json.dumps(fields), {**JSON, **(headers or {})})

    def generate(self, **fields: Any) -> dict[str, Any]:
        reply = self.post(fields)
        assert reply.status == 200, reply.body
        answer: dict[str, Any] = reply.json
        return answer

    def connect(self, timeout_s: float = 20) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def exchange(self, raw: bytes, timeout_s: float = 20) -> bytes:
        """Sends the bytes and reads until the server closes; a server that keeps the connection open is a TimeoutError."""
        with self.connect(timeout_s) as connection:
            connection.sendall(raw)
            return self.read_to_end(connection)

    @staticmethod
    def read_to_end(connection: socket.socket) -> bytes:
        """What comes until the server closes, in whichever way."""
        parts = []
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                parts.append(part)
        return b"".join(parts)

    def http(self, body: bytes | str, *headers: str, line: str = "POST /generate HTTP/1.1", host: bool = True) -> bytes:
        """A request as bytes, which asks to close the connection."""
        data = body.encode() if isinstance(body, str) else body
        lines = [line, *([f"Host: 127.0.0.1:{self.port}"] if host else []), f"Content-Length: {len(data)}"]
        return "\r\n".join([*lines, "Connection: close", *headers, "", ""]).encode() + data

    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8")

    def fixed_result(self) -> bytes:
        reply = self.post(FIXED)
        assert reply.status == 200, reply.body
        return reply.body.partition(b', "time": ')[0]

    def assert_healthy(self) -> None:
        assert self.get("/health").status == 200
        assert self.get("/ready").status == 200
        assert self.fixed_result() == self.baseline

    def wait_until(self, path: str, status: int, timeout_s: float = START_TIMEOUT_S) -> Reply:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            try:
                reply = self.get(path)
                if reply.status == status:
                    return reply
            except OSError:
                assert self.process.poll() is None, self.log()
            time.sleep(0.02)
        raise AssertionError(f"{path} did not answer {status} in {timeout_s} s:\n{self.log()}")

    def metric(self, name: str, headers: Mapping[str, str] | None = None) -> float:
        lines = self.get("/metrics", headers).body.decode().splitlines()
        return float(next(line for line in lines if line.startswith(f"promptgen_{name} ")).split()[1])

    def wait_for_requests(self, number: int, headers: Mapping[str, str] | None = None) -> None:
        """Until so many are accepted and not yet answered. `headers` carry a key where one is wanted."""
        end = time.monotonic() + 30
        while self.metric("requests_running", headers) + self.metric("requests_waiting", headers) != number:
            assert time.monotonic() < end, self.log()
            time.sleep(0.01)

    def wait_for_rows(self, condition: Callable[[float], bool]) -> None:
        """Until the number of candidates that are being decoded is such."""
        end = time.monotonic() + 30
        while not condition(self.metric("engine_rows")):
            assert time.monotonic() < end, self.log()
            time.sleep(0.01)

    def slow_down(self) -> None:
        """Steps take 20 ms at least from now on, if this came from `start_slow_server`."""
        self.process.send_signal(signal.SIGUSR1)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(45)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


ServerFactory = Callable[..., Server]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(**extra: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PROMPTGEN_")}
    return kept | {"PYTHONUNBUFFERED": "1"} | extra


def launch(log_path: Path, *arguments: str, program: Sequence[str] = ("web.py",), **extra: str) -> Server:
    """Starts the service and does not wait for it. One thread keeps the tests quick beside other work; in float32 a seeded answer stays the
    same when the compiled step takes over."""
    port = free_port()
    settings = ["--port", str(port), "--threads", "1", "--precision", "float32", *arguments]
    command = [sys.executable, *program, *settings]
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(**extra), stdout=log, stderr=log)
    return Server(port, process, log_path)


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerFactory]:
    """start_server(*arguments, ready=True, program=("web.py",), **environment); all are stopped at the end."""
    servers: list[Server] = []

    def start(*arguments: str, ready: bool = True, program: Sequence[str] = ("web.py",), **extra: str) -> Server:
        server = launch(tmp_path_factory.mktemp("server") / "log", *arguments, program=program, **extra)
        servers.append(server)
        if ready:
            server.wait_until("/ready", 200)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def start_slow_server(start_server: ServerFactory) -> ServerFactory:
    """A server that `slow_down()` makes slow, for tests of what happens while something runs: on any machine it runs long enough."""

    def start(*arguments: str, **options: Any) -> Server:
        return start_server(*arguments, program=(FAULTY, "slow"), **options)

    return start


@pytest.fixture(scope="session")
def server(start_server: ServerFactory) -> Server:
    """The shared server, on default settings but for a body limit of 1 s."""
    server = start_server("--body-timeout-s", "1")
    model = server.get("/version").json["model"]
    server.window, server.vocabulary = model["window"], model["vocabulary"]
    server.baseline = server.fixed_result()
    return server


@pytest.fixture(autouse=True)
def still_healthy(request: pytest.FixtureRequest) -> Iterator[None]:
    shared: Server | None = request.getfixturevalue("server") if "server" in request.fixturenames else None
    yield
    if shared is not None:
        shared.assert_healthy()


@pytest.fixture(scope="session")
def run_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """run_command(*arguments, **environment): `promptgen ...` to its end."""

    def run(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "promptgen.cli", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=environment(**extra), capture_output=True, text=True, timeout=60, check=False
        )

    return run
