"""Reads a corpus: files of documents or dialogues, one after another, never all at once.

    *.txt      documents, one a line, or dialogues: an utterance a line, dialogues separated by blank lines
    *.jsonl    an object a line, see records.py
    *.json     a list of strings or of such objects

Each may be packed by gzip. Which of the two a text is shows in its first blocks; files of other names are what they look like. What cannot be used
is left out and noted in a `Dropped`; a file of which nothing can be used is refused.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from promptgen.errors import FileFault
from promptgen.training.dropped import Dropped
from promptgen.training.encodings import Head, detect_encoding, read_head
from promptgen.training.jsonfiles import read_jsonl, read_list
from promptgen.training.reading import MAX_LINE_CHARACTERS, Note, Source, read_lines
from promptgen.training.records import SHAPES, Document

__all__ = ["Document", "Dropped", "FileReport", "Kind", "detect_encoding", "find_files", "read_documents"]

_SUFFIXES = tuple(suffix + packed for suffix in (".txt", ".json", ".jsonl") for packed in ("", ".gz"))
_OF_A_MODEL = frozenset(
    [
        *("config.json", "eval.json", "generation_config.json", "metrics.jsonl", "vocab.json"),
        *("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"),
    ]
)
_VOCABULARY_HEAD = 4096  # bytes
_CHECKPOINT = re.compile(r"step-\d+|\.partial-\d+")  # folders in OUT/checkpoints
_OUR_KEYS = frozenset(["format", "totals"])  # of the meta.json of `prepare` and of `expand`
_GAP = "dialogue with a gap"  # a reason: a line of it was left out, so whose turn the next ones are is not known


class Kind(StrEnum):
    DOCUMENTS = "documents"
    DIALOGUES = "dialogues"
    JSONL = "jsonl"
    JSON = "json"


_EXPECTED = {
    Kind.DOCUMENTS: "text with a document a line",
    Kind.DIALOGUES: "text with an utterance a line and a blank line between dialogues",
    Kind.JSONL: f"on each line {SHAPES}",
    Kind.JSON: f"a list of strings or of objects, each {SHAPES}",
}


@dataclass(slots=True)
class FileReport:
    """What a file turned out to be. All but path, encoding and kind are known when it was read to its end."""

    path: Path
    encoding: str
    kind: Kind
    num_bytes: int = 0
    sha256: str = ""
    num_documents: int = 0


def find_files(sources: Iterable[str | Path]) -> list[Path]:
    """Files, folders (with all below) and glob patterns become a list of files, each folder's sorted; none twice.

    Raises FileFault for a source that gives none, or that can be read only once.
    """
    found: dict[Path, None] = {}
    for source in sources:
        path = Path(source)
        matches = [path] if path.exists() else sorted(map(Path, glob.glob(str(source), recursive=True)))
        here = [file for match in matches for file in (_files_below(match) if match.is_dir() else [match])]
        if not here:
            raise FileFault(
                source, "no such file, or a folder without *.txt, *.json or *.jsonl files (or *.gz of these)"
            )
        for file in here:
            if file.exists() and not file.is_file():
                raise FileFault(file, "is a pipe or a device and is read more than once; write it to a file first")
        found |= dict.fromkeys(here)
    return list(found)


def _files_below(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.name.lower().endswith(_SUFFIXES) and path.is_file() and not _is_ours(path)
    )


def _is_ours(path: Path) -> bool:
    """Whether it is no corpus, but what `expand`, `vocab`, `prepare` or `train` wrote, or another model's folder holds."""
    if path.name == "vocab.txt":
        with path.open("rb") as file:
            return b"[UNK]" in file.read(_VOCABULARY_HEAD).split()
    if path.name == "meta.json":
        return _has_our_keys(path)
    if path.parent.parent.name == "checkpoints" and _CHECKPOINT.fullmatch(path.parent.name):
        return True
    is_of_a_model = any((path.parent / name).exists() for name in ("config.json", "merges.txt"))
    return path.name in _OF_A_MODEL and is_of_a_model


def _has_our_keys(path: Path) -> bool:
    try:
        meta = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(meta, dict) and not _OUR_KEYS.isdisjoint(meta)


