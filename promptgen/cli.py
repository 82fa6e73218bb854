"""The command line: `promptgen COMMAND`. Each command is a few lines over the package.

Exit codes: 0 ok, 2 usage or port in use, 3 a model, vocabulary, config or corpus file is unusable, 4 training diverged,
5 disk, 70 internal, 130 and 143 on signals. Answers go to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence

import promptgen
from promptgen.config import ChatSettings, GenerateSettings, ServeSettings, add_options, read_settings
from promptgen.errors import DiskFault, PromptgenError, UsageError
from promptgen.training.commands import add_commands as add_training_commands
from promptgen.training.expand import add_arguments as add_expand_arguments
from promptgen.training.expand import run as run_expand

Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a console that lacks a character shows another, and never a traceback
            stream.reconfigure(errors="replace")
    parser = _parser()
    arguments = parser.parse_args(argv)
    command: Command = arguments.command
    try:
        return command(arguments)
    except PromptgenError as fault:
        print(f"promptgen: {fault}", file=sys.stderr)
        return fault.exit_code
    except BrokenPipeError:
        # The reader left (| head); nothing is left to say, not even at shutdown.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except OSError as fault:
        print(f"promptgen: {fault.filename or 'disk'}: {fault.strerror or fault}", file=sys.stderr)
        return DiskFault.exit_code
    except Exception:
        traceback.print_exc()
        print("promptgen: this is a fault of promptgen itself; please report it with the lines above", file=sys.stderr)
        return PromptgenError.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="promptgen", description="several ways a prompt could go on, from a small GPT-2 of your own"
    )
    parser.add_argument("--version", action="version", version=promptgen.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="start the HTTP service", epilog="example: promptgen serve --port 5005")
    add_options(serve, ServeSettings)
    serve.set_defaults(command=_serve)

    generate = commands.add_parser(
        "generate",
        help="continue prompts",
        epilog='examples: promptgen generate "高血压要注意" -n 5 | promptgen generate --input prompts.txt --output out.jsonl',
    )
    add_options(generate, GenerateSettings)
    generate.set_defaults(command=_generate)

    chat = commands.add_parser(
        "chat",
        help="ask questions, with a memory",
        epilog='examples: promptgen chat | echo "高血压要注意什么？" | promptgen chat --transcript talk.txt',
    )
    add_options(chat, ChatSettings)
    chat.set_defaults(command=_chat)

    expand = commands.add_parser(
        "expand",
        help="turn tables and sentence patterns into a corpus",
        epilog="example: promptgen expand data --out build/corpus",
    )
    add_expand_arguments(expand)
    expand.set_defaults(command=run_expand)

    add_training_commands(commands)
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a reload that comes too early must not end it
    from promptgen.server.lifecycle import serve
    from promptgen.server.logs import start_logging

    settings = read_settings(ServeSettings, vars(arguments), os.environ)
    start_logging(as_json=settings.log_json)
    return asyncio.run(serve(settings))


def _generate(arguments: argparse.Namespace) -> int:
    settings = read_settings(GenerateSettings, vars(arguments), os.environ)
    if (settings.input is None) != (settings.output is None):
        raise UsageError("--input and --output go together")
    from promptgen import batch, repl
    from promptgen.generation.local import Generator

    is_one_shot = settings.prompt is not None and settings.input is None  # over before a compiler would be
    generator = Generator(settings, upgrade_later=not is_one_shot)
    if settings.input is not None and settings.output is not None:
        return batch.run(generator, settings, settings.input, settings.output)
    if settings.prompt is None:
        return repl.run(generator, settings)
    repl.show(generator, settings, settings.prompt)
    return 0


def _chat(arguments: argparse.Namespace) -> int:
    settings = read_settings(ChatSettings, vars(arguments), os.environ)
    from promptgen import talk

    return talk.run(settings)


if __name__ == "__main__":
    sys.exit(main())
