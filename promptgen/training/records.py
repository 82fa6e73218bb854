"""One item of a JSONL file or a JSON list becomes the turns of a document.

    "text"  or  {"text": "..."}                                  a document
    {"prompt": "...", "completion": "..."}                       a document: the one followed by the other
    {"question": "...", "answer": "..."}                         a dialogue
    {"messages": [{"role": "user", "content": "..."}, ...]}      a dialogue; system messages are left out

Fields beside these are not looked at. An item with none of them is left out, and the caller is told why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

SHAPES = 'an object with "text", "prompt" and "completion", "question" and "answer", or "messages"'
_SYSTEM_ROLES = ("system", "developer")
_ROLES = ("user", "assistant")

Drop = Callable[[str], None]  # takes a reason


@dataclass(frozen=True, slots=True)
class Document:
    """One document (`turns` has one text) or one dialogue (question and answer in turn). `number` is its line or place in a list."""

    turns: tuple[str, ...]
    is_dialogue: bool
    number: int = field(default=0, compare=False)


def read_record(value: object, number: int, drop: Drop) -> Document | None:
    """The document of an item; None if it cannot be used, after `drop` was told why."""
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, dict):
        drop("neither text nor object")
        return None
    texts: list[object] | None
    if "text" in value:
        texts, is_dialogue = [value["text"]], False
    elif "prompt" in value and "completion" in value:
        texts, is_dialogue = _joined(value["prompt"], value["completion"]), False
    elif "question" in value and "answer" in value:
        texts, is_dialogue = [value["question"], value["answer"]], True
    elif "messages" in value:
        texts, is_dialogue = _contents(value["messages"], drop), True
    else:
        drop("unknown fields")
        return None
    turns = None if texts is None else _turns(texts, drop)
    return None if turns is None else Document(turns, is_dialogue, number)


def _joined(prompt: object, completion: object) -> list[object]:
    return [prompt + completion if isinstance(prompt, str) and isinstance(completion, str) else None]


def _contents(messages: object, drop: Drop) -> list[object] | None:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        drop("no text")
        return None
    kept = []
    for message in messages:
        if message.get("role") in _SYSTEM_ROLES:
            drop("system message")
        else:
            kept.append(message)
    # The roles are not written into the data: the order alone says who speaks.
    if any(message.get("role") != _ROLES[at % 2] for at, message in enumerate(kept)):
        drop("roles other than user, assistant in turn")
        return None
    return [message.get("content") for message in kept]


def _turns(texts: list[object], drop: Drop) -> tuple[str, ...] | None:
    turns = tuple(text.strip() for text in texts if isinstance(text, str))
    if not turns or len(turns) < len(texts) or not all(turns):
        drop("no text")
        return None
    try:
        "".join(turns).encode()
    except UnicodeEncodeError:
        drop("half a character")  # \ud83d without its second half: no encoding can write it
        return None
    return turns
