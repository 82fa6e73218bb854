"""Which tokens begin with, and which are beginnings of, a piece of text: what is needed to go on from within a word.

A *piece* is what a token adds to a text: characters of a word vocabulary, bytes of a byte-level one. `##` pieces, which go on
within a word, and whole words are kept apart.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from promptgen.text.bytepair import BytePairTokenizer
from promptgen.text.tokenizer import MAX_SPACED_RUN, BertWordTokenizer
from promptgen.text.words import SPECIAL_TOKENS, Kind, clean, runs

Text = str | bytes
_CACHED = 4096
_MAX_BYTES = 48  # looked at before the end of a byte-level prompt


class Unfinished(NamedTuple):
    """Where a prompt may have been cut within a word.

    The first `num_tokens` ids of the prompt stand, and `text` is what they spell. `rest` was typed after it and may be the beginning of a
    longer word; `is_inner` when it goes on within one (`##`). An empty `rest` of a prompt that ends in white space says that no
    inner piece may follow.
    """

    num_tokens: int
    text: str
    rest: Text
    is_inner: bool = False


class PieceTable:
    """Pieces in order, and the ids of their tokens."""

    def __init__(self, pieces: Iterable[tuple[Text, int]]) -> None:
        ordered = sorted(pieces)
        self._pieces = [piece for piece, _ in ordered]
        self._ids: NDArray[np.int64] = np.array([token_id for _, token_id in ordered], np.int64)
        self._longest = max(map(len, self._pieces), default=0)
        self._span = lru_cache(_CACHED)(self._find_span)

    @property
    def longest(self) -> int:
        return self._longest

    def covering(self, piece: Text) -> NDArray[np.int64]:
        """Ids of the tokens that begin with `piece`, itself among them."""
        low, _, high = self._span(piece)
        return self._ids[low:high]

    def spelling(self, piece: Text) -> NDArray[np.int64]:
        """Ids of the tokens that are `piece`."""
        low, longer, _ = self._span(piece)
        return self._ids[low:longer]

    def has_longer(self, piece: Text) -> bool:
        """Whether a token begins with `piece` and goes on."""
        _, longer, high = self._span(piece)
        return longer < high

    def _find_span(self, piece: Text) -> tuple[int, int, int]:
        end = piece + "\U0010ffff" if isinstance(piece, str) else piece + b"\xff" * (self._longest + 1)
        low = bisect_left(self._pieces, piece)
        longer = bisect_right(self._pieces, piece)
        return low, longer, bisect_left(self._pieces, end)


class WordBeginnings:
    """Beginnings for a word or character vocabulary."""

    def __init__(self, tokenizer: BertWordTokenizer) -> None:
        self._tokenizer = tokenizer
        named = [(t, i) for i, t in enumerate(tokenizer.vocabulary.tokens) if t not in SPECIAL_TOKENS]
        self.outer = PieceTable((t, i) for t, i in named if not _is_inner(t))
        self.inner = PieceTable((t[2:], i) for t, i in named if _is_inner(t))
        inner_ids = {i for t, i in named if _is_inner(t)}
        self.outer_ids: NDArray[np.int64] = np.array([i for i in range(tokenizer.size) if i not in inner_ids], np.int64)

    def unfinished(self, prompt: str, ids: Sequence[int]) -> Unfinished | None:
        """None where the prompt, which is encoded as `ids`, cannot be within a word."""
        cleaned = clean(prompt)
        if not ids:
            return None
        if cleaned.endswith(" "):
            return Unfinished(len(ids), cleaned, "")
        *_, (kind, run) = runs(cleaned)
        if kind is Kind.SPECIAL or (kind is Kind.SPACED and len(run) > MAX_SPACED_RUN):
            return None
        spaced = kind is Kind.SPACED
        own = self._tokenizer.tokenize(run)
        widths = [1 if t == "[UNK]" else len(t) - 2 if spaced and _is_inner(t) else len(t) for t in own]
        starts = [0, *accumulate(widths)][:-1]
        table = self.inner if spaced else self.outer
        first = max(0, len(run) - max(self.outer.longest, self.inner.longest))
        begin = next((b for b in range(first, len(run)) if (table if b else self.outer).has_longer(run[b:])), None)
        if begin is None:
            return None
        number = max(n for n, start in enumerate(starts) if start <= begin)
        rest = run[starts[number] :]
        is_inner = spaced and _is_inner(own[number])
        return Unfinished(len(ids) - len(own) + number, cleaned[: len(cleaned) - len(rest)], rest, is_inner)

    def table(self, unfinished: Unfinished, num_spelled: int) -> PieceTable:
        """Tokens that may come when `num_spelled` characters of the rest stand already."""
        char = unfinished.rest[:1]
        spaced = isinstance(char, str) and next(iter(runs(char)))[0] is Kind.SPACED
        return self.inner if spaced and (num_spelled or unfinished.is_inner) else self.outer


class ByteBeginnings:
    """Beginnings for a byte-level vocabulary."""

    def __init__(self, tokenizer: BytePairTokenizer) -> None:
        self._tokenizer = tokenizer
        hidden = {tokenizer.end_id, tokenizer.separator_id, *tokenizer.banned_ids}
        self._bytes = [tokenizer.bytes_of(i) for i in range(tokenizer.size)]
        self.outer = PieceTable((piece, i) for i, piece in enumerate(self._bytes) if piece and i not in hidden)

    def unfinished(self, prompt: str, ids: Sequence[int]) -> Unfinished | None:
        data = prompt.encode("utf-8", "ignore")
        starts = [0, *accumulate(len(self._bytes[i]) for i in ids)]
        if not ids or starts.pop() != len(data) or b"".join(self._bytes[i] for i in ids) != data:
            return None
        first = max(0, len(data) - min(_MAX_BYTES, self.outer.longest))
        begin = next((b for b in range(first, len(data)) if self.outer.has_longer(data[b:])), None)
        if begin is None:
            return None
        whole = [n for n, start in enumerate(starts) if start <= begin and not _is_within_character(data, start)]
        number = max(whole)
        return Unfinished(number, data[: starts[number]].decode(), data[starts[number] :])

    def table(self, unfinished: Unfinished, num_spelled: int) -> PieceTable:
        return self.outer


Beginnings = WordBeginnings | ByteBeginnings


def beginnings_of(tokenizer: BertWordTokenizer | BytePairTokenizer) -> Beginnings:
    return WordBeginnings(tokenizer) if isinstance(tokenizer, BertWordTokenizer) else ByteBeginnings(tokenizer)


def spellings(rest: Text) -> Iterator[Text]:
    """The proper beginnings of `rest`, longest first."""
    return (rest[:end] for end in range(len(rest) - 1, 0, -1))


def _is_inner(token: str) -> bool:
    return token.startswith("##") and len(token) > 2


def _is_within_character(data: bytes, index: int) -> bool:
    return index < len(data) and data[index] & 0xC0 == 0x80
