"""A file of contexts in, a JSONL file out: in order, resumable after a kill, with an error record for a line that cannot be answered."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from promptgen import batch
from promptgen.config import GenerateSettings
from promptgen.errors import FileFault
from promptgen.generation.local import Generator

CONTEXTS = [
    "高血压要注意",
    "",
    "hello world",
    "春天",
    "  ",
    "长" * 300,
    "Explain how",
    "失眠 ",
    "2026年的计划",
    "请写一封信",
]
Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(GenerateSettings(max_rows=8))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "contexts.txt"
    path.write_text("".join(context + "\n" for context in CONTEXTS), encoding="utf-8")
    return path


@pytest.fixture
def run(generator: Generator) -> Run:
    def run_once(source: Path, target: Path, **settings: Any) -> list[dict[str, Any]]:
        asked = GenerateSettings(**{"samples": 2, "maxlength": 8, "seed": 5} | settings)
        assert batch.run(generator, asked, source, target) == 0
        return [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]

    return run_once


def command(source: Path, *more: str) -> list[str]:
    options = ["--samples", "2", "--maxlength", "8", "--seed", "5", "--max-rows", "8"]
    return [sys.executable, "-m", "promptgen.cli", "generate", "--input", str(source), *options, *more]


def test_records_stand_in_the_order_of_the_input(run: Run, source: Path, tmp_path: Path) -> None:
    records = run(source, tmp_path / "out.jsonl")
    assert [record["index"] for record in records] == list(range(10))
    assert [record["context"] for record in records] == CONTEXTS
    for index, record in enumerate(records):
        if index in (1, 4):
            assert record["result"] == []
        elif index == 5:
            assert record["error"]["code"] == "context_length_exceeded"
            assert "result" not in record
        else:
            assert record["seed"] == 5 + index
            assert [text.startswith(CONTEXTS[index]) for text in record["result"]] == [True, True]


def test_a_context_alone_gives_the_record_it_has_among_others(run: Run, source: Path, tmp_path: Path) -> None:
    records = run(source, tmp_path / "all.jsonl")
    alone = tmp_path / "alone.txt"
    alone.write_text(CONTEXTS[3], encoding="utf-8")
    (record,) = run(alone, tmp_path / "alone.jsonl", seed=5 + 3)
    assert record["result"] == records[3]["result"]


def test_without_a_seed_each_run_draws_anew(run: Run, source: Path, tmp_path: Path) -> None:
    first, second = (run(source, tmp_path / name, seed=None, maxlength=20) for name in ("a.jsonl", "b.jsonl"))
    assert [record.get("seed") for record in first] != [record.get("seed") for record in second]


@pytest.mark.parametrize("num_bytes", [0, 1, 60, 200, 500, -1, -3])
def test_a_file_cut_anywhere_is_mended(num_bytes: int, run: Run, source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    (tmp_path / "cut.jsonl").write_bytes(whole[:num_bytes])
    run(source, tmp_path / "cut.jsonl")
    assert (tmp_path / "cut.jsonl").read_bytes() == whole


def test_a_finished_file_is_left_as_it_is(run: Run, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    run(source, target)
    before = target.read_bytes()
    run(source, target, seed=99)
    assert target.read_bytes() == before


def test_a_killed_run_is_continued_to_the_same_file(run: Run, tmp_path: Path) -> None:
    source, killed, whole = tmp_path / "many.txt", tmp_path / "killed.jsonl", tmp_path / "whole.jsonl"
    source.write_text("".join(f"第{n}种方法\n" for n in range(1500)), encoding="utf-8")
    with subprocess.Popen(command(source, "--output", str(killed)), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (killed.exists() and killed.stat().st_size > 3000):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    num_done = len(killed.read_bytes().split(b"\n")) - 1
    assert 0 < num_done < 1400
    few = tmp_path / "few.txt"
    few.write_text("".join(f"第{n}种方法\n" for n in range(num_done + 20)), encoding="utf-8")
    run(few, killed)
    run(few, whole)
    assert killed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("encoding", ["gbk", "utf-8-sig", "gb18030"])
def test_other_encodings_and_line_ends_are_read(encoding: str, run: Run, tmp_path: Path) -> None:
    source = tmp_path / "windows.txt"
    source.write_bytes("高血压要注意\r\n你好，世界".encode(encoding))
    assert [record["context"] for record in run(source, tmp_path / "out.jsonl")] == ["高血压要注意", "你好，世界"]


@pytest.mark.parametrize(
    "foreign",
    [
        '{"index": 0, "context": "another", "result": []}\n',
        '{"index": 1, "context": "高血压要注意", "result": []}\n',
        "[1, 2]\n",
        "a precious text\n",
        "a precious text without an end",
        '{"index": 0, "context": "another", "res',
        '{"index": 0, "context": "高血压要注意", broken\n',
    ],
)
def test_the_output_of_another_input_is_refused_and_kept(foreign: str, run: Run, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text(foreign, encoding="utf-8")
    with pytest.raises(FileFault, match="line 1 "):
        run(source, target)
    assert target.read_text(encoding="utf-8") == foreign


def test_the_input_is_never_the_output(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "prompts.txt"
    source.write_text("高血压要注意", encoding="utf-8")
    with pytest.raises(FileFault, match="is the input"):
        run(source, tmp_path / "." / "prompts.txt")
    assert source.read_text(encoding="utf-8") == "高血压要注意"


def test_an_output_longer_than_its_input_is_refused(run: Run, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    run(source, target)
    source.write_text(CONTEXTS[0] + "\n", encoding="utf-8")
    with pytest.raises(FileFault, match="line 2 "):
        run(source, target)


def test_an_input_that_is_not_there_is_said_beside_an_output_that_is(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(FileFault, match="cannot be read"):
        run(tmp_path / "misspelt.txt", tmp_path / "out.jsonl")


def test_an_input_that_is_no_text_or_not_there_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xff\xff\n")
    for name in ("binary", "nowhere"):
        with pytest.raises(FileFault, match=name):
            run(tmp_path / name, tmp_path / "out.jsonl")


def test_an_empty_input_gives_an_empty_output(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_bytes(b"")
    assert run(tmp_path / "empty.txt", tmp_path / "out.jsonl") == []


def test_input_without_output_exits_2_and_a_missing_input_3(source: Path, tmp_path: Path) -> None:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PROMPTGEN_")}
    alone = subprocess.run(command(source), capture_output=True, text=True, env=environ, check=False)
    assert alone.returncode == 2
    assert "--output" in alone.stderr
    missing = command(tmp_path / "nowhere.txt", "--output", str(tmp_path / "out.jsonl"))
    done = subprocess.run(missing, capture_output=True, encoding="utf-8", env=environ, check=False)
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
    assert "nowhere.txt" in done.stderr
