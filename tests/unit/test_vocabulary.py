"""Vocabulary files are loaded or refused with file and line; vocabularies of every kind hold every character of their corpus."""

from __future__ import annotations

import hashlib
import string
from pathlib import Path

import pytest

from promptgen.errors import DiskFault, FileFault, UsageError
from promptgen.text.bytepair import BytePairTokenizer
from promptgen.text.tokenizer import BertWordTokenizer, load_tokenizer, vocabulary_files, vocabulary_sha256
from promptgen.text.vocabulary import Vocabulary
from promptgen.text.words import SPECIAL_TOKENS
from promptgen.training.lexicon import (
    KINDS,
    RunCounts,
    build_character_vocabulary,
    build_vocabulary,
    gb2312_level_1,
    write_vocabulary,
)

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


ROUND_TRIPS = ["高血压患者每天要注意饮食，量3次血压。", "hello world, it's good!", "用web.py写gpt2的12:30", "😀🎉龘"]
SMALL_CORPORA = [
    ["高血压要注意什么"],
    ["hello"],
    ROUND_TRIPS[:1] * 60,
    ["the cat sat on the mat"] * 60,
    SENTENCES + ODD_SENTENCES + ROUND_TRIPS,
]


def write_corpus(folder: Path, lines: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "corpus.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "corpus.txt"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lines", SMALL_CORPORA, ids=lambda lines: lines[0][:8])
def test_every_kind_spells_its_corpus(tmp_path: Path, kind: str, lines: list[str]) -> None:
    written = write_vocabulary([write_corpus(tmp_path, lines)], tmp_path / "out", None, kind)
    tokenizer = load_tokenizer(tmp_path / "out")
    assert isinstance(tokenizer, BytePairTokenizer if kind == "bpe" else BertWordTokenizer)
    assert tokenizer.size == len(written)
    for text in lines:
        ids = tokenizer.encode(text)
        assert ids
        assert tokenizer.unknown_id not in ids
        assert max(ids) < len(written)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_text_back(tmp_path: Path, kind: str) -> None:
    write_vocabulary([write_corpus(tmp_path, SENTENCES + ROUND_TRIPS)], tmp_path / "out", None, kind)
    tokenizer = load_tokenizer(tmp_path / "out")
    assert [tokenizer.decode(tokenizer.encode(text)) for text in ROUND_TRIPS] == ROUND_TRIPS


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_the_same_each_time(tmp_path: Path, kind: str) -> None:
    corpus = write_corpus(tmp_path, SENTENCES + ROUND_TRIPS * 3)
    for name in ("one", "two"):
        write_vocabulary([corpus], tmp_path / name, None, kind)
    assert vocabulary_sha256(tmp_path / "one") == vocabulary_sha256(tmp_path / "two")
    assert [p.read_bytes() for p in vocabulary_files(tmp_path / "one")] == [
        p.read_bytes() for p in vocabulary_files(tmp_path / "two")
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_refuses_a_corpus_without_text(tmp_path: Path, kind: str) -> None:
    with pytest.raises(FileFault, match="no text"):
        write_vocabulary([write_corpus(tmp_path, ["", "  "])], tmp_path / "out", None, kind)


def test_character_vocabulary_holds_characters_alone() -> None:
    tokens = build_character_vocabulary(SENTENCES + ODD_SENTENCES, None).tokens
    assert tokens[:5] == SPECIAL_TOKENS
    assert {len(token.removeprefix("##")) for token in tokens[5:] if token not in ("##", "#")} == {1}
    assert {*gb2312_level_1(), *string.punctuation, "龘", "##a", "##0", "##ж"} <= set(tokens)
    assert BertWordTokenizer(Vocabulary.of(tokens)).tokenize("高血压 gpt2") == [
        "高",
        "血",
        "压",
        "g",
        "##p",
        "##t",
        "##2",
    ]


def test_character_vocabulary_says_which_size_it_needs() -> None:
    needed = len(build_character_vocabulary(SENTENCES, None))
    assert len(build_character_vocabulary(SENTENCES, needed)) == needed
    assert len(build_character_vocabulary(SENTENCES, needed + 500)) == needed
    with pytest.raises(UsageError, match=rf"^--size {needed - 1} cannot hold .* give {needed} or more$"):
        build_character_vocabulary(SENTENCES, needed - 1)


def test_size_of_words_is_chosen_from_the_corpus() -> None:
    assert build_vocabulary(SENTENCES, None) == build_vocabulary(SENTENCES, 9000)
    many = ["".join(map(chr, range(0x3400, 0x4DB0))), "".join(map(chr, range(0x20000, 0x21000)))]
    assert len(build_vocabulary(many, None)) == len(build_character_vocabulary(many, None)) > 9000


@pytest.mark.parametrize(
    ("present", "kind"),
    [("vocab.txt", "bpe"), ("vocab.json", "word"), ("merges.txt", "char"), ("tokenizer.json", "bpe")],
)
def test_folder_with_another_kind_is_refused(tmp_path: Path, present: str, kind: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / present).write_text("kept", encoding="utf-8")
    with pytest.raises(UsageError, match=f"already holds {present}.*give another folder, or remove"):
        write_vocabulary([write_corpus(tmp_path, SENTENCES)], tmp_path / "out", None, kind)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [present]
    assert (tmp_path / "out" / present).read_text(encoding="utf-8") == "kept"


@pytest.mark.parametrize("kind", KINDS)
def test_folder_with_a_model_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(UsageError, match="out holds a model, whose vocabulary would be replaced; give another folder"):
        write_vocabulary([write_corpus(tmp_path, SENTENCES)], tmp_path / "out", None, kind)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]


