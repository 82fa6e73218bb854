"""Corpora are read whatever their encoding and line ends; documents and dialogues are told apart; faults name file and line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from promptgen.errors import FileFault
from promptgen.training.corpus import Document, detect_encoding, find_files, read_documents

TEXT = "高血压怎么办\n糖尿病吃什么\n"
DOCUMENTS = [Document(("高血压怎么办",), is_dialogue=False), Document(("糖尿病吃什么",), is_dialogue=False)]
DIALOGUES = "问一\n答一\n\n问二\n答二\n问三\n答三\n\n\n问四\n答四\n"


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (TEXT.encode(), "utf-8-sig"),
        (b"\xef\xbb\xbf" + TEXT.encode(), "utf-8-sig"),
        (b"\xff\xfe" + TEXT.encode("utf-16-le"), "utf-16"),
        (b"\xfe\xff" + TEXT.encode("utf-16-be"), "utf-16"),
        (TEXT.encode("gb18030"), "gb18030"),
        (TEXT.replace("\n", "\r\n").encode(), "utf-8-sig"),
        (TEXT.removesuffix("\n").encode(), "utf-8-sig"),
    ],
)
def test_encodings_and_line_ends(tmp_path: Path, content: bytes, encoding: str) -> None:
    path = write(tmp_path / "a.txt", content)
    assert detect_encoding(path) == encoding
    assert list(read_documents([path])) == DOCUMENTS


def test_blank_lines_are_counted(tmp_path: Path) -> None:
    dropped: Counter[str] = Counter()
    path = write(tmp_path / "a.txt", "\n高血压怎么办\n  \n\u3000\n\t糖尿病吃什么 \n\n")
    assert list(read_documents([path], dropped)) == DOCUMENTS
    assert dropped == {"blank": 4}


def test_dialogues_are_recognised(tmp_path: Path) -> None:
    found = list(read_documents([write(tmp_path / "a.txt", DIALOGUES)]))
    assert [document.turns for document in found] == [
        ("问一", "答一"),
        ("问二", "答二", "问三", "答三"),
        ("问四", "答四"),
    ]
    assert all(document.is_dialogue for document in found)


def test_two_dialogues_are_dialogues(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "问一\n答一\n\n问二\n答二\n")
    assert [document.turns for document in read_documents([path])] == [("问一", "答一"), ("问二", "答二")]


def test_a_dialogue_cut_by_the_probe_is_read_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "".join(f"问{n}\n答{n}\n\n" for n in range(500)))
    found = list(read_documents([path]))
    assert [document.turns for document in found] == [(f"问{n}", f"答{n}") for n in range(500)]


@pytest.mark.parametrize(
    "content", ["一\n\n二\n\n三\n\n四\n", "一\n二\n三\n四\n", "一\n二\n三\n\n四\n五\n六\n\n七\n八\n九\n"]
)
def test_documents_with_blank_lines_stay_documents(tmp_path: Path, content: str) -> None:
    found = list(read_documents([write(tmp_path / "a.txt", content)]))
    assert [document.turns for document in found] == [(text,) for text in content.split()]
    assert not any(document.is_dialogue for document in found)


def test_each_file_has_its_own_kind_and_encoding(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.txt", TEXT.encode("gb18030")), write(tmp_path / "b.txt", DIALOGUES)]
    assert [document.is_dialogue for document in read_documents(paths)] == [False, False, True, True, True]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_empty_file_gives_nothing(tmp_path: Path, content: bytes) -> None:
    assert list(read_documents([write(tmp_path / "a.txt", content)])) == []


def test_folders_globs_and_files_are_found_in_order(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    a, b, c = (write(tmp_path / name, TEXT) for name in ("a.txt", "b.txt", "deep/c.txt"))
    other = write(tmp_path / "other.md", TEXT)
    assert find_files([tmp_path]) == [a, b, c]
    assert find_files([tmp_path / "*.txt"]) == [a, b]
    assert find_files([str(tmp_path / "**" / "*.txt")]) == [a, b, c]
    assert find_files([other, str(b)]) == [other, b]


@pytest.mark.parametrize("source", ["none.txt", "*.csv", "empty"])
def test_source_without_files_is_refused(tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileFault, match="no such file") as caught:
        find_files([tmp_path / source])
    assert caught.value.path == str(tmp_path / source)


def test_file_that_vanished_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileFault, match=r"gone\.txt: cannot be read: No such file"):
        list(read_documents([tmp_path / "gone.txt"]))


def test_undecodable_file_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"\xff\x00\xff\xff\x80\x81 binary")
    with pytest.raises(FileFault, match=r"a\.txt: is neither UTF-8 nor GB18030"):
        list(read_documents([path]))


def test_bad_byte_far_into_a_file_is_refused_by_line(tmp_path: Path) -> None:
    lines = [b"line %06d\n" % number for number in range(1, 20_001)]
    lines[14_999] = b"line \xff\xff\n"
    with pytest.raises(FileFault, match=r"a\.txt: line 15000 is not utf-8$"):
        list(read_documents([write(tmp_path / "a.txt", b"".join(lines))]))


def test_utf16_cut_within_a_character_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", TEXT.encode("utf-16")[:-1])
    with pytest.raises(FileFault, match=r"a\.txt: is cut or damaged"):
        list(read_documents([path]))
