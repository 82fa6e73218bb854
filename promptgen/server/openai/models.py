"""The bodies of /v1, strict, and what becomes of fields that are not implemented.

A field of OpenAI's that is not here is either in IGNORED (the answer is the same without it) or in REFUSED with the values that ask for nothing;
any other name is unknown and refused. docs/openai.md tells the same, and a test compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, model_validator

from promptgen.server.faults import HttpFault
from promptgen.server.strict import STRICT, validate

MAX_CHOICES = 64
MAX_INPUTS = 256
MAX_TOP = 20
MAX_STOPS = 16

_BOOKKEEPING = (
    "metadata",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
)
_NOTHING: tuple[Any, ...] = (None,)

_Id = Annotated[int, Field(ge=0, lt=2**31)]
_Text = Annotated[str, Field(max_length=65536)]
_StopText = Annotated[str, Field(min_length=1, max_length=256)]
_Ids = Annotated[list[_Id], Field(min_length=1)]
Texts = (
    _Text
    | Annotated[list[_Text], Field(min_length=1, max_length=MAX_INPUTS)]
    | _Ids
    | Annotated[list[_Ids], Field(min_length=1, max_length=MAX_INPUTS)]
)
_TEXTS_MESSAGE = f"must be a string, a list of strings, token ids or a list of lists of token ids; {MAX_INPUTS} at most, and no empty list"
Body = TypeVar("Body", bound=BaseModel)


class StreamOptions(BaseModel):
    model_config = STRICT

    include_usage: Annotated[bool, Field(description="one more chunk with the usage, before [DONE]")] = False
    include_obfuscation: Annotated[bool, Field(description="ignored: nothing is padded")] = False
    continuous_usage_stats: Annotated[bool, Field(description="ignored: usage comes once")] = False


class _Sampled(BaseModel):
    """What completions and chat have in common."""

    model_config = STRICT

    model: Annotated[
        str | None, Field(max_length=256, description="one that GET /v1/models lists; may be left out")
    ] = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES, description="choices for each prompt")] = 1
    temperature: Annotated[
        float | None, Field(ge=0, le=2, description="0 is greedy; the model's own setting if left out")
    ] = None
    top_p: Annotated[float | None, Field(ge=0, le=1, description="draw from the smallest set of this probability")] = (
        None
    )
    stop: Annotated[
        _StopText | Annotated[list[_StopText], Field(max_length=MAX_STOPS)] | None,
        Field(description="cut before the first match"),
    ] = None
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63, description="same seed, same answer")] = None
    stream: Annotated[bool, Field(description="server-sent events")] = False
    stream_options: StreamOptions | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2, description="taken off what was drawn before")] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2, description="the same, for each time")] = 0.0
    logit_bias: Annotated[
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
        Field(max_length=1024, description="token id to what is added to its logit"),
    ] = {}
    top_k: Annotated[int | None, Field(ge=0, description="extension: draw from the k likeliest, 0 is off")] = None
    repetition_penalty: Annotated[float | None, Field(ge=0.1, le=10, description="extension: CTRL's")] = None
    min_tokens: Annotated[int, Field(ge=0, le=10**9, description="extension: tokens before a choice may end")] = 0
    ignore_eos: Annotated[bool, Field(description="extension: go on to max_tokens, for measuring")] = False
    distinct: Annotated[bool, Field(description="extension: no two choices equal; there may be fewer than n")] = False
    rank: Annotated[Literal["likelihood", "none"], Field(description="extension: order of the choices")] = "none"

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def check_stream(self) -> None:
        """Raises HttpFault for what cannot be streamed, or means nothing without."""
        if self.stream_options is not None and not self.stream:
            raise _invalid("stream_options", "is for streams; send stream: true with it")
        if self.stream and (self.distinct or self.rank != "none"):
            param = "distinct" if self.distinct else "rank"
            raise _invalid(param, "needs all choices before the first is shown; it cannot be streamed")
        if self.distinct and (self.presence_penalty or self.frequency_penalty):
            raise _invalid("distinct", "does not go with presence_penalty or frequency_penalty")


class CompletionBody(_Sampled):
    """POST /v1/completions."""

    prompt: Annotated[Texts, Field(description="text or token ids, or several of either")]
    best_of: Annotated[
        int | None, Field(ge=1, le=MAX_CHOICES, description="so many are drawn, the n likeliest given")
    ] = None
    max_tokens: Annotated[int | None, Field(ge=0, le=10**9, description="16; 0 only with echo")] = None
    echo: Annotated[bool, Field(description="each choice starts with its prompt")] = False
    logprobs: Annotated[
        int | None,
        Field(ge=0, le=MAX_TOP, description="log-probabilities, and so many alternatives; with echo of the prompt too"),
    ] = None
    heal: Annotated[bool, Field(description="extension: a prompt cut within a word goes on with that word")] = False

    @property
    def num_drawn(self) -> int:
        return max(self.n, self.best_of or 1)

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        return texts_of(self.prompt)

    def check(self) -> None:
        """Raises HttpFault for fields that do not go together."""
        self.check_stream()
        if self.best_of is not None and self.best_of < self.n:
            raise _invalid("best_of", "must not be less than n")
        if self.stream and self.num_drawn > self.n:
            raise _invalid("best_of", "more than n cannot be streamed: the best are known at the end")
        if self.distinct and self.logprobs is not None:
            raise _invalid("distinct", "does not go with logprobs")
        if self.max_tokens == 0 and not self.echo:
            raise _invalid("max_tokens", "0 asks for nothing, unless with echo")
        if self.heal and (self.logprobs is not None or not all(isinstance(prompt, str) for prompt in self.prompts)):
            raise _invalid("heal", "is for text prompts without logprobs")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _invalid("min_tokens", "is over max_tokens")
        if len(self.prompts) * self.num_drawn > MAX_INPUTS:
            raise _invalid("n", f"a request has {MAX_INPUTS} choices of all its prompts at most")


class TextPart(BaseModel):
    model_config = STRICT

    type: Literal["text"]
    text: _Text


class ChatMessage(BaseModel):
    """A message. What an assistant's message carries along when it is sent back is dropped where it is empty."""

    model_config = STRICT

    role: Literal["system", "developer", "user", "assistant"]
    content: _Text | Annotated[list[TextPart], Field(min_length=1, max_length=64)]
    name: Annotated[str | None, Field(max_length=256, description="ignored")] = None

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if name in cls.model_fields or value not in (None, [])}

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatCompletionBody(_Sampled):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1024, description="the dialogue so far")]
    max_tokens: Annotated[int | None, Field(ge=1, le=10**9, description="the older name of max_completion_tokens")] = (
        None
    )
    max_completion_tokens: Annotated[int | None, Field(ge=1, le=10**9, description="at most so many new tokens")] = None
    logprobs: Annotated[bool, Field(description="log-probabilities of the answer's tokens")] = False
    top_logprobs: Annotated[int | None, Field(ge=0, le=MAX_TOP, description="so many alternatives; with logprobs")] = (
        None
    )

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_top(self) -> int | None:
        return self.top_logprobs or 0 if self.logprobs else None

    def check(self) -> None:
        """Raises HttpFault for fields that do not go together."""
        self.check_stream()
        if self.distinct and self.logprobs:
            raise _invalid("distinct", "does not go with logprobs")
        if self.top_logprobs is not None and not self.logprobs:
            raise _invalid("top_logprobs", "needs logprobs: true")
        if self.most_tokens is not None and self.min_tokens > self.most_tokens:
            raise _invalid("min_tokens", "is over the tokens asked for")


