"""Token healing: a prompt that was cut within a word goes on with a word that begins so.

The last, possibly unfinished piece is taken back, and the first word is drawn among those that begin with it. Each way to spell it is a
Branch; together they hold the model's continuations of what stands before, given the typed characters (Lundberg 2023 took back one
token and kept the tokens that begin with it; here every spelling counts, weighted by its probability).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptgen.generation.request import Branch
from promptgen.text.beginnings import Unfinished, WordBeginnings, beginnings_of, spellings
from promptgen.text.tokenizer import Tokenizer

MAX_BRANCHES = 8  # further spellings of a long beginning, by more and shorter tokens, are left out


@dataclass(frozen=True, slots=True)
class Healed:
    """A prompt without its unfinished piece: ids (the begin token first), the text they spell, what was typed after it, how to go on."""

    prompt_ids: tuple[int, ...]
    text: str
    rest: str
    branches: tuple[Branch, ...]


class Healer:
    """For one vocabulary; a table of its pieces is made once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._beginnings = beginnings_of(tokenizer)  # type: ignore[arg-type]
        self.every_id: NDArray[np.int64] = np.arange(tokenizer.size)

    def whole(self, prompt: str, prompt_ids: tuple[int, ...]) -> Healed:
        """The prompt as it stands, any token to follow."""
        return Healed(prompt_ids, prompt, "", (Branch((), self.every_id),))

    def heal(self, prompt: str, prompt_ids: tuple[int, ...]) -> Healed | None:
        """None where nothing can be unfinished. `prompt_ids` are those of the whole prompt, after the begin token."""
        unfinished = self._beginnings.unfinished(prompt, prompt_ids[1:])
        if unfinished is None:
            return None
        if not unfinished.rest:
            assert isinstance(self._beginnings, WordBeginnings)
            return Healed(prompt_ids, unfinished.text, "", (Branch((), self._beginnings.outer_ids),))
        branches = self._branches(unfinished, prompt_ids[1 + unfinished.num_tokens :])
        if not branches:
            return None
        rest = unfinished.rest if isinstance(unfinished.rest, str) else unfinished.rest.decode()
        return Healed(prompt_ids[: 1 + unfinished.num_tokens], unfinished.text, rest, branches)

    def _branches(self, unfinished: Unfinished, own_ids: tuple[int, ...]) -> tuple[Branch, ...]:
        """Short paths first. However many there are, that of the vocabulary's own split, `own_ids`, is among them."""
        rest = unfinished.rest
        found: list[Branch] = []
        paths: list[tuple[tuple[int, ...], int]] = [((), 0)]  # tokens, and how much of the rest they spell
        for path, at in paths:  # grows meanwhile: short paths first
            table, left = self._beginnings.table(unfinished, at), rest[at:]
            found.append(Branch(path, table.covering(left), frozenset(table.spelling(left).tolist())))
            longer = (
                ((*path, i), at + len(piece)) for piece in spellings(left) for i in table.spelling(piece).tolist()
            )
            for further in longer:
                if len(paths) < MAX_BRANCHES or further[0] == own_ids[: len(further[0])]:
                    paths.append(further)
        on_the_way = {b.path_ids[:n] for b in found if len(b.cover_ids) for n in range(len(b.path_ids) + 1)}
        return tuple(branch for branch in found if branch.path_ids in on_the_way)
