"""A dialogue as a prompt: `[CLS] question [SEP] answer [SEP] question [SEP]`, as such documents stand in the training data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from promptgen.errors import ContextLengthExceeded, InvalidRequest
from promptgen.text.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. Those of the system have no place in such a prompt and are left out."""

    role: Role
    text: str


def dialogue_prompt(tokenizer: Tokenizer, messages: Sequence[Message], room: int) -> tuple[int, ...]:
    """The last turns that fit `room` tokens, whole ones only and a question first.

    Raises InvalidRequest unless the last turn is a question, ContextLengthExceeded when it does not fit by itself.
    """
    turns = [message for message in messages if message.role != "system"]
    if not turns or turns[-1].role != "user":
        raise InvalidRequest("the last message must be the user's", param="messages")
    encoded = [(*tokenizer.encode(turn.text), tokenizer.separator_id) for turn in turns]
    kept: tuple[int, ...] = encoded[-1]
    if 1 + len(kept) > room:
        raise ContextLengthExceeded(1 + len(kept), 1, room)
    tail: tuple[int, ...] = ()
    for turn, ids in zip(reversed(turns[:-1]), reversed(encoded[:-1]), strict=True):
        tail = (*ids, *tail)
        if 1 + len(tail) + len(kept) > room:
            break
        if turn.role == "user":
            kept, tail = (*tail, *kept), ()
    return (tokenizer.end_id, *kept)
