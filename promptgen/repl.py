"""`promptgen generate` at a terminal: one prompt, or a prompt after another until an empty line."""

from __future__ import annotations

import secrets
import sys
from typing import Any, get_args

from promptgen.config import GenerateSettings
from promptgen.errors import RequestError, UsageError
from promptgen.generation.local import Generator
from promptgen.generation.request import Rank, Sampling, TextRequest, Until
from promptgen.terminal import ask_line


def text_request(settings: GenerateSettings, defaults: Sampling, prompt: str) -> TextRequest:
    """What the settings ask for `prompt`; what they leave open is the model's `defaults`."""
    sampling = defaults.with_(
        seed=secrets.randbits(53) if settings.seed is None else settings.seed,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        repetition_penalty=settings.repetition_penalty,
    )
    return TextRequest(
        prompt,
        settings.samples,
        settings.maxlength,
        sampling,
        settings.stop,
        heal=settings.heal,
        distinct=settings.distinct,
        distinct_first=settings.distinct_first,
        rank=_one_of(settings.rank, Rank, "--rank"),
        min_new_tokens=settings.min_length,
        until=_one_of(settings.until, Until, "--until"),
    )


def _one_of(value: str, choices: Any, name: str) -> Any:
    if value not in get_args(choices):
        raise UsageError(f"{name}: must be {' or '.join(get_args(choices))}, is {value!r}")
    return value


def show(generator: Generator, settings: GenerateSettings, prompt: str) -> None:
    """Prints the candidates of a prompt, one a line. Raises RequestError."""
    if not prompt.strip():
        return
    for candidate in generator.generate(text_request(settings, generator.info.sampling, prompt)).candidates:
        print(prompt + candidate.completion, flush=True)


def run(generator: Generator, settings: GenerateSettings) -> int:
    """Reads prompts until an empty line or the end of input. A prompt that cannot be answered is told why, and the next is read."""
    if sys.stdin.isatty():
        print("Type the beginning of a prompt; an empty line leaves.", file=sys.stderr)
    while True:
        line = ask_line()
        if not line.strip():
            return 0
        try:
            show(generator, settings, line.rstrip("\r\n"))
        except RequestError as fault:
            print(f"promptgen: {fault}", file=sys.stderr)
        print(flush=True)
