"""Pieces of Latin words for a WordPiece vocabulary, learned by byte-pair merges (Sennrich et al. 2016) over the words' letters.

The best pair is the most frequent one, ties broken by its text: the same words give the same pieces on every machine. (The trainer of the
`tokenizers` library breaks ties by the order of a randomly seeded hash map.)
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import pairwise

Pair = tuple[str, str]


def learn_pieces(words: Mapping[str, int], max_pieces: int, min_count: int) -> list[str]:
    """Up to `max_pieces` pieces of two letters or more, in the order they were merged; inner ones begin with "##".

    `words` maps a word to how often it stands in the corpus; a pair seen less than `min_count` times is not merged.
    """
    splits = [[word[0], *("##" + letter for letter in word[1:])] for word in sorted(words)]
    weights = [words[word] for word in sorted(words)]
    counts: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[int]] = defaultdict(set)
    for index, split in enumerate(splits):
        for pair in pairwise(split):
            counts[pair] += weights[index]
            places[pair].add(index)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    pieces: dict[str, None] = {}
    while heap and len(pieces) < max_pieces:
        negative, pair = heapq.heappop(heap)
        if -negative != counts[pair]:
            continue  # an entry from before a merge; the pair's present count has an entry of its own
        if counts[pair] < min_count:
            break
        merged = pair[0] + pair[1].removeprefix("##")
        pieces[merged] = None
        changed: set[Pair] = set()
        for index in sorted(places.pop(pair)):
            before = splits[index]
            splits[index] = after = _merge(before, pair, merged)
            for sign, split in ((-1, before), (1, after)):
                for neighbours in pairwise(split):
                    counts[neighbours] += sign * weights[index]
                    changed.add(neighbours)
                    if sign > 0:
                        places[neighbours].add(index)
        for neighbours in changed:
            if counts[neighbours] > 0:
                heapq.heappush(heap, (-counts[neighbours], neighbours))
    return list(pieces)


def _merge(split: list[str], pair: Pair, merged: str) -> list[str]:
    after: list[str] = []
    position = 0
    while position < len(split):
        if position + 1 < len(split) and (split[position], split[position + 1]) == pair:
            after.append(merged)
            position += 2
        else:
            after.append(split[position])
            position += 1
    return after
