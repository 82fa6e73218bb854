"""Reads a corpus: files of documents or dialogues, one after another, never all at once.

    documents   one a line
    dialogues   one utterance a line, dialogues separated by blank lines

Which of the two a file is shows in its first blocks. UTF-8, UTF-16 (with a mark) and GB18030 are told apart by content.
"""

from __future__ import annotations

import codecs
import glob
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from promptgen.errors import FileFault

_PROBE_BYTES = 1 << 16
_PROBE_LINES = 400


@dataclass(frozen=True, slots=True)
class Document:
    """One document (`turns` has one text) or one dialogue (question and answer in turn)."""

    turns: tuple[str, ...]
    is_dialogue: bool


def find_files(sources: Iterable[str | Path]) -> list[Path]:
    """Files, folders (their *.txt) and glob patterns become a sorted list of files. Raises FileFault for one that gives none."""
    found: list[Path] = []
    for source in sources:
        path = Path(source)
        here = (
            sorted(path.rglob("*.txt"))
            if path.is_dir()
            else [path]
            if path.is_file()
            else sorted(map(Path, glob.glob(str(source), recursive=True)))
        )
        if not here:
            raise FileFault(source, "no such file, or a folder without *.txt files")
        found += here
    return found


def read_documents(paths: Iterable[Path], dropped: Counter[str] | None = None) -> Iterator[Document]:
    """All documents of all files. What is left out is counted by reason in `dropped` ("blank")."""
    dropped = Counter() if dropped is None else dropped
    for path in paths:
        encoding = detect_encoding(path)
        if _holds_dialogues(_lines(path, encoding)):
            yield from _dialogues(_lines(path, encoding))
        else:
            for line in _lines(path, encoding):
                if text := line.strip():
                    yield Document((text,), is_dialogue=False)
                else:
                    dropped["blank"] += 1


def detect_encoding(path: Path) -> str:
    """utf-8-sig, utf-16 or gb18030. Raises FileFault for a file that is none of these, or cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(_PROBE_BYTES)
    except OSError as fault:
        raise FileFault(path, f"cannot be read: {fault.strerror}") from fault
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            # A character cut at the end of the probe is no fault.
            codecs.getincrementaldecoder(encoding)().decode(head)
        except UnicodeDecodeError:
            continue
        return encoding
    raise FileFault(path, "is neither UTF-8 nor GB18030; convert it, for example with iconv -t UTF-8")


def _lines(path: Path, encoding: str) -> Iterator[str]:
    if encoding == "utf-16":
        try:
            with path.open(encoding=encoding) as file:
                yield from file
        except UnicodeError as fault:
            raise FileFault(path, f"is cut or damaged: {fault}") from fault
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode(encoding if number == 1 else encoding.removesuffix("-sig"))
            except UnicodeDecodeError as fault:
                raise FileFault(path, f"line {number} is not {encoding.removesuffix('-sig')}") from fault


def _blocks(lines: Iterable[str]) -> Iterator[list[str]]:
    block: list[str] = []
    for line in lines:
        if text := line.strip():
            block.append(text)
        elif block:
            yield block
            block = []
    if block:
        yield block


def _holds_dialogues(lines: Iterator[str]) -> bool:
    """Whether nearly all blocks between blank lines have an even number of lines, as questions and answers do."""
    probe = list(islice(lines, _PROBE_LINES))
    blocks = list(_blocks(probe))
    whole = blocks[:-1] if len(probe) == _PROBE_LINES else blocks  # the last one may be cut by the probe
    return len(whole) >= 2 and sum(len(block) % 2 == 0 for block in whole) >= 0.9 * len(whole)


def _dialogues(lines: Iterator[str]) -> Iterator[Document]:
    for block in _blocks(lines):
        yield Document(tuple(block), is_dialogue=True)
