"""llama-server, while someone types: `python -m bench.peer.typing_server --server FILE --model FILE.gguf --task FILE.json --way together`.

Ids go in, so the prompt is the one that the others get; `cache_prompt` is on. Two ways: `together` (one call, n_cmpl candidates) and `calls` (a call for each
candidate over connections that stay open, each to a slot of its own that keeps its prompt). Time over HTTP on this machine.
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.peer.typing_task import Key, TypingTask, parser, read_task, time_keystrokes

START_S = 120


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--server", type=Path, required=True, help="the program llama-server")
    options.add_argument("--way", default="together", choices=("together", "calls"))
    args = options.parse_args()
    task = read_task(args.task)
    with serving(args.server, args.model, task) as port, ThreadPoolExecutor(task.samples) as threads:
        connections = [http.client.HTTPConnection("127.0.0.1", port) for _ in range(task.samples)]

        def together(key: Key, seed: int) -> list[int]:
            return _lengths(_ask(connections[0], _body(task, key, seed) | {"n_cmpl": task.samples}))

        def calls(key: Key, seed: int) -> list[int]:
            bodies = [_body(task, key, seed * 64 + n) | {"id_slot": n} for n in range(task.samples)]
            return [length for told in threads.map(_ask, connections, bodies) for length in _lengths(told)]

        time_keystrokes(args.engine, task, together if args.way == "together" else calls)


def _body(task: TypingTask, key: Key, seed: int) -> dict[str, Any]:
    return {
        "prompt": list(key.ids),
        "n_predict": task.tokens,
        "cache_prompt": True,
        "seed": seed,
        "samplers": ["top_k", "top_p", "temperature"],
        "temperature": task.temperature,
        "top_k": task.top_k,
        "top_p": task.top_p or 1.0,
        "return_tokens": True,
    }


def _ask(connection: http.client.HTTPConnection, body: dict[str, Any]) -> Any:
    connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    told = response.read()
    assert response.status == 200, told[:300]
    return json.loads(told)


def _lengths(told: Any) -> list[int]:
    """Tokens of each candidate but the end of the document."""
    answers = told if isinstance(told, list) else [told]
    return [len(answer["tokens"]) - (answer["stop_type"] == "eos") for answer in answers]


@contextmanager
def serving(server: Path, model: Path, task: TypingTask) -> Iterator[int]:
    """llama-server on a free port, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    length = -(-task.longest // 256) * 256
    command = [
        str(server),
        "--model",
        str(model),
        "--port",
        str(port),
        "--offline",
        "--no-warmup",
        "--flash-attn",
        "on",
    ]
    command += ["--parallel", str(task.samples), "--ctx-size", str(task.samples * length), "--cache-prompt"]
    command += ["--threads", str(task.threads), "--threads-batch", str(task.threads), "--threads-http", "6"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _wait(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    started = time.monotonic()
    while time.monotonic() - started < START_S:
        assert process.poll() is None, f"llama-server ended with {process.returncode}"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    raise TimeoutError(f"llama-server did not become ready within {START_S} s")


if __name__ == "__main__":
    main()
