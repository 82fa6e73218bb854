"""litellm as a library."""

import os
import urllib.request

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm

KEY, BASE = os.environ["API_KEY"], os.environ["BASE_URL"]
asked = urllib.request.Request(f"{BASE}/models", headers={"Authorization": f"Bearer {KEY}"})
MODEL = __import__("json").load(urllib.request.urlopen(asked))["data"][0]["id"]
HERE = {"api_base": BASE, "api_key": KEY, "num_retries": 0}

messages = [{"role": "user", "content": "失眠怎么办？"}]
whole = litellm.completion(model=f"openai/{MODEL}", messages=messages, seed=1, **HERE)
assert whole.choices[0].message.content
assert whole.choices[0].finish_reason == "stop"
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens > 0
streamed = litellm.completion(model=f"openai/{MODEL}", messages=messages, seed=1, stream=True, **HERE)
assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == whole.choices[0].message.content
print("ok: chat")

prompt = {"prompt": "高血压要注意", "max_tokens": 8, "seed": 1, "n": 2}
completion = litellm.text_completion(model=f"text-completion-openai/{MODEL}", **prompt, **HERE)
assert len(completion.choices) == 2
assert all(choice.text for choice in completion.choices)
streamed = litellm.text_completion(model=f"text-completion-openai/{MODEL}", **(prompt | {"n": 1}), stream=True, **HERE)
assert "".join(chunk.choices[0].text or "" for chunk in streamed) == completion.choices[0].text
print("ok: completions")

vectors = litellm.embedding(model=f"openai/{MODEL}", input=["高血压", "hello"], **HERE)
assert len(vectors.data) == 2
assert abs(sum(x * x for x in vectors.data[0]["embedding"]) - 1) < 1e-4
print("ok: embeddings")

try:
    litellm.completion(model=f"openai/{MODEL}", messages=[{"role": "user", "content": "盐" * 3000}], **HERE)
    raise AssertionError("not refused")
except litellm.ContextWindowExceededError:
    pass
try:
    litellm.completion(model="openai/none", messages=messages, **HERE)
    raise AssertionError("not refused")
except litellm.NotFoundError:
    pass
print("ok: errors")
