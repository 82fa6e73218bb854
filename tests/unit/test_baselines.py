"""The popularity trie counts what a hand counts, and the 5-gram model gives Witten and Bell's probabilities, which sum to 1."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from promptgen.text.bytepair import BytePairTokenizer
from promptgen.text.tokenizer import BertWordTokenizer
from promptgen.text.vocabulary import Vocabulary
from promptgen.text.words import SPECIAL_TOKENS
from promptgen.training import baselines
from promptgen.training.baselines import PopularityTrie, WittenBell
from promptgen.training.bytepairs import learn_byte_pairs
from promptgen.training.dataset import TokenFile

WORDS = ["高血压", "高", "要", "注意", "怎么", "吃", "，", "what", "is", "dia", "##betes", "it", ",", "3", "##.", "##1"]
TOKENIZER = BertWordTokenizer(Vocabulary.of([*SPECIAL_TOKENS, *WORDS]))


def part_of(documents: list[list[int]]) -> TokenFile:
    flat = np.array([i for document in documents for i in document], np.uint16)
    return TokenFile(flat, np.cumsum([0, *map(len, documents)]).astype(np.int64))


def prompts(*texts: str) -> TokenFile:
    return part_of([[TOKENIZER.begin_id, *TOKENIZER.encode(text), TOKENIZER.end_id] for text in texts])


def test_trie_counts_the_next_words_of_prompts_that_begin_alike() -> None:
    trie = PopularityTrie(prompts("高血压要注意", "高血压怎么吃", "高血压怎么吃，", "高要吃"), TOKENIZER)
    shown = trie.candidates(
        ["", "高", "高血", "高血压", "高血压要", "高血压怎", "高血压怎么吃", "高血压怎么吃，", "吃"]
    )
    assert shown == [
        ["高血压", "高"],
        ["血压", "要"],
        ["压"],
        ["怎么", "要"],
        ["注意"],
        ["么"],
        ["，"],
        [],
        [],
    ]


def test_trie_joins_latin_pieces_and_minds_spaces() -> None:
    trie = PopularityTrie(prompts("what is diabetes", "what is it, what"), TOKENIZER)
    shown = trie.candidates(["what", "what ", "what is", "what is d", "what is it", "what is it,", "wa"])
    assert shown == [[" is"], ["is"], [" diabetes", " it"], ["iabetes"], [","], [" what"], []]


def test_trie_answers_in_the_order_asked_and_shows_as_many_as_asked_for() -> None:
    trie = PopularityTrie(prompts("高", "要", "吃", "吃，", "怎么", "注意", "高血压"), TOKENIZER)
    assert trie.candidates(["吃", ""]) == [["，"], ["吃", "高", "要", "怎么", "注意"]]
    assert trie.candidates([""], num_candidates=1) == [["吃"]]


def test_trie_leaves_dialogues_out() -> None:
    dialogue = [TOKENIZER.end_id, *TOKENIZER.encode("高血压"), TOKENIZER.separator_id]
    assert PopularityTrie(part_of([dialogue, []]), TOKENIZER).candidates([""]) == [[]]


def test_trie_leaves_dialogues_of_byte_pairs_out(tmp_path: Path) -> None:
    learn_byte_pairs({"ab": 3}, 258).save(tmp_path)
    tokenizer = BytePairTokenizer(tmp_path)
    end, separator = tokenizer.end_id, tokenizer.separator_id
    assert tokenizer.begin_id == end != separator
    dialogue = [end, *tokenizer.encode("ab"), separator, *tokenizer.encode("c"), separator]
    prompt = [end, *tokenizer.encode("xy"), end]
    assert PopularityTrie(part_of([dialogue, prompt]), tokenizer).candidates([""]) == [["xy"]]


def naive(train: list[list[int]], size: int, history: tuple[int, ...], token: int) -> Fraction:
    """The formula of the docstring, by recursion over the whole training part."""
    shorter = naive(train, size, history[1:], token) if history else Fraction(1, size)
    n = len(history)
    followers = [d[at] for d in train for at in range(max(1, n), len(d)) if tuple(d[at - n : at]) == history]
    if not followers:
        return shorter
    types = len(set(followers))
    return (followers.count(token) + types * shorter) / Fraction(len(followers) + types)


def test_witten_bell_by_hand() -> None:
    # After 0: token 1 twice, token 2 once. Of all: 1 twice, 2 twice, 3 once, five events of three types, four tokens.
    train = [[0, 1, 2], [0, 1, 3], [0, 2]]
    ((index, before, after),) = WittenBell(part_of(train), 4).last_two([(0,)])
    unigram = [(count + 3 / 4) / 8 for count in (0, 2, 2, 1)]
    assert (index, before) == (0, None)
    assert after == pytest.approx([(count + 2 * p) / 5 for count, p in zip((0, 2, 1, 0), unigram, strict=True)])


@pytest.mark.parametrize("block_tokens", [1, 40, 10**6])
def test_witten_bell_equals_the_plain_formula_and_sums_to_one(
    block_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "_BLOCK_TOKENS", block_tokens)
    draw = np.random.default_rng(0)
    train = [[0, *draw.integers(1, 4, size=length).tolist(), 4] for length in draw.integers(0, 9, size=30)]
    documents = [(0,), (0, 1), (0, 1, 2, 3, 1, 2), (0, 3, 3, 3, 3, 3, 3, 3), (0, 5, 1), (0, 1, 5)]
    answers = list(WittenBell(part_of(train), 6).last_two(documents))
    assert [index for index, _, _ in answers] == list(range(len(documents)))
    for (_, before, after), document in zip(answers, documents, strict=True):
        assert after.sum() == pytest.approx(1)
        assert after == pytest.approx([float(naive(train, 6, document[-4:], token)) for token in range(6)])
        if len(document) == 1:
            assert before is None
        else:
            assert before is not None
            assert before.sum() == pytest.approx(1)
            assert before == pytest.approx([float(naive(train, 6, document[:-1][-4:], t)) for t in range(6)])


def test_witten_bell_contexts_do_not_cross_documents() -> None:
    apart, joined = part_of([[0, 1], [2, 3]]), part_of([[0, 1, 2, 3]])
    ((_, _, of_apart),) = WittenBell(apart, 4).last_two([(0, 1)])
    ((_, _, of_joined),) = WittenBell(joined, 4).last_two([(0, 1)])
    assert of_apart == pytest.approx([(c + 2 / 4) / 4 for c in (0, 1, 0, 1)])  # never seen: the unigram's
    assert of_joined[2] > 0.5


def test_witten_bell_without_training_is_uniform() -> None:
    ((_, before, after),) = WittenBell(part_of([]), 4).last_two([(0, 1)])
    assert before == pytest.approx([0.25] * 4)
    assert after == pytest.approx([0.25] * 4)
