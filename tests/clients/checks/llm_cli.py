"""simonw's llm, by its command line."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

KEY, BASE = os.environ["API_KEY"], os.environ["BASE_URL"]
asked = urllib.request.Request(f"{BASE}/models", headers={"Authorization": f"Bearer {KEY}"})
MODEL = json.load(urllib.request.urlopen(asked))["data"][0]["id"]
home = Path(os.environ["SCRATCH"])
(home / "extra-openai-models.yaml").write_text(
    f"- model_id: pg-chat\n  model_name: {MODEL}\n  api_base: {BASE}\n  api_key_name: pg\n"
    f"- model_id: pg-text\n  model_name: {MODEL}\n  api_base: {BASE}\n  api_key_name: pg\n  completion: true\n"
)
(home / "keys.json").write_text(json.dumps({"pg": KEY}))


def llm(*arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("llm")), *arguments]
    done = subprocess.run(
        command, env=os.environ | {"LLM_USER_PATH": str(home)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


options = ("-o", "seed", "1")
answer = llm("-m", "pg-chat", *options, "失眠怎么办？")
assert answer
assert answer == llm("-m", "pg-chat", *options, "--no-stream", "失眠怎么办？")
assert llm("-m", "pg-chat", *options, "-c", "那饮食呢？")
print("ok: chat, streamed and not, and a conversation")
text = llm("-m", "pg-text", "-o", "seed", "1", "-o", "max_tokens", "12", "高血压要注意")
assert text
assert text == llm("-m", "pg-text", "-o", "seed", "1", "-o", "max_tokens", "12", "--no-stream", "高血压要注意")
print("ok: completion, streamed and not")
