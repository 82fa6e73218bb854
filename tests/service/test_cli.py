"""The command line as its users meet it: real processes, their exit codes, what they print and where."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from promptgen.config import DEFAULT_MODEL

ROOT = Path(__file__).resolve().parents[2]
CLI = [sys.executable, "-m", "promptgen.cli"]
COMMANDS = ["serve", "generate", "chat", "expand", "vocab", "prepare", "train", "validate"]
TOPICS = ["高血压", "糖尿病", "失眠", "春天", "英语", "红烧肉", "北京", "hello world", "Python", "2026年"]
PATTERNS = [
    "{}要注意什么？",
    "请介绍一下{}。",
    "为什么{}很重要？",
    "写一篇关于{}的短文。",
    "How does {} work?",
    "{}的三个好处",
]
TINY = [
    "--shape",
    "1x32x2",
    "--window",
    "64",
    "--row-length",
    "32",
    "--rows-per-step",
    "4",
    "--epochs",
    "2",
]


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PROMPTGEN_", "LC_", "PYTHONIOENCODING"))}
    return kept | {"LANG": "C.UTF-8", **more}


def promptgen(
    *arguments: object, given: str | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, *map(str, arguments)],
        input=given,
        stdin=subprocess.DEVNULL if given is None else None,
        capture_output=True,
        encoding="utf-8",
        env=env or environment(),
        timeout=100,
        check=False,
    )


def the_only_line(text: str) -> str:
    (line,) = text.splitlines()
    return line


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("".join(p.format(t) + "\n" for t in TOPICS for p in PATTERNS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(corpus: Path) -> Path:
    """A folder with vocab/, data/ and model/, made by the four commands."""
    folder = corpus.parent
    for arguments in (
        ["vocab", corpus, "--out", folder / "vocab", "--size", 5000],
        ["prepare", corpus, "--vocab", folder / "vocab", "--out", folder / "data", "--valid", 0.2],
        ["train", folder / "data", "--out", folder / "model", *TINY],
    ):
        done = promptgen(*arguments)
        assert done.returncode == 0, done.stderr
    return folder


def test_one_shot_prints_continuations_and_the_same_seed_the_same_ones() -> None:
    first, again = (
        promptgen("generate", "高血压要注意", "-n", 3, "--maxlength", 12, "--seed", 7, "--precision", "float32")
        for _ in range(2)
    )
    lines = first.stdout.removesuffix("\n").split("\n高血压要注意")
    assert (first.returncode, first.stderr) == (0, "")
    assert len(lines) == 3
    assert first.stdout.startswith("高血压要注意")
    assert first.stdout == again.stdout


def test_the_repl_answers_line_by_line_and_says_why_it_cannot() -> None:
    given = "失眠\n" + "长" * 300 + "\nhello\r\n\nnever read\n"
    done = promptgen("generate", "-n", 2, "--maxlength", 1, "--seed", 1, "--no-distinct", given=given)
    assert done.returncode == 0
    lines = [line for line in done.stdout.splitlines() if line]
    assert [next((p for p in ("失眠", "hello") if line.startswith(p)), line) for line in lines] == ["失眠"] * 2 + [
        "hello"
    ] * 2
    assert "shorten the context" in the_only_line(done.stderr)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_ends_with_an_example(command: str) -> None:
    done = promptgen(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"promptgen {command} " in done.stdout.split("example", 1)[1]


@pytest.mark.parametrize(
    ("arguments", "variables", "named"),
    [
        (["--maxlength", "many"], {}, "--maxlength"),
        (["--temperature", "warm"], {}, "--temperature"),
        ([], {"PROMPTGEN_TOP_K": "all"}, "PROMPTGEN_TOP_K"),
        (["--input", "x.txt"], {}, "--output"),
        (["-n", "0"], {}, "--samples"),
        (["--maxlength", "0"], {}, "--maxlength"),
        (["--temperature", "-1"], {}, "--temperature"),
        (["--top-p", "2"], {}, "--top-p"),
    ],
)
def test_a_wrong_value_is_refused_by_name(arguments: list[str], variables: dict[str, str], named: str) -> None:
    done = promptgen("generate", "高血压", *arguments, env=environment(**variables))
    assert (done.returncode, done.stdout) == (2, "")
    assert named in the_only_line(done.stderr)


def test_a_prompt_that_does_not_fit_the_window_is_a_usage_error() -> None:
    done = promptgen("generate", "高血压", "--maxlength", 100_000)
    assert (done.returncode, done.stdout) == (2, "")
    assert "maxlength" in the_only_line(done.stderr)


def test_an_unknown_command_exits_2() -> None:
    done = promptgen("sing")
    assert (done.returncode, done.stdout) == (2, "")
    assert "sing" in done.stderr


def test_a_missing_model_exits_3_with_one_line(tmp_path: Path) -> None:
    done = promptgen("generate", "高血压", "--model", tmp_path / "nowhere")
    assert (done.returncode, done.stdout) == (3, "")
    assert "nowhere" in the_only_line(done.stderr)


def test_a_reader_that_leaves_causes_no_traceback() -> None:
    command = f"{sys.executable} -m promptgen.cli generate 高血压 -n 60 --maxlength 3 --top-k 1 | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        encoding="utf-8",
        env=environment(),
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert the_only_line(done.stdout).startswith("高血压")


def test_sixty_lines_become_a_model_that_answers(trained: Path) -> None:
    assert {"config.json", "model.safetensors", "vocab.txt", "eval.json", "metrics.jsonl"} <= {
        path.name for path in (trained / "model").iterdir()
    }
    report = json.loads((trained / "model" / "eval.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert report["held_out"]["documents"] + report["corpus"]["train_documents"] == 60
    assert report["training"]["layers"] == 1
    done = promptgen("generate", "hello", "--model", trained / "model", "-n", 2, "--maxlength", 20, "--seed", 1)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("hello") >= 2


def test_validate_measures_what_train_measured(trained: Path) -> None:
    before = json.loads((trained / "model" / "eval.json").read_text(encoding="utf-8"))
    done = promptgen("validate", trained / "model", trained / "data")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["held_out"]
    assert figures["documents"] == before["held_out"]["documents"] > 0
    assert figures["loss_per_token"] == pytest.approx(before["held_out"]["loss_per_token"], abs=0.01)


def test_validate_takes_documents_longer_than_the_window(trained: Path, corpus: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.txt"
    long.write_text("失眠要注意春天的北京，" * 10 + "\n", encoding="utf-8")
    data = tmp_path / "data"
    vocabulary = trained / "vocab"
    prepared = promptgen("prepare", corpus, "--valid-corpus", long, "--vocab", vocabulary, "--out", data)
    assert prepared.returncode == 0, prepared.stderr
    done = promptgen("validate", trained / "model", data)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["held_out"]["documents"] == 1


@pytest.mark.parametrize("content", [b"", b"\n \n\n", b"\xff\xff\xff\xff", None])
def test_a_corpus_without_text_is_refused(content: bytes | None, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    if content is not None:
        corpus.write_bytes(content)
    commands = [["prepare", corpus, "--vocab", DEFAULT_MODEL], *([["vocab", corpus]] if content is None else [])]
    for arguments in commands:  # both read by the same function
        done = promptgen(*arguments, "--out", tmp_path / "out")
        assert (done.returncode, done.stdout) == (3, "")
        assert "Traceback" not in done.stderr
        last = the_only_line(done.stderr)
        assert last.startswith("promptgen: ")
        assert str(tmp_path) in last or "corpus" in last


@pytest.mark.parametrize("vocabulary", ["nowhere", "broken"])
def test_a_missing_or_broken_vocabulary_is_refused(vocabulary: str, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "vocab.txt").write_text("[PAD]\n[PAD]\n", encoding="utf-8")
    done = promptgen("prepare", corpus, "--vocab", tmp_path / vocabulary, "--out", tmp_path / "data")
    assert (done.returncode, done.stdout) == (3, "")
    assert vocabulary in the_only_line(done.stderr)
    assert not (tmp_path / "data").exists()


def test_train_refuses_a_folder_that_prepare_did_not_write(tmp_path: Path) -> None:
    done = promptgen("train", tmp_path, "--out", tmp_path / "model", *TINY)
    assert (done.returncode, done.stdout) == (3, "")
    assert str(tmp_path) in the_only_line(done.stderr)


def test_the_faults_of_corpus_tables_are_told(tmp_path: Path) -> None:
    """Of all tables: `make check`, and tests/unit/test_expand.py."""
    shutil.copy(ROOT / "data" / "corpus.toml", tmp_path)
    shutil.copytree(ROOT / "data" / "pets", tmp_path / "pets")
    done = promptgen("expand", tmp_path, "--check")
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["0 faults"]), done.stdout
    table = tmp_path / "pets" / "pets.toml"
    table.write_text(table.read_text(encoding="utf-8") + "\n[[broken", encoding="utf-8")
    assert promptgen("expand", tmp_path, "--check").returncode != 0


@pytest.mark.parametrize("kind", ["word", "bpe"])  # char differs from word in its vocabulary alone
def test_fit_makes_a_model_that_answers_from_sixty_lines(kind: str, corpus: Path, tmp_path: Path) -> None:
    done = promptgen("fit", corpus, "--out", tmp_path / "mine", "--budget", "4s", "--kind", kind)
    assert done.returncode == 0, done.stderr
    for told in ("held out 0.1: one in ten", "vocabulary ", "shape 2x64x2: ", "window 128: ", "steps in the budget"):
        assert told in done.stderr
    figures = json.loads(done.stdout)
    assert figures["held_out"]["loss_per_token"] > 0
    assert 0 <= figures["typing"]["model"]["keystrokes_saved"] < 1
    card = (tmp_path / "mine" / "README.md").read_text(encoding="utf-8")
    assert "keystrokes saved" in card
    assert (tmp_path / "mine" / "typing.png").read_bytes().startswith(b"\x89PNG")
    answer = promptgen("generate", "失眠", "--model", tmp_path / "mine", "-n", 2, "--maxlength", 20, "--seed", 1)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.count("失眠") >= 2
    assert "\ufffd" not in answer.stdout
    data = {path: path.read_bytes() for path in (tmp_path / "mine" / "data").rglob("*") if path.is_file()}
    (tmp_path / "other.txt").write_text("春天来了\n" * 3, encoding="utf-8")
    again = promptgen("fit", tmp_path / "other.txt", "--out", tmp_path / "mine")
    assert (again.returncode, "holds a model already" in again.stderr) == (2, True)
    assert all(path.read_bytes() == content for path, content in data.items())


def test_fit_trains_on_a_single_line_and_says_that_nothing_is_measured(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("高血压要注意什么？", encoding="utf-8")
    done = promptgen("fit", tmp_path / "one.txt", "--out", tmp_path / "mine", "--budget", "8s")
    assert done.returncode == 0, done.stderr
    assert "1 documents are too few to spare any; nothing will be measured" in done.stderr
    assert json.loads(done.stdout)["held_out"]["loss_per_token"] is None
    answer = promptgen("generate", "高血压", "--model", tmp_path / "mine", "-n", 1, "--temperature", 0)
    assert answer.stdout.strip() == "高血压要注意什么？"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--budget", "30"], "--budget is a time such as 90s, 30m or 1.5h; it is '30'"),
        (["--size", "10"], "--size 10 cannot hold the"),
    ],
)
def test_fit_refuses_what_it_cannot_do(arguments: list[str], told: str, corpus: Path, tmp_path: Path) -> None:
    done = promptgen("fit", corpus, "--out", tmp_path / "mine", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--shape", "4x256"], "--shape is auto, or layers x width x heads such as 4x256x4; it is '4x256'"),
        (["--epochs", "0"], "--epochs must be a number over 0, is 0.0"),
        (["--epochs", "nan"], "--epochs must be a number over 0, is nan"),
        (["--dropout", "1"], "--dropout is a share from 0 to 1, is 1.0"),
        (["--optimizer", "sgd"], "--optimizer is one of muon, adamw, is 'sgd'"),
        (["--budget", "soon"], "--budget is a time such as"),
    ],
)
def test_train_refuses_settings_that_cannot_be(arguments: list[str], told: str, trained: Path, tmp_path: Path) -> None:
    done = promptgen("train", trained / "data", "--out", tmp_path / "model", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in the_only_line(done.stderr)
    assert not (tmp_path / "model").exists()
