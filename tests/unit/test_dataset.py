"""A corpus becomes ids on disk and packed rows: nothing lost, nothing twice, and documents of a row do not see each other."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from promptgen.errors import FileFault
from promptgen.text.tokenizer import BertWordTokenizer
from promptgen.text.vocabulary import Vocabulary
from promptgen.text.words import SPECIAL_TOKENS
from promptgen.training.dataset import IGNORED, TokenFile, batches, file_sha256, load_part, pack_rows, prepare
from promptgen.training.train import attention_mask

LINES = [f"高血压第{n}条" for n in range(200)]


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    folder = tmp_path / "vocab"
    folder.mkdir()
    digits = [*"0123456789", *("##" + d for d in "0123456789")]
    Vocabulary.of([*SPECIAL_TOKENS, "高血压", *"第条问答甲乙", *digits]).save(folder / "vocab.txt")
    return folder


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def part_texts(folder: Path, vocabulary: Path, part: str) -> list[str]:
    tokenizer = BertWordTokenizer(Vocabulary.load(vocabulary / "vocab.txt"))
    loaded = load_part(folder, part)
    return [tokenizer.decode(loaded.document(n).tolist()) for n in range(len(loaded))]


def part_of(lengths: list[int]) -> TokenFile:
    """Documents of these lengths whose tokens are 0, 1, 2 ... throughout."""
    return TokenFile(np.arange(sum(lengths), dtype=np.uint16), np.cumsum([0, *lengths]).astype(np.int64))


def test_formats_of_documents_and_dialogues(tmp_path: Path, vocabulary: Path) -> None:
    documents = write(tmp_path / "a.txt", ["高血压第1条"])
    dialogues = write(tmp_path / "b.txt", ["问甲", "答甲", "", "问乙", "答乙", "问", "答", "", "问1", "答2"])
    prepare([documents, dialogues], vocabulary, tmp_path / "out", valid_share=0.0)
    tokenizer = BertWordTokenizer(Vocabulary.load(vocabulary / "vocab.txt"))
    part = load_part(tmp_path / "out", "train")
    assert [" ".join(tokenizer.convert(part.document(n).tolist())) for n in range(len(part))] == [
        "[MASK] 高血压 第 1 条 [CLS]",
        "[CLS] 问 甲 [SEP] 答 甲 [SEP]",
        "[CLS] 问 乙 [SEP] 答 乙 [SEP] 问 [SEP] 答 [SEP]",
        "[CLS] 问 1 [SEP] 答 2 [SEP]",
    ]


def test_meta_tells_counts_and_what_was_dropped(tmp_path: Path, vocabulary: Path) -> None:
    corpus = write(tmp_path / "a.txt", ["高血压", "", "高血压", "问答龘", "高血压 "])
    meta = prepare([corpus], vocabulary, tmp_path / "out", valid_share=0.0)
    assert meta["dropped"] == {"blank": 1, "duplicate": 2}
    assert {key: meta["counts"][key] for key in ("documents", "tokens", "unknown_tokens", "train_characters")} == {
        "documents": 2,
        "tokens": 8,
        "unknown_tokens": 1,
        "train_characters": 6,
    }
    assert meta == json.loads((tmp_path / "out" / "meta.json").read_text(encoding="utf-8"))
    assert (
        meta["vocabulary_sha256"]
        == file_sha256(vocabulary / "vocab.txt")
        == file_sha256(tmp_path / "out" / "vocab.txt")
    )
    assert meta["dtype"] == "uint16"


def test_split_does_not_change_when_the_corpus_grows(tmp_path: Path, vocabulary: Path) -> None:
    prepare([write(tmp_path / "a.txt", LINES[:100])], vocabulary, tmp_path / "small", valid_share=0.3)
    prepare([write(tmp_path / "b.txt", LINES[::-1])], vocabulary, tmp_path / "large", valid_share=0.3)
    small, large = (set(part_texts(tmp_path / name, vocabulary, "valid")) for name in ("small", "large"))
    assert 10 < len(small) < 60
    assert small == large & set(LINES[:100])
    assert set(part_texts(tmp_path / "large", vocabulary, "train")) == set(LINES) - large


def test_given_validation_files_are_the_held_out_part(tmp_path: Path, vocabulary: Path) -> None:
    train, valid = write(tmp_path / "a.txt", LINES[:50]), write(tmp_path / "v.txt", LINES[40:60])
    meta = prepare([train], vocabulary, tmp_path / "out", valid_sources=[valid])
    assert part_texts(tmp_path / "out", vocabulary, "valid") == LINES[40:60]
    assert part_texts(tmp_path / "out", vocabulary, "train") == LINES[:40]
    assert meta["dropped"] == {"duplicate": 10}


@pytest.mark.parametrize(("lines", "share"), [([], 0.05), (["", " "], 0.05), (["高血压"], 1.0)])
def test_nothing_to_train_on_is_refused(tmp_path: Path, vocabulary: Path, lines: list[str], share: float) -> None:
    with pytest.raises(FileFault, match="no document to train on"):
        prepare([write(tmp_path / "a.txt", lines)], vocabulary, tmp_path / "out", valid_share=share)


@pytest.fixture
def prepared(tmp_path: Path, vocabulary: Path) -> Path:
    prepare([write(tmp_path / "a.txt", LINES[:20])], vocabulary, tmp_path / "out", valid_share=0.0)
    return tmp_path / "out"


@pytest.mark.parametrize("cut", [1, 2, 7])
def test_cut_token_file_is_refused(prepared: Path, cut: int) -> None:
    path = prepared / "train.tokens.bin"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(FileFault, match=str(prepared)):
        load_part(prepared, "train")


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"\0" * 12])
def test_cut_offsets_file_is_refused(prepared: Path, content: bytes) -> None:
    (prepared / "train.offsets.bin").write_bytes(content)
    with pytest.raises(FileFault, match=str(prepared)):
        load_part(prepared, "train")


@pytest.mark.parametrize(
    "meta",
    [
        "",
        "{",
        "{}",
        '{"format": "other"}',
        "[]",
        '{"format": "promptgen-data-1"}',
        '{"format": "promptgen-data-1", "dtype": "x"}',
    ],
)
def test_foreign_meta_is_refused(prepared: Path, meta: str) -> None:
    (prepared / "meta.json").write_text(meta, encoding="utf-8")
    with pytest.raises(FileFault, match=str(prepared)):
        load_part(prepared, "train")


def test_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFault, match="is not a folder that promptgen prepare wrote"):
        load_part(tmp_path, "train")


@given(st.lists(st.integers(1, 16), min_size=1, max_size=80), st.integers(16, 40))
def test_packing_keeps_every_token_once(lengths: list[int], row_length: int) -> None:
    part = part_of(lengths)
    rows = list(pack_rows((part.document(n) for n in range(len(part))), row_length))
    assert all(sum(map(len, row)) <= row_length for row in rows)
    assert Counter(tuple(d.tolist()) for row in rows for d in row) == Counter(
        tuple(part.document(n).tolist()) for n in range(len(part))
    )


def test_packing_fills_the_fullest_row_and_cuts_what_is_longer() -> None:
    part = part_of([5, 7, 3, 12])
    rows = [[len(document) for document in row] for row in pack_rows((part.document(n) for n in range(4)), 10)]
    assert rows == [[5], [7, 3], [10]]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=60), st.integers(0, 5))
def test_batches_hold_every_token_with_its_successor(lengths: list[int], seed: int) -> None:
    part = part_of(lengths)
    ends = set((part.offsets[1:] - 1).tolist())
    seen: list[int] = []
    for batch in batches(part, 12, 4, order=np.random.default_rng(seed), window=64):
        real = batch.segments > 0
        seen += batch.tokens[real].tolist()
        last = np.isin(batch.tokens, list(ends)) & real
        assert (batch.labels[last | ~real] == IGNORED).all()
        assert (batch.labels[real & ~last] == batch.tokens[real & ~last] + 1).all()
    assert sorted(seen) == list(range(sum(lengths)))


def test_a_batch_in_full() -> None:
    (batch,) = batches(part_of([3, 2, 4]), 6, 8)
    assert batch.tokens.tolist() == [[0, 1, 2, 3, 4, 0], [5, 6, 7, 8, 0, 0]]
    assert batch.labels.tolist() == [[1, 2, IGNORED, 4, IGNORED, IGNORED], [6, 7, 8, IGNORED, IGNORED, IGNORED]]
    assert batch.segments.tolist() == [[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0]]


def test_shifted_documents_stay_within_the_window() -> None:
    starts = set()
    for batch in batches(part_of([8] * 200), 16, 8, order=np.random.default_rng(0), window=20, shifted_share=1.0):
        for row in range(len(batch.tokens)):
            for segment in set(batch.segments[row].tolist()) - {0}:
                positions = batch.positions[row][batch.segments[row] == segment]
                assert (np.diff(positions) == 1).all()
                starts.add(int(positions[0]))
    assert starts == set(range(13))


def test_order_depends_on_the_generator_alone() -> None:
    def tokens(order: np.random.Generator | None) -> list[Any]:
        return [batch.tokens.tolist() for batch in batches(part_of([4] * 40), 8, 4, order=order)]

    assert tokens(np.random.default_rng(1)) == tokens(np.random.default_rng(1)) != tokens(np.random.default_rng(2))
    assert tokens(None) == tokens(None)


def test_attention_mask_keeps_documents_apart() -> None:
    mask = attention_mask(torch.tensor([[1, 1, 2, 2, 0]]))
    assert mask.shape == (1, 1, 5, 5)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]


@torch.no_grad()
def test_a_packed_document_gets_the_logits_it_gets_alone() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2)).eval()
    part = part_of([5, 9, 4, 7, 16, 3])
    num_compared = 0
    for batch in batches(part, 16, 8):
        packed = model(
            input_ids=torch.from_numpy(batch.tokens),
            position_ids=torch.from_numpy(batch.positions),
            attention_mask=attention_mask(torch.from_numpy(batch.segments)),
        ).logits
        for row in range(len(batch.tokens)):
            for segment in set(batch.segments[row].tolist()) - {0}:
                here = torch.from_numpy(batch.segments[row] == segment)
                alone = model(input_ids=torch.from_numpy(batch.tokens[row])[None, here]).logits[0]
                torch.testing.assert_close(packed[row, here], alone, atol=1e-5, rtol=1e-4)
                num_compared += 1
    assert num_compared == 6
