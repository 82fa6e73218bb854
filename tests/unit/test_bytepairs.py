"""Byte pairs: learned as the plain method learns them, the same every time, and read by the tokenizers library as GPT-2's are."""

from __future__ import annotations

import json
import random
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers

from promptgen.errors import UsageError
from promptgen.text.bytepair import BytePairTokenizer
from promptgen.text.tokenizer import load_tokenizer
from promptgen.training import bytepairs
from promptgen.training.bytepairs import MAX_WORD, WordSplitter, learn_byte_pairs, merges

TEXTS = [
    "高血压患者每天要注意饮食，量3次血压。",
    "请为我写一个关于高血压的科普短文，语言通俗易懂。",
    "hello world, it's GPT2's first 2026 prompt!",
    "打开web.py看3.14，再写 hello 世界。",
    "😀👨‍👩‍👧🎉 é ß ж 한국어 龘 \t x",
]


def words_of(texts: list[str]) -> Counter[str]:
    split = WordSplitter()
    return Counter(word for text in texts for word in split(text))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bpe")
    learn_byte_pairs(words_of(TEXTS * 3), 340).save(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> BytePairTokenizer:
    loaded = load_tokenizer(folder)
    assert isinstance(loaded, BytePairTokenizer)
    return loaded


@cache
def joins_whole_or_inside(left: bytes, right: bytes) -> bool:
    """Whether a merge stays within one character or joins whole ones, by decoding."""
    try:
        left.decode()
        right.decode()
    except UnicodeDecodeError:
        return b"\x80" <= right[:1] < b"\xc0"
    return True


def learn_plainly(words: dict[str, int], max_tokens: int, min_count: int) -> list[tuple[bytes, bytes]]:
    """Counts all pairs again before each merge."""
    splits = {word: [bytes([byte]) for byte in word.encode()] for word in words}
    done: list[tuple[bytes, bytes]] = []
    while len({left + right for left, right in done}) < max_tokens:
        counts: Counter[tuple[bytes, bytes]] = Counter()
        for word, split in splits.items():
            for pair in pairwise(split):
                counts[pair] += words[word] if joins_whole_or_inside(*pair) else 0
        pair, count = min(counts.items(), key=lambda item: (-item[1], item[0]), default=((b"", b""), 0))
        if count < min_count:
            break
        done.append(pair)
        for word, split in splits.items():
            after: list[bytes] = []
            for token in split:
                if after and (after[-1], token) == pair:
                    after[-1] += token
                else:
                    after.append(token)
            splits[word] = after
    return done


@pytest.mark.parametrize("alphabet", ["ab", "abc", "高血压a", "aé高😀", " 高高a"])
def test_merges_are_those_of_the_plain_method(alphabet: str) -> None:
    draw = random.Random(alphabet)
    for _ in range(4):
        words = {
            "".join(draw.choices(alphabet, k=draw.randint(1, 12))): draw.randint(1, 5)
            for _ in range(draw.randint(1, 25))
        }
        assert merges(words, 25, 2) == learn_plainly(words, 25, 2)


def test_merges_of_real_words_are_those_of_the_plain_method() -> None:
    words = dict(words_of(TEXTS * 3))
    assert merges(words, 60, 3) == learn_plainly(words, 60, 3)


def test_most_frequent_pair_comes_first_and_ties_go_by_text() -> None:
    assert merges({"ab": 3, "cd": 5, "ef": 3, "xy": 2}, 9, 3) == [(b"c", b"d"), (b"a", b"b"), (b"e", b"f")]
    assert merges({"aaaaa": 3}, 9, 3) == [(b"a", b"a"), (b"aa", b"a"), (b"aa", b"aaa")]


def test_result_does_not_depend_on_the_order_of_the_words() -> None:
    words = words_of(TEXTS * 3)
    backwards = dict(reversed(list(words.items())))
    assert learn_byte_pairs(words, 400) == learn_byte_pairs(backwards, 400)


def test_no_token_joins_a_part_of_a_character_to_another_one() -> None:
    for left, right in merges(words_of(TEXTS * 3), 1000, 2):
        token = left + right
        inside = len(token) < 4 and sum(byte & 0xC0 != 0x80 for byte in token) <= 1
        assert inside or token.decode()


def test_size_is_kept_and_ids_are_those_of_gpt2(folder: Path, tokenizer: BytePairTokenizer) -> None:
    ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    assert sorted(ids.values()) == list(range(340))
    assert tokenizer.size == 340
    # As in GPT-2's own vocab.json.
    assert [ids[token] for token in ("!", "~", "\u00a1", "\u0100", "\u0120", "\u0143")] == [0, 93, 94, 188, 220, 255]
    assert [ids["<|endoftext|>"], ids["<|sep|>"]] == [338, 339]
    assert (folder / "merges.txt").read_text(encoding="utf-8").startswith("#version: 0.2\n")


def test_small_corpora_give_what_they_hold() -> None:
    assert len(learn_byte_pairs({"a": 1}, 5000).tokens) == 258
    assert learn_byte_pairs({"高": 9}, 5000).tokens[256:258] == ("«ĺ", "é«ĺ")
    assert len(learn_byte_pairs({"高": 9}, 257 + 2).tokens) == 259


def test_size_too_small_for_the_bytes_is_refused() -> None:
    with pytest.raises(UsageError, match="--size 257 cannot hold the 256 bytes and 2 special tokens; give 258 or more"):
        learn_byte_pairs({"高": 9}, 257)


def test_words_are_cut_as_the_encoder_cuts_them() -> None:
    split = WordSplitter()
    assert list(split("hello world's 2026，高血压")) == ["hello", " world", "'s", " 2026", "，", "高血压"]
    assert list(split("血" * 40)) == ["血" * MAX_WORD, "血" * MAX_WORD, "血" * (40 - 2 * MAX_WORD)]
    assert list(split("a<|sep|>b<|endoftext|>")) == ["a", "b"]
    assert list(split("高\ud800血")) == ["高血"]
    assert ["".join(split(text)) for text in TEXTS] == TEXTS


def test_most_frequent_words_are_learned_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bytepairs, "MAX_BYTES", 7)
    assert merges({"ab": 5, "高c": 4, "xy": 4, "zz": 3}, 99, 3) == [(b"a", b"b"), (b"x", b"y")]
    assert "without the rarest 2 of 4 word parts" in capsys.readouterr().err


