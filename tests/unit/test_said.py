"""No sentence twice, however the text is cut into pieces."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptgen.generation.said import Said, said_in, sentences, without_repetition


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("要运动。要戒烟！", ["要运动", "要戒烟"]),
        ("Take 3.5 mg. Rest… 好", ["take 3.5 mg", "rest", "好"]),
        ("一、二", ["一、二"]),
        ("。！\n", []),
        ("“要运动。”然后", ["要运动", "然后"]),
    ],
)
def test_sentences_are_compared_without_marks_and_capitals(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@pytest.mark.parametrize(
    ("text", "earlier", "expected", "is_repeating"),
    [
        ("要运动。要戒烟。", [], "要运动。要戒烟。", False),
        ("要运动。要运动。", [], "要运动。", True),
        ("要运动！要运动", [], "要运动！", True),
        ("要运动。要运动啊。", [], "要运动。要运动啊。", False),
        ("Rest. rest. Drink.", [], "Rest. Drink.", True),
        ("好的。要戒烟。", ["要戒烟。"], "好的。", True),
        ("要戒烟。", ["要运动。要戒烟。"], "要戒烟。", True),  # there is nothing else to say
        ("要戒烟。要戒烟。", ["要戒烟。"], "要戒烟。", True),
        ("要运动..！要运动。", ["要运动"], "要运动..！", True),
        ("", [], "", False),
    ],
)
def test_what_was_said_before_is_left_out(text: str, earlier: list[str], expected: str, is_repeating: bool) -> None:
    assert without_repetition(text, said_in(earlier)) == (expected, is_repeating)


def test_a_sentence_that_begins_like_another_is_shown_from_where_they_part() -> None:
    said = Said()
    assert [said.push(piece) for piece in ["要", "运动。", "要", "运动", "和", "戒烟。"]] == [
        "要",
        "运动。",
        "",
        "",
        "要运动和",
        "戒烟。",
    ]
    assert said.finish() == ""
    assert not said.has_left_out


TEXT = st.text(alphabet="要戒a. 。!\n", max_size=25)


@given(TEXT, st.lists(TEXT, max_size=2), st.data())
def test_pieces_do_not_matter_and_nothing_is_said_twice(text: str, earlier: list[str], data: st.DataObject) -> None:
    said, shown, rest = Said(said_in(earlier)), "", text
    while rest:
        length = data.draw(st.integers(1, len(rest)))
        shown += said.push(rest[:length])
        rest = rest[length:]
    shown += said.finish()
    assert (shown, said.has_left_out) == without_repetition(text, said_in(earlier))
    told = sentences(shown)
    assert len(set(told)) == len(told)
    before = {sentence for one in earlier for sentence in sentences(one)}
    assert not before.intersection(told) or set(sentences(text)) <= before
    if not said.has_left_out:
        assert shown == text


def test_a_long_talk_is_split_once_and_not_for_each_answer() -> None:
    earlier = said_in(f"第{number}句。" for number in range(20_000))
    started = time.process_time()
    for _ in range(64):
        said = Said(earlier)
        assert (
            "".join(said.push(character) for character in "第三句。少吃盐。第7句。") + said.finish()
            == "第三句。少吃盐。"
        )
    assert time.process_time() - started < 2


def test_marks_without_end_take_no_time() -> None:
    started = time.process_time()
    assert sentences("a" + "-" * 200_000 + "a" + "-" * 200_000) == ["a" + "-" * 200_000 + "a"]
    assert time.process_time() - started < 2
