"""The heavy tests of tests/soak in small: that they run, count and see what they look for. `make soak` and `make fuzz` run them in full.

Times are not judged here: the machine may be busy with something else.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(name: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, f"tests/soak/{name}.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.stdout, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == (not all(figures["promises"].values())), done.stderr
    assert {"what", "commit", "machine"} <= set(figures)
    return figures


@pytest.mark.timeout(400)
def test_overload() -> None:
    figures = run("overload", "--seconds", "2", "--max-queue", "8")
    assert set(figures["statuses"]) == {"200", "503"}
    assert figures["promises"]["only 200, 429 and 503"]
    assert figures["promises"]["memory flat"]
    assert figures["idle_after_s"] < 30


@pytest.mark.timeout(400)
def test_disconnects() -> None:
    figures = run("disconnects", "--count", "200")
    assert figures["count"] == 200
    assert all(figures["by_moment"].values())
    assert all(figures["by_way"].values())
    judged = {promise: kept for promise, kept in figures["promises"].items() if "second" not in promise}
    assert all(judged.values()), figures
    assert figures["longest_until_all_free_s"] < 30


@pytest.mark.timeout(400)
def test_drains() -> None:
    figures = run("drains", "--count", "3")
    assert all(figures["promises"].values()), figures
    assert figures["outcomes"]["answered"] > 0


@pytest.mark.timeout(400)
def test_mixed_load() -> None:
    figures = run("mixed_load", "--minutes", "0.1")
    assert figures["promises"]["no status that is not expected"], figures
    assert figures["promises"]["nothing unforeseen in the log"]
    assert {"200", "400"} <= set(figures["statuses"])


@pytest.mark.timeout(400)
def test_loop_lag() -> None:
    figures = run("loop_lag", "--seconds", "3")
    assert figures["streams"] >= 32
    assert figures["measured"] > 0
    assert 0 < figures["share_under_10_ms"] <= 1


@pytest.mark.timeout(400)
def test_fuzz_of_the_api() -> None:
    figures = run("fuzz_api", "--examples", "5")
    assert all(figures["promises"].values()), figures
    assert figures["cases"] > 250
