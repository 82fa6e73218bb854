"""The prompts whose keys and values stand in the cache: being read, in use, or kept for the next request that begins alike.

Plain Python, no torch. A prompt owns a slot. One that extends an earlier one is read from where they part: in the same slot if nobody else
uses it, else in a slot of its own after the common part is copied. The least recently used gives up its slot. Prompts of
different `salt` never meet, so that one caller cannot find out by timing what another one typed.

A candidate that was drawn may be kept as well. A draw is a function of seed, sample and the tokens before it, so one who
would draw the same is told what follows, and reads nothing of it again.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from operator import eq

MIN_SHARED = 2  # tokens; the begin token, which all prompts share, is not worth a copy
_Shelf = tuple[str, tuple[int, ...]]


@dataclass(slots=True)
class Drawn:
    """A candidate as it grows: its tokens with those of its prompt. From `num_given` on they were drawn as whoever has the same `key` would
    draw them; `logprobs` are of these and of the one before, the first pick. `end_logprob` and `end_id` when a token ended it there."""

    key: Hashable
    token_ids: list[int]
    num_given: int
    logprobs: list[float]
    end_logprob: float | None = None
    end_id: int | None = None


@dataclass(slots=True, eq=False)
class Prompt:
    """A slot and what stands in it: the first `num_read` of `token_ids`. `has_logits` when those of the last token do too."""

    slot: int
    token_ids: tuple[int, ...] = ()
    salt: str = ""
    num_read: int = 0
    has_logits: bool = False
    num_users: int = 0
    last_use: int = 0
    drawn: Drawn | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a prompt will be read, and the copy to make before: `num_copied` tokens from another slot."""

    prompt: Prompt
    copy_from: int | None = None
    num_copied: int = 0


