"""guidellm: a short benchmark of completions and one of chat; every request is answered."""

import json
import os
import subprocess
import sys
from pathlib import Path

scratch, folder = Path(os.environ["SCRATCH"]), os.environ["BYTE_MODEL"]
backend = f"kind=openai_http,target={os.environ['BYTE_BASE_URL'].removesuffix('/v1')},model={Path(folder).name},api_key={os.environ['API_KEY']}"
for route in ("/v1/completions", "/v1/chat/completions"):
    out = scratch / f"{route.strip('/').replace('/', '-')}.json"
    command = [
        str(Path(sys.executable).with_name("guidellm")), "run", "--backend", f"{backend},request_format={route}",
        "--tokenizer", f"kind=huggingface_auto,model={folder}", "--data", "kind=synthetic_text,prompt_tokens=24,output_tokens=12",
        "--profile", "kind=concurrent,streams=4", "--constraint", "kind=max_requests,count=24",
        "--constraint", "kind=max_duration,seconds=120", "--output", f"kind=json,path={out}", "--disable-console-interactive",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (benchmark,) = json.loads(out.read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert totals["successful"] >= 24, totals
    assert totals["errored"] == 0, totals
    print(f"ok: {route}: {totals['successful']} requests")
