"""Two simple ways to guess the next word, counted from the training part: what a model's typing figures are compared with.

`PopularityTrie` shows the words that most often follow exactly what was typed. `WittenBell` is a word 5-gram model over the model's own
tokens. Both look at what is asked of them first and then go over the training documents once, so memory is bounded by the questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from promptgen.text.tokenizer import Tokenizer
from promptgen.text.words import is_spaced
from promptgen.training.dataset import TokenFile, is_prompt
from promptgen.training.packing import Ids

Probabilities = np.ndarray[Any, np.dtype[Any]]  # [V], float
_BLOCK_TOKENS = 1_000_000  # training tokens counted at a time


class PopularityTrie:
    """The most frequent next words of the training prompts that begin with exactly the typed prefix.

    A word is a token of the vocabulary, or a whole run of Latin letters and digits, with the space before it. Within a word the
    candidate is the rest of it. Dialogues are left out.
    """

    def __init__(self, train: TokenFile, tokenizer: Tokenizer) -> None:
        self._train = train
        self._tokenizer = tokenizer
        self._detokenizer = tokenizer.detokenizer("")

    def candidates(self, prefixes: Sequence[str], num_candidates: int = 5) -> list[list[str]]:
        """For each prefix the rests of words, commonest first; at equal counts the one seen first."""
        counts = self._count({prefix[:end] for prefix in prefixes for end in range(len(prefix) + 1)})
        return [
            [word for word, _ in counts.get(prefix, Counter[str]()).most_common(num_candidates)] for prefix in prefixes
        ]

    def _count(self, wanted: set[str]) -> dict[str, Counter[str]]:
        """What follows each wanted prefix. `wanted` holds every beginning of its members, so the first miss ends a document."""
        counts: dict[str, Counter[str]] = {}
        for document in range(len(self._train)):
            ids = self._train.document(document)
            if not is_prompt(ids, self._tokenizer):
                continue
            for prefix, rest in self._steps(ids):
                if prefix not in wanted:
                    break
                counts.setdefault(prefix, Counter())[rest] += 1
        return counts

    def _steps(self, ids: Ids) -> Iterator[tuple[str, str]]:
        """Every beginning of a document's text, with the rest of the word that comes then."""
        text = ""
        for word in self._words(ids):
            for end in range(len(word)):
                yield text + word[:end], word[end:]
            text += word

    def _words(self, ids: Ids) -> Iterator[str]:
        detokenizer = self._detokenizer.fork()
        word = ""
        for token_id in ids:
            text = detokenizer.push(int(token_id))
            if word and text and not (is_spaced(word[-1]) and is_spaced(text[0])):
                yield word
                word = ""
            word += text
        if word:
            yield word


class WittenBell:
    """An n-gram model over token ids, smoothed after Witten and Bell and interpolated with all shorter contexts.

        p(w | h) = (c(h w) + t(h) p(w | h')) / (c(h) + t(h))

    c counts the training part, t(h) is the number of different tokens seen after h, h' is h without its first token; below the
    empty context stands the uniform distribution. Witten and Bell, "The zero-frequency problem", IEEE Transactions on
    Information Theory 37(4), 1991, method C; the interpolated form is that of Chen and Goodman, "An empirical study of smoothing
    techniques for language modeling", 1998. Contexts do not cross documents.
    """

    def __init__(self, train: TokenFile, vocabulary_size: int, order: int = 5) -> None:
        self._train = train
        self._size = vocabulary_size
        self._order = order

    def last_two(
        self, documents: Sequence[tuple[int, ...]]
    ) -> Iterator[tuple[int, Probabilities | None, Probabilities]]:
        """For each document its index, p(. | all but the last token), None for a document of one token, and p(. | all). In order."""
        longest = self._order - 1
        histories = {d[max(0, len(d) - longest - cut) : len(d) - cut] for d in documents for cut in (0, 1)}
        counts = _ContextCounts(histories, self._size)
        for tokens, places in _blocks(self._train):
            counts.add(tokens, places)
        for index, document in enumerate(documents):
            before = counts.distribution(document[-longest - 1 : -1]) if len(document) > 1 else None
            yield index, before, counts.distribution(document[-longest:])


def _blocks(part: TokenFile) -> Iterator[tuple[Ids, Ids]]:
    """The part in runs of whole documents: token ids, and each one's place in its document."""
    begin = 0
    while begin < len(part):
        reach = int(np.searchsorted(part.offsets, part.offsets[begin] + _BLOCK_TOKENS, "right")) - 1
        end = max(begin + 1, reach)
        offsets = part.offsets[begin : end + 1]
        tokens = part.tokens[offsets[0] : offsets[-1]].astype(np.int64)
        yield tokens, np.arange(len(tokens)) - np.repeat(offsets[:-1] - offsets[0], np.diff(offsets))
        begin = end


class _ContextCounts:
    """What follows chosen contexts, counted block by block.

    The contexts of length n are numbered by their sorted keys: number of the context without its first token, times V, plus that
    first token. A pair (context, follower) is the number of the context, times V, plus the follower. The empty context has number 0.
    """

    def __init__(self, histories: set[tuple[int, ...]], vocabulary_size: int) -> None:
        self._size = vocabulary_size
        self._number: dict[tuple[int, ...], int] = {(): 0}
        self._keys: list[Ids] = []  # for each length from 1 on, [number of contexts], sorted
        for length in range(1, max(map(len, histories), default=0) + 1):
            contexts = {h[-length:] for h in histories if len(h) >= length}
            key_of = {c: self._number[c[1:]] * vocabulary_size + c[0] for c in contexts}
            keys = np.array(sorted(key_of.values()), np.int64)
            self._keys.append(keys)
            self._number |= {c: int(np.searchsorted(keys, key)) for c, key in key_of.items()}
        # For each length from 0 on: sorted pairs, and how often each was seen.
        self._pairs = [(np.zeros(0, np.int64), np.zeros(0, np.int64)) for _ in range(len(self._keys) + 1)]

    def add(self, tokens: Ids, places: Ids) -> None:
        """Counts a block. A document's first token has no context and is no event."""
        at = np.flatnonzero(places >= 1)
        number = np.zeros(len(at), np.int64)
        self._add_pairs(0, tokens[at])
        for length, keys in enumerate(self._keys, 1):
            inside = places[at] >= length
            at, number = at[inside], number[inside]
            key = number * self._size + tokens[at - length]
            found = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
            wanted = keys[found] == key
            at, number = at[wanted], found[wanted]
            self._add_pairs(length, number * self._size + tokens[at])

    def _add_pairs(self, length: int, pairs: Ids) -> None:
        known, known_counts = self._pairs[length]
        new, new_counts = np.unique(pairs, return_counts=True)
        merged, place = np.unique(np.concatenate([known, new]), return_inverse=True)
        counts = np.zeros(len(merged), np.int64)
        np.add.at(counts, place, np.concatenate([known_counts, new_counts]))
        self._pairs[length] = merged, counts

    def distribution(self, history: tuple[int, ...]) -> Probabilities:
        """p(. | history), [V] float64, for a history that was asked for, or the end of one."""
        p = np.full(self._size, 1 / self._size)
        for length in range(len(history) + 1):
            first = self._number[history[len(history) - length :]] * self._size
            pairs, counts = self._pairs[length]
            low, high = np.searchsorted(pairs, [first, first + self._size])
            if low == high:
                break  # never seen, so no longer context was either
            seen = counts[low:high]
            total = int(seen.sum()) + len(seen)
            p *= len(seen) / total
            p[pairs[low:high] - first] += seen / total
        return p
