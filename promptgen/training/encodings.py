"""Which encoding a corpus file has, by content: UTF-8, UTF-16 (with a mark, or clear from its zero bytes), GB18030."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from promptgen.errors import FileFault
from promptgen.training.reading import Source

_HEAD_BYTES = 1 << 18
_MAX_EXAMPLES = 2000  # lines tried
_LEAST_SHARE_READABLE = 0.5  # of the lines that are not ASCII, or of all bytes
_LEAST_SHARE_TEXT = 0.9  # of the units of UTF-16 without a mark
_LEAST_SHARE_LATIN = 0.5  # of the runs of characters beyond ASCII in what was read as GB18030
_RUN = re.compile("([A-Za-z]?)([^\x00-\x7f]+)")  # characters beyond ASCII, and the Latin letter before them
_UTF16_MARKS = ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# Latin to Cyrillic, marks, kana and Chinese marks, Chinese, Korean and surrogates, full width.
_COMMON_UNITS = (
    (0xA0, 0x52F),
    (0x2000, 0x206F),
    (0x3000, 0x30FF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xDFFF),
    (0xFF00, 0xFFEF),
)


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of a file: its encoding, its text as far as it can be decoded, and whether the text ends there."""

    encoding: str
    text: str
    is_whole: bool


def read_head(path: Path) -> Head:
    """Raises FileFault for a file that is no text in a known encoding, or cannot be read."""
    blocks = Source(path).blocks()
    head = sample = _take(blocks)
    encoding = _utf16(head)
    if encoding is None:
        while sample and sample.isascii():  # the first other character may come late
            sample = _take(blocks)
        encoding = _eight_bit(path, sample + _take(blocks))
    text = head[:_HEAD_BYTES].decode(encoding, "ignore").removeprefix("\ufeff")
    return Head(encoding, text, is_whole=len(head) < _HEAD_BYTES)


def detect_encoding(path: Path) -> str:
    """utf-8, utf-16-le, utf-16-be or gb18030. Raises FileFault for a file that is none of these, or cannot be read."""
    return read_head(path).encoding


def _take(blocks: Iterator[bytes]) -> bytes:
    """_HEAD_BYTES at least; fewer at the end only."""
    taken = bytearray()
    for block in blocks:
        taken += block
        if len(taken) >= _HEAD_BYTES:
            break
    return bytes(taken)


def _utf16(head: bytes) -> str | None:
    """The byte order of UTF-16, by its mark, else by which order makes text of bytes among which zeros stand; None for other encodings.

    Only the order of a unit's two bytes is in question. ASCII counts twice: English with its bytes swapped looks like Chinese.
    """
    for mark, encoding in _UTF16_MARKS:
        if head.startswith(mark):
            return encoding
    if b"\0" not in head:
        return None
    scores: dict[str, float] = {}
    for dtype, encoding in (("<u2", "utf-16-le"), (">u2", "utf-16-be")):
        units = np.frombuffer(head[: len(head) // 2 * 2], dtype)
        ascii_ones = ((units >= 0x20) & (units < 0x7F)) | np.isin(units, (9, 10, 13))
        others = np.zeros(len(units), bool)
        for first, last in _COMMON_UNITS:
            others |= (units >= first) & (units <= last)
        scores[encoding] = float(2 * ascii_ones.sum() + others.sum()) / max(1, len(units))
    worse, better = sorted(scores, key=scores.__getitem__)
    return better if scores[better] >= _LEAST_SHARE_TEXT and scores[better] > 1.5 * scores[worse] else None


def _eight_bit(path: Path, sample: bytes) -> str:
    """UTF-8 or GB18030, by the share of lines that can be read: some may be damaged. Chinese in GB18030 is hardly ever UTF-8.

    Raises FileFault for what is neither, and for what GB18030 can read but is a Latin alphabet's: für and Größe in Latin-1, say.
    """
    lines = sample.splitlines()
    foreign = [(line, number == len(lines)) for number, line in enumerate(lines, 1) if not line.isascii()]
    examples = foreign[:_MAX_EXAMPLES]
    unreadable = FileFault(path, "is neither UTF-8, UTF-16 nor GB18030; convert it, for example with iconv -t UTF-8")
    for encoding in ("utf-8", "gb18030"):
        texts = [text for line, may_be_cut in examples if (text := _decoded(line, encoding, may_be_cut)) is not None]
        if len(texts) >= _LEAST_SHARE_READABLE * len(examples):
            if encoding == "gb18030" and _is_latin(texts):
                raise unreadable
            return encoding
    # ASCII with a few damaged lines is still text; a zero byte is in no text of eight bits.
    num_foreign = sum(len(line) for line, _ in foreign)
    if b"\0" not in sample and num_foreign <= (1 - _LEAST_SHARE_READABLE) * len(sample):
        return "utf-8"
    raise unreadable


def _decoded(line: bytes, encoding: str, may_be_cut: bool) -> str | None:
    try:
        return codecs.getincrementaldecoder(encoding)().decode(line, final=not may_be_cut)
    except UnicodeDecodeError:
        return None


def _is_latin(texts: list[str]) -> bool:
    """Whether texts read as GB18030 are words with accents: half of the runs are one character, right after a letter, whose two bytes are letters too."""
    runs = [match.groups() for text in texts for match in _RUN.finditer(text)]
    num_latin = sum(bool(before) and len(run) == 1 and _is_two_letters(run) for before, run in runs)
    return bool(runs) and num_latin >= _LEAST_SHARE_LATIN * len(runs)


def _is_two_letters(character: str) -> bool:
    pair = character.encode("gb18030", "replace").decode("latin-1")
    return len(pair) == 2 and pair.isalpha()
