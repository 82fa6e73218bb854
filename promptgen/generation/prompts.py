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
    def __init__(self, slots: Sequence[int]) -> None:
        self._prompts = [Prompt(slot) for slot in slots]
        self._clock = count(1)
        self._drawn: dict[Hashable, list[Prompt]] = {}  # those that hold a candidate, by its key

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self._prompts)

    @property
    def num_free(self) -> int:
        """Slots that nobody uses now."""
        return sum(not prompt.num_users for prompt in self._prompts)

    def acquire(self, token_ids: tuple[int, ...], salt: str) -> Place | None:
        """A place for a prompt, its user counted; None while every slot is in use.

        It is to be read from `prompt.num_read` on, unless it has its logits already. The last token at least is read when they are missing.
        """
        shared, nearest = self._nearest(token_ids, salt)
        if nearest is not None and shared == len(token_ids) == nearest.num_read and nearest.has_logits:
            return Place(self._use(nearest))
        if nearest is not None and shared == nearest.num_read and not nearest.num_users:
            nearest.num_read = min(shared, len(token_ids) - 1)
            return Place(self._use(nearest, token_ids))
        free = min(
            (p for p in self._prompts if not p.num_users and p is not nearest), key=lambda p: p.last_use, default=None
        )
        if free is None:
            if nearest is None or nearest.num_users:
                return None
            free, nearest, shared = nearest, None, 0  # the only slot left is the one to copy from
        shared = min(shared, len(token_ids) - 1)  # the last token is read for its logits
        if nearest is None or shared < MIN_SHARED:
            nearest, shared = None, 0
        free.salt, free.num_read = salt, shared
        return Place(self._use(free, token_ids), nearest.slot if nearest else None, shared)

    def release(self, prompt: Prompt) -> None:
        """One user less. What was read stays for others to find."""
        assert prompt.num_users > 0
        prompt.num_users -= 1
        if not prompt.num_users and prompt.num_read < len(prompt.token_ids):  # given up half-way
            prompt.token_ids = prompt.token_ids[: prompt.num_read]

    def keep(self, drawn: Drawn, salt: str) -> int | None:
        """A slot for a candidate that ended: all its tokens but the last were read elsewhere. None if no slot is free.

        It takes the place of a shorter one of the same key.
        """
        free = [prompt for prompt in self._prompts if not prompt.num_users]
        if not free:
            return None
        shorter = [
            p for p in self._drawn.get(drawn.key, ()) if not p.num_users and _begins(p.token_ids, drawn.token_ids)
        ]
        prompt = min(shorter or free, key=lambda p: p.last_use)
        self._use(prompt, tuple(drawn.token_ids[:-1]))
        prompt.num_users = 0
        prompt.salt, prompt.num_read, prompt.drawn = salt, len(prompt.token_ids), drawn
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
        prompt.last_use = next(self._clock)
        return prompt.drawn

    def forget(self) -> None:
        """Empties all slots: after a failed step nothing in them is trusted."""
        self._prompts = [Prompt(prompt.slot) for prompt in self._prompts]
        self._drawn.clear()

    @property
    def idle_slot(self) -> int | None:
        """One that nobody uses now."""
        return next((prompt.slot for prompt in self._prompts if not prompt.num_users), None)

    def forget_idle(self) -> list[int]:
        """Empties the slots that nobody uses: one of them may hold what made a request fail. Gives those in which anything stood."""
        idle = [index for index, prompt in enumerate(self._prompts) if prompt.last_use and not prompt.num_users]
        for index in idle:
            self._let_go(self._prompts[index])
            self._prompts[index] = Prompt(self._prompts[index].slot)
        return [self._prompts[index].slot for index in idle]

    def _use(self, prompt: Prompt, token_ids: tuple[int, ...] | None = None) -> Prompt:
        if token_ids is not None:
            prompt.token_ids, prompt.has_logits = token_ids, False
            self._let_go(prompt)
        prompt.num_users += 1
        prompt.last_use = next(self._clock)
        return prompt

    def _let_go(self, prompt: Prompt) -> None:
        """Its slot no longer holds a candidate."""
        if prompt.drawn is not None:
            siblings = self._drawn[prompt.drawn.key]
            siblings.remove(prompt)
            if not siblings:
                del self._drawn[prompt.drawn.key]
            prompt.drawn = None

    def _nearest(self, token_ids: tuple[int, ...], salt: str) -> tuple[int, Prompt | None]:
        """The prompt that shares the longest beginning, and how long it is. Among equals one that ends there, with logits."""
        best: Prompt | None = None
        best_rank = (0, False, False)
        longest = 0
        beginning = token_ids[:0]
        for prompt in self._prompts:
            own = prompt.token_ids
            if prompt.num_read < longest or prompt.salt != salt or own[:longest] != beginning or not prompt.num_read:
                continue
            shared, end = longest, min(prompt.num_read, len(token_ids))  # nothing shorter counts
            while shared < end and own[shared] == token_ids[shared]:
                shared += 1
            rank = (shared, shared == prompt.num_read, prompt.has_logits)
            if rank > best_rank:
                best, best_rank = prompt, rank
                longest, beginning = shared, token_ids[:shared]
        return longest, best


def _begins(beginning: Sequence[int], token_ids: Sequence[int]) -> bool:
    return len(beginning) <= len(token_ids) and all(map(eq, beginning, token_ids))
