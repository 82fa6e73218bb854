"""Bytes become lines whatever their encoding, packing and line ends, and what is damaged is noted by line and costs nothing else."""

from __future__ import annotations

import codecs
import gzip
import random
import tracemalloc
import zlib
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptgen.errors import FileFault
from promptgen.training import reading
from promptgen.training.encodings import detect_encoding, read_head
from promptgen.training.reading import MAX_LINE_CHARACTERS, Source, read_lines, read_text

TEXT = "高血压怎么办\n糖尿病吃什么？每天3次\n一二三最好的一天\n"
LINES = TEXT.splitlines()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def lines_of(path: Path) -> tuple[list[tuple[int, str]], list[tuple[str, int]]]:
    """Numbered lines, and what was noted."""
    notes: list[tuple[str, int]] = []
    return list(read_lines(Source(path), detect_encoding(path), lambda *note: notes.append(note))), notes


def texts_of(path: Path) -> list[str]:
    return [text for _, text in lines_of(path)[0]]


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (TEXT.encode(), "utf-8"),
        (codecs.BOM_UTF8 + TEXT.encode(), "utf-8"),
        (codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"), "utf-16-le"),
        (codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), "utf-16-be"),
        (TEXT.encode("utf-16-le"), "utf-16-le"),
        (TEXT.encode("utf-16-be"), "utf-16-be"),
        (TEXT.encode("gbk"), "gb18030"),
        (TEXT.encode("gb18030"), "gb18030"),
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("is_packed", [False, True])
def test_encodings_line_ends_and_packing(
    tmp_path: Path, content: bytes, encoding: str, line_end: str, is_packed: bool
) -> None:
    content = content.replace("\n".encode(encoding), line_end.encode(encoding))
    path = write(tmp_path / "a.txt", gzip.compress(content) if is_packed else content)
    assert detect_encoding(path) == encoding
    assert lines_of(path)[0][:3] == list(enumerate(LINES, 1))
    assert lines_of(path)[1] == []


@pytest.mark.parametrize(
    "text",
    [
        "für\n",
        "für Größe\n",
        "Übung für Mädchen\nein größerer Bär\n",
        "plain English first\nla señora del año y la región\n",
        '{"text": "die Größe der Lösung"}\n',
    ],
)
def test_words_of_latin_1_are_not_taken_for_chinese(tmp_path: Path, text: str) -> None:
    assert text.encode("cp1252").decode("gb18030") != text  # it can be read, and wrongly
    with pytest.raises(FileFault, match="is neither UTF-8, UTF-16 nor GB18030; convert it"):
        detect_encoding(write(tmp_path / "a.txt", text.encode("cp1252")))


@pytest.mark.parametrize("text", ["用python写\n", "T恤怎么洗？\n用Excel做表\n", "你好hello世界\nB超和CT的区别\n"])
def test_chinese_among_english_words_is_still_chinese(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "a.txt", text.encode("gbk"))
    assert detect_encoding(path) == "gb18030"
    assert texts_of(path) == text.splitlines()


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    "text", ["hello world\nhow are you\n", "第一\n", "Привет мир\n", "안녕 하세요\n", "ひらがな\n", "😀 ok\n"]
)
def test_utf16_without_a_mark_in_other_languages(tmp_path: Path, text: str, encoding: str) -> None:
    path = write(tmp_path / "a.txt", text.encode(encoding))
    assert detect_encoding(path) == encoding
    assert "\n".join(texts_of(path)) == text.rstrip()


def test_a_character_of_gb18030s_four_bytes(tmp_path: Path) -> None:
    assert texts_of(write(tmp_path / "a.txt", "高血压\n㐀龦𠀀\n".encode("gb18030"))) == ["高血压", "㐀龦𠀀"]


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
@pytest.mark.parametrize("shift", range(3))
def test_the_first_chinese_may_come_late(tmp_path: Path, encoding: str, shift: int) -> None:
    # The first character lies across the end of a block read from the disk.
    lines = [*["a" * 1023] * 1023, "a" * (1021 - shift), *["高血压"] * 9]
    path = write(tmp_path / "a.txt", "\n".join(lines).encode(encoding))
    assert texts_of(path) == lines


def test_text_without_a_last_line_end_and_without_any(tmp_path: Path) -> None:
    assert lines_of(write(tmp_path / "a.txt", "高\n\n血".encode()))[0] == [(1, "高"), (2, ""), (3, "血")]
    assert lines_of(write(tmp_path / "b.txt", b"")) == ([], [])


@given(st.text(alphabet="ab高\r\n", max_size=30), st.integers(1, 7), st.sampled_from(["utf-8", "utf-16-le", "gb18030"]))
def test_blocks_may_end_anywhere(
    tmp_path_factory: pytest.TempPathFactory, text: str, block_bytes: int, encoding: str
) -> None:
    path = write(tmp_path_factory.mktemp("a") / "a.txt", text.encode(encoding))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_BLOCK_BYTES", block_bytes)
        found = [line for _, line in read_lines(Source(path), encoding, pytest.fail)]
    wanted = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert found + [""] * (len(wanted) - len(found)) == wanted


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_an_undecodable_line_is_noted_and_costs_no_other(tmp_path: Path, encoding: str) -> None:
    lines = [f"第{number}行".encode(encoding) for number in range(1, 20_001)]
    lines[14_999] = b"line \xff\xff"
    lines[3] = "高".encode(encoding)[:1]
    found, notes = lines_of(write(tmp_path / "a.txt", b"\n".join(lines)))
    assert notes == [("undecodable", 4), ("undecodable", 15_000)]
    assert found == [(n, f"第{n}行") for n in range(1, 20_001) if n not in (4, 15_000)]


