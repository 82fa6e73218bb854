"""The set of digests answers as a Python set does, in eight bytes a digest."""

from __future__ import annotations

import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from promptgen.training.seen import SeenDigests


@given(st.lists(st.lists(st.integers(0, 60), max_size=30), max_size=20), st.sampled_from([1, 8, 1000]))
def test_answers_are_those_of_a_set(chunks: list[list[int]], max_run: int) -> None:
    seen, oracle = SeenDigests(max_run), set[int]()
    for chunk in chunks:
        wanted = []
        for number in chunk:
            wanted.append(number not in oracle)
            oracle.add(number)
        assert seen.add(np.array(chunk, np.uint64)).tolist() == wanted
    assert len(seen) == len(oracle)


def test_the_ends_of_the_range() -> None:
    seen = SeenDigests()
    ends = np.array([0, 2**64 - 1, 0], np.uint64)
    assert seen.add(ends).tolist() == [True, True, False]
    assert not seen.add(ends).any()


def test_two_million_digests_take_sixteen_megabytes() -> None:
    draw = np.random.default_rng(0)
    chunks = [draw.integers(0, 2**64, 200_000, np.uint64) for _ in range(10)]
    seen = SeenDigests()
    tracemalloc.start()
    try:
        assert all(seen.add(chunk).all() for chunk in chunks)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not seen.add(chunks[3]).any()
    assert (len(seen), seen.num_bytes) == (2_000_000, 16_000_000)
    assert now < 17_000_000
    assert peak < 3 * 16_000_000


def test_arrays_stay_below_their_limit() -> None:
    seen = SeenDigests(max_run=100)
    for begin in range(0, 1000, 30):
        seen.add(np.arange(begin, begin + 30, dtype=np.uint64))
    assert max(map(len, seen._runs)) <= 100
    assert len(seen._runs) < 20
