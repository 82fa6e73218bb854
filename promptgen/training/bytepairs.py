"""Learns a byte-level BPE vocabulary in GPT-2's format (Sennrich et al. 2016, Radford et al. 2019): `promptgen vocab --kind bpe`.

The best pair is the most frequent one, ties broken by its text: the same corpus gives the same files on every machine. (The trainer of
the `tokenizers` library breaks ties by the order of a randomly seeded hash map.) A pair that would join a part of a character to
another character is never merged, so that a token is a part of one character or whole characters.

Pairs are counted in numpy arrays over all bytes of the words at once, one merge after another.
"""

from __future__ import annotations

import heapq
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers

from promptgen.errors import UsageError
from promptgen.text.bytepair import BYTE_OF, END_TOKEN, SEPARATOR_TOKEN

MAX_WORD = 16  # characters; longer runs are counted in parts: Chinese clauses hardly repeat, their parts do
MAX_BYTES = 12_000_000  # of different words that are learned from, the most frequent first; bounds time and memory
MIN_PAIR_COUNT = 3
_SPECIALS = (END_TOKEN, SEPARATOR_TOKEN)
_SPECIAL_TEXT = re.compile("|".join(map(re.escape, _SPECIALS)))
_CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}
_SHIFT = 32  # a pair is one integer: left << 32 | right

Integers = npt.NDArray[np.int32]
Keys = npt.NDArray[np.int64]


class WordSplitter:
    """Divides text as byte-level BPE does before it merges; the library's own code, so that counting and encoding agree."""

    def __init__(self) -> None:
        self._inner = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)

    def __call__(self, text: str) -> Iterator[str]:
        """The words of a text, in parts of MAX_WORD characters at most. Half surrogate pairs are dropped, as in encoding."""
        whole = text.encode("utf-8", "ignore").decode("utf-8")
        for plain in _SPECIAL_TEXT.split(whole):
            for _, (begin, end) in self._inner.pre_tokenize_str(plain):
                for part in range(begin, end, MAX_WORD):
                    yield plain[part : min(end, part + MAX_WORD)]


