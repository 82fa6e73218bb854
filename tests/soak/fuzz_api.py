"""Requests made from the description that the service gives of itself: `python tests/soak/fuzz_api.py [--examples 1000]`.

Schemathesis asks every operation of /openapi.json, with bodies as they should and should not be, and holds status, type, headers and body of each
answer to the description. The service must be healthy afterwards, and give the same bytes as before.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from service import Figures, Server, main, serving

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
)
# 503 and 504 are answers that the description knows: too busy, and no token before a deadline of a millisecond.
SETTINGS = """
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "503", "504"]
"""


def fuzz(server: Server, examples: int, folder: Path, seed: int) -> tuple[int, str, Counter[str]]:
    """The exit status, the end of what it printed, and how many cases it sent, by operation."""
    (folder / "schemathesis.toml").write_text(SETTINGS, encoding="utf-8")
    document, report = folder / "openapi.json", folder / "events.ndjson"
    document.write_text(json.dumps(described(server)), encoding="utf-8")
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(folder / "schemathesis.toml"), "run",
        str(document), "--url", f"http://127.0.0.1:{server.port}", "--checks", ",".join(CHECKS), "--max-examples", str(examples),
        "--phases", "examples,coverage,fuzzing", "--mode", "all", "--seed", str(seed), "--suppress-health-check", "all",
        "--request-timeout", "60", "--continue-on-failure", "--report", "ndjson", "--report-ndjson-path", str(report),
        "--exclude-path-regex", "^/(docs|pages|promptgen.js)",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout[-4000:] + done.stderr[-1000:], sent(report)


def described(server: Server) -> Figures:
    """The description without the schemas of streams, which schemathesis holds to each event, where they are meant for the whole text.

    tests/service/test_openapi.py holds events to theirs.
    """
    document: Figures = server.get("/openapi.json").json
    for item in document["paths"].values():
        for operation in item.values():
            operation["responses"]["200"].get("content", {}).get("text/event-stream", {}).pop("schema", None)
    return document


def sent(report: Path) -> Counter[str]:
    counts = Counter[str]()
    for line in report.read_text(encoding="utf-8").splitlines() if report.exists() else ():
        event = json.loads(line).get("ScenarioFinished")
        if event is not None:
            recorder = event["recorder"]
            counts[recorder["label"]] += len(recorder.get("cases", ()))
    return counts


def run(examples: int, seed: int) -> Figures:
    with serving("--body-timeout-s", "2") as server, tempfile.TemporaryDirectory() as folder:
        code, printed, counts = fuzz(server, examples, Path(folder), seed)
        is_healthy = server.get("/health").status == server.get("/ready").status == 200
        is_same = server.fixed_result() == server.baseline
        log = server.log()
    if code:
        print(printed)
    return {
        "what": "fuzz of the API",
        "examples": examples,
        "cases": sum(counts.values()),
        "by_operation": dict(counts),
        "promises": {
            "every answer is as described": code == 0,
            "healthy, and the same bytes as before": is_healthy and is_same,
            "nothing unforeseen in the log": "unforeseen" not in log,
        },
    }


if __name__ == "__main__":
    main(__doc__ or "", {"examples": 1000, "seed": 1}, run)
