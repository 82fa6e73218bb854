"""litellm's gateway in between: the openai package talks to it, and it to the service."""

import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import openai

BASE, KEY = os.environ["BASE_URL"], os.environ["API_KEY"]
MODEL = openai.OpenAI(base_url=BASE, api_key=KEY).models.list().data[0].id
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
config = Path(os.environ["SCRATCH"]) / "config.yaml"
config.write_text(
    f"""model_list:
  - model_name: chat
    litellm_params: {{model: openai/{MODEL}, api_base: "{BASE}", api_key: "{KEY}"}}
  - model_name: text
    litellm_params: {{model: text-completion-openai/{MODEL}, api_base: "{BASE}", api_key: "{KEY}"}}
litellm_settings:
  num_retries: 0
"""
)
command = [
    str(Path(sys.executable).with_name("litellm")),
    "--config",
    str(config),
    "--host",
    "127.0.0.1",
    "--port",
    str(port),
]
master_key = "sk-" + secrets.token_hex(32)
told = os.environ | {
    "LITELLM_MASTER_KEY": master_key,
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
}
gateway = subprocess.Popen(command, env=told, stdout=(config.parent / "proxy.log").open("w"), stderr=subprocess.STDOUT)
try:
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=5)
            break
        except OSError:
            assert gateway.poll() is None, (config.parent / "proxy.log").read_text()[-3000:]
            time.sleep(0.3)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=master_key, max_retries=0)
    asked = {"model": "chat", "messages": [{"role": "user", "content": "失眠怎么办？"}], "seed": 1}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content
    assert whole.usage.total_tokens > 0
    pieces = client.chat.completions.create(**asked, stream=True)
    text = "".join(choice.delta.content or "" for chunk in pieces for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    print("ok: chat")
    prompt = {"model": "text", "prompt": "高血压要注意", "max_tokens": 8, "seed": 1}
    completion = client.completions.create(**prompt)
    pieces = client.completions.create(**prompt, stream=True)
    assert "".join(c.text or "" for chunk in pieces for c in chunk.choices) == completion.choices[0].text != ""
    print("ok: completions")
    vectors = client.embeddings.create(model="chat", input=["高血压", "hello"])
    assert len(vectors.data) == 2
    print("ok: embeddings")
    try:
        client.chat.completions.create(**(asked | {"tools": [{"type": "function", "function": {"name": "f"}}]}))
        raise AssertionError("not refused")
    except openai.BadRequestError:
        pass
    print("ok: a refusal comes through as one")
finally:
    gateway.terminate()
    gateway.wait(30)
