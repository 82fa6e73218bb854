"""Vocabulary files are loaded or refused with file and line; vocabularies built from sentences hold every character of them."""

from __future__ import annotations

import string
from pathlib import Path

import pytest

from promptgen.errors import FileFault, UsageError
from promptgen.text.tokenizer import BertWordTokenizer
from promptgen.text.vocabulary import Vocabulary
from promptgen.text.words import SPECIAL_TOKENS
from promptgen.training.lexicon import build_vocabulary, gb2312_level_1, write_vocabulary

SPECIALS = "[SEP]\n[CLS]\n[MASK]\n[PAD]\n[UNK]\n"
SENTENCES = ["高血压患者每天要注意饮食，量3次血压。", "hello world, gpt2 is good at 12:30!", "打开web.py看3.14"] * 4
ODD_SENTENCES = [
    "龘靐齉爩",
    "Привет мир",
    "ελληνικά",
    "한국어 문장",
    "カタカナとひらがな",
    "ภาษาไทย",
    "crème brûlée",
    "½ m² ①",
    "😀🎉",
    "a.ж:ß",
]


def fault_of(path: Path) -> str:
    with pytest.raises(FileFault) as caught:
        Vocabulary.load(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (SPECIALS + "高\n血\n高\n", "line 8 repeats '高' of line 6"),
        (SPECIALS + "高\n\n血\n", "line 7 is blank"),
        (SPECIALS + "高\n \n", "line 7 is blank"),
        (SPECIALS + "高\n\n", "line 7 is blank"),
        ("", "line 1 is blank"),
        ("[SEP]\n[CLS]\n[UNK]\n高\n", "[MASK] [PAD]"),
    ],
)
def test_faulty_file_is_refused_by_name_and_line(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text(content, encoding="utf-8")
    message = fault_of(path)
    assert message.startswith(f"{path}: ")
    assert told in message
    assert "\n" not in message


def test_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(SPECIALS.encode() + "高".encode("gb18030") + b"\n")
    assert fault_of(path) == f"{path}: is not UTF-8 (byte {len(SPECIALS)})"


def test_missing_file_is_refused(tmp_path: Path) -> None:
    assert fault_of(tmp_path / "none.txt") == f"{tmp_path / 'none.txt'}: cannot be read: No such file or directory"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last_end", [True, False])
def test_line_ends_and_marks_of_editors_load(tmp_path: Path, mark: bytes, end: str, last_end: bool) -> None:
    path = tmp_path / "vocab.txt"
    tokens = [*SPECIAL_TOKENS, "高血压", "##ing"]
    path.write_bytes(mark + (end.join(tokens) + (end if last_end else "")).encode())
    vocabulary = Vocabulary.load(path)
    assert vocabulary.tokens == tuple(tokens)
    assert vocabulary.ids["高血压"] == 5


def test_saved_file_loads_as_it_was(tmp_path: Path) -> None:
    vocabulary = Vocabulary.of([*SPECIAL_TOKENS, "高", "##é", "😀", "#"])
    vocabulary.save(tmp_path / "vocab.txt")
    assert Vocabulary.load(tmp_path / "vocab.txt") == vocabulary
    assert (tmp_path / "vocab.txt").read_bytes().endswith("😀\n#\n".encode())


def test_special_tokens_may_stand_anywhere() -> None:
    vocabulary = Vocabulary.of(["[PAD]", "高", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    assert [vocabulary.ids[token] for token in SPECIAL_TOKENS] == [4, 3, 5, 0, 2]
    assert len(vocabulary) == 6


def test_gb2312_level_1_is_complete() -> None:
    characters = gb2312_level_1()
    assert len(characters) == len(set(characters)) == 3755
    assert (characters[0], characters[-1]) == ("啊", "座")


def test_built_vocabulary_holds_the_basics_and_frequent_words() -> None:
    vocabulary = build_vocabulary(SENTENCES, 4600)
    assert vocabulary.tokens[:5] == SPECIAL_TOKENS
    letters = string.ascii_lowercase + string.digits
    assert {*letters, *("##" + c for c in letters), "##.", "##:", *gb2312_level_1(), *string.punctuation} <= set(
        vocabulary.ids
    )
    assert {"高血压", "饮食", "hello", "world"} <= set(vocabulary.ids)


def test_built_vocabulary_knows_every_character_of_its_texts() -> None:
    tokenizer = BertWordTokenizer(build_vocabulary(SENTENCES + ODD_SENTENCES, 4600))
    assert [text for text in SENTENCES + ODD_SENTENCES if "[UNK]" in tokenizer.tokenize(text)] == []


def test_built_vocabulary_is_the_same_every_time() -> None:
    assert len({build_vocabulary(SENTENCES, 4600).tokens for _ in range(6)}) == 1


def test_frequent_words_come_first() -> None:
    ids = build_vocabulary(["高血压"] * 50 + ["糖尿病"] * 5 + ["hello"] * 20, 4600).ids
    assert ids["高血压"] < ids["hello"] < ids["糖尿病"] < ids["座"]


def test_built_vocabulary_keeps_to_its_size() -> None:
    basics = len(build_vocabulary(["高"], 4600))
    assert len(build_vocabulary(["高血压要注意", "hello world"] * 3, basics + 3)) == basics + 3


def test_size_too_small_for_the_characters_is_refused() -> None:
    with pytest.raises(UsageError, match="--size 100 cannot hold"):
        build_vocabulary(SENTENCES, 100)


@pytest.mark.parametrize("texts", [[], ["", "  "], ["，。！"]])
def test_corpus_without_words_is_refused(texts: list[str]) -> None:
    with pytest.raises(FileFault, match="no text"):
        build_vocabulary(texts, 4600)


def test_vocabulary_is_written_from_files(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    written = write_vocabulary([tmp_path], tmp_path / "out", 4600)
    assert Vocabulary.load(tmp_path / "out" / "vocab.txt") == written
    assert {"高血压", "饮食", "hello", "web", "看"} <= set(written.ids)
