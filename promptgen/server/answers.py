"""What answers look like: the models of the OpenAPI document. Handlers do not use them; tests hold real answers to them.

A field with a default of None may be missing; it is never null unless its type says so.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from promptgen.generation.async_engine import State
from promptgen.generation.request import FinishReason

Absent = SkipJsonSchema[None]
_Index = Annotated[int, Field(ge=0, description="of the candidate")]
_Seconds = Annotated[float, Field(ge=0)]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CandidateDetails(_Answer):
    """One candidate."""

    text: Annotated[str, Field(description="as in result")]
    completion: Annotated[str, Field(description="what was added to the context")]
    num_tokens: Annotated[int, Field(ge=0)]
    logprob: Annotated[float | None, Field(description="sum over its tokens, natural logarithm, at temperature 1")]
    score: Annotated[float | None, Field(description="mean log-probability per token; higher is better")] = None
    finish_reason: FinishReason


class Usage(_Answer):
    """Tokens of a request; prompt_tokens counts the token that begins a document too."""

    prompt_tokens: Annotated[int, Field(ge=0)]
    completion_tokens: Annotated[int, Field(ge=0)]


class Timing(_Answer):
    """Where the time went, in seconds."""

    queue: Annotated[float, Field(description="before the first step")]
    prefill: Annotated[float, Field(description="to the first token")]
    decode: Annotated[float, Field(description="from the first token to the last")]
    total: Annotated[float, Field(description="from validation to the last token")]


class _Details(_Answer):
    usage: Annotated[Usage | Absent, Field(description="with details")] = None
    timing: Annotated[Timing | Absent, Field(description="with details")] = None
    model: Annotated[str | Absent, Field(description="with details: the model's name")] = None
    seed: Annotated[int | Absent, Field(description="with details: what gives this answer again")] = None
    redrawn: Annotated[
        int | Absent,
        Field(description="with details: candidates drawn anew, being equal to others or having a bad word"),
    ] = None
    missing: Annotated[int | Absent, Field(description="with details: candidates wanting, as no other came")] = None


class ContextDetails(_Details):
    """The details of one of several contexts; none but empty ones where it is blank."""

    candidates: list[CandidateDetails]


class GenerateAnswer(_Details):
    """The answer of POST /generate."""

    candidates: Annotated[list[CandidateDetails] | Absent, Field(description="with details")] = None

    result: Annotated[
        list[str] | list[list[str]], Field(description="the candidates; of several contexts a list for each")
    ]
    time: Annotated[_Seconds, Field(description="seconds from validation to the last token")]
    contexts: Annotated[
        list[ContextDetails] | Absent, Field(description="with details and several contexts: those of each")
    ] = None


class PieceEvent(_Answer):
    """Text to append to a candidate."""

    index: _Index
    text: str


class ResetEvent(_Answer):
    """A candidate is withdrawn: its text is to be dropped, it is drawn anew."""

    index: _Index
    reset: Literal[True]


class FinishEvent(_Answer):
    """A candidate is complete."""

    index: _Index
    finish_reason: FinishReason


class ResultEvent(_Details):
    """The last event before [DONE]."""

    result: Annotated[
        list[str | None] | None, Field(description="by index; null when it would not fit into a line of 64 KiB")
    ]
    time: Annotated[_Seconds, Field(description="seconds from validation to the last token")]
    order: Annotated[list[int] | Absent, Field(description="indices, best first")] = None
    scores: Annotated[list[float | None] | Absent, Field(description="of the candidates, in this order")] = None
    candidates: Annotated[
        list[CandidateDetails] | None, Field(description="with details, best first; null where result is")
    ] = None
    omitted: Annotated[str | Absent, Field(description="why result is null")] = None


class Said(_Answer):
    """What one of them said."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str


class ChatCandidate(_Answer):
    """One of the answers that were drawn."""

    text: str
    score: Annotated[float | None, Field(description="what it was ranked by; higher is better")]
    finish_reason: FinishReason


class ChatAnswer(_Answer):
    """The answer of POST /chat, and the last event of its stream."""

    answer: Annotated[str, Field(description="the best of the candidates")]
    finish_reason: FinishReason
    history: Annotated[
        list[Said] | None,
        Field(
            description="all that was said, this answer last; null in a stream when it would not fit into a line of 64 KiB"
        ),
    ]
    turns_read: Annotated[int, Field(ge=0, description="turns of the history that the model read, the newest")]
    seed: Annotated[int, Field(description="what gives this answer again")]
    time: Annotated[_Seconds, Field(description="seconds from validation to the last token")]
    candidates: Annotated[
        list[ChatCandidate] | Absent, Field(description="with more than one sample: all, best first")
    ] = None


class ChatPieceEvent(_Answer):
    """Text to append to the answer."""

    text: str


class ErrorDetails(_Answer):
    """What went wrong."""

    message: str
    type: str
    param: Annotated[str | None, Field(description="the field at fault")]
    code: Annotated[str, Field(description="stable, for programs")]


class ErrorAnswer(_Answer):
    """The one shape of all errors."""

    error: ErrorDetails


class StateAnswer(_Answer):
    """The answer of GET /health and GET /ready."""

    status: State


class ModelAnswer(_Answer):
    """The model that is served."""

    name: str
    window: Annotated[int, Field(description="tokens that prompt and candidate may have together")]
    vocabulary: Annotated[int, Field(description="tokens the model knows")]
    layers: int
    width: int
    heads: int
    step: Annotated[str, Field(description="implementation, precision and threads of the model's step")]


class ModelState(_Answer):
    """One of the models that are served."""

    name: Annotated[str, Field(description="as requests name it")]
    state: State
    default: Annotated[bool, Field(description="whether it answers who names none")]
    requests: Annotated[int, Field(ge=0, description="accepted and not yet answered")]
    model: Annotated[ModelAnswer | None, Field(description="null until it was loaded once")]


class ModelsAnswer(_Answer):
    """The answer of GET /models."""

    models: list[ModelState]


class VersionAnswer(_Answer):
    """The answer of GET /version."""

    version: str
    model: Annotated[ModelAnswer | None, Field(description="null until it is loaded")]
    packages: dict[str, str]


class Token(_Answer):
    """One token of a text."""

    id: Annotated[int, Field(ge=0)]
    token: Annotated[str, Field(description="the vocabulary's entry")]


class TokenizeAnswer(_Answer):
    """The answer of POST /tokenize."""

    tokens: list[Token]
    count: Annotated[int, Field(ge=0, description="how many they are")]


class DetokenizeAnswer(_Answer):
    """The answer of POST /detokenize."""

    text: str
