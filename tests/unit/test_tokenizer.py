"""Text becomes ids and the ids become the text again, for word, character and byte-level vocabularies."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from promptgen.errors import FileFault
from promptgen.text.detokenize import join_text
from promptgen.text.tokenizer import MAX_SPACED_RUN, BertWordTokenizer, BytePairTokenizer, load_tokenizer
from promptgen.text.vocabulary import Vocabulary
from promptgen.text.words import _PLAIN, SPECIAL_TOKENS, clean, is_spaced
from promptgen.training.lexicon import build_vocabulary

SENTENCES = [
    "高血压患者每天3次测量血压，饮食要清淡。",
    "糖尿病有哪些症状？请给我三条建议！",
    "请写一篇关于春天的作文，2026年用。",
    "How do I cook scrambled eggs with tomatoes? Please give me three tips.",
    "What are the symptoms of high blood pressure, and how can I prevent it?",
    "用gpt2打开web.py，时间是12:30，圆周率是3.14。",
]
WORDS = [
    "高血压",
    "糖尿病",
    "患者",
    "每天3次",
    "2026年",
    "饮食",
    "建议",
    "症状",
    "龙凤",
    "gpt2",
    "web.py",
    "作文",
    "，",
    "。",
    "？",
    "3.14",
]
ENGLISH = [
    "how",
    "do",
    "i",
    "cook",
    "eggs",
    "with",
    "tomatoes",
    "zebra",
    "gpt2",
    "gpt",
    "2",
    "2026",
    "web.py",
    "3.14",
    "12:30",
    "pressure",
    "unbelievable",
    "a1b2",
]
SMALL = BertWordTokenizer(
    Vocabulary.of(
        [
            *SPECIAL_TOKENS,
            *[
                "高",
                "血",
                "压",
                "高血压",
                "患者",
                "患",
                "者",
                "要",
                "注意",
                "注",
                "意",
                "，",
                "hello",
                "play",
                "un",
                "##ing",
                "##s",
                "a",
                "b",
                "##a",
                "##b",
                "0",
                "2",
                "##0",
                "##2",
                "gpt",
                ".",
            ],
        ]
    )
)
CHARACTERS = BertWordTokenizer(  # bert-base-chinese's layout in small
    Vocabulary.of(
        [
            *["[PAD]", *(f"[unused{n}]" for n in range(1, 100)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
            *"，。？高血压要注意每天次年用gpt0123456789.,abcdefhijklmnoqrsuvwxyz",
            *("##" + c for c in "abcdefghijklmnopqrstuvwxyz高血压"),
        ]
    )
)

chinese = st.lists(st.sampled_from(WORDS), max_size=12).map("".join)
english = st.lists(st.sampled_from(ENGLISH), min_size=1, max_size=10).flatmap(
    lambda words: st.lists(
        st.sampled_from([" ", ", ", "! ", "? ", "; "]), min_size=len(words) - 1, max_size=len(words) - 1
    ).map(lambda gaps: "".join(a + b for a, b in zip(words, [*gaps, "."], strict=True)))
)
mixture = st.lists(st.one_of(chinese, english), max_size=5).map("。".join)


def essence(text: str) -> str:
    """The cleaned text with spaces between words of letters and digits only."""
    text = re.sub(" +", " ", clean(text)).strip()
    spaced = [i == 0 or c != " " or (is_spaced(text[i - 1]) and is_spaced(text[i + 1])) for i, c in enumerate(text)]
    return "".join(c for c, kept in zip(text, spaced, strict=True) if kept)


@pytest.fixture(scope="module")
def word() -> BertWordTokenizer:
    return BertWordTokenizer(build_vocabulary(SENTENCES * 4, 4600))


def test_documented_pieces() -> None:
    assert SMALL.tokenize("高血压患者要注意，PLAYING hellos") == [
        "高血压",
        "患者",
        "要",
        "注意",
        "，",
        "play",
        "##ing",
        "hello",
        "##s",
    ]
    assert SMALL.tokenize("2020 gpt2") == ["2", "##0", "##2", "##0", "gpt", "##2"]


def test_the_likeliest_split_is_chosen_not_the_greedy_one() -> None:
    tokenizer = BertWordTokenizer(Vocabulary.of([*SPECIAL_TOKENS, "研究", "生命", *"研究生命", "研究生"]))
    assert tokenizer.tokenize("研究生命") == ["研究", "生命"]


def test_special_tokens_are_kept_whole() -> None:
    assert SMALL.tokenize("[MASK]高血压[SEP]hello[CLS][PAD] [UNK]") == [
        "[MASK]",
        "高血压",
        "[SEP]",
        "hello",
        "[CLS]",
        "[PAD]",
        "[UNK]",
    ]


def test_special_tokens_in_small_letters_are_ordinary_text(word: BertWordTokenizer) -> None:
    assert word.decode(word.encode("[sep] [MAsk]")) == "[sep][mask]"


def test_one_rare_character_costs_only_itself() -> None:
    assert SMALL.tokenize("高血压龘患者") == ["高血压", "[UNK]", "患者"]
    assert SMALL.tokenize("龘高血压龘龘") == ["[UNK]", "高血压", "[UNK]", "[UNK]"]
    assert SMALL.tokenize("abжba") == ["a", "##b", "[UNK]", "##b", "##a"]
    assert SMALL.tokenize("hello€play") == ["hello", "[UNK]", "play"]


def test_a_run_too_long_for_language_is_one_unknown() -> None:
    assert SMALL.tokenize("ab" * (MAX_SPACED_RUN // 2)) == ["a", "##b"] + ["##a", "##b"] * (MAX_SPACED_RUN // 2 - 1)
    assert SMALL.tokenize("高" + "a" * (MAX_SPACED_RUN + 1) + "血") == ["高", "[UNK]", "血"]


@pytest.mark.parametrize(
    "text",
    [
        "gpt2",
        "gpt 2",
        "2026",
        "每天3次",
        "web.py",
        "3.14",
        "用gpt2打开web.py",
        "hello, world!",
        "it's 12:30.",
        "a1b2 c3",
        "3,5",
        "1.2.3",
        *SENTENCES,
    ],
)
def test_text_comes_back_exactly(word: BertWordTokenizer, text: str) -> None:
    assert join_text(word.tokenize(text)) == word.decode(word.encode(text)) == text.lower()


@given(text=chinese)
def test_chinese_comes_back(word: BertWordTokenizer, text: str) -> None:
    assert join_text(word.tokenize(text)) == text


@given(text=english)
def test_english_comes_back(word: BertWordTokenizer, text: str) -> None:
    assert essence(join_text(word.tokenize(text))) == essence(text)


@given(text=mixture)
def test_mixtures_come_back(word: BertWordTokenizer, text: str) -> None:
    assert essence(join_text(word.tokenize(text))) == essence(text)


@given(text=st.text(st.sampled_from("高血压糖尿aZ9 7,.，。:'-()é\t\n\u3000"), max_size=40))
def test_any_text_of_known_characters_comes_back(word: BertWordTokenizer, text: str) -> None:
    assert essence(join_text(word.tokenize(text))) == essence(text)


@pytest.mark.parametrize(
    ("text", "back"),
    [
        ("Hello  WORLD", "hello world"),
        ("高\u3000血\t压", "高血压"),
        ("高\x00血\ufffd压\u200b", "高血压"),
        ("Café", "cafe"),
        ("每天 3 次", "每天3次"),
        ("hello,world", "hello, world"),
        ("hello ( world )", "hello(world)"),
    ],
)
def test_clean_up(word: BertWordTokenizer, text: str, back: str) -> None:
    assert join_text(word.tokenize(text)) == back


@given(text=st.text(max_size=60))
def test_any_text_gives_ids_in_range_the_same_every_time(word: BertWordTokenizer, text: str) -> None:
    for tokenizer in (SMALL, CHARACTERS, word):
        ids = tokenizer.encode(text)
        assert all(0 <= i < tokenizer.size for i in ids)
        assert ids == tokenizer.encode(text)
        assert tokenizer.convert(ids) == tokenizer.tokenize(text)


def test_two_tokenizers_of_one_vocabulary_agree(word: BertWordTokenizer) -> None:
    other = BertWordTokenizer(Vocabulary.of(word.vocabulary.tokens))
    assert [other.encode(text) for text in SENTENCES] == [word.encode(text) for text in SENTENCES]


def test_lone_surrogates_are_dropped() -> None:
    assert SMALL.tokenize("高\ud800血\udfff压") == ["高血压"]


def test_a_prompt_of_100_characters_is_encoded_in_half_a_millisecond(word: BertWordTokenizer) -> None:
    text = "".join(SENTENCES[:3] + SENTENCES[:3] + SENTENCES[3:])[:100]
    assert len(text) == 100
    times = []
    for _ in range(200):
        begin = time.perf_counter()
        word.encode(text)
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.5e-3


def test_encode_many_equals_encode(word: BertWordTokenizer) -> None:
    texts = [*SENTENCES, "", "[SEP]", "龘"]
    assert list(word.encode_many(texts)) == [word.encode(text) for text in texts]


def test_encode_many_in_processes_keeps_the_order(word: BertWordTokenizer) -> None:
    texts = [f"{SENTENCES[n % 6]}{n}" for n in range(6000)]
    assert list(word.encode_many(texts, processes=2)) == [word.encode(text) for text in texts]


@given(ids=st.lists(st.integers(0, 3800), max_size=30), prompt=mixture)
def test_a_streamed_candidate_equals_the_whole(word: BertWordTokenizer, ids: list[int], prompt: str) -> None:
    detokenizer = word.detokenizer(prompt)
    streamed = "".join([detokenizer.push(i) for i in ids]) + detokenizer.finish()
    before = word.tokenize(prompt)[-40:]
    assert join_text(before) + streamed == join_text(before + word.convert(ids))


@pytest.mark.parametrize(
    ("prompt", "token", "text"),
    [
        ("cook", "eggs", " eggs"),
        ("cook ", "eggs", "eggs"),
        ("cook\n", "eggs", "eggs"),
        ("cook", "##s", "s"),
        ("高血压", "eggs", "eggs"),
        ("cook,", "eggs", " eggs"),
        ("cook " * 300, "eggs", "eggs"),
        ("cook" + " cook" * 300, "eggs", " eggs"),
        ("", "eggs", "eggs"),
    ],
)
def test_a_candidate_begins_with_the_space_it_needs(
    word: BertWordTokenizer, prompt: str, token: str, text: str
) -> None:
    assert word.detokenizer(prompt).push(word.vocabulary.ids[token]) == text


def test_a_prompt_that_ends_with_an_unknown_character_gets_no_space(word: BertWordTokenizer) -> None:
    assert word.detokenizer("高血压龘").push(word.vocabulary.ids["患者"]) == "患者"


def test_roles_of_special_tokens_are_looked_up_by_name(word: BertWordTokenizer) -> None:
    assert (word.separator_id, word.end_id, word.begin_id, word.pad_id, word.unknown_id) == (0, 1, 2, 3, 4)
    roles = (CHARACTERS.separator_id, CHARACTERS.end_id, CHARACTERS.begin_id, CHARACTERS.pad_id, CHARACTERS.unknown_id)
    assert roles == (102, 101, 103, 0, 100)
    assert set(CHARACTERS.banned_ids) == {0, 100, 103}


def test_character_vocabulary_splits_to_characters_and_glues_digits_back(word: BertWordTokenizer) -> None:
    assert CHARACTERS.tokenize("2026年，高血压每天3次") == [*"2026年，高血压每天3次"]
    assert CHARACTERS.glue_digits
    assert not word.glue_digits
    for text in ("2026年，高血压每天3次", "用gpt。", "12345", "hello, web. the"):
        assert CHARACTERS.decode(CHARACTERS.encode(text)) == text


def test_character_vocabulary_streams_glued_digits() -> None:
    detokenizer = CHARACTERS.detokenizer("注意20")
    assert "".join(map(detokenizer.push, CHARACTERS.encode("26年"))) == "26年"


def test_a_folder_is_recognised(word: BertWordTokenizer, tmp_path: Path) -> None:
    word.vocabulary.save(tmp_path / "vocab.txt")
    loaded = load_tokenizer(str(tmp_path))
    assert isinstance(loaded, BertWordTokenizer)
    assert loaded.vocabulary == word.vocabulary


def test_a_folder_without_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFault, match="holds no vocabulary") as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.fixture(scope="module", params=["tokenizer.json", "vocab.json and merges.txt"])
def byte_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BytePairTokenizer:
    folder = tmp_path_factory.mktemp("bpe")
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(SENTENCES * 3, trainer)
    if request.param == "tokenizer.json":
        inner.save(str(folder / "tokenizer.json"))
    else:
        inner.model.save(str(folder))
    loaded = load_tokenizer(folder)
    assert isinstance(loaded, BytePairTokenizer)
    return loaded


HARD_TEXTS = ["高血压😀👨‍👩‍👧🎉 hello\n\tworld  2026", "  leading", "é ß ж 한국어", "龘", ""]


@pytest.mark.parametrize("text", HARD_TEXTS + SENTENCES)
def test_bytes_come_back_whole_and_streamed(byte_pair: BytePairTokenizer, text: str) -> None:
    ids = byte_pair.encode(text)
    detokenizer = byte_pair.detokenizer("")
    pieces = [*map(detokenizer.push, ids), detokenizer.finish()]
    assert byte_pair.decode(ids) == "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert all(0 <= i < byte_pair.size for i in ids)


@given(text=st.text(max_size=40).filter(lambda t: "<|" not in t))
def test_any_text_survives_byte_pairs(byte_pair: BytePairTokenizer, text: str) -> None:
    assert byte_pair.decode(byte_pair.encode(text)) == text


def test_a_character_cut_at_the_end_is_shown_as_one_replacement(byte_pair: BytePairTokenizer) -> None:
    detokenizer = byte_pair.detokenizer("")
    ids = byte_pair.encode("😀")
    assert len(ids) > 1
    assert [detokenizer.push(i) for i in ids[:-1]] == [""] * (len(ids) - 1)
    assert detokenizer.finish() == "\ufffd"


def test_end_token_of_byte_pairs(byte_pair: BytePairTokenizer) -> None:
    assert byte_pair.begin_id == byte_pair.end_id == 0
    assert byte_pair.encode("<|endoftext|>") == [0]
    assert byte_pair.size == 400
    assert byte_pair.banned_ids == ()


def test_end_token_is_not_shown(byte_pair: BytePairTokenizer) -> None:
    ids = [*byte_pair.encode("高血压"), byte_pair.end_id]
    detokenizer = byte_pair.detokenizer("")
    assert "".join(map(detokenizer.push, ids)) + detokenizer.finish() == byte_pair.decode(ids) == "高血压"


def test_lone_surrogates_do_not_break_byte_pairs(byte_pair: BytePairTokenizer) -> None:
    assert all(0 <= i < byte_pair.size for i in byte_pair.encode("高\ud800血"))


def test_encode_many_equals_encode_for_byte_pairs(byte_pair: BytePairTokenizer) -> None:
    texts = SENTENCES * 400
    assert list(byte_pair.encode_many(texts)) == [byte_pair.encode(text) for text in SENTENCES] * 400
    assert list(byte_pair.encode_many(["高\ud800血", "\udc00"])) == [byte_pair.encode("高血"), []]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"tokenizer.json": "{"}, "is not a tokenizer.json"),
        ({"vocab.json": "{", "merges.txt": ""}, "are not a byte-level BPE"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "a b c\n"}, "are not a byte-level BPE"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "a b\n"}, "are not a byte-level BPE"),
    ],
)
def test_faulty_byte_pair_folder_is_refused(tmp_path: Path, files: dict[str, str], told: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(FileFault, match=told) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_kinds_of_tokenizer_json_are_refused(tmp_path: Path) -> None:
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(
        str(tmp_path / "tokenizer.json")
    )
    with pytest.raises(FileFault, match="not byte-level BPE"):
        load_tokenizer(tmp_path)


def test_plain_characters_are_those_that_the_clean_up_only_lower_cases() -> None:
    """They take a short way: one at a time beside a character that does not."""
    plain = [chr(code) for code in range(sys.maxunicode + 1) if _PLAIN.fullmatch(chr(code))]
    assert {"a", "Z", " ", "~", "高", "，", "。", "“", "…", "Ａ"} <= set(plain)
    assert clean("".join(plain) + "\0") == clean("".join(plain)) == "".join(plain).lower()
    for char in plain:
        assert clean(char + "\0") == clean(char) == char.lower()
