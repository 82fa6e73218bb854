"""Every shape of a corpus gives its documents; what is left out is counted with its place; refusals say what was expected."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from promptgen.errors import FileFault
from promptgen.training import corpus, jsonfiles, reading
from promptgen.training.corpus import Document, Dropped, FileReport, Kind, find_files, read_documents
from promptgen.training.records import SHAPES

TEXT = "高血压怎么办\n糖尿病吃什么\n"
DOCUMENTS = [Document(("高血压怎么办",), is_dialogue=False), Document(("糖尿病吃什么",), is_dialogue=False)]
DIALOGUES = "问一\n答一\n\n问二\n答二\n问三\n答三\n\n\n问四\n答四\n"


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(*items: object) -> str:
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


def read(path: Path) -> tuple[list[tuple[str, ...]], Dropped]:
    dropped = Dropped()
    return [document.turns for document in read_documents([path], dropped)], dropped


def test_blank_lines_are_counted(tmp_path: Path) -> None:
    dropped = Dropped()
    path = write(tmp_path / "a.txt", "\n高血压怎么办\n  \n\u3000\n\t糖尿病吃什么 \n\n")
    documents = list(read_documents([path], dropped))
    assert documents == DOCUMENTS
    assert [document.number for document in documents] == [2, 5]
    assert dropped.counts() == {"blank": 4}
    assert dropped.examples() == {"blank": {path.as_posix(): [1, 3, 4, 6]}}


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_dialogues_are_recognised(tmp_path: Path, line_end: str) -> None:
    found = list(read_documents([write(tmp_path / "a.txt", DIALOGUES.replace("\n", line_end))]))
    assert [(document.turns, document.number) for document in found] == [
        (("问一", "答一"), 1),
        (("问二", "答二", "问三", "答三"), 4),
        (("问四", "答四"), 10),
    ]
    assert all(document.is_dialogue for document in found)


def test_a_dialogue_cut_by_the_probe_is_read_whole(tmp_path: Path) -> None:
    wanted = [(f"问{n}" + "长" * 99, f"答{n}") for n in range(1000)]
    path = write(tmp_path / "a.txt", "\n".join(f"{question}\n{answer}\n" for question, answer in wanted))
    assert read(path)[0] == wanted


@pytest.mark.parametrize(
    "content", ["一\n\n二\n\n三\n\n四\n", "一\n二\n三\n四\n", "一\n二\n三\n\n四\n五\n六\n\n七\n八\n九\n"]
)
def test_documents_with_blank_lines_stay_documents(tmp_path: Path, content: str) -> None:
    found = list(read_documents([write(tmp_path / "a.txt", content)]))
    assert [document.turns for document in found] == [(text,) for text in content.split()]
    assert not any(document.is_dialogue for document in found)


def test_a_dialogue_without_end_takes_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "MAX_LINE_CHARACTERS", 20)
    path = write(tmp_path / "a.txt", "问\n答\n\n问\n答\n\n" + "问一二三\n答一二三\n" * 6)
    found, dropped = read(path)
    assert [len(turns) for turns in found] == [2, 2, 6, 6]
    assert dropped.examples() == {"too long": {path.as_posix(): [13]}}


@pytest.mark.parametrize(("damaged", "reason"), [(b"\xe7\xad\x94\xff", "undecodable"), ("答".encode() * 9, "too long")])
def test_a_line_left_out_of_a_dialogue_changes_nobodys_turn(
    tmp_path: Path, damaged: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_LINE_CHARACTERS", 8)
    text = "问一\n答一\n\n问二\n答二\n问三\n?\n问四\n答四\n\n问五\n答五\n\n?\n答六\n\n问七\n答七\n\n问八\n答八\n问九\n?"
    path = write(tmp_path / "a.txt", text.encode().replace(b"?", damaged))
    found, dropped = read(path)
    assert found == [("问一", "答一"), ("问二", "答二"), ("问五", "答五"), ("问七", "答七"), ("问八", "答八")]
    name = path.as_posix()
    assert dropped.examples() == {reason: {name: [7, 14, 23]}, "dialogue with a gap": {name: [6, 8, 9, 15, 22]}}


def test_each_file_has_its_own_kind_and_encoding(tmp_path: Path) -> None:
    mixed = {
        "a.txt": TEXT.encode("gbk"),
        "b.txt": DIALOGUES.replace("\n", "\r\n").encode("utf-16"),
        "c.jsonl": b"\xef\xbb\xbf" + jsonl({"text": "三高"}).encode(),
        "d.jsonl.gz": gzip.compress(jsonl({"question": "问", "answer": "答"}).encode("utf-16-be")),
        "e.json": '["一", {"text": "二"}]'.encode("gb18030"),
        "f.txt.gz": gzip.compress("高血压\n".encode("utf-16-le")),
        "g.txt": gzip.compress(TEXT.encode()),
        "h.json": jsonl({"text": "一行一个"}).encode(),
    }
    for name, content in mixed.items():
        write(tmp_path / name, content)
    reports: list[FileReport] = []
    documents = list(read_documents(find_files([tmp_path]), reports=reports))
    assert [(report.path.name, report.encoding, report.kind, report.num_documents) for report in reports] == [
        ("a.txt", "gb18030", Kind.DOCUMENTS, 2),
        ("b.txt", "utf-16-le", Kind.DIALOGUES, 3),
        ("c.jsonl", "utf-8", Kind.JSONL, 1),
        ("d.jsonl.gz", "utf-16-be", Kind.JSONL, 1),
        ("e.json", "gb18030", Kind.JSON, 2),
        ("f.txt.gz", "utf-16-le", Kind.DOCUMENTS, 1),
        ("g.txt", "utf-8", Kind.DOCUMENTS, 2),
        ("h.json", "utf-8", Kind.JSONL, 1),
    ]
    assert [document.turns for document in documents][5:9] == [("三高",), ("问", "答"), ("一",), ("二",)]
    assert documents[-1].turns == ("一行一个",)
    assert [report.num_bytes for report in reports] == [len(content) for content in mixed.values()]


USABLE: list[tuple[Any, tuple[str, ...], bool]] = [
    ({"text": " 高血压 ", "id": 7}, ("高血压",), False),
    ({"prompt": "高血压", "completion": "要注意"}, ("高血压要注意",), False),
    ({"prompt": "high", "completion": " blood pressure"}, ("high blood pressure",), False),
    ({"question": "问", "answer": "答"}, ("问", "答"), True),
    ("高血压", ("高血压",), False),
    (
        {"messages": [{"role": r, "content": c} for r, c in (("user", "问"), ("assistant", "答"), ("user", "再问"))]},
        ("问", "答", "再问"),
        True,
    ),
]
UNUSABLE: list[tuple[Any, str]] = [
    ({"instruction": "x", "output": "y"}, "unknown fields"),
    ({"prompt": "x"}, "unknown fields"),
    ({}, "unknown fields"),
    (7, "neither text nor object"),
    (None, "neither text nor object"),
    (["a"], "neither text nor object"),
    ({"text": 7}, "no text"),
    ({"text": " \n"}, "no text"),
    ({"prompt": "x", "completion": None}, "no text"),
    ({"question": "x", "answer": ""}, "no text"),
    ({"messages": "x"}, "no text"),
    ({"messages": []}, "no text"),
    ({"messages": ["x"]}, "no text"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "no text"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "roles other than user, assistant in turn"),
    ({"messages": [{"role": "user", "content": "x"}] * 2}, "roles other than user, assistant in turn"),
    ({"messages": [{"content": "x"}]}, "roles other than user, assistant in turn"),
    ({"text": "\ud83d"}, "half a character"),
]


@pytest.mark.parametrize("is_list", [False, True])
def test_every_shape_of_an_object(tmp_path: Path, is_list: bool) -> None:
    items = [item for item, _, _ in USABLE]
    path = (
        write(tmp_path / "a.json", json.dumps(items, indent=2))
        if is_list
        else write(tmp_path / "a.jsonl", jsonl(*items))
    )
    dropped = Dropped()
    assert [(d.turns, d.is_dialogue, d.number) for d in read_documents([path], dropped)] == [
        (turns, is_dialogue, number) for number, (_, turns, is_dialogue) in enumerate(USABLE, 1)
    ]
    assert not dropped.counts()


@pytest.mark.parametrize("is_list", [False, True])
@pytest.mark.parametrize(("item", "reason"), UNUSABLE)
def test_an_item_of_no_use_is_counted(tmp_path: Path, item: Any, reason: str, is_list: bool) -> None:
    items = ["一", item, "三"]
    path = tmp_path / ("a.json" if is_list else "a.jsonl")
    write(path, json.dumps(items) if is_list else "".join(json.dumps(each) + "\n" for each in items))
    found, dropped = read(path)
    assert found == [("一",), ("三",)]
    assert dropped.examples() == {reason: {path.as_posix(): [2]}}


def test_system_messages_are_left_out_and_counted(tmp_path: Path) -> None:
    chat = [("system", "你是医生"), ("user", "问"), ("assistant", "答"), ("developer", "短些"), ("user", "问")]
    path = write(tmp_path / "a.jsonl", jsonl({"messages": [{"role": r, "content": c} for r, c in chat]}))
    found, dropped = read(path)
    assert found == [("问", "答", "问")]
    assert dropped.counts() == {"system message": 2}


def test_damaged_lines_of_jsonl_are_counted(tmp_path: Path) -> None:
    lines = [b'{"text": "one"}', b"{", b"", b'{"text": "\xff"}', b"[" * 100_000, b'{"text": "six"}', b'{"text": "s']
    found, dropped = read(write(tmp_path / "a.jsonl", b"\n".join(lines)))
    assert found == [("one",), ("six",)]
    assert {reason: numbers for reason, files in dropped.examples().items() for numbers in files.values()} == {
        "not JSON": [2, 5, 7],
        "blank": [3],
        "undecodable": [4],
    }


@pytest.mark.parametrize(
    ("content", "found", "dropped"),
    [
        (b'["one", "two", {"text": "thr', ["one", "two"], {"not JSON, nor what follows": [3]}),
        (b'["one" "two"]', ["one"], {"not JSON, nor what follows": [2]}),
        (b'["one"', ["one"], {"not JSON, nor what follows": [2]}),
        (b'["one",\n "\xff",\n "three"]', ["one", "three"], {"undecodable": [2]}),
        (b'["one"] ["two"]', ["one"], {"text after the list": [2]}),
        (b' [ "one" , "two" ] \n', ["one", "two"], {}),
    ],
)
def test_damaged_lists_give_what_stands_before(
    tmp_path: Path, content: bytes, found: list[str], dropped: dict[str, list[int]]
) -> None:
    path = write(tmp_path / "a.json", content)
    documents, noted = read(path)
    assert documents == [(text,) for text in found]
    assert noted.examples() == {reason: {path.as_posix(): numbers} for reason, numbers in dropped.items()}


def test_a_list_cut_in_its_gzip(tmp_path: Path) -> None:
    packed = gzip.compress(json.dumps([f"第{n}条" for n in range(3000)]).encode())
    found, dropped = read(write(tmp_path / "a.json.gz", packed[: len(packed) // 2]))
    assert 1000 < len(found) < 2000
    assert found == [(f"第{n}条",) for n in range(len(found))]
    assert dropped.counts() == {"cut": 1, "not JSON, nor what follows": 1}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_long_texts_of_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(jsonfiles, "MAX_LINE_CHARACTERS", 500_000)
    items = [{"text": "x" * 600_000}, {"question": "x" * 600_000, "answer": "y"}]
    path = write(tmp_path / name, json.dumps(items) if name == "a.json" else jsonl(*items))
    found, dropped = read(path)
    assert "".join(text for turns in found for text in turns) == "x" * 600_000
    assert dropped.examples() == {"too long": {path.as_posix(): [1, 2]}}


def test_a_list_too_big_to_read_whole_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonfiles, "MAX_LIST_BYTES", 1 << 20)
    path = write(tmp_path / "a.json", json.dumps(["x" * 1000] * 1100))
    with pytest.raises(FileFault, match=r"is a JSON list of over 1 MiB, .* jq -c '\.\[\]' a\.json > corpus\.jsonl$"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        (
            "a.jsonl",
            "hello\nworld\n",
            f"nothing in it can be used; expected on each line {SHAPES}. Left out: 2 not JSON (PATH: 1, 2)",
        ),
        (
            "a.json",
            '{"data": [\n]}',
            f"nothing in it can be used; expected a list of strings or of objects, each {SHAPES}. "
            "Left out: 1 not a list (PATH: 1)",
        ),
        (
            "a.json",
            "[1, 2, 3, 4, 5, 6, 7]",
            f"nothing in it can be used; expected a list of strings or of objects, each {SHAPES}. "
            "Left out: 7 neither text nor object (PATH: 1, 2, 3, 4, 5, ...)",
        ),
        (
            "a.txt",
            gzip.compress("高血压".encode() * 99, mtime=0)[:-9],  # a time in it would name the test anew each second
            "nothing in it can be used; expected text with a document a line. Left out: 1 cut (PATH: 1)",
        ),
        (
            "a.txt",
            b"\xff\x00\xff\xff\x80\x81 binary",
            "is neither UTF-8, UTF-16 nor GB18030; convert it, for example with iconv -t UTF-8",
        ),
    ],
)
def test_a_file_of_no_use_is_refused(tmp_path: Path, name: str, content: bytes | str, fault: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(FileFault) as caught:
        read(path)
    assert str(caught.value) == f"{path}: {fault.replace('PATH', str(path))}"


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_empty_file_gives_nothing(tmp_path: Path, content: bytes, name: str) -> None:
    assert read(write(tmp_path / name, content))[0] == []


def test_files_of_other_names_are_what_they_look_like(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a", jsonl({"text": "一"})))[0] == [("一",)]
    assert read(write(tmp_path / "b.md", TEXT))[0] == [document.turns for document in DOCUMENTS]
    # A *.txt is text, whatever stands in it.
    assert read(write(tmp_path / "c.txt", '{"text": "x"}\n'))[0] == [('{"text": "x"}',)]


def test_folders_globs_and_files_are_found_in_order(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    names = ("a.txt", "b.JSONL", "deep/c.txt.gz", "deep/d.json")
    a, b, c, d = (write(tmp_path / name, TEXT) for name in names)
    other = write(tmp_path / "other.md", TEXT)
    write(tmp_path / "deep" / "meta.json", '{"totals": {}}')
    assert find_files([tmp_path]) == [a, b, c, d]
    assert find_files([tmp_path / "*.txt"]) == [a]
    assert find_files([str(tmp_path / "**" / "*.txt*")]) == [a, c]
    assert find_files([str(tmp_path / "d*")]) == [c, d]
    assert find_files([other, str(b), tmp_path, str(b)]) == [other, b, a, c, d]
    (tmp_path / "model").mkdir()
    for name in ("config.json", "eval.json", "metrics.jsonl", "tokenizer.json"):
        write(tmp_path / "model" / name, '{"text": "not of the corpus"}')
    write(tmp_path / "model" / "vocab.txt", "[SEP]\n[CLS]\n[MASK]\n[PAD]\n[UNK]\n，\n")
    assert find_files([tmp_path]) == [a, b, c, d]
    words, tokens = write(tmp_path / "deep" / "vocab.txt", TEXT), write(tmp_path / "deep" / "tokenizer.json", "[]")
    assert find_files([tmp_path / "deep"]) == [c, d, tokens, words]  # these only have the names


def test_a_meta_json_and_a_manifest_are_left_out_only_if_they_are_ours(tmp_path: Path) -> None:
    for name in (
        "ours",
        "theirs",
        "list",
        "checkpoints/step-00000012",
        "checkpoints/.partial-00000014",
        "other/step-1",
    ):
        (tmp_path / name).mkdir(parents=True)
    write(tmp_path / "ours" / "meta.json", '{"format": "promptgen-data-1"}')
    theirs = [
        write(tmp_path / "list" / "meta.json", '["高血压"]'),
        write(tmp_path / "other" / "step-1" / "state.json", '["高血压"]'),
        write(tmp_path / "theirs" / "meta.json", '{"text": "高血压"}'),
    ]
    for name in ("manifest.json", "state.json"):
        write(tmp_path / "checkpoints" / "step-00000012" / name, '{"step": 12}')
    write(tmp_path / "checkpoints" / ".partial-00000014" / "state.json", '{"step": 14}')
    assert find_files([tmp_path]) == theirs


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders here")
def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    for source in (tmp_path / "pipe.txt", tmp_path / "p*.txt", Path(os.devnull)):
        with pytest.raises(
            FileFault, match="is a pipe or a device and is read more than once; write it to a file first"
        ):
            find_files([source])


@pytest.mark.parametrize("source", ["none.txt", "*.csv", "empty"])
def test_source_without_files_is_refused(tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileFault) as caught:
        find_files([tmp_path / source])
    assert str(caught.value) == (
        f"{tmp_path / source}: no such file, or a folder without *.txt, *.json or *.jsonl files (or *.gz of these)"
    )


def test_dropped_keeps_twenty_places_a_file_and_shows_a_few() -> None:
    dropped = Dropped()
    assert dropped.summary() == "nothing"
    for name, count in (("a.txt", 30), ("b.txt", 2), ("c.txt", 1), ("d.txt", 1)):
        for number in range(1, count + 1):
            dropped.add("duplicate", Path(name), number)
    dropped.add("not JSON", Path("a.txt"), 9)
    assert dropped.counts() == {"duplicate": 34, "not JSON": 1}
    assert dropped.examples()["duplicate"]["a.txt"] == list(range(1, 21))
    assert dropped.summary() == (
        "34 duplicate (a.txt: 1, 2, 3, 4, 5, ...; b.txt: 1, 2; c.txt: 1; ...); 1 not JSON (a.txt: 9)"
    )
    assert dropped.of(Path("a.txt")).summary() == "30 duplicate (a.txt: 1, 2, 3, 4, 5, ...); 1 not JSON (a.txt: 9)"
