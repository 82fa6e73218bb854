"""Bytes of a corpus file become numbered lines of text, a block at a time.

gzip is known by its first bytes, whatever the file's name. Lines end with LF, CRLF or a lone CR. What cannot be read is reported to the
caller by reason and line number.
"""

from __future__ import annotations

import codecs
import hashlib
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from promptgen.errors import FileFault

MAX_LINE_CHARACTERS = 1_000_000
_MAX_LINE_BYTES = 4 * MAX_LINE_CHARACTERS  # a character takes four bytes at most
_BLOCK_BYTES = 1 << 20
_SLICE_BYTES = 1 << 12  # unpacked at a time: 4 MiB come out of it at most
_GZIP = b"\x1f\x8b"
_GZIP_FORMAT = zlib.MAX_WBITS | 16

Note = Callable[[str, int], None]  # takes a reason and a line number


class Source:
    """The bytes of one file, unpacked if they are gzip. To be read once, to the end.

    After that `num_bytes` and `sha256` are those of the file as it lies on the disk, and `is_cut` says that its gzip ended early or is damaged.
    """

    def __init__(self, path: Path, on_read: Callable[[int], None] | None = None) -> None:
        self.path = path
        self.num_bytes = 0
        self.is_cut = False
        self._digest = hashlib.sha256()
        self._on_read = on_read

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def blocks(self) -> Iterator[bytes]:
        """Raises FileFault if the file cannot be read."""
        raw = self._raw()
        first = next(raw, b"")
        whole = chain([first], raw)
        yield from self._unpacked(whole) if first.startswith(_GZIP) else whole

    def _raw(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    self._digest.update(block)
                    self.num_bytes += len(block)
                    if self._on_read is not None:
                        self._on_read(len(block))
                    yield block
        except OSError as fault:
            raise FileFault(self.path, f"cannot be read: {fault.strerror}") from fault

    def _unpacked(self, raw: Iterator[bytes]) -> Iterator[bytes]:
        """The members of a gzip file one after another. What follows a damage is counted as read, no more."""
        unpacker = zlib.decompressobj(_GZIP_FORMAT)
        for block in raw:
            for begin in range(0, 0 if self.is_cut else len(block), _SLICE_BYTES):
                packed = block[begin : begin + _SLICE_BYTES]
                while packed and not self.is_cut:
                    if unpacker.eof:
                        packed = packed.lstrip(b"\0")  # padding
                        if not packed:
                            break
                        unpacker = zlib.decompressobj(_GZIP_FORMAT)
                    before = unpacker.copy()
                    try:
                        yield unpacker.decompress(packed)
                    except zlib.error:
                        self.is_cut = True
                        yield _until_damage(before, packed)
                    packed = unpacker.unused_data
        self.is_cut |= not unpacker.eof


def _until_damage(unpacker: zlib._Decompress, packed: bytes) -> bytes:
    """All that comes out before the byte at fault; zlib gives nothing of a call that fails."""
    found = bytearray()
    try:
        for at in range(len(packed)):
            found += unpacker.decompress(packed[at : at + 1])
    except zlib.error:
        pass
    return bytes(found)


def read_lines(source: Source, encoding: str, note: Note, *, cut_long: bool = True) -> Iterator[tuple[int, str]]:
    """Line numbers, counted from 1, and lines without their ends.

    A line that cannot be decoded is left out ("undecodable"). One over MAX_LINE_CHARACTERS comes in pieces of the same number, or with
    `cut_long=False` not at all ("too long"). The line on which a damaged gzip file ends is left out ("cut").
    """
    number, is_continued = 0, False
    if encoding.startswith("utf-16"):
        blocks, encoding = _in_utf8(source.blocks(), encoding), "utf-8"
    else:
        blocks = source.blocks()
    for data, is_whole in _runs_of_lines(source, _with_line_feeds(blocks), encoding):
        for text in _decoded(data, encoding):
            number += not is_continued
            if text is None:
                note("undecodable", number)
            elif is_whole and not is_continued and len(text) <= MAX_LINE_CHARACTERS:
                yield number, text.removeprefix("\ufeff") if number == 1 else text
            else:
                if not is_continued:
                    note("too long", number)
                if cut_long:
                    yield from ((number, piece) for piece in pieces(text))
            is_continued = False
        is_continued = not is_whole
    if source.is_cut:
        note("cut", number + 1)


def read_text(source: Source, encoding: str, max_bytes: int) -> tuple[str, bool]:
    """All of a file, and whether a part of it could not be decoded and is U+FFFD. Raises FileFault if it is over `max_bytes`."""
    data = bytearray()
    for block in source.blocks():
        data += block
        if len(data) > max_bytes:
            raise FileFault(
                source.path,
                f"is a JSON list of over {max_bytes >> 20} MiB, which is read whole; "
                f"make it JSONL, an item a line, for example with: jq -c '.[]' {source.path.name} > corpus.jsonl",
            )
    try:
        return data.decode(encoding).removeprefix("\ufeff"), False
    except UnicodeDecodeError:
        return data.decode(encoding, "replace").removeprefix("\ufeff"), True


def pieces(text: str) -> Iterator[str]:
    """A text in pieces of MAX_LINE_CHARACTERS at most."""
    for begin in range(0, len(text), MAX_LINE_CHARACTERS):
        yield text[begin : begin + MAX_LINE_CHARACTERS]


def _in_utf8(blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """UTF-16 as UTF-8, in which a line feed is one byte. Half a character becomes bytes that UTF-8 does not have."""
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    for block in blocks:
        yield decoder.decode(block).encode("utf-8", "surrogatepass")
    if decoder.getstate()[0]:
        yield b"\xff"


def _with_line_feeds(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """CRLF and lone CR become LF."""
    held = b""  # a CR at the end of a block may be half a CRLF
    for block in blocks:
        block = held + block
        held = b"\r" if block.endswith(b"\r") else b""
        if held:
            block = block[:-1]
        if b"\r" in block:
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        yield block
    if held:
        yield b"\n"


def _runs_of_lines(source: Source, blocks: Iterator[bytes], encoding: str) -> Iterator[tuple[bytes, bool]]:
    """Whole lines at a time without the last line feed (True), or the beginning of a line too long to hold (False)."""
    rest = b""
    for block in blocks:
        rest += block
        whole, line_feed, tail = rest.rpartition(b"\n")
        if line_feed:
            yield whole, True
            rest = tail
        if len(rest) > _MAX_LINE_BYTES:
            decoder = codecs.getincrementaldecoder(encoding)("replace")
            decoder.decode(rest)
            at = len(rest) - len(decoder.getstate()[0])  # between two characters
            yield rest[:at], False
            rest = rest[at:]
    if rest and not source.is_cut:
        yield rest, True


def _decoded(data: bytes, encoding: str) -> list[str | None]:
    """The lines of `data`; None for one that cannot be decoded."""
    try:
        return [*data.decode(encoding).split("\n")]
    except UnicodeDecodeError:
        return [_line(line, encoding) for line in data.split(b"\n")]


def _line(line: bytes, encoding: str) -> str | None:
    try:
        return line.decode(encoding)
    except UnicodeDecodeError:
        return None
