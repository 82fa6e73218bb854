"""langchain-openai."""

import os

import openai
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

HERE = {"base_url": os.environ["BASE_URL"], "api_key": os.environ["API_KEY"]}
MODEL = openai.OpenAI(**HERE).models.list().data[0].id

chat = ChatOpenAI(model=MODEL, seed=1, max_retries=0, **HERE)
answer = chat.invoke("失眠怎么办？")
assert answer.content
assert answer.response_metadata["finish_reason"] == "stop"
assert answer.usage_metadata["total_tokens"] > 0
assert "".join(chunk.content for chunk in chat.stream("失眠怎么办？")) == answer.content
followed = chat.invoke([("human", "失眠怎么办？"), ("ai", answer.content), ("human", "那饮食呢？")])
assert followed.content
both = chat.batch(["失眠怎么办？", "感冒怎么办？"])
assert both[0].content == answer.content
print("ok: ChatOpenAI")

model = OpenAI(model=MODEL, seed=1, max_tokens=12, max_retries=0, **HERE)
text = model.invoke("高血压要注意")
assert text
assert "".join(model.stream("高血压要注意")) == text
assert len(model.generate(["高血压要注意", "春天"], n=1).generations) == 2
print("ok: OpenAI")

# check_embedding_ctx_length would cut texts with OpenAI's vocabulary, and send ids of that.
vectors = OpenAIEmbeddings(model=MODEL, check_embedding_ctx_length=False, max_retries=0, **HERE)
one, two, far = vectors.embed_documents(["高血压要少吃盐", "高血压患者要少吃盐", "写一首关于春天的诗"])
assert sum(a * b for a, b in zip(one, two, strict=True)) > sum(a * b for a, b in zip(one, far, strict=True))
assert max(abs(a - b) for a, b in zip(vectors.embed_query("高血压要少吃盐"), one, strict=True)) < 1e-5
print("ok: OpenAIEmbeddings")
print("note: `OpenAIEmbeddings` needs `check_embedding_ctx_length=False`, as with any vocabulary that is not OpenAI's")
