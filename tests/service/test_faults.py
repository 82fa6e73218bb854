"""What a running service survives, seen from outside: each fault, what callers are told, and that the same bytes come afterwards."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.service.conftest import FAULTY

if TYPE_CHECKING:
    from tests.service.conftest import Reply, Server, ServerFactory

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "model" / "final_model"
WILD = {"temperature": 2, "top_k": 0, "top_p": 0}  # near uniform: no trained model ends such candidates soon
LONG = {"context": "高血压要注意", "samples": 8, "maxlength": 150, **WILD}


@pytest.fixture
def start_faulty(start_server: ServerFactory) -> Callable[..., Server]:
    def start(fault: str, *arguments: str) -> Server:
        server = start_server(*arguments, program=(FAULTY, fault))
        server.baseline = server.fixed_result()
        return server

    return start


def under_way(server: Server, pool: ThreadPoolExecutor, *bodies: dict[str, Any]) -> list[Future[Reply]]:
    """Requests that have begun."""
    futures = [pool.submit(server.post, body) for body in bodies]
    server.wait_for_rows(lambda rows: rows > 0)
    return futures


def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def break_it(server: Server) -> None:
    server.process.send_signal(signal.SIGUSR1)


# -- the engine ----------------------------------------------------------------------------------------------------------------


def test_the_death_of_the_engine_thread_is_followed_by_a_new_one(start_faulty: Callable[..., Server]) -> None:
    server = start_faulty("die", "--max-rows", "8", "--prompt-slots", "8")
    waiting = [{"context": f"写一首诗，第{i}", "samples": 8, "maxlength": 20, "seed": i} for i in range(6)]
    alone = [server.post(body) for body in waiting]
    with ThreadPoolExecutor(8) as pool:
        (running,) = under_way(server, pool, LONG)
        rest = [pool.submit(server.post, body) for body in waiting]
        break_it(server)
        restarting = server.wait_until("/ready", 503, 10)
        assert 1 <= int(restarting.headers["Retry-After"]) <= 60
        assert server.get("/health").status == 200
        running.result().error(500, "engine_failure")
        answers = [future.result() for future in rest]
    assert restarting.json == {"status": "restarting"}
    assert {reply.status for reply in answers} <= {200, 500, 503}
    for before, after in zip(alone, answers, strict=True):
        if after.status == 200:
            assert after.json["result"] == before.json["result"]
    server.wait_until("/ready", 200)
    server.assert_healthy()
    assert "the engine was started anew" in server.log()
    assert server.stop() == 0


def test_the_third_death_ends_the_process_with_70(start_faulty: Callable[..., Server]) -> None:
    server = start_faulty("die")
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            server.wait_until("/ready", 200)
            (running,) = under_way(server, pool, LONG)
            break_it(server)
            running.result().error(500, "engine_failure")
    assert server.process.wait(30) == 70
    assert "died 3 times" in server.log()


def test_a_step_that_hangs_is_seen_and_ends_the_process_with_70(start_faulty: Callable[..., Server]) -> None:
    server = start_faulty("hang", "--step-timeout-s", "1")
    with ThreadPoolExecutor(4) as pool:
        slow = LONG | {"maxlength": 240}
        running = under_way(server, pool, slow | {"stream": True})
        running.insert(0, pool.submit(server.post, slow))
        server.wait_for_requests(2)
        break_it(server)
        replies = [future.result() for future in running]
    replies[0].error(500, "engine_failure")
    assert b'"code": "engine_failure"' in replies[1].body
    assert replies[1].body.endswith(b"data: [DONE]\n\n")
    assert server.process.wait(30) == 70
    log = server.log()
    assert "has hung for 1 s" in log
    assert "in hang" in log, "the stacks of all threads"


def test_no_first_token_in_time_is_504(start_slow_server: ServerFactory) -> None:
    server = start_slow_server("--request-timeout-s", "0.3", "--max-rows", "16")
    server.baseline = server.fixed_result()
    body = json.dumps(
        LONG | {"samples": 64, "maxlength": 240, "min_length": 240}
    )  # every row is taken for 5 s at least
    server.slow_down()
    with server.connect() as one, server.connect() as other:
        for connection in (one, other):
            connection.sendall(server.http(body, "Content-Type: application/json"))
        server.wait_for_rows(lambda rows: rows == 16)
        server.post({"context": "写一首诗", "samples": 16}).error(504, "deadline_exceeded")
    server.wait_for_rows(lambda rows: rows == 0)
    server.assert_healthy()


def test_numbers_that_are_none_fail_one_request(start_faulty: Callable[..., Server]) -> None:
    server = start_faulty("nan")
    other = LONG | {"context": "写一首诗", "seed": 5, "samples": 2}
    alone = server.post(other)
    with ThreadPoolExecutor(4) as pool:
        (guilty,) = under_way(server, pool, LONG)
        innocent = pool.submit(server.post, other)
        break_it(server)
        guilty.result().error(500, "engine_failure")
        assert innocent.result().json["result"] == alone.json["result"]
    assert server.get("/ready").status == 200
    server.assert_healthy()


def test_a_step_that_fails_once_is_not_even_noticed(start_faulty: Callable[..., Server]) -> None:
    server = start_faulty("step")
    bodies = [LONG | {"seed": i, "maxlength": 60} for i in range(3)]
    alone = [server.post(body).json["result"] for body in bodies]
    with ThreadPoolExecutor(4) as pool:
        running = under_way(server, pool, *bodies)
        break_it(server)
        assert [future.result().json["result"] for future in running] == alone
    assert "each of its parts is tried alone" in server.log()
    server.assert_healthy()


def test_memory_that_runs_out_in_admission_fails_that_request(start_faulty: Callable[..., Server]) -> None:
    server = start_faulty("admission")
    with ThreadPoolExecutor(4) as pool:
        (running,) = under_way(server, pool, LONG)
        break_it(server)
        server.post({"context": "写一首诗"}).error(500, "engine_failure")
        assert running.result().status == 200
    server.assert_healthy()


def test_a_clock_that_jumps_changes_nothing(start_faulty: Callable[..., Server]) -> None:
    server = start_faulty("clock", "--request-timeout-s", "20")
    break_it(server)
    for _ in range(3):
        server.assert_healthy()
    reply = server.post({"context": "高血压", "maxlength": 20, "stream": True})
    assert reply.body.endswith(b"data: [DONE]\n\n")
    assert 0 < server.generate(context="高血压", maxlength=20)["time"] < 60
    assert server.stop() == 0


# -- around the process ----------------------------------------------------------------------------------------------------------


def test_a_log_that_nobody_reads_or_that_is_closed_stops_nothing() -> None:
    from tests.service.conftest import Server, environment, free_port

    port = free_port()
    command = [sys.executable, "web.py", "--port", str(port), "--threads", "1", "--precision", "float32"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    server = Server(port, process, Path(os.devnull))
    try:
        server.wait_until("/ready", 200)
        server.baseline = server.fixed_result()
        with ThreadPoolExecutor(8) as pool:  # far more lines than a pipe holds
            statuses = list(pool.map(lambda _: server.get("/version").status, range(1500)))
        assert set(statuses) == {200}
        server.assert_healthy()
        process.stderr.close()
        for _ in range(5):
            server.assert_healthy()
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()


def test_more_connections_than_descriptors_are_survived(start_server: ServerFactory) -> None:
    server = start_server()
    server.baseline = server.fixed_result()
    limit = len(os.listdir(f"/proc/{server.process.pid}/fd")) + 20
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
    connections = []
    for _ in range(60):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")  # and no more
        connections.append(connection)
    time.sleep(1)
    assert server.process.poll() is None
    for connection in connections:
        connection.close()
    server.wait_until("/ready", 200, 20)
    server.assert_healthy()
    assert server.stop() == 0


def test_the_model_folder_may_be_replaced_and_deleted_while_it_serves(
    start_server: ServerFactory, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    server = start_server("--model", str(folder), "--compiler", "")
    server.baseline = server.fixed_result()
    for file in folder.iterdir():
        with file.open("r+b") as opened:  # in place, as cp does
            opened.truncate(0)
            opened.write(b"something else")
    server.assert_healthy()
    shutil.rmtree(folder)
    server.assert_healthy()
    assert server.generate(context="写一首诗", samples=3, maxlength=20)["result"]
    assert server.stop() == 0


def test_sighup_reads_the_keys_again(start_server: ServerFactory, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("first\n")
    server = start_server("--api-key-file", str(file))

    def status(key: str) -> int:
        return server.post({"context": "a", "maxlength": 1}, {"X-Api-Key": key}).status

    def again(content: str) -> None:
        file.write_text(content)
        seen = server.log().count("the key")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: server.log().count("the key") > seen)

    assert (status("first"), status("second")) == (200, 401)
    again("second\n")
    assert (status("first"), status("second")) == (401, 200)
    again("")
    assert (status("first"), status("second")) == (401, 200), "a file without keys opens no door and closes none"
    assert "the keys stay as they were" in server.log()
    again("first\nsecond\n")
    assert (status("first"), status("second")) == (200, 200)
    assert server.stop() == 0


def test_sighup_without_a_key_file_is_harmless(start_server: ServerFactory) -> None:
    server = start_server()
    server.baseline = server.fixed_result()
    with ThreadPoolExecutor(2) as pool:
        (running,) = under_way(server, pool, LONG)
        server.process.send_signal(signal.SIGHUP)
        assert running.result().status == 200
    server.assert_healthy()


def test_the_log_tells_of_a_fault_without_the_prompt(start_faulty: Callable[..., Server]) -> None:
    server = start_faulty("admission", "--log-json")
    break_it(server)
    server.post({"context": "秘密的开头"}).error(500, "engine_failure")
    lines = [json.loads(line) for line in server.log().splitlines() if line.startswith("{")]
    assert any("could not be admitted" in line["message"] for line in lines)
    assert "秘密" not in server.log()
