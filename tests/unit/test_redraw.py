"""Where new candidates part from those that were found: a tree that `places_of` can hang together."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from promptgen.generation.first_draw import places_of
from promptgen.generation.redraw import MAX_NODES, Path, other_ways
from promptgen.generation.request import Branch

SIZE, END = 6, 5
EVERY_ID = np.arange(SIZE)
HALF = math.log(0.5)

paths = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=7), min_size=1, max_size=6)


def path_of(token_ids: list[int], logprob: float = HALF) -> Path:
    return Path(token_ids, [logprob] * len(token_ids), num_new=len(token_ids))


@given(paths, st.integers(0, MAX_NODES))
def test_the_branches_are_one_tree_whose_ways_are_told_apart_by_a_token(found: list[list[int]], most: int) -> None:
    branches = other_ways([Branch((), EVERY_ID)], [path_of(ids) for ids in found], EVERY_ID, END, most)
    assert len({branch.path_ids for branch in branches}) == len(branches) <= 1 + most
    places = places_of(branches)
    ways = [(place.parent, place.token_id) for place in places[1:]]
    assert len(set(ways)) == len(ways)
    for branch, place in zip(branches[1:], places[1:], strict=True):
        assert branches[place.parent].path_ids == branch.path_ids[: len(branches[place.parent].path_ids)]
        depth = len(branch.path_ids) - len(branches[place.parent].path_ids)
        assert place.rest == (depth - 1) * HALF
        assert any(ids[: len(branch.path_ids)] == list(branch.path_ids) for ids in found)
        assert place.token_id in branches[place.parent].excluded_ids
    for branch in branches:
        following = {ids[len(branch.path_ids)] for ids in found if tuple(ids[: len(branch.path_ids)]) == branch.path_ids and len(ids) > len(branch.path_ids)}  # fmt: skip
        assert set(branch.excluded_ids) == following


def test_nobody_parts_where_all_that_come_end() -> None:
    assert len(other_ways([Branch((), EVERY_ID)], [path_of([1])], EVERY_ID, END)) == 1


def test_long_candidates_make_no_deep_recursion() -> None:
    branches = other_ways([Branch((), EVERY_ID)], [path_of([1] * 5000)], EVERY_ID, END)
    assert len(branches) == 1 + MAX_NODES
