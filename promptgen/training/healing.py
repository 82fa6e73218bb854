"""Candidates for the next word from any predictor of tokens, where typing may have stopped within a word (token healing)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np

from promptgen.text.bytepair import BytePairTokenizer
from promptgen.text.tokenizer import BertWordTokenizer, Detokenizer
from promptgen.text.words import SPECIAL_TOKENS, is_spaced

Probabilities = np.ndarray[Any, np.dtype[Any]]  # [V], float
MAX_CANDIDATES = 5
_LIKELIEST = 64  # next tokens looked at before all of them are sorted
_GLUED = "\0"  # stands for ##, so that the mark # is the beginning of no such piece


class TokenPredictor(Protocol):
    """Says of documents (token ids, none twice), in any order: index, p(. | all but the last token), None if that is nothing, p(. | all)."""

    def last_two(
        self, documents: Sequence[tuple[int, ...]]
    ) -> Iterator[tuple[int, Probabilities | None, Probabilities]]: ...


class HealedCandidates:
    """Candidates from a predictor of tokens, with the last token taken back.

    A longer token w that begins with the last one is ranked by p(w | context), a token v after it by p(last | context) p(v | context,
    last). Special tokens, and tokens of a byte-level vocabulary that hold a broken character, are never shown.
    """

    def __init__(
        self, tokenizer: BertWordTokenizer | BytePairTokenizer, predictor: TokenPredictor, max_tokens: int | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._predictor = predictor
        self._max_tokens = max_tokens  # a longer document loses tokens after the first
        self._pieces = _pieces(tokenizer)
        self._sorted = sorted((piece, i) for i, piece in enumerate(self._pieces) if piece is not None)
        letters = tokenizer.detokenizer("a")
        # A token that takes a space after a word; None in a vocabulary without such.
        self._word_id = next((i for _, i in self._sorted if letters.fork().push(i).startswith(" ")), None)

    def candidates(self, prefixes: Sequence[str]) -> list[list[str]]:
        of_document: dict[tuple[int, ...], list[int]] = {}
        for number, prefix in enumerate(prefixes):
            ids = self._tokenizer.encode(prefix)
            kept = ids if self._max_tokens is None else ids[max(0, len(ids) + 1 - self._max_tokens) :]
            of_document.setdefault((self._tokenizer.begin_id, *kept), []).append(number)
        documents = list(of_document)
        shown: list[list[str]] = [[] for _ in prefixes]
        for index, before, after in self._predictor.last_two(documents):
            for number in of_document[documents[index]]:
                shown[number] = self._best(prefixes[number], documents[index][-1], before, after)
        return shown

    def _best(self, prefix: str, last: int, before: Probabilities | None, after: Probabilities) -> list[str]:
        ranked = [(float(after[i]), text) for i, text in islice(self._next(prefix, after), MAX_CANDIDATES)]
        piece = self._pieces[last]
        if before is not None:
            ranked = [(float(before[last]) * p, text) for p, text in ranked]
            # Clean-up may have changed capitals; white space after the last token has ended it.
            if piece is not None and prefix.lower().endswith(piece.removeprefix(_GLUED).lower()):
                ranked += [(float(before[i]), rest) for rest, i in self._longer(piece)]
        ranked.sort(key=lambda pair: -pair[0])
        return list(dict.fromkeys(text for _, text in ranked))[:MAX_CANDIDATES]

    def _longer(self, piece: str) -> Iterator[tuple[str, int]]:
        """What longer tokens add to the beginning `piece`, and their ids."""
        low = bisect_right(self._sorted, piece, key=lambda pair: pair[0])
        high = bisect_left(self._sorted, piece + "\U0010ffff", key=lambda pair: pair[0])
        return ((longer[len(piece) :], i) for longer, i in self._sorted[low:high])

    def _next(self, prefix: str, after: Probabilities) -> Iterator[tuple[int, str]]:
        """Tokens that can follow what was typed, likeliest first, each with the text it adds. No text comes twice."""
        spaced = prefix.endswith(" ") and isinstance(self._tokenizer, BertWordTokenizer)
        detokenizer = self._tokenizer.detokenizer(prefix.rstrip() if spaced else prefix)
        # After a word and a space only what takes that space can come; after Chinese and a space, anything.
        is_bound = spaced and self._word_id is not None and detokenizer.fork().push(self._word_id).startswith(" ")
        glues = not spaced and bool(prefix) and (is_spaced(prefix[-1]) or prefix[-1] in ".:")
        seen: set[str] = set()
        for i in _falling(after):
            text = self._text(i, detokenizer, glues=glues)
            if is_bound:
                text = text[1:] if text.startswith(" ") else ""
            if text and text not in seen:
                seen.add(text)
                yield i, text

    def _text(self, i: int, detokenizer: Detokenizer, *, glues: bool) -> str:
        piece = self._pieces[i]
        return "" if piece is None or (piece.startswith(_GLUED) and not glues) else detokenizer.fork().push(i)


def _pieces(tokenizer: BertWordTokenizer | BytePairTokenizer) -> list[str | None]:
    """The text of each token, None for one that is not shown. `##` becomes NUL."""
    if isinstance(tokenizer, BertWordTokenizer):
        return [
            None if t in SPECIAL_TOKENS else _GLUED + t[2:] if t.startswith("##") and len(t) > 2 else t
            for t in tokenizer.vocabulary.tokens
        ]
    hidden = {tokenizer.end_id, *tokenizer.banned_ids}
    pieces: list[str | None] = []
    for i in range(tokenizer.size):
        detokenizer = tokenizer.detokenizer("")
        text = detokenizer.push(i) + detokenizer.finish()
        pieces.append(None if i in hidden or not text or "\ufffd" in text else text)
    return pieces


def _falling(p: Probabilities) -> Iterator[int]:
    """Token ids by falling probability; all are sorted only if someone asks for more than a few."""
    few = min(_LIKELIEST, len(p))
    top = np.argpartition(-p, few - 1)[:few]
    yield from top[np.argsort(-p[top], kind="stable")].tolist()
    rest = np.setdiff1d(np.arange(len(p)), top)
    yield from rest[np.argsort(-p[rest], kind="stable")].tolist()
