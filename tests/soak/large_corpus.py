"""Fits a model to a large generated corpus and shows how much memory each step took.

    python tests/soak/large_corpus.py --megabytes 200 --budget 60s

The lines are made from a few thousand words drawn by Zipf's law, all different. Runs `promptgen vocab`, `prepare` and `train` in processes of their own,
once on a tenth of the corpus and once on all of it, and prints the peak of resident memory of each. Exits 1 if one failed, if vocab or prepare took over 1 GiB, or if prepare
took half as much again for ten times the corpus (the counters of vocab fill up to a fixed bound, and a training measures more text).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_MIB = 1024
MAX_GROWTH = 1.5  # of the peak of prepare, for ten times the corpus


def write_corpus(path: Path, num_bytes: int, seed: int = 0) -> None:
    """Writes lines of six to fourteen made-up words until the file has `num_bytes`."""
    draw = random.Random(seed)
    characters = [chr(code) for code in range(0x4E00, 0x4E00 + 1500)]
    words = ["".join(draw.choices(characters, k=draw.choice((1, 2, 2, 3)))) for _ in range(4000)]
    weights = [1 / (rank + 2) for rank in range(len(words))]
    written = number = 0
    with path.open("w", encoding="utf-8") as file:
        while written < num_bytes:
            drawn = draw.choices(words, weights, k=10_000)
            while len(drawn) > 14:
                length = draw.randint(6, 14)
                line = "".join(drawn[:length]) + f"第{number}条。\n"
                del drawn[:length]
                file.write(line)
                written += len(line.encode())
                number += 1


def measured(*arguments: object) -> dict[str, object]:
    """Runs a promptgen command. Returns its seconds, its peak of resident memory in MiB (children's apart) and its exit status."""
    command = [sys.executable, "-m", "promptgen", *map(str, arguments)]
    started = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        said = log.read().decode("utf-8", "replace")
    if child.returncode:
        print(said[-2000:])
    figures = {"command": arguments[0], "seconds": round(time.perf_counter() - started, 1)}
    return figures | {"peak_mib": usage.ru_maxrss // 1024, "status": child.returncode}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--budget", default="60s")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for megabytes in (arguments.megabytes / 10, arguments.megabytes):
            corpus, vocab, data = folder / "corpus.txt", folder / "vocab", folder / f"data-{megabytes}"
            write_corpus(corpus, int(megabytes * 1e6))
            for step in (
                ("vocab", corpus, "--out", vocab),
                ("prepare", corpus, "--vocab", vocab, "--out", data),
                (
                    "train",
                    data,
                    "--out",
                    folder / f"model-{megabytes}",
                    "--budget",
                    arguments.budget,
                    "--typing-prompts",
                    20,
                ),
            ):
                results.append({"megabytes": megabytes} | measured(*step))
                print(json.dumps(results[-1]), flush=True)
    few, many = results[: len(results) // 2], results[len(results) // 2 :]
    growth = {
        str(b["command"]): round(int(str(b["peak_mib"])) / int(str(a["peak_mib"])), 2)
        for a, b in zip(few, many, strict=True)
    }
    print(json.dumps({"growth_of_peak": growth}))
    faults = [r for r in results if r["status"] or (r["command"] != "train" and int(str(r["peak_mib"])) > LIMIT_MIB)]
    return 1 if faults or growth["prepare"] > MAX_GROWTH else 0


if __name__ == "__main__":
    sys.exit(main())
