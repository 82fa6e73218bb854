"""`promptgen chat`: questions and answers at a terminal, or piped through. Answers go to stdout, everything else to stderr.

    /clear       forgets what was said
    /save FILE   adds the talk to FILE, a line of JSON that promptgen prepare reads
    /help        says this
    /quit        leaves, as the end of the input does

Ctrl-C stops an answer, and leaves where nothing is being answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from promptgen.config import ChatSettings
from promptgen.errors import RequestError
from promptgen.generation.async_engine import AsyncEngine
from promptgen.generation.dialogue import ASSISTANT, USER, Message
from promptgen.generation.reply import MILD, Reply, ReplyOptions, reply
from promptgen.terminal import ask_line

NOTICE = (
    "This is a small language model, and no doctor: it gets things wrong. Ask a doctor before you act on what it says.\n"
    "这是一个小语言模型，不是医生，会说错。照做之前，请先问医生。"
)
_COMMANDS = "/clear forgets what was said · /save FILE keeps it · /help · /quit"


class Talk:
    """One talk with one model: what was said, and what comes next."""

    def __init__(self, engine: AsyncEngine, options: ReplyOptions, transcript: TextIO | None) -> None:
        self._engine, self._options, self._transcript = engine, options, transcript
        self.messages: list[Message] = []

    async def ask(self, question: str) -> None:
        """Prints the answer as it comes. A question that was not answered to the end is not remembered. Raises RequestError."""
        asked = [*self.messages, Message(USER, question)]
        seed = (self._options.sampling.seed + len(self.messages)) % 2**63
        options = replace(self._options, sampling=replace(self._options.sampling, seed=seed))
        async with contextlib.aclosing(reply(self._engine, asked, options)) as parts:
            async for part in parts:
                if isinstance(part, Reply):
                    self.messages = [*asked, Message(ASSISTANT, part.text)]
                    self._write_down(question, part.text)
                else:
                    print(part, end="", flush=True)

    def clear(self) -> None:
        self.messages = []

    def save(self, path: Path) -> None:
        """Raises OSError."""
        said = [{"role": message.role, "content": message.content} for message in self.messages]
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps({"messages": said}, ensure_ascii=False) + "\n")

    def _write_down(self, question: str, answer: str) -> None:
        if self._transcript is not None:
            self._transcript.write(f"> {question}\n{answer}\n\n")
            self._transcript.flush()


def run(settings: ChatSettings) -> int:
    """Reads questions until the input ends. One that cannot be answered is told why, and the next is read."""
    with contextlib.ExitStack() as stack:
        transcript = None
        if settings.transcript is not None:
            transcript = stack.enter_context(settings.transcript.open("a", encoding="utf-8", newline="\n"))
        runner = stack.enter_context(asyncio.Runner())
        engine = AsyncEngine(settings)
        runner.run(engine.start())
        stack.callback(lambda: runner.run(engine.stop()))
        talk = Talk(engine, _options(settings), transcript)
        _tell(NOTICE)
        if sys.stdin.isatty():
            _tell(_COMMANDS)
        while (line := _next_line()) is not None:
            _take(line, talk, runner)
    return 0


def _next_line() -> str | None:
    line = ask_line()
    return None if not line or line.strip() in ("/quit", "/exit") else line.strip()


def _take(line: str, talk: Talk, runner: asyncio.Runner) -> None:
    if line.startswith("/"):
        _obey(line, talk)
    elif line:
        try:
            runner.run(talk.ask(line))
        except RequestError as fault:
            _tell(f"promptgen: {fault}")
        except KeyboardInterrupt:
            _tell(" (stopped)")
        print(flush=True)


def _obey(line: str, talk: Talk) -> None:
    command, _, rest = line.partition(" ")
    simple: Mapping[str, Callable[[], None]] = {"/clear": talk.clear, "/help": lambda: _tell(_COMMANDS)}
    if command == "/save":
        _save(rest.strip(), talk)
    elif command in simple:
        simple[command]()
    else:
        _tell(f"{command} is no command. {_COMMANDS}")


def _save(name: str, talk: Talk) -> None:
    if not name or not talk.messages:
        _tell("/save FILE adds what was said to FILE" if not name else "nothing was said yet")
        return
    try:
        talk.save(Path(name).expanduser())
    except OSError as fault:
        _tell(f"promptgen: {name}: {fault.strerror or fault}")
    else:
        _tell(f"saved to {name}")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _options(settings: ChatSettings) -> ReplyOptions:
    seed = secrets.randbits(53) if settings.seed is None else settings.seed
    sampling = MILD.with_(seed=seed, temperature=settings.temperature)
    return ReplyOptions(settings.samples, settings.max_new_tokens, sampling)
