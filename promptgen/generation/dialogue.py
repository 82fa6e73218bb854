"""What a model is given to answer a question with what was said before.

A model trained on dialogues (training/prepare.py) has learned `[CLS] question [SEP] answer [SEP] question [SEP] ...`: the order alone says who
speaks, so a system message has no place in it and is left out. A model with a chat template of its own (chat_template.py) is given what that
makes of the messages. Either way the newest turns are kept, as many as leave room for an answer; a turn, a question with its answer, is kept
whole or not at all. What a message holds is text: a special token that somebody writes into it is taken out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from promptgen.errors import InvalidRequest, QuestionTooLong
from promptgen.generation.chat_template import ChatTemplate
from promptgen.generation.memory import MAX_ENDS
from promptgen.text.tokenizer import Tokenizer

SYSTEM_ROLES = ("system", "developer")
USER, ASSISTANT = "user", "assistant"
MAX_TURNS = 3  # of the history, for a model without a template of its own: our corpus has no longer dialogues
USUAL_ROOM = 80
_MAX_TEMPLATE_TURNS = 64


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Fitted:
    """A prompt, and how many turns of the history are in it."""

    prompt_ids: tuple[int, ...]
    num_turns: int


@dataclass(frozen=True, slots=True)
class _Talk:
    """Messages in order of sense: what the system says, whole turns, and the question to answer."""

    system: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]
    question: str


class Dialogue:
    """The prompts of one model. `end_ids` are the tokens that end an answer, beside the end of the document."""

    def __init__(self, tokenizer: Tokenizer, window: int, template: ChatTemplate | None = None) -> None:
        self._tokenizer, self._window, self._template = tokenizer, window, template
        kept = {tokenizer.unknown_id}
        self._special_ids = {tokenizer.begin_id, tokenizer.end_id, tokenizer.separator_id, *tokenizer.banned_ids} - kept
        self.end_ids = self._ends()

    @property
    def usual_room(self) -> int:
        """The longest answer where nobody says how long, in tokens."""
        return min(USUAL_ROOM, self._window // 2)

    @property
    def empty_prompt(self) -> tuple[int, ...]:
        """After which an answer is as likely as it is by itself, whatever was asked."""
        if self._template is not None:
            return self._rendered(_Talk((), (), ""))
        return (self._tokenizer.end_id, self._tokenizer.separator_id)

    def prompt(self, messages: Sequence[Message], room: int) -> tuple[int, ...]:
        """What the model reads so that its next tokens, of which there is room for `room`, answer the last message. Raises as `fit` does."""
        return self.fit(messages, room).prompt_ids

    def fit(self, messages: Sequence[Message], room: int) -> Fitted:
        """Raises InvalidRequest for messages that are no question after whole turns, QuestionTooLong if the question alone does not fit."""
        talk = _read(messages)
        return self._fit_turns(talk, room) if self._template is None else self._fit_template(talk, room)

    def _fit_turns(self, talk: _Talk, room: int) -> Fitted:
        question = self._line(talk.question)
        if len(question) < 2:
            raise InvalidRequest("the question holds no word", param="question")
        left = self._window - room - 1 - len(question)
        if left < 0:
            raise QuestionTooLong(1 + len(question), room, self._window)
        lines: list[list[int]] = [question]
        num_turns = 0
        for asked, answered in reversed(talk.turns[-MAX_TURNS:]):
            pair = [self._line(asked), self._line(answered)]
            left -= len(pair[0]) + len(pair[1])
            if left < 0:
                break
            if min(map(len, pair)) > 1:  # a turn without words would be read as two separators
                lines[:0] = pair
                num_turns += 1
        return Fitted((self._tokenizer.end_id, *(i for line in lines for i in line)), num_turns)

    def _line(self, text: str) -> list[int]:
        """What somebody said, and the separator after it."""
        ids = (i for i in self._tokenizer.encode(text) if i not in self._special_ids)
        return [*ids, self._tokenizer.separator_id]

    def _fit_template(self, talk: _Talk, room: int) -> Fitted:
        fewest, most = 0, min(len(talk.turns), _MAX_TEMPLATE_TURNS)
        while True:  # the most turns that fit
            num_turns = (fewest + most + 1) // 2
            turns = talk.turns[len(talk.turns) - num_turns :]
            ids = self._rendered(_Talk(talk.system, turns, talk.question))
            if len(ids) + room > self._window:
                if not num_turns:
                    raise QuestionTooLong(len(ids), room, self._window)
                most = num_turns - 1
            elif num_turns == most:
                return Fitted(ids, num_turns)
            else:
                fewest = num_turns

    def _rendered(self, talk: _Talk) -> tuple[int, ...]:
        assert self._template is not None
        said = [("system", text) for text in talk.system]
        said += [pair for turn in talk.turns for pair in zip((USER, ASSISTANT), turn, strict=True)]
        messages = [{"role": role, "content": self._plain(text)} for role, text in (*said, (USER, talk.question))]
        ids = self._tokenizer.encode(self._template.render(messages))
        return tuple(ids) or (self._tokenizer.begin_id,)

    def _plain(self, text: str) -> str:
        """Without special tokens: only the template itself may write them."""
        while True:
            shorter = text
            for token in self._tokenizer.special_tokens:
                shorter = shorter.replace(token, " ")  # which keeps what stood around it from becoming another one
            if shorter == text:
                return text
            text = shorter

    def _ends(self) -> tuple[int, ...]:
        if self._template is None:
            return (self._tokenizer.separator_id,)
        named = (self._tokenizer.id_of(token) for token in self._template.end_tokens)
        ids = {*self._template.end_ids, *(i for i in named if i is not None)}
        return tuple(sorted(i for i in ids if i < self._tokenizer.size and i != self._tokenizer.end_id))[:MAX_ENDS]


def _read(messages: Sequence[Message]) -> _Talk:
    """Messages of one speaker in a row are one; what is said before the first question is left out.

    Raises InvalidRequest if the last message is not the user's, or a role is none.
    """
    system = tuple(m.content for m in messages if m.role in SYSTEM_ROLES)
    said: list[tuple[str, str]] = []
    for message in messages:
        if message.role in SYSTEM_ROLES:
            continue
        if message.role not in (USER, ASSISTANT):
            raise InvalidRequest("a message is of the user, the assistant or the system", param="messages")
        if said and said[-1][0] == message.role:
            said[-1] = (message.role, f"{said[-1][1]}\n{message.content}")
        elif said or message.role == USER:
            said.append((message.role, message.content))
    if not said or said[-1][0] != USER:
        raise InvalidRequest("the last message must be the user's", param="messages")
    texts = [content for _, content in said]
    return _Talk(system, tuple(zip(texts[:-1:2], texts[1::2], strict=True)), texts[-1])


def earlier_answers(messages: Iterable[Message]) -> list[str]:
    return [message.content for message in messages if message.role == ASSISTANT]