def test_utf16_damage_costs_its_line_only(tmp_path: Path) -> None:
    half = b"\x3d\xd8"  # a high surrogate alone
    content = codecs.BOM_UTF16_LE + "一\n二".encode("utf-16-le") + half + "\n三\n四".encode("utf-16-le") + b"\x00"
    found, notes = lines_of(write(tmp_path / "a.txt", content))
    assert found == [(1, "一"), (3, "三")]
    assert notes == [("undecodable", 2), ("undecodable", 4)]


@pytest.mark.parametrize("content", [b"\xff\x00\xff\xff\x80\x81 binary", bytes(range(256)) * 300])
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "a.txt", content)
    with pytest.raises(FileFault) as caught:
        detect_encoding(path)
    assert (
        str(caught.value)
        == f"{path}: is neither UTF-8, UTF-16 nor GB18030; convert it, for example with iconv -t UTF-8"
    )


def numbered() -> tuple[list[str], bytes]:
    """3 000 lines that do not pack to nothing, and the file of them packed."""
    draw = random.Random(0)
    lines = [f"第{n}行 {draw.random()}" for n in range(3000)]
    return lines, gzip.compress("".join(line + "\n" for line in lines).encode(), compresslevel=1)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_gzip_that_ends_early_gives_what_is_there(tmp_path: Path, share: float) -> None:
    lines, packed = numbered()
    found, notes = lines_of(write(tmp_path / "a.gz", packed[: int(len(packed) * share)]))
    assert found == list(enumerate(lines[: len(found)], 1))
    assert share * 0.9 < len(found) / 3000 < 1
    assert notes == [("cut", len(found) + 1)]


def test_a_gzip_with_a_false_checksum_gives_all(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(b"one\ntwo\n"))
    packed[-6] ^= 0xFF
    path = write(tmp_path / "a.gz", bytes(packed))
    assert lines_of(path) == ([(1, "one"), (2, "two")], [("cut", 3)])


def test_a_gzip_damaged_in_the_middle_gives_what_stands_before(tmp_path: Path) -> None:
    lines, packed = numbered()
    middle = len(packed) // 2
    damaged = packed[:middle] + b"\xff" * 200 + packed[middle + 200 :]
    found, notes = lines_of(write(tmp_path / "b.gz", damaged))
    assert found[:1400] == list(enumerate(lines[:1400], 1))
    assert notes[-1][0] == "cut"


def test_gzip_members_and_padding_are_read_on(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", gzip.compress(b"one\nt") + gzip.compress(b"wo\n") + b"\0" * 512)
    assert lines_of(path) == ([(1, "one"), (2, "two")], [])


def test_a_source_knows_its_bytes_as_they_lie_on_the_disk(tmp_path: Path) -> None:
    packed = numbered()[1]
    for content in (TEXT.encode() * 9000, packed, packed[:-9] + b"x" * 99_999, packed[:999]):
        told: list[int] = []
        source = Source(write(tmp_path / "a", content), told.append)
        for _ in source.blocks():
            pass
        assert (source.num_bytes, sum(told), source.sha256) == (len(content), len(content), sha256(content).hexdigest())


@pytest.mark.parametrize("length", [MAX_LINE_CHARACTERS, MAX_LINE_CHARACTERS + 1, 5_500_000])
@pytest.mark.parametrize("character", ["x", "高"])
def test_a_long_line_comes_in_pieces(tmp_path: Path, length: int, character: str) -> None:
    found, notes = lines_of(write(tmp_path / "a.txt", f"一\n{character * length}\n二".encode()))
    assert (found[0], found[-1]) == ((1, "一"), (3, "二"))
    assert {number for number, _ in found[1:-1]} == {2}
    assert max(len(text) for _, text in found) <= MAX_LINE_CHARACTERS
    assert "".join(text for _, text in found[1:-1]) == character * length
    assert notes == [("too long", 2)] * (length > MAX_LINE_CHARACTERS)


def test_a_long_line_is_left_out_where_pieces_are_of_no_use(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"a\n" + b"x" * 5_000_000 + b"\nb\n")
    notes: list[tuple[str, int]] = []
    assert list(read_lines(Source(path), "utf-8", lambda *note: notes.append(note), cut_long=False)) == [
        (1, "a"),
        (3, "b"),
    ]
    assert notes == [("too long", 2)]


def test_a_huge_line_of_a_small_gzip_takes_little_memory(tmp_path: Path) -> None:
    packer = zlib.compressobj(1, wbits=zlib.MAX_WBITS | 16)
    packed = b"".join(packer.compress(b"x" * (1 << 20)) for _ in range(50)) + packer.flush()
    path = write(tmp_path / "a.gz", packed)
    tracemalloc.start()
    try:
        total = sum(len(text) for _, text in read_lines(Source(path), "utf-8", lambda *_: None))
        assert total == 50 << 20
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_head_says_whether_it_is_all(tmp_path: Path) -> None:
    assert read_head(write(tmp_path / "a.txt", TEXT.encode())).is_whole
    head = read_head(write(tmp_path / "b.txt", "高".encode() * 200_000))
    assert not head.is_whole
    assert set(head.text) == {"高"}


def test_file_that_vanished_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileFault, match=r"gone\.txt: cannot be read: No such file"):
        detect_encoding(tmp_path / "gone.txt")


def test_text_read_whole_is_bounded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", b"x" * 3_000_000)
    assert read_text(Source(path), "utf-8", 3_000_000) == ("x" * 3_000_000, False)
    with pytest.raises(FileFault) as caught:
        read_text(Source(path), "utf-8", 2 << 20)
    assert str(caught.value) == (
        f"{path}: is a JSON list of over 2 MiB, which is read whole; make it JSONL, an item a line, "
        "for example with: jq -c '.[]' a.json > corpus.jsonl"
    )