def read_documents(
    paths: Iterable[Path],
    dropped: Dropped | None = None,
    *,
    reports: list[FileReport] | None = None,
    on_read: Callable[[int], None] | None = None,
) -> Iterator[Document]:
    """All documents of all files.

    What is left out is noted in `dropped`. `reports` gets an entry when a file is begun, so its last is that of the document just given;
    `on_read` is told of bytes read from the disk. Raises FileFault for a file that cannot be read or of which nothing can be used.
    """
    dropped = Dropped() if dropped is None else dropped
    for path in paths:
        head = read_head(path)
        report = FileReport(path, head.encoding, _kind(path, head))
        if reports is not None:
            reports.append(report)
        source = Source(path, on_read)

        def note(reason: str, number: int, path: Path = path) -> None:
            dropped.add(reason, path, number)

        for document in _READERS[report.kind](source, head.encoding, note):
            report.num_documents += 1
            yield document
        report.num_bytes, report.sha256 = source.num_bytes, source.sha256
        if not report.num_documents:
            _refuse_unusable(report, dropped.of(path))


def _refuse_unusable(report: FileReport, dropped: Dropped) -> None:
    """A file that is empty or blank is no fault; one that holds something else is."""
    if dropped.counts().keys() - {"blank"}:
        raise FileFault(
            report.path,
            f"nothing in it can be used; expected {_EXPECTED[report.kind]}. Left out: {dropped.summary()}",
        )


def _kind(path: Path, head: Head) -> Kind:
    name = path.name.lower().removesuffix(".gz")
    text = head.text.lstrip()
    first_line = text.partition("\n")[0]
    if name.endswith(".jsonl"):
        return Kind.JSONL
    if name.endswith(".json"):
        return Kind.JSONL if text.startswith("{") and _is_object(first_line) else Kind.JSON
    if not name.endswith(".txt") and _is_object(first_line):
        return Kind.JSONL
    return Kind.DIALOGUES if _holds_dialogues(head) else Kind.DOCUMENTS


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _holds_dialogues(head: Head) -> bool:
    """Whether nearly all blocks between blank lines have an even number of lines, as questions and answers do."""
    lines = head.text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    sizes = [0]
    for line in lines:
        if line.strip():
            sizes[-1] += 1
        elif sizes[-1]:
            sizes.append(0)
    sizes = [size for size in (sizes if head.is_whole else sizes[:-1]) if size]  # the last one may be cut
    return len(sizes) >= 2 and sum(size % 2 == 0 for size in sizes) >= 0.9 * len(sizes)


def _read_documents(source: Source, encoding: str, note: Note) -> Iterator[Document]:
    for number, line in read_lines(source, encoding, note):
        if text := line.strip():
            yield Document((text,), False, number)
        else:
            note("blank", number)


def _read_dialogues(source: Source, encoding: str, note: Note) -> Iterator[Document]:
    """Of a dialogue with a line that is left out, what stands before it: the whole pairs of question and answer."""
    turns: list[str] = []
    first, num_characters = 0, 0
    has_gap = False

    def note_gap(reason: str, number: int) -> None:
        nonlocal has_gap
        has_gap = True
        note(reason, number)

    for number, line in read_lines(source, encoding, note_gap, cut_long=False):
        text = line.strip()
        if has_gap:
            yield from _whole_pairs(turns, first, note)
            turns, num_characters, has_gap = [], 0, bool(text)  # until a blank line
            if text:
                note(_GAP, number)
            continue
        first = first if turns else number
        is_full = num_characters > MAX_LINE_CHARACTERS and len(turns) % 2 == 0
        if turns and (not text or is_full):
            if text:
                note("too long", number)  # a dialogue without end goes on as the next one
            yield Document(tuple(turns), True, first)
            turns, first, num_characters = [], number, 0
        if text:
            turns.append(text)
            num_characters += len(text)
    if has_gap:
        yield from _whole_pairs(turns, first, note)
    elif turns:
        yield Document(tuple(turns), True, first)


def _whole_pairs(turns: list[str], first: int, note: Note) -> Iterator[Document]:
    """The dialogue of these turns, without a question that has no answer."""
    kept = turns[: len(turns) // 2 * 2]
    if kept:
        yield Document(tuple(kept), True, first)
    if len(kept) < len(turns):
        note(_GAP, first + len(kept))


_READERS: dict[Kind, Callable[[Source, str, Note], Iterator[Document]]] = {
    Kind.DOCUMENTS: _read_documents,
    Kind.DIALOGUES: _read_dialogues,
    Kind.JSONL: read_jsonl,
    Kind.JSON: read_list,
}