@dataclass(frozen=True, slots=True)
class BytePairs:
    """`tokens[id]` in GPT-2's byte characters: 256 bytes in GPT-2's order, then what was merged, then <|endoftext|> and <|sep|>."""

    tokens: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]

    def save(self, folder: Path) -> None:
        """Writes vocab.json and merges.txt as GPT-2 has them."""
        ids = {token: i for i, token in enumerate(self.tokens)}
        lines = ["#version: 0.2", *(f"{left} {right}" for left, right in self.merges)]
        (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def learn_byte_pairs(words: Mapping[str, int], size: int, min_count: int = MIN_PAIR_COUNT) -> BytePairs:
    """`size` tokens at most, fewer if no more pairs are seen `min_count` times. `words` maps a word to its number.

    Raises UsageError if `size` cannot hold the bytes and the special tokens.
    """
    needed = len(BYTE_OF) + len(_SPECIALS)
    if size < needed:
        raise UsageError(f"--size {size} cannot hold the 256 bytes and 2 special tokens; give {needed} or more")
    pairs = merges(words, size - needed, min_count)
    merged = tuple((_characters(left), _characters(right)) for left, right in pairs)
    # Two pairs may make one token: it has one id.
    tokens = dict.fromkeys([*BYTE_OF, *(left + right for left, right in merged), *_SPECIALS])
    return BytePairs(tuple(tokens), merged)


def _characters(token: bytes) -> str:
    return "".join(_CHARACTER_OF[byte] for byte in token)


def merges(words: Mapping[str, int], max_tokens: int, min_count: int) -> list[tuple[bytes, bytes]]:
    """The pairs to merge, in their order, until they make `max_tokens` different tokens."""
    chain = _Chain(words)
    counts: Counter[int] = Counter()
    heap: list[tuple[int, bytes, bytes, int]] = []
    tokens = [bytes([byte]) for byte in range(256)]
    ids = {token: i for i, token in enumerate(tokens)}
    done: list[tuple[bytes, bytes]] = []

    def note(keys: Keys, changes: Keys) -> None:
        for key, change in zip(keys.tolist(), changes.tolist(), strict=True):
            counts[key] += change
            left, right = tokens[key >> _SHIFT], tokens[key & 0xFFFFFFFF]
            if change > 0 and counts[key] >= min_count and _may_merge(left, right):
                heapq.heappush(heap, (-counts[key], left, right, key))
            elif not counts[key]:
                del counts[key]

    note(*chain.count_all())
    while heap and len(tokens) - 256 < max_tokens:
        negative, left, right, key = heapq.heappop(heap)
        if counts[key] != -negative:  # fewer since it was pushed: other merges took some
            if counts[key] >= min_count:
                heapq.heappush(heap, (-counts[key], left, right, key))
            continue
        merged = ids.setdefault(left + right, len(tokens))
        if merged == len(tokens):
            tokens.append(left + right)
        done.append((left, right))
        note(*chain.merge(key >> _SHIFT, key & 0xFFFFFFFF, merged))
    return done


def _may_merge(left: bytes, right: bytes) -> bool:
    """Within one character, or between whole ones. In UTF-8 all bytes of a character but its first are 10xxxxxx."""
    return _continues(right[0]) or (_is_whole(left) and _is_whole(right))


def _continues(byte: int) -> bool:
    return byte & 0xC0 == 0x80


def _is_whole(token: bytes) -> bool:
    try:
        token.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


class _Chain:
    """All words' bytes in one row: at each place a symbol, its weight, and links to the next and previous place in its word."""

    def __init__(self, words: Mapping[str, int]) -> None:
        chosen = _most_frequent(words)
        encoded = [word.encode() for word in chosen]
        lengths = np.array([len(word) for word in encoded], np.int32)
        self._end = int(lengths.sum())  # the place after and before every word; its symbol is none
        row = np.frombuffer(b"".join(encoded), np.uint8)
        self._symbol: Integers = np.append(row, np.int32(-1))
        self._weight = np.append(np.repeat(np.array([words[word] for word in chosen], np.int32), lengths), np.int32(0))
        self._next = np.arange(1, self._end + 2, dtype=np.int32)
        self._previous = np.arange(-1, self._end, dtype=np.int32)
        last = lengths.cumsum() - 1
        self._next[last] = self._end
        self._previous[last - lengths + 1] = self._end
        order = np.argsort(row, kind="stable").astype(np.int32)
        bounds = np.bincount(row, minlength=256).cumsum()[:-1]
        self._places: dict[int, Integers] = dict(enumerate(np.split(order, bounds)))  # of each symbol, ascending

    def count_all(self) -> tuple[Keys, Keys]:
        """Every pair and how often it stands in the corpus."""
        pairs = self._symbol[:-2] * 256 + self._symbol[1:-1]
        weights = np.where(self._next[: self._end - 1] == self._end, 0, self._weight[:-2])
        # Sums of float64 are exact below 2**53.
        sums = np.bincount(pairs, weights, 256 * 256).astype(np.int64)
        keys = np.flatnonzero(sums)
        return ((keys // 256) << _SHIFT) | (keys % 256), sums[keys]

    def merge(self, left: int, right: int, merged: int) -> tuple[Keys, Keys]:
        """Puts `merged` for each pair, from the left. Returns the pairs whose number changes, and by how much."""
        places = self._find(left, right)
        gone = self._next[places]
        after = self._next[gone]
        changed = [self._keys(np.unique(np.concatenate([self._previous[places], places, gone])), -1)]
        self._symbol[places] = merged
        self._symbol[gone] = -2
        self._next[places] = after
        self._previous[after] = places
        changed.append(self._keys(np.unique(np.concatenate([self._previous[places], places])), 1))
        known = self._places.get(merged)
        self._places[merged] = places if known is None else np.sort(np.concatenate([known, places]))
        return _sums(changed)

    def _find(self, left: int, right: int) -> Integers:
        """The places of `left` before `right`, ascending, without overlaps. Looks through the rarer of the two."""
        for symbol in (left, right):
            held = self._places[symbol]
            self._places[symbol] = held[self._symbol[held] == symbol]
        if len(self._places[left]) <= len(self._places[right]):
            held = self._places[left]
            places: Integers = held[self._symbol[self._next[held]] == right]
        else:
            before = self._previous[self._places[right]]
            places = before[self._symbol[before] == left]
        if left != right or not len(places):
            return places
        # In a a a a every second place begins a pair.
        begins_row = np.append(True, self._next[places[:-1]] != places[1:])
        index = np.arange(len(places))
        number_in_row = index - np.maximum.accumulate(np.where(begins_row, index, 0))
        every_second: Integers = places[number_in_row % 2 == 0]
        return every_second

    def _keys(self, places: Integers, sign: int) -> tuple[Keys, Keys]:
        """The pairs that begin at these places, one by one, with their weights."""
        follows = self._next[places]
        real = (places != self._end) & (follows != self._end)
        places, follows = places[real], follows[real]
        keys = (self._symbol[places].astype(np.int64) << _SHIFT) | self._symbol[follows]
        return keys, sign * self._weight[places].astype(np.int64)


def _sums(parts: list[tuple[Keys, Keys]]) -> tuple[Keys, Keys]:
    """The weights of equal keys added up. In order of the keys."""
    keys, index = np.unique(np.concatenate([keys for keys, _ in parts]), return_inverse=True)
    sums = np.bincount(index, np.concatenate([weights for _, weights in parts]), len(keys)).astype(np.int64)
    return keys[sums != 0], sums[sums != 0]


def _most_frequent(words: Mapping[str, int]) -> list[str]:
    """The most frequent words, ties in order of their text, up to MAX_BYTES."""
    ordered = sorted(words)
    ordered.sort(key=words.__getitem__, reverse=True)
    room = MAX_BYTES
    for number, word in enumerate(ordered):
        room -= len(word.encode())
        if room < 0:
            left_out = len(ordered) - number
            print(f"vocab: learned without the rarest {left_out:,} of {len(ordered):,} word parts", file=sys.stderr)
            return ordered[:number]
    return ordered
