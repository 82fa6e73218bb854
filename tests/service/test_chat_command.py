"""`promptgen chat` as a process: piped, at a terminal, its commands and files, an answer stopped by Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LEAN = ["--threads", "1", "--precision", "float32", "--seed", "3", "--max-rows", "8", "--prompt-slots", "8"]
CHAT = [sys.executable, "-m", "promptgen.cli", "chat", *LEAN]
QUESTION = "高血压要注意什么？"
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("PROMPTGEN_")} | {"LANG": "C.UTF-8"}


def chat(*arguments: object, given: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CHAT, *map(str, arguments)], input=given, capture_output=True, encoding="utf-8", env=ENVIRONMENT, timeout=100, check=False
    )  # fmt: skip


def test_piped_questions_are_answered_in_turn_and_written_down(tmp_path: Path) -> None:
    saved, transcript = tmp_path / "talks.jsonl", tmp_path / "talk.txt"
    given = f"{QUESTION}\n\n那饮食呢？\n/save {saved}\n/clear\n/save {saved}\n/nonsense\n/help\n那饮食呢？\n/quit\n失眠怎么办？\n"
    done = chat("--transcript", transcript, given=given)
    assert done.returncode == 0, done.stderr
    answers = done.stdout.splitlines()
    assert len(answers) == 3  # the last was asked after /quit
    assert answers[1] != answers[2]  # what stood before was forgotten
    (line,) = saved.read_text(encoding="utf-8").splitlines()
    said = [QUESTION, answers[0], "那饮食呢？", answers[1]]
    assert [message["content"] for message in json.loads(line)["messages"]] == said
    assert [message["role"] for message in json.loads(line)["messages"]] == ["user", "assistant"] * 2
    pairs = [(QUESTION, answers[0]), ("那饮食呢？", answers[1]), ("那饮食呢？", answers[2])]
    assert transcript.read_text(encoding="utf-8") == "".join(
        f"> {question}\n{answer}\n\n" for question, answer in pairs
    )
    assert done.stderr.count("不是医生") == 1
    assert "/nonsense is no command" in done.stderr
    assert "nothing was said yet" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_question_that_cannot_be_answered_is_told_why_and_the_next_is_read() -> None:
    done = chat(given=f"{QUESTION * 200}\n{QUESTION}\n/save /nowhere/at/all\n")
    assert done.returncode == 0
    assert "the question takes" in done.stderr
    assert "/nowhere/at/all: No such file" in done.stderr
    first, second = done.stdout.splitlines()
    assert (first, bool(second)) == ("", True)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--samples", "0"], 2, "--samples"),
        (["--temperature", "hot"], 2, "--temperature"),
        (["--model", "no-such-folder"], 3, "no-such-folder"),
        (["--transcript", "/nowhere/talk.txt"], 5, "/nowhere/talk.txt"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: list[str], code: int, said: str) -> None:
    done = chat(*arguments, given="")
    assert done.returncode == code
    (line,) = done.stderr.splitlines()
    assert said in line


class Terminal:
    """A chat at a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self.pid, self._screen = pty.fork()
        if self.pid == 0:  # pragma: no cover - the child
            os.execvpe(CHAT[0], [*CHAT, *arguments], ENVIRONMENT)
        self.seen = ""

    def write(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def wait_for(self, text: str, timeout_s: float = 60) -> None:
        """Reads on until `text` came; what came before it is forgotten."""
        end = time.monotonic() + timeout_s
        while text not in self.seen:
            assert time.monotonic() < end, f"no {text!r} in {self.seen!r}"
            if select.select([self._screen], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self._screen, 65536).decode(errors="replace")
                except OSError:  # the other end is closed
                    raise AssertionError(f"no {text!r} in {self.seen!r}") from None
        self.seen = self.seen.partition(text)[2]

    def code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_at_a_terminal_it_prompts_answers_and_leaves_at_the_end_of_input() -> None:
    terminal = Terminal()
    terminal.wait_for("不是医生")
    terminal.wait_for("/clear forgets")
    terminal.wait_for("> ")
    terminal.write(QUESTION + "\n")
    terminal.wait_for("。")
    terminal.wait_for("> ")
    terminal.write("\x04")
    assert terminal.code() == 0


def test_ctrl_c_stops_an_answer_and_leaves_where_there_is_none() -> None:
    terminal = Terminal("--samples", "64", "--temperature", "2", "--max-new-tokens", "200", "--max-rows", "1")
    terminal.wait_for("> ")
    terminal.write(QUESTION + "\n")
    terminal.wait_for("\n")
    time.sleep(0.2)  # the line that was typed is read, and one row takes longer than that for 64 answers
    os.kill(terminal.pid, signal.SIGINT)
    terminal.wait_for("(stopped)")
    terminal.wait_for("> ")
    os.kill(terminal.pid, signal.SIGINT)
    assert terminal.code() == 130
