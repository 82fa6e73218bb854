"""guidellm: a short benchmark of completions and one of chat; every request is answered."""

import json
import os
import subprocess
import sys
from pathlib import Path

scratch = Path(os.environ["SCRATCH"])
base = os.environ["BYTE_BASE_URL"].removesuffix("/v1")
for kind in ("text_completions", "chat_completions"):
    out = scratch / f"{kind}.json"
    command = [
        str(Path(sys.executable).with_name("guidellm")), "benchmark", "run", "--target", base, "--model", Path(os.environ["BYTE_MODEL"]).name,
        "--processor", os.environ["BYTE_MODEL"], "--data", "prompt_tokens=24,output_tokens=12", "--request-type", kind,
        "--profile", "concurrent", "--rate", "4", "--max-requests", "24", "--max-seconds", "60",
        "--backend-kwargs", json.dumps({"api_key": os.environ["API_KEY"]}), "--output-path", str(out), "--disable-console-interactive",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    totals = json.loads(out.read_text())["benchmarks"][0]["metrics"]["request_totals"]
    print(kind, totals)
    assert totals["successful"] >= 24, totals
    assert totals["errored"] == 0, totals
    print(f"ok: {kind}")
