"""Trainings as people start them: two processes reach what one does, killed ones go on, and a second one in a folder is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

DISHES = ("番茄", "鸡蛋", "豆腐", "土豆")
SHAPE = ("--shape", "1x32x2", "--window", "64", "--row-length", "32", "--rows-per-step", "8", "--typing-prompts", "0")
SOAK = Path(__file__).parents[1] / "soak" / "kill_training.py"


def promptgen(
    *arguments: str | Path, launcher: Sequence[str] = ("-m", "promptgen")
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=110, check=False, env=environment)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    lines = [f"{DISHES[n % 4]}怎么做才好吃？第{n}条" for n in range(400)]
    (folder / "corpus.txt").write_text("\n".join(lines), encoding="utf-8")
    assert promptgen("vocab", folder / "corpus.txt", "--out", folder / "vocab", "--kind", "char").returncode == 0
    made = promptgen("prepare", folder / "corpus.txt", "--vocab", folder / "vocab", "--out", folder / "data")
    assert made.returncode == 0, made.stderr
    return folder / "data"


def losses(out: Path, name: str = "loss") -> list[float]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [record[name] for record in records if name in record]


def test_two_processes_reach_the_losses_of_one(data: Path, tmp_path: Path) -> None:
    two = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "promptgen")
    length = ("--steps", "30", "--validations", "10")
    one = promptgen("train", data, "--out", tmp_path / "one", *SHAPE, *length)
    both = promptgen("train", data, "--out", tmp_path / "two", *SHAPE, *length, launcher=two)
    assert (one.returncode, both.returncode) == (0, 0), one.stderr + both.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    measured = losses(tmp_path / "one", "valid_loss")
    assert losses(tmp_path / "two", "valid_loss") == pytest.approx(measured, rel=1e-3)
    assert len(measured) == 10
    assert measured[-1] < 0.9 * measured[0]
    assert json.loads((tmp_path / "two" / "eval.json").read_text(encoding="utf-8"))["training"]["processes"] == 2
    assert len(both.stdout.splitlines()) == 1  # one of them speaks
    budget = ("--budget", "3s", "--epochs", "500")
    timed = promptgen("train", data, "--out", tmp_path / "timed", *SHAPE, *budget, launcher=two)
    assert timed.returncode == 0, timed.stderr
    assert "steps in the budget" in timed.stderr


def test_ten_killed_runs_end_in_the_undisturbed_weights() -> None:
    soak = promptgen("--runs", "10", launcher=(str(SOAK),))
    assert soak.returncode == 0, soak.stdout + soak.stderr
    assert "10 runs" in soak.stdout
    assert " 0 faults" in soak.stdout


def test_a_signal_saves_and_a_second_training_in_the_folder_is_refused(data: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "promptgen",
        "train",
        str(data),
        "--out",
        str(tmp_path),
        *SHAPE,
        "--steps",
        "100000",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8") as first:
        assert first.stderr is not None
        while '"step"' not in first.stderr.readline():
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)  # it would only take the other's time
        second = promptgen("train", data, "--out", tmp_path, *SHAPE, "--steps", "100000")
        first.send_signal(signal.SIGCONT)
        first.send_signal(signal.SIGTERM)
        said = first.stderr.read()
        assert first.wait(60) == 143
    assert second.returncode == 3
    assert "another training is running in this folder; wait for it, or give another --out" in second.stderr
    assert "run the same command again to go on" in said.splitlines()[-1]
    assert list((tmp_path / "checkpoints").glob("step-*"))
