"""Keys and ranks are those a hand counts, a word is healed in Chinese, in ## pieces and in English, and the whole runs on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from promptgen.errors import UsageError
from promptgen.text.bytepair import BytePairTokenizer
from promptgen.text.tokenizer import BertWordTokenizer, load_tokenizer
from promptgen.text.vocabulary import Vocabulary
from promptgen.text.words import SPECIAL_TOKENS
from promptgen.training.bytepairs import learn_byte_pairs
from promptgen.training.dataset import load_part
from promptgen.training.healing import HealedCandidates
from promptgen.training.prepare import prepare
from promptgen.training.typing_figures import (
    ModelPredictor,
    count_keys,
    held_out_prompts,
    measure_typing,
    typing_figures,
)

WORDS = ["高", "高血压", "血", "要", "注意", "吃", "，", "what", "wh", "is", "i", "it", "dia", "##b", "##betes"]
WORDS += ["##s", "#", ",", "?", "3", "##3", "best"]
VOCABULARY = Vocabulary.of([*SPECIAL_TOKENS, *WORDS])
TOKENIZER = BertWordTokenizer(VOCABULARY)
Probabilities = np.ndarray[Any, np.dtype[Any]]


class Fixed:
    """Shows what stands in a table, nothing elsewhere."""

    def __init__(self, table: dict[str, list[str]]) -> None:
        self.table = table

    def candidates(self, prefixes: Sequence[str]) -> list[list[str]]:
        return [self.table.get(prefix, []) for prefix in prefixes]


class Told:
    """Gives every document the same two distributions, as {token: probability}."""

    def __init__(self, before: dict[str, float], after: dict[str, float]) -> None:
        self.before, self.after = self._row(before), self._row(after)
        self.documents: list[tuple[int, ...]] = []

    @staticmethod
    def _row(told: dict[str, float]) -> Probabilities:
        row = np.zeros(len(VOCABULARY))
        for token, p in told.items():
            row[VOCABULARY.ids[token]] = p
        return row

    def last_two(
        self, documents: Sequence[tuple[int, ...]]
    ) -> Iterator[tuple[int, Probabilities | None, Probabilities]]:
        self.documents += documents
        for index in reversed(range(len(documents))):
            yield index, self.before if len(documents[index]) > 1 else None, self.after


def shown(prefix: str, before: dict[str, float], after: dict[str, float], at_most: int) -> list[str]:
    """The first candidates; below them stand tokens of probability zero."""
    (candidates,) = HealedCandidates(TOKENIZER, Told(before, after)).candidates([prefix])
    assert len(set(candidates)) == len(candidates) <= 5
    return candidates[:at_most]


@pytest.mark.parametrize(
    ("table", "keys"),
    [
        ({}, 6),
        ({"": ["高血压"]}, 4),  # three characters for one key
        ({"": ["高", "高血", "高血压", "高血糖"]}, 4),  # the longest that fits
        ({"高": ["血压要"]}, 4),
        ({"高": ["血"]}, 6),  # one character saves nothing
        ({"": ["高血压要注意啊"], "注意": ["，"]}, 6),  # longer than what is typed
        ({"": ["高血压"], "高": ["血压要注意"]}, 4),  # greedy: never comes to the better one
        ({"": ["a", "b", "c", "d", "e", "高血压"]}, 6),  # the sixth is not seen
        ({"": [""], "高血压要": ["注意"]}, 5),
        ({"": ["高血压要注意"]}, 1),
    ],
)
def test_keys_of_one_prompt(table: dict[str, list[str]], keys: int) -> None:
    prompt = "高血压要注意"
    assert count_keys(prompt, {prompt[:at]: table.get(prompt[:at], []) for at in range(len(prompt))}) == keys


def test_figures_by_hand() -> None:
    source = Fixed(
        {"": ["要", "高血压", "高"], "高": ["血"], "高血": ["糖", "压要"], "高血压": ["怎么"], "好": ["", "的"]}
    )
    # 高血压要: ranks 2, 1, 2, none; keys 2 (高血压, 要). 好的: ranks none, 2; keys 2.
    figures = typing_figures(["高血压要", "好的"], source)
    assert figures == {
        "keystrokes_saved": round(1 - 4 / 6, 4),
        "mrr_at_5": round((1 / 2 + 1 + 1 / 2 + 1 / 2) / 6, 4),
        "hit_at_5": round(4 / 6, 4),
    }


def test_figures_of_no_prompts_are_none() -> None:
    assert typing_figures([], Fixed({})) == {"keystrokes_saved": None, "mrr_at_5": None, "hit_at_5": None}


def test_a_chinese_word_is_healed() -> None:
    # 高血压 0.5; 高 0.25 and then 要 0.6 or 吃 0.4: 0.15 and 0.1.
    before, after = {"高": 0.25, "高血压": 0.5, "注意": 0.25}, {"要": 0.6, "吃": 0.4}
    assert shown("高", before, after, 3) == ["血压", "要", "吃"]
    assert shown("高", before | {"高": 0.99, "高血压": 0.01}, after, 3) == ["要", "吃", "血压"]


def test_pieces_of_a_latin_word_are_healed() -> None:
    before, after = {"##b": 0.2, "##betes": 0.5, "best": 0.3}, {"is": 0.5, "##s": 0.4, "，": 0.1}
    assert TOKENIZER.tokenize("diab") == ["dia", "##b"]
    assert shown("diab", before, after, 4) == ["etes", " is", "s", "，"]
    # The mark # begins no piece that is written with ##.
    assert "#betes" not in shown("#", {"##betes": 0.5, "#": 0.5}, {}, 5)


def test_spaces_of_english() -> None:
    before, after = {"wh": 0.3, "what": 0.5}, {"is": 0.4, ",": 0.3, "##s": 0.2, "best": 0.1}
    assert shown("wh", before, after, 5) == ["at", " is", ",", "s", " best"]
    # After a space the word is over: nothing is glued to it, and a comma would have come before the space.
    before, after = {"what": 0.5}, {"##s": 0.3, ",": 0.3, "is": 0.2, "best": 0.1}
    assert shown("what ", before, after, 2) == ["is", "best"]
    assert shown("what i", {"i": 0.2, "is": 0.5, "it": 0.3}, {"best": 1.0}, 3) == ["s", "t", " best"]
    assert shown("WHAT I", {"i": 0.2, "is": 0.5, "it": 0.3}, {"best": 1.0}, 3) == ["s", "t", " best"]
    assert shown("高 ", {"高血压": 0.9, "高": 0.1}, {"##s": 0.5, "要": 0.3, "best": 0.2}, 2) == ["要", "best"]


def test_nothing_typed_has_only_next_words_and_specials_are_never_shown() -> None:
    after = {"[CLS]": 0.4, "[UNK]": 0.2, "[SEP]": 0.1, "##s": 0.1, "高": 0.1, "is": 0.05}
    assert shown("", {"高血压": 1.0}, after, 2) == ["高", "is"]
    for prefix in ("高", "what", "what ", "龘"):
        assert not {"[", "[CLS]", "", " ", "\n"} & set(shown(prefix, after, after, 5))


def test_each_prefix_gets_its_own_answer_and_like_documents_are_asked_once() -> None:
    predictor = Told({"wh": 0.9, "高血压": 0.1}, {"is": 0.7, "要": 0.3})
    shown = HealedCandidates(TOKENIZER, predictor).candidates(["wh", "高", "wh ", "wh"])
    assert [candidates[0] for candidates in shown] == [" is", "血压", "is", " is"]
    assert len(predictor.documents) == 2


def test_a_prefix_longer_than_the_window_loses_tokens_after_the_first() -> None:
    predictor = Told({}, {})
    HealedCandidates(TOKENIZER, predictor, max_tokens=4).candidates(["高要吃要注意"])
    assert predictor.documents == [(TOKENIZER.begin_id, *TOKENIZER.encode("吃要注意"))]


def tiny_model(vocabulary_size: int, window: int = 64) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary_size,
        n_positions=window,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def test_packed_distributions_equal_those_of_transformers() -> None:
    model = tiny_model(30)
    draw = np.random.default_rng(0)
    documents = [(2, *draw.integers(5, 30, size=length).tolist()) for length in (0, 1, 2, 3, 40, 63, 5, 6, 30, 50, 7)]
    answers = {index: pair for index, *pair in ModelPredictor(model).last_two(documents)}
    assert sorted(answers) == list(range(len(documents)))
    for index, (before, after) in answers.items():
        with torch.no_grad():
            expected = model(torch.tensor([documents[index]])).logits[0, -2:].softmax(-1).numpy()
        np.testing.assert_allclose(after, expected[-1], atol=1e-5)
        assert (before is None) == (len(documents[index]) == 1)
        if before is not None:
            np.testing.assert_allclose(before, expected[0], atol=1e-5)
    assert list(ModelPredictor(model).last_two([])) == []


@pytest.fixture(scope="module")
def byte_pair(tmp_path_factory: pytest.TempPathFactory) -> BytePairTokenizer:
    folder = tmp_path_factory.mktemp("bpe")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "n"), ("Ġ", "an"), ("Ġan", "d"), ("an", "d")]
    vocab = {token: i for i, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(f"{a} {b}" for a, b in merges), encoding="utf-8")
    return BytePairTokenizer(folder)


class ToldBytes:
    def __init__(self, size: int, told: dict[int, float]) -> None:
        self.row = np.zeros(size)
        self.row[list(told)] = list(told.values())

    def last_two(
        self, documents: Sequence[tuple[int, ...]]
    ) -> Iterator[tuple[int, Probabilities | None, Probabilities]]:
        yield from ((index, self.row, self.row) for index in range(len(documents)))


def test_byte_pairs_are_healed_and_broken_characters_are_not_shown(byte_pair: BytePairTokenizer) -> None:
    (space_an,), (space_and,) = byte_pair.encode(" an"), byte_pair.encode(" and")
    broken = byte_pair.encode("高")[0]
    told = {space_and: 0.4, space_an: 0.2, broken: 0.3, byte_pair.end_id: 0.1}
    source = HealedCandidates(byte_pair, ToldBytes(byte_pair.size, told))
    for prefix, best in (("x an", ["d", " and", " an"]), ("x ", ["and", "an"]), ("高", [" and", " an"])):
        (candidates,) = source.candidates([prefix])
        assert candidates[: len(best)] == best
        assert not any("\ufffd" in text or "<|" in text for text in candidates)


def write_data(folder: Path, train: list[str], valid: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    VOCABULARY.save(folder / "vocab.txt")
    dialogue = [TOKENIZER.end_id, *TOKENIZER.encode("高血压要注意"), TOKENIZER.separator_id]
    for part, texts in (("train", train), ("valid", valid)):
        documents = [dialogue, *([TOKENIZER.begin_id, *TOKENIZER.encode(t), TOKENIZER.end_id] for t in texts)]
        np.array([i for d in documents for i in d], np.uint16).tofile(folder / f"{part}.tokens.bin")
        np.cumsum([0, *map(len, documents)]).astype(np.int64).tofile(folder / f"{part}.offsets.bin")
    (folder / "meta.json").write_text(json.dumps({"format": "promptgen-data-1", "dtype": "uint16"}), encoding="utf-8")
    return folder


def test_the_whole_on_a_tiny_model(tmp_path: Path) -> None:
    data = write_data(
        tmp_path, ["高血压要注意", "高血压要吃", "what is it?"], ["高血压要注意，", "高吃", "what is it, 高"]
    )
    model = tiny_model(len(VOCABULARY))
    figures = measure_typing(model, data, num_prompts=10)
    assert figures == measure_typing(model, data, num_prompts=10)
    assert (figures["prompts"], figures["characters"]) == (2, 7 + 12)  # no dialogue, nothing under four characters
    # 高血压要注意，: keys 高血压 要 注意 ，; rank 1 at six places, none at the last.
    # what is it,高: keys what, is, it, the comma, 高; rank 2 at the start, 1 at nine places, none at the last two.
    assert figures["trie"] == {
        "keystrokes_saved": round(1 - 9 / 19, 4),
        "mrr_at_5": round((6 + 0.5 + 9) / 19, 4),
        "hit_at_5": round(16 / 19, 4),
    }
    assert figures["five_gram"]["hit_at_5"] > 0.5
    for name in ("model", "trie", "five_gram"):
        assert set(figures[name]) == {"keystrokes_saved", "mrr_at_5", "hit_at_5"}
        assert all(0 <= value <= 1 for value in figures[name].values())
        assert figures[name]["mrr_at_5"] <= figures[name]["hit_at_5"]


def test_prompts_are_drawn_by_seed(tmp_path: Path) -> None:
    texts = ["高血压要注意" + "要" * n for n in range(20)]
    valid = load_part(write_data(tmp_path, ["高"], texts), "valid")
    drawn = held_out_prompts(valid, TOKENIZER, 5, seed=0)
    assert len(set(drawn)) == 5
    assert set(drawn) < set(texts)
    assert drawn == held_out_prompts(valid, TOKENIZER, 5, seed=0) != held_out_prompts(valid, TOKENIZER, 5, seed=1)
    assert sorted(held_out_prompts(valid, TOKENIZER, 99, seed=0)) == sorted(texts)


def test_dialogues_of_byte_pairs_are_no_prompts(tmp_path: Path) -> None:
    (tmp_path / "vocab").mkdir()
    learn_byte_pairs({"ab": 3}, 258).save(tmp_path / "vocab")
    lines = [{"question": f"what is {n}?", "answer": "a number"} for n in range(5)]
    texts = [f"prompt number {n}" for n in range(3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(o) + "\n" for o in (*lines, *texts)), encoding="utf-8")
    prepare([tmp_path / "a.jsonl"], tmp_path / "vocab", tmp_path / "data", valid_share=0.0)
    drawn = held_out_prompts(load_part(tmp_path / "data", "train"), load_tokenizer(tmp_path / "data"), 99, seed=0)
    assert sorted(drawn) == texts


def test_nothing_held_out_and_a_model_of_another_size(tmp_path: Path) -> None:
    data = write_data(tmp_path, ["高血压要注意"], ["高"])
    nothing = {"keystrokes_saved": None, "mrr_at_5": None, "hit_at_5": None}
    model = tiny_model(len(VOCABULARY))
    expected = {"prompts": 0, "characters": 0, "model": nothing, "trie": nothing, "five_gram": nothing}
    assert measure_typing(model, data) == expected
    with pytest.raises(UsageError, match="prepare the data with the model's own vocabulary"):
        measure_typing(tiny_model(len(VOCABULARY) + 1), data)
