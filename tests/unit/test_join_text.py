"""join_text follows the golden table of the word-level contract, and its streaming twin gives the same text piece by piece."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptgen.text.detokenize import TextJoiner, join_text

GOLDEN = [
    ("高血压 要 注意", "高血压要注意"),
    ("hello world", "hello world"),
    ("[MASK] 高血压 [SEP] 饮食 [CLS] [MASK] 糖尿病", "高血压\n饮食\n\n糖尿病"),
    ("play ##ing good", "playing good"),
    ("good play ##ing", "good playing"),
    ("gpt 2 is good", "gpt 2 is good"),
    ("hello [UNK] world", "hello world"),
    ("高 [UNK] 血", "高 血"),
    ("2 ##0 ##2 ##6 年", "2026年"),
    ("每天 3 次", "每天3次"),
    ("[UNK]", ""),
    ("[CLS]", ""),
    ("[PAD] 高", "高"),
    ("你好 ， hello , world !", "你好，hello, world!"),
    ("it ' s", "it's"),
    ("", ""),
]

BREAKS = [
    ("高 [UNK] [SEP] 血", "高\n血"),
    ("高 [SEP] [UNK] 血", "高\n血"),
    ("高 [UNK] [MASK] [UNK] 血", "高 血"),
    ("高 [SEP] [SEP] 血", "高\n\n血"),
    ("[SEP] [MASK] 高 [UNK] [CLS]", "高"),
    ("高 [PAD] [PAD] 血", "高血"),
    ("hello [PAD] world", "hello world"),
    ("a ; b ? c ! d", "a; b? c! d"),
    ("3 , 5", "3,5"),
    ("gpt ##2 is", "gpt2 is"),
    ("web ##. ##py runs", "web.py runs"),
    ("##ing", "ing"),
    ("## hello", "##hello"),
]

TOKENS = st.sampled_from(
    [
        "高血压",
        "次",
        "hello",
        "world",
        "gpt",
        "a",
        "##ing",
        "##2",
        "##0",
        "##压",
        "3",
        "7",
        "2026",
        ",",
        ".",
        "?",
        "!",
        ":",
        ";",
        "，",
        "。",
        "'",
        "(",
        ")",
        "##",
        "é",
        "😀",
        "[SEP]",
        "[CLS]",
        "[MASK]",
        "[PAD]",
        "[UNK]",
    ]
)


@pytest.mark.parametrize(("tokens", "text"), GOLDEN + BREAKS)
def test_table(tokens: str, text: str) -> None:
    assert join_text(tokens.split()) == text


def test_argument_is_not_changed() -> None:
    tokens = ["[MASK]", "play", "##ing", "[PAD]", "[CLS]"]
    join_text(tokens)
    assert tokens == ["[MASK]", "play", "##ing", "[PAD]", "[CLS]"]


def test_any_iterable_is_joined() -> None:
    def stream() -> Iterator[str]:
        yield from ("hello", ",", "world")

    assert join_text(stream()) == join_text(("hello", ",", "world")) == "hello, world"


def test_time_is_linear() -> None:
    def seconds(num_tokens: int) -> float:
        tokens = ["hello", "[UNK]", "高", ","] * (num_tokens // 4)
        times = []
        for _ in range(3):
            begin = time.process_time()
            join_text(tokens)
            times.append(time.process_time() - begin)
        return min(times)

    assert seconds(200_000) < 12 * seconds(50_000)
    assert seconds(200_000) < 2


@pytest.mark.parametrize("glue_digits", [False, True])
@given(tokens=st.lists(TOKENS, max_size=40))
def test_pieces_of_a_stream_equal_the_whole(glue_digits: bool, tokens: list[str]) -> None:
    joiner = TextJoiner(glue_digits=glue_digits)
    assert "".join([joiner.push(token) for token in tokens]) == join_text(tokens, glue_digits=glue_digits)


@given(st.lists(TOKENS, max_size=40))
def test_white_space_is_tidy(tokens: list[str]) -> None:
    text = join_text(tokens)
    assert text == text.strip()
    assert "  " not in text
    assert " \n" not in text
    assert "\n " not in text


@given(st.lists(TOKENS, max_size=20), st.lists(TOKENS, max_size=20))
def test_a_primed_joiner_goes_on_where_the_text_ends(before: list[str], after: list[str]) -> None:
    joiner = TextJoiner(after=before)
    assert join_text(before) + "".join(map(joiner.push, after)) == join_text(before + after)


@pytest.mark.parametrize(
    ("prompt", "ends_with_space", "tokens", "text"),
    [
        ("hello", False, "world", " world"),
        ("hello", True, "world", "world"),
        ("hello", True, "[UNK] world wide", "world wide"),
        ("hello ,", False, "world", " world"),
        ("play", False, "##ing good", "ing good"),
        ("高血压", False, "hello", "hello"),
        ("gpt", False, "2", " 2"),
        ("", False, "[SEP] 高", "高"),
    ],
)
def test_primed_joiner(prompt: str, ends_with_space: bool, tokens: str, text: str) -> None:
    joiner = TextJoiner(after=prompt.split(), ends_with_space=ends_with_space)
    assert "".join(map(joiner.push, tokens.split())) == text


@pytest.mark.parametrize(
    ("tokens", "apart", "glued"),
    [
        ("2 0 2 6 年", "2 0 2 6年", "2026年"),
        ("gpt 2", "gpt 2", "gpt 2"),
        ("12 3", "12 3", "12 3"),
        ("1 2 cats", "1 2 cats", "12 cats"),
    ],
)
def test_single_digits_are_glued_when_asked(tokens: str, apart: str, glued: str) -> None:
    assert join_text(tokens.split()) == apart
    assert join_text(tokens.split(), glue_digits=True) == glued
