"""Pieces of Latin words: learned in order of frequency, the same on every run, ties broken by text."""

from __future__ import annotations

from promptgen.training.pieces import learn_pieces


def test_most_frequent_pair_is_merged_first_and_frequent_words_become_whole() -> None:
    pieces = learn_pieces({"low": 5, "lower": 2, "newest": 6, "widest": 3}, 20, 2)
    assert pieces[0] == "##es"  # newest and widest: 9 times
    assert pieces[1] == "##est"
    assert {"low", "newest", "widest"} <= set(pieces)


def test_overlapping_pairs_of_one_letter_are_merged_from_the_left() -> None:
    assert learn_pieces({"aaaa": 3}, 9, 2) == ["##aa", "##aaa", "aaaa"]


def test_rare_pairs_are_left_alone() -> None:
    assert learn_pieces({"xyz": 1, "ab": 2}, 9, 2) == ["ab"]


def test_number_of_pieces_is_bounded() -> None:
    words = {first + second + third: 5 for first in "abc" for second in "def" for third in "ghi"}
    assert len(learn_pieces(words, 7, 1)) == 7


def test_result_does_not_depend_on_the_order_of_the_words() -> None:
    words = {"running": 4, "runner": 4, "sunning": 4, "sun": 4, "run": 4}
    backwards = dict(reversed(list(words.items())))
    assert learn_pieces(words, 30, 2) == learn_pieces(backwards, 30, 2)
