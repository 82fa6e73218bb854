"""Reads the items of JSONL files and of JSON lists. What an item may be stands in records.py."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from promptgen.training.reading import MAX_LINE_CHARACTERS, Note, Source, pieces, read_lines, read_text
from promptgen.training.records import Document, read_record

MAX_LIST_BYTES = 64 << 20
_SPACE = re.compile(r"[ \t\r\n]*")


def read_jsonl(source: Source, encoding: str, note: Note) -> Iterator[Document]:
    for number, line in read_lines(source, encoding, note, cut_long=False):
        if not line.strip():
            note("blank", number)
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            note("not JSON", number)
            continue
        yield from _documents(value, number, note)


def read_list(source: Source, encoding: str, note: Note) -> Iterator[Document]:
    """The items one by one: they are never all in memory, and those before a damage are kept. Raises FileFault over MAX_LIST_BYTES."""
    text, is_damaged = read_text(source, encoding, MAX_LIST_BYTES)
    if source.is_cut:
        note("cut", 1)
    at = _after_space(text, 0)
    if at == len(text):
        return
    if text[at] != "[":
        note("not a list", 1)
        return
    for number, value in _items(text, at + 1, note):
        # Of a damaged file only the items that the damage is not in.
        if is_damaged and "\ufffd" in json.dumps(value, ensure_ascii=False):
            note("undecodable", number)
        else:
            yield from _documents(value, number, note)


def _items(text: str, at: int, note: Note) -> Iterator[tuple[int, object]]:
    decoder = json.JSONDecoder()
    number = 0
    at = _after_space(text, at)
    while text[at : at + 1] != "]":
        number += 1
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            note("not JSON, nor what follows", number)
            return
        yield number, value
        at = _after_space(text, at)
        if text[at : at + 1] == ",":
            at = _after_space(text, at + 1)
        elif text[at : at + 1] != "]":
            note("not JSON, nor what follows", number + 1)
            return
    if _after_space(text, at + 1) < len(text):
        note("text after the list", number + 1)


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None  # the pattern matches the empty text
    return found.end()


def _documents(value: object, number: int, note: Note) -> Iterator[Document]:
    document = read_record(value, number, lambda reason: note(reason, number))
    if document is None:
        return
    if max(map(len, document.turns)) <= MAX_LINE_CHARACTERS:
        yield document
        return
    note("too long", number)
    if not document.is_dialogue:
        yield from (Document((piece,), False, number) for piece in pieces(document.turns[0]))
