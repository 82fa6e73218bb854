"""What answers of /v1 look like: models for the OpenAPI document. Handlers do not use them; tests hold real answers to them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from promptgen.generation.request import FinishReason

_Index = Annotated[int, Field(ge=0)]
_Logprob = Annotated[float | None, Field(le=0)]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ModelEntry(_Answer):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: Annotated[int, Field(description="tokens of prompt and answer together")]


class ModelList(_Answer):
    """The answer of GET /v1/models."""

    object: Literal["list"]
    data: list[ModelEntry]


class TokenUsage(_Answer):
    """Tokens of a request."""

    prompt_tokens: Annotated[int, Field(ge=0)]
    completion_tokens: Annotated[int, Field(ge=0)]
    total_tokens: Annotated[int, Field(ge=0)]


class CompletionLogprobs(_Answer):
    """Of each token; of those of a prompt too, with echo."""

    tokens: list[str]
    token_logprobs: list[_Logprob]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(_Answer):
    """One completion."""

    index: _Index
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class CompletionDelta(CompletionChoice):
    """A piece of one."""

    finish_reason: FinishReason | None  # type: ignore[assignment]


class _Head(_Answer):
    id: str
    created: int
    model: str
    system_fingerprint: str


class CompletionAnswer(_Head):
    """The answer of POST /v1/completions."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: TokenUsage


class CompletionChunk(_Head):
    """One event of a streamed completion."""

    object: Literal["text_completion"]
    choices: list[CompletionDelta]
    usage: Annotated[TokenUsage | None, Field(description="with stream_options.include_usage, on the last chunk")] = (
        None
    )


class ChatAlternative(_Answer):
    """A token that was likely."""

    token: str
    logprob: _Logprob
    bytes: list[int]


class ChatToken(ChatAlternative):
    """A token of an answer."""

    top_logprobs: list[ChatAlternative]


class ChatLogprobs(_Answer):
    """Of the tokens of an answer."""

    content: list[ChatToken]
    refusal: None


class ChatReply(_Answer):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(_Answer):
    """One answer."""

    index: _Index
    message: ChatReply
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatPiece(_Answer):
    """What a chunk adds."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    refusal: None = None


class ChatDelta(_Answer):
    """A piece of one answer."""

    index: _Index
    delta: ChatPiece
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletion(_Head):
    """The answer of POST /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: TokenUsage


class ChatCompletionChunk(_Head):
    """One event of a streamed answer."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatDelta]
    usage: Annotated[TokenUsage | None, Field(description="with stream_options.include_usage, on the last chunk")] = (
        None
    )


class Embedding(_Answer):
    """The vector of one input."""

    object: Literal["embedding"]
    index: _Index
    embedding: list[float] | str


class EmbeddingUsage(_Answer):
    """Tokens of the inputs."""

    prompt_tokens: Annotated[int, Field(ge=0)]
    total_tokens: Annotated[int, Field(ge=0)]


class EmbeddingsAnswer(_Answer):
    """The answer of POST /v1/embeddings."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