class EmbeddingBody(BaseModel):
    """POST /v1/embeddings."""

    model_config = STRICT

    input: Annotated[Texts, Field(description="text or token ids, or several of either")]
    model: Annotated[
        str | None, Field(max_length=256, description="one that GET /v1/models lists; may be left out")
    ] = None
    encoding_format: Annotated[Literal["float", "base64"], Field(description="numbers, or their bytes (float32)")] = (
        "float"
    )
    dimensions: Annotated[int | None, Field(ge=1, description="the width of the model, or nothing")] = None

    @property
    def inputs(self) -> list[str | tuple[int, ...]]:
        return texts_of(self.input)


# For each route: fields that change nothing here, and fields that would, with the values that ask for nothing.
IGNORED: Mapping[type[BaseModel], tuple[str, ...]] = {
    CompletionBody: _BOOKKEEPING,
    ChatCompletionBody: (*_BOOKKEEPING, "parallel_tool_calls", "prediction"),
    EmbeddingBody: ("user",),
}
REFUSED: Mapping[type[BaseModel], Mapping[str, tuple[Any, ...]]] = {
    CompletionBody: {"suffix": (None, "")},
    ChatCompletionBody: {
        "tools": (None, []),
        "tool_choice": (None, "none", "auto"),
        "functions": (None, []),
        "function_call": (None, "none", "auto"),
        "response_format": (None, {"type": "text"}),
        "modalities": (None, ["text"]),
        "audio": _NOTHING,
        "reasoning_effort": (None, "none"),
        "verbosity": (None, "medium"),
        "web_search_options": _NOTHING,
        "moderation": _NOTHING,
    },
    EmbeddingBody: {},
}


def parse(model: type[Body], fields: dict[str, Any]) -> Body:
    """The body of a route. A field that is null is one that was left out. Raises HttpFault 400 whose `param` names the field."""
    for name, harmless in REFUSED[model].items():
        if name in fields and not any(type(fields[name]) is type(one) and fields[name] == one for one in harmless):
            raise HttpFault(400, "unsupported_parameter", f"{name} is not supported by this service", param=name)
    dropped = {*IGNORED[model], *REFUSED[model]}
    dropped |= {
        name for name, field in model.model_fields.items() if not field.is_required() and fields.get(name) is None
    }
    kept = {name: value for name, value in fields.items() if name not in dropped}
    try:
        return validate(model, kept)
    except HttpFault as fault:
        if fault.param in ("prompt", "input") and fault.code == "invalid_value":
            raise _invalid(fault.param, _TEXTS_MESSAGE) from None
        raise


def texts_of(given: Any) -> list[str | tuple[int, ...]]:
    """One entry for each text, as it is or as its ids."""
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [tuple(given)]
    return [one if isinstance(one, str) else tuple(one) for one in given]


def check_ids(ids: Sequence[int], size: int, param: str) -> None:
    """Raises HttpFault 400 for an id outside a vocabulary of `size` tokens."""
    if max(ids, default=0) >= size:
        raise _invalid(
            param, f"a token id is outside the vocabulary of {size} tokens; POST /tokenize gives those of a text"
        )


def _invalid(param: str, message: str) -> HttpFault:
    return HttpFault(400, "invalid_value", f"{param}: {message}", param=param)
