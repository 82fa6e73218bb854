"""A corpus becomes ids on disk: nothing lost without count, nothing twice, the same split when it grows, all files or none."""

from __future__ import annotations

import errno
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from promptgen.errors import DiskFault, FileFault, UsageError
from promptgen.text.tokenizer import load_tokenizer, vocabulary_sha256
from promptgen.text.vocabulary import Vocabulary
from promptgen.text.words import SPECIAL_TOKENS
from promptgen.training import prepare as prepare_module
from promptgen.training.dataset import load_part
from promptgen.training.prepare import prepare
from promptgen.training.staging import StagedFile

LINES = [f"高血压第{n}条" for n in range(200)]
FILES = {f"{part}.{what}.bin" for part in ("train", "valid") for what in ("tokens", "offsets")}


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    folder = tmp_path / "vocab"
    folder.mkdir()
    digits = [*"0123456789", *("##" + d for d in "0123456789")]
    Vocabulary.of([*SPECIAL_TOKENS, "高血压", *"第条问答甲乙", *digits]).save(folder / "vocab.txt")
    return folder


@pytest.fixture
def byte_vocabulary(tmp_path: Path) -> Path:
    """A byte-level BPE without merges: a token a byte."""
    folder = tmp_path / "bpe"
    folder.mkdir()
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shown = [*map(chr, printable), *(chr(256 + n) for n in range(256 - len(printable)))]
    ids = {token: n for n, token in enumerate([*shown, "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return folder


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def part_texts(folder: Path, part: str) -> list[str]:
    tokenizer = load_tokenizer(folder)
    loaded = load_part(folder, part)
    return [tokenizer.decode(loaded.document(n).tolist()) for n in range(len(loaded))]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_formats_of_documents_and_dialogues(tmp_path: Path, vocabulary: Path) -> None:
    documents = write(tmp_path / "a.txt", ["高血压第1条"])
    dialogues = write(tmp_path / "b.txt", ["问甲", "答甲", "", "问乙", "答乙", "问", "答", "", "问1", "答2"])
    prepare([documents, dialogues], vocabulary, tmp_path / "out", valid_share=0.0)
    tokens = Vocabulary.load(vocabulary / "vocab.txt").tokens
    part = load_part(tmp_path / "out", "train")
    assert [" ".join(tokens[i] for i in part.document(n)) for n in range(len(part))] == [
        "[MASK] 高血压 第 1 条 [CLS]",
        "[CLS] 问 甲 [SEP] 答 甲 [SEP]",
        "[CLS] 问 乙 [SEP] 答 乙 [SEP] 问 [SEP] 答 [SEP]",
        "[CLS] 问 1 [SEP] 答 2 [SEP]",
    ]


def test_a_byte_level_vocabulary_is_prepared_alike(tmp_path: Path, byte_vocabulary: Path) -> None:
    corpus = tmp_path / "a.jsonl"
    corpus.write_text('{"text": "ab"}\n{"question": "c", "answer": "d"}\n', encoding="utf-8")
    meta = prepare([corpus], byte_vocabulary, tmp_path / "out", valid_share=0.0)
    tokenizer = load_tokenizer(byte_vocabulary)
    part = load_part(tmp_path / "out", "train")
    a, b, c, d = (tokenizer.encode(letter)[0] for letter in "abcd")
    begin, end, separator = tokenizer.begin_id, tokenizer.end_id, tokenizer.separator_id
    assert [part.document(n).tolist() for n in range(len(part))] == [
        [begin, a, b, end],
        [end, c, separator, d, separator],
    ]
    assert meta["counts"]["unknown_tokens"] == 0
    assert meta["vocabulary_sha256"] == vocabulary_sha256(tmp_path / "out")
    assert names(tmp_path / "out") == FILES | {"meta.json", "vocab.json", "merges.txt"}


def test_meta_tells_counts_files_and_what_was_dropped(tmp_path: Path, vocabulary: Path) -> None:
    a = write(tmp_path / "a.txt", ["高血压", "", "高血压", "问答龘", "高血压 ", "\u200b"])
    b = write(tmp_path / "b.jsonl", ['{"text": "问答龘"}', '{"text": "甲"}', "{"])
    meta = prepare([b, a], vocabulary, tmp_path / "out", valid_share=0.0)
    assert meta["dropped"] == {"blank": 1, "duplicate": 3, "without tokens": 1, "not JSON": 1}
    assert meta["dropped_places"] == {
        "not JSON": {b.as_posix(): [3]},
        "blank": {a.as_posix(): [2]},
        "duplicate": {a.as_posix(): [3, 4, 5]},
        "without tokens": {a.as_posix(): [6]},
    }
    assert meta["counts"] == {
        **dict.fromkeys(("valid_documents", "valid_tokens", "valid_characters", "dialogues"), 0),
        **dict.fromkeys(("documents", "train_documents"), 3),
        **dict.fromkeys(("tokens", "train_tokens"), 5 + 3 + 3),
        "unknown_tokens": 1,
        "train_characters": 7,
    }
    hashes = [sha256(path.read_bytes()).hexdigest() for path in (a, b)]
    assert meta["files"] == [
        {"name": path.as_posix(), "bytes": path.stat().st_size, "sha256": digest, "encoding": "utf-8", **kind}
        for path, digest, kind in (
            (b, hashes[1], {"kind": "jsonl", "documents": 2}),
            (a, hashes[0], {"kind": "documents", "documents": 5}),
        )
    ]
    assert meta["corpus_sha256"] == sha256("".join(f"{digest}\n" for digest in hashes).encode()).hexdigest()
    assert meta["vocabulary_sha256"] == vocabulary_sha256(vocabulary) == vocabulary_sha256(tmp_path / "out")
    assert meta["sha256"] == {name: sha256((tmp_path / "out" / name).read_bytes()).hexdigest() for name in FILES}
    assert meta["dtype"] == "uint16"
    assert meta == json.loads((tmp_path / "out" / "meta.json").read_text(encoding="utf-8"))


def test_split_does_not_change_when_the_corpus_grows(tmp_path: Path, vocabulary: Path) -> None:
    prepare([write(tmp_path / "a.txt", LINES[:100])], vocabulary, tmp_path / "small", valid_share=0.3)
    prepare([write(tmp_path / "b.txt", LINES[::-1])], vocabulary, tmp_path / "large", valid_share=0.3)
    small, large = (set(part_texts(tmp_path / name, "valid")) for name in ("small", "large"))
    assert 10 < len(small) < 60
    assert small == large & set(LINES[:100])
    assert set(part_texts(tmp_path / "large", "train")) == set(LINES) - large


@pytest.mark.parametrize(("documents", "characters"), [(1, 10**9), (7, 10**9), (10**9, 1), (10**9, 50)])
def test_chunks_do_not_show(
    tmp_path: Path, vocabulary: Path, monkeypatch: pytest.MonkeyPatch, documents: int, characters: int
) -> None:
    files = [write(tmp_path / "a.txt", LINES[:60]), write(tmp_path / "b.txt", [*LINES[30:90], "龘"])]
    wanted = prepare(files, vocabulary, tmp_path / "whole", valid_share=0.3)
    monkeypatch.setattr(prepare_module, "_CHUNK_DOCUMENTS", documents)
    monkeypatch.setattr(prepare_module, "_CHUNK_CHARACTERS", characters)
    assert prepare(files, vocabulary, tmp_path / "chunked", valid_share=0.3) == wanted
    assert wanted["dropped"] == {"duplicate": 30}


def test_given_validation_files_are_the_held_out_part(tmp_path: Path, vocabulary: Path) -> None:
    train, valid = write(tmp_path / "a.txt", LINES[:50]), write(tmp_path / "v.txt", LINES[40:60])
    meta = prepare([train], vocabulary, tmp_path / "out", valid_sources=[valid])
    assert part_texts(tmp_path / "out", "valid") == LINES[40:60]
    assert part_texts(tmp_path / "out", "train") == LINES[:40]
    assert meta["dropped"] == {"duplicate": 10}


@pytest.mark.parametrize(
    ("lines", "arguments", "fault"),
    [
        ([], {}, "the corpus holds no text. Left out: nothing"),
        (["", " "], {}, "the corpus holds no text. Left out: 2 blank (PATH: 1, 2)"),
        (["\u200b"], {}, "the corpus holds no text. Left out: 1 without tokens (PATH: 1)"),
        (
            ["高血压", "高血压"],
            {"valid_share": 0.9999999999},
            "all 1 were held out; hold out none with --valid 0, or add more. Left out: 1 duplicate (PATH: 2)",
        ),
    ],
)
def test_nothing_to_train_on_is_refused(
    tmp_path: Path, vocabulary: Path, lines: list[str], arguments: dict[str, Any], fault: str
) -> None:
    path = write(tmp_path / "a.txt", lines)
    with pytest.raises(FileFault) as caught:
        prepare([path], vocabulary, tmp_path / "out", **arguments)
    assert str(caught.value) == f"{path}: no document to train on: {fault.replace('PATH', str(path))}"
    assert names(tmp_path / "out") == set()


def test_only_held_out_documents_are_refused(tmp_path: Path, vocabulary: Path) -> None:
    files = [write(tmp_path / name, LINES[:2]) for name in ("a.txt", "b.txt", "v.txt")]
    with pytest.raises(FileFault) as caught:
        prepare(files[:2], vocabulary, tmp_path / "out", valid_sources=files[2:])
    assert str(caught.value) == (
        f"{files[0]} and 1 more: no document to train on beside those of --valid-corpus; "
        f"add documents that are not among them. Left out: 4 duplicate ({files[0]}: 1, 2; {files[1]}: 1, 2)"
    )


def test_one_document_trains_with_nothing_held_out(tmp_path: Path, vocabulary: Path) -> None:
    prepare([write(tmp_path / "a.txt", ["高血压"])], vocabulary, tmp_path / "out", valid_share=0.0)
    assert part_texts(tmp_path / "out", "train") == ["高血压"]
    assert len(load_part(tmp_path / "out", "valid")) == 0


def test_who_has_the_old_files_mapped_keeps_them(tmp_path: Path, vocabulary: Path) -> None:
    out = tmp_path / "out"
    prepare([write(tmp_path / "a.txt", LINES[:20])], vocabulary, out, valid_share=0.0)
    old = load_part(out, "train")
    before = np.array(old.tokens)
    prepare([write(tmp_path / "b.txt", LINES[20:25])], vocabulary, out, valid_share=0.0)
    assert (old.tokens == before).all()
    assert part_texts(out, "train") == LINES[20:25]
    assert names(out) == FILES | {"meta.json", "vocab.txt"}


@pytest.mark.parametrize("name", ["train.tokens.bin", "valid.offsets.bin", "vocab.txt", "meta.json"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, vocabulary: Path, name: str) -> None:
    out = tmp_path / "out"
    prepare([write(tmp_path / "a.txt", LINES[:20])], vocabulary, out, valid_share=0.0)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / f"{name}.partial").symlink_to("/dev/full")
    with pytest.raises(DiskFault) as caught:
        prepare([write(tmp_path / "b.txt", LINES[20:25])], vocabulary, out, valid_share=0.0)
    assert str(caught.value) == (
        f"{out / name}.partial: cannot be written: No space left on device; "
        "free some space there or name another folder with --out, then run the command again"
    )
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_disk_that_fills_while_reading(tmp_path: Path, vocabulary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    def start(self: StagedFile, folder: Path, name: str) -> None:
        original(self, folder, name)
        self._file.close()
        self._file = Full()  # type: ignore[assignment]

    original = StagedFile.__init__
    monkeypatch.setattr(StagedFile, "__init__", start)
    with pytest.raises(DiskFault, match="No space left on device; free some space there"):
        prepare([write(tmp_path / "a.txt", LINES)], vocabulary, tmp_path / "out")
    assert names(tmp_path / "out") == set()


def test_a_folder_that_cannot_be_made_is_a_disk_fault(tmp_path: Path, vocabulary: Path) -> None:
    corpus = write(tmp_path / "a.txt", LINES)
    with pytest.raises(DiskFault, match=r"cannot be written: .*; name a folder that can be written to with --out"):
        prepare([corpus], vocabulary, corpus / "out")


def test_what_fails_while_reading_leaves_what_was_there(tmp_path: Path, vocabulary: Path) -> None:
    out = tmp_path / "out"
    good = write(tmp_path / "a.txt", LINES[:20])
    prepare([good], vocabulary, out, valid_share=0.0)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    bad = tmp_path / "b.txt"
    bad.write_bytes(bytes(range(128, 256)))
    with pytest.raises(FileFault, match=r"b\.txt: is neither"):
        prepare([good, bad], vocabulary, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_another_kind_of_vocabulary_goes_with_its_data(tmp_path: Path, vocabulary: Path, byte_vocabulary: Path) -> None:
    corpus = write(tmp_path / "a.txt", LINES)
    prepare([corpus], vocabulary, tmp_path / "out")
    prepare([corpus], byte_vocabulary, tmp_path / "out")
    assert names(tmp_path / "out") == FILES | {"meta.json", "vocab.json", "merges.txt"}
    # A vocabulary that prepare did not put there is not taken away.
    with pytest.raises(FileFault, match=r"vocab\.txt: is a vocabulary of another kind"):
        prepare([corpus], byte_vocabulary, vocabulary)
    assert names(vocabulary) == {"vocab.txt"}


def test_the_vocabulary_of_a_model_is_not_replaced(tmp_path: Path, vocabulary: Path, byte_vocabulary: Path) -> None:
    corpus, model = write(tmp_path / "a.txt", LINES), tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    for own in (None, (vocabulary / "vocab.txt").read_bytes() + "龘\n".encode()):
        if own is not None:
            (model / "vocab.txt").write_bytes(own)
        before = {path.name: path.read_bytes() for path in model.iterdir()}
        with pytest.raises(UsageError, match="model holds a model, whose vocabulary would be replaced"):
            prepare([corpus], vocabulary, model)
        assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    (model / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    prepare([corpus], vocabulary, model)
    assert names(model) == FILES | {"meta.json", "vocab.txt", "model.safetensors"}
    with pytest.raises(UsageError, match="model holds a model, whose vocabulary would be replaced"):
        prepare([corpus], byte_vocabulary, model)
