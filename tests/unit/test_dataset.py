"""A prepared folder that was cut, changed or never one is refused before a training reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from promptgen.errors import FileFault
from promptgen.text.vocabulary import Vocabulary
from promptgen.text.words import SPECIAL_TOKENS
from promptgen.training.dataset import check_data, data_sha256, load_part
from promptgen.training.prepare import prepare

LINES = [f"高血压第{n}条" for n in range(20)]


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    (tmp_path / "vocab").mkdir()
    digits = [*"0123456789", *("##" + d for d in "0123456789")]
    Vocabulary.of([*SPECIAL_TOKENS, "高血压", *"第条", *digits]).save(tmp_path / "vocab" / "vocab.txt")
    (tmp_path / "a.txt").write_text("\n".join(LINES), encoding="utf-8")
    prepare([tmp_path / "a.txt"], tmp_path / "vocab", tmp_path / "out", valid_share=0.2)
    return tmp_path / "out"


def test_what_prepare_wrote_is_taken(prepared: Path) -> None:
    check_data(prepared)
    assert len(load_part(prepared, "train")) + len(load_part(prepared, "valid")) == len(LINES)


def test_the_digest_tells_every_file_apart(prepared: Path) -> None:
    before = data_sha256(prepared)
    meta = json.loads((prepared / "meta.json").read_text(encoding="utf-8"))
    (prepared / "meta.json").write_text(json.dumps(meta | {"files": []}), encoding="utf-8")
    assert data_sha256(prepared) == before
    for name in meta["sha256"]:
        changed = meta | {"sha256": meta["sha256"] | {name: "0"}}
        (prepared / "meta.json").write_text(json.dumps(changed), encoding="utf-8")
        assert data_sha256(prepared) != before


@pytest.mark.parametrize("name", ["train.tokens.bin", "train.offsets.bin", "valid.tokens.bin", "valid.offsets.bin"])
def test_a_flipped_or_missing_file_is_refused(prepared: Path, name: str) -> None:
    path = prepared / name
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    with pytest.raises(FileFault, match=f"{name}: is not what promptgen prepare wrote; make it anew"):
        check_data(prepared)
    path.unlink()
    with pytest.raises(FileFault, match=name):
        check_data(prepared)


def test_another_vocabulary_of_the_same_size_is_refused(prepared: Path) -> None:
    path = prepared / "vocab.txt"
    path.write_text(path.read_text(encoding="utf-8").replace("第", "地"), encoding="utf-8")
    with pytest.raises(FileFault, match="holds another vocabulary than it was prepared with"):
        check_data(prepared)


@pytest.mark.parametrize("lost", ["counts", "sha256"])
def test_a_meta_without_counts_or_hashes_is_refused(prepared: Path, lost: str) -> None:
    meta = json.loads((prepared / "meta.json").read_text(encoding="utf-8"))
    del meta[lost]
    (prepared / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    with pytest.raises(FileFault, match="lacks its counts or hashes; make it anew"):
        check_data(prepared)


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
