"""Kills a training again and again, lets it go on, and compares what it ends in with a run that nobody disturbed.

    python tests/soak/kill_training.py --runs 200

Of ten runs nine are killed (SIGKILL) at a named instant of saving each, and one three times at random moments. The SHA-256 of the final
weights must be the undisturbed run's. Prints a line for each fault and a count at the end; exits 1 if there was one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from promptgen.text.vocabulary import Vocabulary
from promptgen.text.words import SPECIAL_TOKENS
from promptgen.training import checkpoint, progress
from promptgen.training.prepare import prepare
from promptgen.training.shape import TrainConfig
from promptgen.training.train import train

# Instants, and how often a run of CONFIG reaches each.
POINTS = {
    "begun": 6,
    "weights": 6,
    "optimizer": 6,
    "before manifest": 6,
    "manifest": 6,
    "renamed": 6,
    "dropped": 6,
    "model": 3,
    "measured": 1,
}
CONFIG = TrainConfig(
    layers=1,
    width=16,
    heads=2,
    window=32,
    row_length=32,
    rows_per_step=16,
    rows_at_once=8,
    steps=14,
    validations=5,
    dropout=0.1,
)
KILLS = 3  # of one run at random moments


def make_data(folder: Path) -> Path:
    """A prepared corpus of 300 lines."""
    characters = sorted(set("怎么做才好吃请问第条番茄鸡蛋豆腐？0123456789"))
    (folder / "vocab").mkdir()
    tokens = [*SPECIAL_TOKENS, *characters, *("##" + digit for digit in "0123456789")]
    Vocabulary.of(tokens).save(folder / "vocab" / "vocab.txt")
    dishes = ("番茄", "鸡蛋", "豆腐")
    lines = [f"{dishes[n % 3]}怎么做才好吃？第{n}条" for n in range(300)]
    (folder / "corpus.txt").write_text("\n".join(lines), encoding="utf-8")
    prepare([folder / "corpus.txt"], folder / "vocab", folder / "data", valid_share=0.1)
    return folder / "data"


def start(data: Path, out: Path, kill_at: tuple[str, int] | None = None) -> int:
    """Trains in a child process, which kills itself the n-th time that it reaches a point. Returns its process id."""
    child = os.fork()
    if child:
        return child
    seen = 0

    def reached(point: str) -> None:
        nonlocal seen
        seen += kill_at is not None and point == kill_at[0]
        if kill_at is not None and seen == kill_at[1]:
            os.kill(os.getpid(), signal.SIGKILL)

    status = 1
    try:
        torch.set_num_threads(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        checkpoint.reached = reached
        progress.draw_curves = lambda _: None  # pictures take longer than the rest
        train(data, out, CONFIG, typing_prompts=0)
        status = 0
    finally:
        os._exit(status)


def wait(child: int) -> int:
    """The child's exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def finish(data: Path, out: Path) -> str:
    """Lets a run go on to its end, if it was not over when the kill came. Returns the SHA-256 of its weights, or what went wrong."""
    is_over = (out / "eval.json").exists() and checkpoint.newest(out)[0] is None
    if not is_over and (status := wait(start(data, out))):
        return f"the resumed run ended with {status}"
    if not is_over and (out / checkpoint.FOLDER).exists():
        return "checkpoints are left over"
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    num_faults = num_kills = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = make_data(folder)
        began = time.perf_counter()
        undisturbed = finish(data, folder / "undisturbed")
        run_s = time.perf_counter() - began
        for number in range(arguments.runs):
            out = folder / f"run-{number}"
            if number % 10 < len(POINTS):
                point = list(POINTS)[number % 10]
                plan = (point, draw.randint(1, POINTS[point]))
                told = f"at {plan}"
                if wait(start(data, out, plan)) == -signal.SIGKILL:
                    num_kills += 1
                else:
                    num_faults += 1
                    print(f"run {number} was to be killed {told}, and was not")
            else:
                told = "at random"
                for _ in range(KILLS):
                    child = start(data, out)
                    time.sleep(draw.random() * run_s)
                    os.kill(child, signal.SIGKILL)
                    num_kills += wait(child) == -signal.SIGKILL
            if (result := finish(data, out)) != undisturbed:
                num_faults += 1
                print(f"run {number}, killed {told}: {result}, not {undisturbed}")
    print(f"{arguments.runs} runs, {num_kills} kills, {num_faults} faults; weights {undisturbed}")
    return 1 if num_faults or len(undisturbed) != 64 else 0


if __name__ == "__main__":
    sys.exit(main())
