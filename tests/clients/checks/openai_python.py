"""The openai package for Python."""

import os

import openai

client = openai.OpenAI(base_url=os.environ["BASE_URL"], api_key=os.environ["API_KEY"], max_retries=0)
(model,) = [entry.id for entry in client.models.list()]
assert client.models.retrieve(model).id == model

whole = client.completions.create(model=model, prompt="高血压要注意", n=2, max_tokens=8, seed=1)
assert len(whole.choices) == 2
assert all(choice.text for choice in whole.choices)
texts = ["", ""]
for chunk in client.completions.create(model=model, prompt="高血压要注意", n=2, max_tokens=8, seed=1, stream=True):
    for choice in chunk.choices:
        texts[choice.index] += choice.text
assert texts == [choice.text for choice in whole.choices]
print("ok: completions")

asked = {"model": model, "messages": [{"role": "user", "content": "失眠怎么办？"}], "seed": 1}
answer = client.chat.completions.create(**asked)
assert answer.choices[0].message.content
assert answer.choices[0].finish_reason == "stop"
streamed = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
chunks = list(streamed)
assert "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices) == answer.choices[0].message.content
assert chunks[-1].usage == answer.usage
print("ok: chat")

vectors = client.embeddings.create(model=model, input=["高血压", "hello"])
assert len(vectors.data) == 2
assert abs(sum(x * x for x in vectors.data[0].embedding) - 1) < 1e-4
print("ok: embeddings")

for wrong, fault in (
    ({"model": "none"}, openai.NotFoundError),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError),
):
    try:
        client.chat.completions.create(**(asked | wrong))
        raise AssertionError("not refused")
    except fault:
        pass
try:
    openai.OpenAI(base_url=os.environ["BASE_URL"], api_key="wrong", max_retries=0).models.list()
    raise AssertionError("not refused")
except openai.AuthenticationError:
    pass
print("ok: errors")