class PromptCache:
    """Looks only at the prompts that begin with the same MIN_SHARED tokens, however many slots there are."""

    def __init__(self, slots: Sequence[int]) -> None:
        self._slots = tuple(slots)
        self._clock = count(1)
        self._drawn: dict[Hashable, list[Prompt]] = {}  # those that hold a candidate, by its key
        self._alike: dict[_Shelf, dict[int, Prompt]] = {}  # by salt and first tokens, then by slot
        self._prompts: dict[int, Prompt] = {}  # by slot
        self._idle: dict[int, Prompt] = {}  # those that nobody uses, the least recently used first
        self.forget()

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self._prompts.values())

    @property
    def num_free(self) -> int:
        """Slots that nobody uses now."""
        return len(self._idle)

    def acquire(self, token_ids: tuple[int, ...], salt: str) -> Place | None:
        """A place for a prompt, its user counted; None while every slot is in use.

        It is to be read from `prompt.num_read` on, unless it has its logits already. The last token at least is read when they are missing.
        """
        shared, nearest = self._nearest(token_ids, salt)
        if nearest is not None and shared == len(token_ids) == nearest.num_read and nearest.has_logits:
            return Place(self._use(nearest))
        if nearest is not None and shared == nearest.num_read and not nearest.num_users:
            nearest.num_read = min(shared, len(token_ids) - 1)
            self._write(nearest, token_ids, salt)
            return Place(self._use(nearest))
        free = next((prompt for prompt in self._idle.values() if prompt is not nearest), None)
        if free is None:
            if nearest is None or nearest.num_users:
                return None
            free, nearest, shared = nearest, None, 0  # the only slot left is the one to copy from
        shared = min(shared, len(token_ids) - 1)  # the last token is read for its logits
        if nearest is None or shared < MIN_SHARED:
            nearest, shared = None, 0
        free.num_read = shared
        self._write(free, token_ids, salt)
        return Place(self._use(free), nearest.slot if nearest else None, shared)

    def release(self, prompt: Prompt) -> None:
        """One user less. What was read stays for others to find."""
        assert prompt.num_users > 0
        assert self._prompts[prompt.slot] is prompt
        prompt.num_users -= 1
        if not prompt.num_users:
            self._idle[prompt.slot] = prompt
            if prompt.num_read < len(prompt.token_ids):  # given up half-way
                self._label(prompt, prompt.token_ids[: prompt.num_read], prompt.salt)

    def keep(self, drawn: Drawn, salt: str) -> int | None:
        """A slot for a candidate that ended: all its tokens but the last were read elsewhere. None if no slot is free.

        It takes the place of a shorter one of the same key.
        """
        if not self._idle:
            return None
        shorter = [
            p for p in self._drawn.get(drawn.key, ()) if not p.num_users and _begins(p.token_ids, drawn.token_ids)
        ]
        prompt = min(shorter, key=lambda p: p.last_use) if shorter else next(iter(self._idle.values()))
        self._write(prompt, tuple(drawn.token_ids[:-1]), salt)
        self._touch(prompt)
        prompt.num_read, prompt.drawn = len(prompt.token_ids), drawn
        self._drawn.setdefault(drawn.key, []).append(prompt)
        return prompt.slot

    def recall(self, key: Hashable, token_ids: Sequence[int]) -> Drawn | None:
        """The longest candidate of `key` that was drawn on from `token_ids`."""
        fitting = [
            (len(p.drawn.token_ids), p)
            for p in self._drawn.get(key, ())
            if p.drawn is not None and p.drawn.num_given <= len(token_ids) and _begins(token_ids, p.drawn.token_ids)
        ]
        if not fitting:
            return None
        _, prompt = max(fitting, key=lambda pair: pair[0])
        self._touch(prompt)
        return prompt.drawn

    def forget(self) -> None:
        """Empties all slots: after a failed step nothing in them is trusted."""
        self._prompts = {slot: Prompt(slot) for slot in self._slots}
        self._idle = dict(self._prompts)
        self._drawn.clear()
        self._alike.clear()

    @property
    def idle_slot(self) -> int | None:
        """One that nobody uses now."""
        return next(iter(self._idle), None)

    def forget_idle(self) -> list[int]:
        """Empties the slots that nobody uses: one of them may hold what made a request fail. Gives those in which anything stood."""
        slots = [slot for slot, prompt in self._idle.items() if prompt.last_use]
        for slot in slots:
            prompt = self._prompts[slot]
            self._write(prompt, (), "")
            prompt.num_read = prompt.last_use = 0
        return slots

    def _use(self, prompt: Prompt) -> Prompt:
        self._touch(prompt)
        self._idle.pop(prompt.slot, None)
        prompt.num_users += 1
        return prompt

    def _touch(self, prompt: Prompt) -> None:
        """It is the most recently used now."""
        prompt.last_use = next(self._clock)
        if self._idle.pop(prompt.slot, None) is not None:
            self._idle[prompt.slot] = prompt

    def _write(self, prompt: Prompt, token_ids: tuple[int, ...], salt: str) -> None:
        """Something else is to stand in its slot."""
        self._let_go(prompt)
        self._label(prompt, token_ids, salt)
        prompt.has_logits = False

    def _label(self, prompt: Prompt, token_ids: tuple[int, ...], salt: str) -> None:
        """It will be looked for by these tokens."""
        shelf = _shelf(prompt.token_ids, prompt.salt)
        if (others := self._alike.get(shelf)) is not None:
            others.pop(prompt.slot, None)
            if not others:
                del self._alike[shelf]
        prompt.token_ids, prompt.salt = token_ids, salt
        if token_ids:
            self._alike.setdefault(_shelf(token_ids, salt), {})[prompt.slot] = prompt

    def _let_go(self, prompt: Prompt) -> None:
        """Its slot no longer holds a candidate."""
        if prompt.drawn is not None:
            siblings = self._drawn[prompt.drawn.key]
            siblings.remove(prompt)
            if not siblings:
                del self._drawn[prompt.drawn.key]
            prompt.drawn = None

    def _nearest(self, token_ids: tuple[int, ...], salt: str) -> tuple[int, Prompt | None]:
        """The prompt that shares the longest beginning, and how long it is. Among equals one that ends there, with logits.

        One that shares less than MIN_SHARED tokens is not found.
        """
        best: Prompt | None = None
        best_rank = (0, False, False)
        longest = 0
        beginning = token_ids[:0]
        alike = self._alike.get(_shelf(token_ids, salt), {})
        for prompt in reversed(alike.values()):  # the newest are likely the nearest
            own = prompt.token_ids
            if prompt.num_read < longest or not prompt.num_read:
                continue
            if longest and (own[longest - 1] != beginning[-1] or own[:longest] != beginning):
                continue
            shared, end = longest, min(prompt.num_read, len(token_ids))  # nothing shorter counts
            while shared < end and own[shared] == token_ids[shared]:
                shared += 1
            rank = (shared, shared == prompt.num_read, prompt.has_logits)
            if rank > best_rank:
                best, best_rank = prompt, rank
                longest, beginning = shared, token_ids[:shared]
        return longest, best


def _shelf(token_ids: tuple[int, ...], salt: str) -> _Shelf:
    return salt, token_ids[:MIN_SHARED]


def _begins(beginning: Sequence[int], token_ids: Sequence[int]) -> bool:
    return len(beginning) <= len(token_ids) and all(map(eq, beginning, token_ids))
