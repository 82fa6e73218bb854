"""The life of the process: loading, ready, draining, ended, and starts that must fail with one line."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.service.conftest import FAULTY

if TYPE_CHECKING:
    from tests.service.conftest import Reply, Server, ServerFactory

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "model" / "final_model"
WILD = {"temperature": 2, "top_k": 0, "top_p": 0}  # near uniform: no trained model ends such candidates soon
RunCommand = Callable[..., subprocess.CompletedProcess[str]]


# -- start -----------------------------------------------------------------------------------------------------------------


def test_health_is_200_while_loading_and_ready_is_503_until_it_answers(start_server: ServerFactory) -> None:
    server = start_server(ready=False, program=(FAULTY, "load"), LOAD_S="3")
    loading = server.wait_until("/ready", 503)
    assert loading.json == {"status": "loading"}
    assert 1 <= int(loading.headers["Retry-After"]) <= 60
    health = server.get("/health")
    assert health.status == 200
    refused = server.post({"context": "高血压"})
    if server.get("/ready").status == 503:
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        refused.error(503, "overloaded")
    assert server.wait_until("/ready", 200).json == {"status": "ready"}
    assert server.post({"context": "高血压", "maxlength": 1}).status == 200
    assert server.stop() == 0
    assert server.log().splitlines()[-1].endswith("stopped")


def test_a_port_that_the_system_chooses_is_told(start_server: ServerFactory) -> None:
    server = start_server("--port", "0", ready=False)
    end = time.monotonic() + 60
    while (told := re.search(r"ready: http://127\.0\.0\.1:(\d+)", server.log())) is None:
        assert time.monotonic() < end
        time.sleep(0.05)
    server.port = int(told[1])
    assert server.get("/ready").status == 200


def test_version_names_the_package_and_the_model(server: Server) -> None:
    version = server.get("/version").json
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    assert set(version) == {"version", "model", "packages"}
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", version["version"])
    assert re.fullmatch(r"(compiled|torch), \w+, \d+ threads", version["model"].pop("step"))
    assert version["model"] == {
        "name": "final_model",
        "window": config["n_positions"],
        "vocabulary": config["vocab_size"],
        "layers": config["n_layer"],
        "width": config["n_embd"],
        "heads": config["n_head"],
    }
    assert {"torch", "aiohttp", "transformers"} <= set(version["packages"])


def test_all_settings_are_printed_at_start(server: Server) -> None:
    for line in ("host = 127.0.0.1", f"port = {server.port}", "body_timeout_s = 1.0", "max_queue = 256", "threads = 1"):
        assert f"setting {line}" in server.log()


def test_a_port_in_use_is_exit_2_with_one_line(server: Server, run_command: RunCommand) -> None:
    done = run_command("serve", "--port", str(server.port))
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last == f"promptgen: port {server.port} on 127.0.0.1 is in use already; choose another with --port"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--port", "notaport"], "--port"), (["--port", "99999"], "99999"), (["--nonsense"], "--nonsense"), (["--max-queue", "x"], "--max-queue")],
)  # fmt: skip
def test_wrong_usage_is_exit_2(run_command: RunCommand, arguments: list[str], named: str) -> None:
    done = run_command("serve", *arguments)
    assert done.returncode == 2
    assert named in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("variable", "value"), [("PROMPTGEN_PORT", "x"), ("PROMPTGEN_LOG_JSON", "perhaps")])
def test_a_wrong_environment_variable_is_named(run_command: RunCommand, variable: str, value: str) -> None:
    done = run_command("serve", **{variable: value})
    assert done.returncode == 2
    assert variable in done.stderr


# -- files that cannot be used -----------------------------------------------------------------------------------------------


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def edit_vocabulary(folder: Path, change: Callable[[list[str]], list[str]]) -> None:
    path = folder / "vocab.txt"
    path.write_text("\n".join(change(path.read_text(encoding="utf-8").splitlines())) + "\n", encoding="utf-8")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "damaged"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), "config.json"),
    "config of another family": (lambda f: edit_config(f, model_type="llama"), "config.json"),
    "config of another size": (lambda f: edit_config(f, n_layer=99), "model.safetensors"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "truncated weights": (lambda f: cut(f / "model.safetensors"), "model.safetensors"),
    "foreign weights": (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04\x95 not safetensors" * 100), "model.safetensors"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors"),
    "no vocabulary": (lambda f: (f / "vocab.txt").unlink(), "vocab.txt"),
    "truncated vocabulary": (lambda f: edit_vocabulary(f, lambda tokens: tokens[:-10]), "vocab"),
    "duplicate token": (lambda f: edit_vocabulary(f, lambda tokens: [*tokens[:-1], tokens[20]]), "vocab.txt: line"),
    "no special token": (lambda f: edit_vocabulary(f, lambda tokens: ["x-y-z", *tokens[1:]]), "vocab.txt"),
    "binary vocabulary": (lambda f: (f / "vocab.txt").write_bytes(bytes(range(256)) * 40), "vocab.txt"),
}  # fmt: skip


@dataclass(frozen=True)
class Ended:
    code: int
    log: str
    took_s: float


@pytest.fixture(scope="module")
def ended(run_command: RunCommand, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[Ended]]:
    """Starts over all the damaged folders, two at a time."""
    pool = ThreadPoolExecutor(2)

    def start(name: str) -> Ended:
        folder = tmp_path_factory.mktemp("model") / "damaged"
        shutil.copytree(MODEL, folder)
        DAMAGE[name][0](folder)
        started = time.monotonic()
        done = run_command("serve", "--port", "0", "--threads", "1", "--model", str(folder))
        return Ended(done.returncode, done.stderr, time.monotonic() - started)

    return {name: pool.submit(start, name) for name in DAMAGE}


@pytest.mark.parametrize("name", DAMAGE)
def test_an_unusable_file_ends_the_start_with_one_line_that_names_it(
    ended: dict[str, Future[Ended]], name: str
) -> None:
    end = ended[name].result(timeout=100)
    assert end.code == 3, end.log
    lines = [line for line in end.log.splitlines() if line.startswith("promptgen: ")]
    assert len(lines) == 1
    assert DAMAGE[name][1] in lines[0]
    assert "Traceback" not in end.log
    assert end.log.splitlines()[-1] == lines[0]
    assert end.took_s < 15


# -- request ids -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["abc", "A.b_c-9", "x" * 64, "7"])
def test_a_request_id_comes_back_and_is_logged(server: Server, given: str) -> None:
    assert server.get("/health", {"X-Request-Id": given}).headers["X-Request-Id"] == given
    assert server.post({"context": "a", "samples": 99}, {"X-Request-Id": given}).headers["X-Request-Id"] == given
    assert f"request_id={given}" in server.log()


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a;b", "<b>", "a/b", "a\tb", "ä"])
def test_a_request_id_of_another_form_is_replaced(server: Server, given: str) -> None:
    answer = server.get("/health", {"X-Request-Id": given}).headers["X-Request-Id"]
    assert answer != given
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", answer)


def test_request_ids_are_not_given_twice(server: Server) -> None:
    assert len({server.get("/health").headers["X-Request-Id"] for _ in range(10)}) == 10


# -- end ---------------------------------------------------------------------------------------------------------------------


def test_sigterm_when_idle_is_exit_0(start_server: ServerFactory) -> None:
    server = start_server("--log-json")
    with server.connect() as idle:
        idle.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert idle.recv(4096).startswith(b"HTTP/1.1 200 ")
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 8
    lines = [json.loads(line) for line in server.log().splitlines()]
    assert lines[-1]["message"] == "stopped"
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)


def test_sigint_is_a_quiet_end_too(start_server: ServerFactory) -> None:
    server = start_server()
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(15) == 0
    assert "Traceback" not in server.log()


def test_sigterm_while_loading_ends_soon(start_server: ServerFactory) -> None:
    server = start_server(ready=False)
    server.wait_until("/health", 200)
    started = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - started < 15
    assert "Traceback" not in server.log()


def test_sigterm_under_load_loses_nothing_accepted(start_slow_server: ServerFactory) -> None:
    server = start_slow_server()
    server.slow_down()
    fields = {"context": "高血压要注意", "samples": 24, "maxlength": 60, "min_length": 60, **WILD}
    with ThreadPoolExecutor(6) as pool:
        running: list[Future[Reply]] = [pool.submit(server.post, fields) for _ in range(5)]
        running.append(pool.submit(server.post, fields | {"stream": True}))
        server.wait_for_requests(6)
        assert not any(future.done() for future in running)
        server.process.terminate()
        replies = [future.result(60) for future in running]
    assert [reply.status for reply in replies] == [200] * 6
    assert [len(reply.json["result"]) for reply in replies[:5]] == [24] * 5
    assert replies[5].body.endswith(b"data: [DONE]\n\n")
    assert b'"error"' not in replies[5].body
    assert server.process.wait(30) == 0
    assert "Traceback" not in server.log()


@pytest.mark.parametrize(("second", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_draining_refuses_new_work_and_a_second_signal_ends_at_once(
    start_slow_server: ServerFactory, second: signal.Signals, code: int
) -> None:
    server = start_slow_server()
    server.slow_down()
    fields = json.dumps({"context": "高血压要注意", "samples": 64, "maxlength": 240, "min_length": 240, **WILD})
    busy = [server.connect() for _ in range(2)]
    for connection in busy:
        connection.sendall(server.http(fields, "Content-Type: application/json"))
    server.wait_for_requests(2)
    server.process.terminate()
    draining = server.wait_until("/ready", 503, 5)
    assert draining.json == {"status": "draining"}
    assert 1 <= int(draining.headers["Retry-After"]) <= 60
    refused = server.post({"context": "高血压"})
    refused.error(503, "overloaded")
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert server.process.poll() is None
    started = time.monotonic()
    server.process.send_signal(second)
    assert server.process.wait(15) == code
    assert time.monotonic() - started < 6
    for connection in busy:
        connection.close()


@pytest.mark.parametrize(("second", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_while_loading_ends_at_once(
    start_server: ServerFactory, second: signal.Signals, code: int
) -> None:
    server = start_server(ready=False, program=(FAULTY, "load"))
    server.wait_until("/health", 200)
    server.process.terminate()
    time.sleep(1)  # it waits for the thread that loads
    assert server.process.poll() is None
    server.process.send_signal(second)
    assert server.process.wait(3) == code


def test_a_second_signal_after_the_drain_ends_at_once(start_slow_server: ServerFactory) -> None:
    server = start_slow_server("--drain-timeout-s", "0")
    server.slow_down()
    with server.connect() as busy:
        body = json.dumps({"context": "高血压要注意", "samples": 64, "maxlength": 240, "min_length": 240, **WILD})
        busy.sendall(server.http(body, "Content-Type: application/json"))
        server.wait_for_requests(1)
        server.process.terminate()
        time.sleep(0.6)  # the drain is over, and connections are waited for
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(3) == 130


def test_promptgen_serve_on_its_default_settings_is_the_same_service() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "promptgen.cli", "serve", "--port", str(port)], cwd=ROOT, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line.decode())
        if f"ready: http://127.0.0.1:{port}" in lines[-1]:
            break
    process.terminate()
    assert process.wait(15) == 0
    assert any("ready:" in line for line in lines)
    process.stderr.close()
