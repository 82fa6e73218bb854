"""The compiled step in a real service: it takes over without anybody waiting, and the service does without it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.service.conftest import Server, ServerFactory

ASKED = {"context": "高血压要注意", "seed": 11, "samples": 3, "maxlength": 20, "details": True}


def step_of(server: Server) -> str:
    return str(server.get("/version").json["model"]["step"])


def answer_of(server: Server) -> object:
    answer = server.generate(**ASKED)
    return [candidate["text"] for candidate in answer["candidates"]]


@pytest.mark.timeout(240)
def test_a_first_start_answers_at_once_and_the_same_after_the_compiled_step_takes_over(
    start_server: ServerFactory, tmp_path: Path
) -> None:
    server = start_server("--cache", str(tmp_path))
    assert step_of(server).startswith("torch")
    before = answer_of(server)
    end = time.monotonic() + 200
    slowest = 0.0
    while step_of(server).startswith("torch"):
        assert time.monotonic() < end, server.log()
        started = time.monotonic()
        assert answer_of(server) == before
        slowest = max(slowest, time.monotonic() - started)
    assert step_of(server).startswith("compiled, float32")
    assert answer_of(server) == before
    assert slowest < 5
    again = start_server("--cache", str(tmp_path))
    assert step_of(again).startswith("compiled, float32")
    assert answer_of(again) == before


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_working_compiler_there_is_one_warning(
    start_server: ServerFactory, tmp_path: Path, compiler: str
) -> None:
    server = start_server("--cache", str(tmp_path), "--compiler", compiler)
    assert len(answer_of(server)) == 3  # type: ignore[arg-type]
    end = time.monotonic() + 20
    while "stays the slower one" not in server.log():
        assert time.monotonic() < end, server.log()
        time.sleep(0.05)
    assert server.log().count(" warning ") == 1
    assert step_of(server).startswith("torch")
    assert len(answer_of(server)) == 3  # type: ignore[arg-type]


def test_rubbish_where_the_library_should_be_leaves_a_working_service(
    start_server: ServerFactory, tmp_path: Path
) -> None:
    for name in ("kernels-0123456789abcdef.so", "choice-0123456789abcdef.json", "making-x"):
        (tmp_path / name).write_bytes(b"rubbish")
    server = start_server("--cache", str(tmp_path), "--compiler", "")
    assert step_of(server).startswith("torch")
    assert len(answer_of(server)) == 3  # type: ignore[arg-type]
