"""What the heavy tests of the service share: a server of their own, its figures, a client that keeps many requests going, and the last line.

Each of them is `python tests/soak/NAME.py [--how-much N]`: it starts the service, puts it under strain, prints what came of it, one JSON object as the
last line, and ends with 1 if a promise of docs/reliability.md did not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import aiohttp  # noqa: E402

from tests.service.conftest import FIXED, Server, launch  # noqa: E402

PROMPTS = (
    "高血压要注意",
    "写一首关于秋天的诗",
    "How can I",
    "周末去杭州玩三天",
    "帮我写一封感谢信",
    "a",
    "失眠怎么办才好",
)
Figures = dict[str, Any]


@contextlib.contextmanager
def serving(*arguments: str, log: Path | None = None) -> Iterator[Server]:
    """A running service whose compiled step, if there is one, has taken over; what it gives for FIXED is its baseline."""
    with tempfile.TemporaryDirectory() as folder:
        server = launch(log or Path(folder) / "log", *arguments)
        try:
            server.wait_until("/ready", 200)
            settle(server)
            server.baseline = server.fixed_result()
            yield server
        finally:
            server.process.kill()
            server.process.wait()


def settle(server: Server, timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        server.post(FIXED)  # another step takes over between two
        log = server.log()
        if (
            "step is now" in log
            or "stays the slower" in log
            or "compiled" in server.get("/version").json["model"]["step"]
        ):
            return
        time.sleep(0.2)


def metrics(server: Server) -> dict[str, float]:
    """All samples of /metrics by name and labels."""
    lines = server.get("/metrics").body.decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line and line[0] != "#"}


def resident_mib(server: Server) -> float:
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def descriptors(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def threads(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/task"))


def wait_until_idle(server: Server, timeout_s: float = 30) -> float:
    """Seconds until no row, no slot and no request is left."""
    started = time.monotonic()
    while time.monotonic() - started < timeout_s:
        now = metrics(server)
        if not (now["promptgen_engine_rows"] or now["promptgen_requests_waiting"] or now["promptgen_requests_running"]):
            return time.monotonic() - started
        time.sleep(0.01)
    return float("inf")


async def post(
    session: aiohttp.ClientSession, server: Server, fields: Figures, path: str = "/generate"
) -> tuple[int, float]:
    """Status and seconds; status 0 for a connection that failed."""
    started = time.perf_counter()
    try:
        async with session.post(f"http://127.0.0.1:{server.port}{path}", json=fields) as response:
            await response.read()
            return response.status, time.perf_counter() - started
    except (aiohttp.ClientError, TimeoutError, OSError):
        return 0, time.perf_counter() - started


def new_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=120), trust_env=False
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line nearest to (x, y); 0 for fewer than three."""
    if len(points) < 3:
        return 0.0
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope


def main(description: str, options: dict[str, float], run: Callable[..., Figures]) -> None:
    """Options are floats with their defaults, named as the parameters of `run`. Its figures hold what was promised under "promises"."""
    parser = argparse.ArgumentParser(description=description)
    for name, default in options.items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(default), default=default)
    figures = run(**vars(parser.parse_args()))
    for name, value in figures.items():
        print(f"{name}: {value}")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(json.dumps(figures | {"commit": commit.stdout.strip(), "machine": machine}, ensure_ascii=False))
    sys.exit(not all(figures["promises"].values()))