def test_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--kind bytes is not known; choose one of word, char, bpe"):
        write_vocabulary([write_corpus(tmp_path, SENTENCES)], tmp_path / "out", None, "bytes")


def test_folder_that_cannot_be_made_is_a_disk_fault(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    with pytest.raises(DiskFault, match=r"out: cannot be written.*give another --out"):
        write_vocabulary([write_corpus(tmp_path, SENTENCES)], tmp_path / "out", None, "char")


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_in_the_corpus_folder_is_not_counted(tmp_path: Path, kind: str) -> None:
    write_corpus(tmp_path, SENTENCES)
    once = write_vocabulary([tmp_path], tmp_path, None, kind)
    assert write_vocabulary([tmp_path], tmp_path, None, kind) == once


def test_counts_stay_within_bounds_and_forget_no_character(capsys: pytest.CaptureFixture[str]) -> None:
    counts = RunCounts(max_runs=10, max_characters=1000)
    for text in [*"abcdefghij", "a", "b", "a", "k"]:
        counts.add([text])
    assert counts.counts == {"a": 3, "b": 2}
    assert counts.characters() == [*"abcdefghijk"]
    assert "11 different runs of text those seen at most 1 times are dropped" in capsys.readouterr().err


def test_counts_of_long_runs_stay_within_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    counts = RunCounts(max_runs=1000, max_characters=100)
    for char in "abcdefgh":
        counts.add([char * 30, "kept"])
        assert sum(map(len, counts.counts)) <= 100
    assert counts.counts["kept"] == 8
    assert counts.characters() == sorted({*"abcdefgh", *"kept"})
    assert "dropped" in capsys.readouterr().err


def test_a_pruned_count_still_gives_a_vocabulary_without_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("promptgen.training.lexicon.RunCounts", lambda: RunCounts(4, 60))
    tokenizer = BertWordTokenizer(build_vocabulary(SENTENCES + ODD_SENTENCES, 4600))
    assert [text for text in SENTENCES + ODD_SENTENCES if "[UNK]" in tokenizer.tokenize(text)] == []


def test_pieces_are_learned_from_the_commonest_words_when_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("promptgen.training.lexicon._MAX_LEARNED_WORDS", 2)
    ids = build_vocabulary(["hello world"] * 5 + ["hello there"] * 4, None).ids
    assert {"hello", "world"} <= set(ids)
    assert "there" not in ids
    assert "from the commonest 2 of 3 words" in capsys.readouterr().err


def test_word_vocabulary_of_these_sentences_does_not_change() -> None:
    """Shipped models are trained with what this code gives for their corpus: a change here must be meant."""
    tokens = build_vocabulary((SENTENCES + ODD_SENTENCES + ROUND_TRIPS) * 2, 4600).tokens
    assert (
        hashlib.sha256("\n".join(tokens).encode()).hexdigest()
        == "d5a37c5b1c728b6aa81369e2880a40fda0a8c2d0f6990516c55aedc617960d9f"
    )


def test_vocabulary_files_stand_in_the_order_they_are_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileFault, match="holds no vocabulary"):
        vocabulary_files(tmp_path)
    digests = []
    for names in (["vocab.json", "merges.txt"], ["tokenizer.json"], ["vocab.txt"]):
        for name in names:
            (tmp_path / name).write_text(name, encoding="utf-8")
        assert [path.name for path in vocabulary_files(tmp_path)] == names
        digests.append(vocabulary_sha256(tmp_path))
    assert digests[1:] == [hashlib.sha256(name).hexdigest() for name in (b"tokenizer.json", b"vocab.txt")]
    assert len(set(digests)) == 3


def test_vocabulary_digest_covers_both_files(tmp_path: Path) -> None:
    digests = set()
    for vocab, merges in (("a", "b"), ("a", "c"), ("c", "b"), ("b", "a"), ("ab", ""), ("", "ab")):
        (tmp_path / "vocab.json").write_text(vocab, encoding="utf-8")
        (tmp_path / "merges.txt").write_text(merges, encoding="utf-8")
        digests.add(vocabulary_sha256(tmp_path))
    assert len(digests) == 6


def test_half_a_byte_pair_folder_is_no_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}", encoding="utf-8")
    with pytest.raises(FileFault, match="holds no vocabulary"):
        vocabulary_sha256(tmp_path)