@pytest.mark.parametrize("text", TEXTS)
def test_the_library_gives_the_ids_that_the_merges_give(folder: Path, tokenizer: BytePairTokenizer, text: str) -> None:
    """GPT-2's encoder.py: in each word the pair of the lowest rank is merged, until none is left."""
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    ranks = {(left, right): rank for rank, (left, right) in enumerate(line.split(" ") for line in lines)}
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    expected = []
    for word, _ in tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text):
        split = list(word)
        while known := [pair for pair in pairwise(split) if pair in ranks]:
            left, right = min(known, key=ranks.__getitem__)
            at = next(i for i, pair in enumerate(pairwise(split)) if pair == (left, right))
            split[at : at + 2] = [left + right]
        expected += [vocabulary[token] for token in split]
    assert tokenizer.encode(text) == expected
    assert tokenizer.decode(expected) == text
    assert len(expected) < len(text.encode())


@pytest.mark.parametrize("text", [*TEXTS, "没有见过的字：龘靐齉爩", "never seen before", "🤖", ""])
def test_text_comes_back_whole_and_streamed(tokenizer: BytePairTokenizer, text: str) -> None:
    detokenizer = tokenizer.detokenizer("")
    pieces = [*map(detokenizer.push, tokenizer.encode(text)), detokenizer.finish()]
    assert "".join(pieces) == text == tokenizer.decode(tokenizer.encode(text))
    assert not any("\ufffd" in piece for piece in pieces)


def test_random_tokens_stream_as_they_decode(folder: Path, tokenizer: BytePairTokenizer) -> None:
    library = tokenizers.Tokenizer(
        tokenizers.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    )
    library.decoder = tokenizers.decoders.ByteLevel()
    draw = random.Random(7)
    for _ in range(60):
        ids = [draw.randrange(tokenizer.size - 2) for _ in range(20)]
        before, fork = tokenizer.detokenizer("高"), tokenizer.detokenizer("高")
        shown = ""
        for i in ids:
            shown += before.push(i)
            fork = before.fork()
            # What was shown is never taken back: more text only follows it.
            assert tokenizer.decode(ids).startswith(shown)
        assert shown + fork.finish() == shown + before.finish() == tokenizer.decode(ids) == library.decode(ids)


def test_separator_is_a_line_break_and_ends_a_turn(tokenizer: BytePairTokenizer) -> None:
    assert (tokenizer.begin_id, tokenizer.end_id, tokenizer.separator_id, tokenizer.unknown_id) == (338, 338, 339, None)
    assert tokenizer.banned_ids == ()  # both may be drawn: they end a document or a turn
    ids = [*tokenizer.encode("问"), tokenizer.separator_id, *tokenizer.encode("答"), tokenizer.end_id]
    assert tokenizer.decode(ids) == "问\n答"
    assert tokenizer.encode("问<|sep|>答<|endoftext|>") == ids
    half = tokenizer.encode("龘")[:1]
    assert tokenizer.decode([*half, tokenizer.separator_id, *tokenizer.encode("答")]) == "\ufffd\n答"


@pytest.mark.parametrize(("tokens", "separator"), [(["Ċ", "<|sep|>"], 2), (["Ċ"], 1), ([], 0)])
def test_separator_falls_back_to_the_newline_then_to_the_end(tmp_path: Path, tokens: list[str], separator: int) -> None:
    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", *tokens])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    loaded = BytePairTokenizer(tmp_path)
    assert (loaded.separator_id, loaded.end_id, loaded.size) == (separator, 0, 1 + len(tokens))
    assert loaded.decode([separator]) == ("\n" if tokens else "")


def test_added_plain_text_of_a_tokenizer_json_is_shown(folder: Path, tmp_path: Path) -> None:
    library = tokenizers.Tokenizer(
        tokenizers.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    )
    library.decoder = tokenizers.decoders.ByteLevel()
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.add_tokens(["高血压 病"])
    library.save(str(tmp_path / "tokenizer.json"))
    loaded = BytePairTokenizer(tmp_path)
    assert loaded.encode("高血压 病")[:1] == [340]
    assert loaded.decode([340]) == "高血压 病"
    assert loaded.decode([340, loaded.separator_id]) == "高血压 病\n"
