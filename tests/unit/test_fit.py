"""What is said of a prepared corpus: what it holds, what was read in which encoding, and what was left out, in lines that fit a screen."""

from __future__ import annotations

from pathlib import Path

from promptgen.text.vocabulary import Vocabulary
from promptgen.text.words import SPECIAL_TOKENS
from promptgen.training.fit import told_counts
from promptgen.training.prepare import prepare


def told(folder: Path, files: dict[str, bytes]) -> list[str]:
    Vocabulary.of([*SPECIAL_TOKENS, *"高血压怎么办"]).save(folder / "vocab.txt")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    lines = told_counts(prepare([folder / name for name in files], folder, folder / "out", valid_share=0.0))
    return [line.replace(f"{folder.as_posix()}/", "") for line in lines]


def test_files_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    texts = {f"{name}.txt": ("高血压" + name).encode("gbk") for name in "abcd"}
    lines = told(tmp_path, texts | {"e.txt": "怎么办".encode(), "f.txt": "怎么".encode("utf-16")})
    assert lines[1:] == [
        "read as gb18030: a.txt, b.txt, c.txt, ...; if that is wrong, convert it to UTF-8",
        "read as utf-16-le: f.txt; if that is wrong, convert it to UTF-8",
    ]


def test_three_files_are_named_for_a_reason(tmp_path: Path) -> None:
    texts = {f"{name}.txt": f"\n{name}高血压\n\n".encode() for name in "abcd"}
    lines = told(tmp_path, texts)
    assert lines[1:] == ["left out 8 blank (a.txt: 1, 3; b.txt: 1, 3; c.txt: 1, 3; ...)"]
    assert lines[0].startswith("corpus 4 documents")
