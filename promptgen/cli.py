"""The command line: `promptgen COMMAND`. Each command is a few lines over the package.

Exit codes: 0 ok, 2 usage or port in use, 3 a model, vocabulary, config or corpus file is unusable, 4 training diverged,
5 disk, 70 internal, 130 and 143 on signals. Answers go to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import promptgen
from promptgen.config import GenerateSettings, ServeSettings, add_options, read_settings
from promptgen.errors import DiskFault, PromptgenError, UsageError
from promptgen.training.expand import add_arguments as add_expand_arguments
from promptgen.training.expand import run as run_expand
from promptgen.training.shape import TrainConfig

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

    expand = commands.add_parser(
        "expand",
        help="turn tables and sentence patterns into a corpus",
        epilog="example: promptgen expand data --out build/corpus",
    )
    add_expand_arguments(expand)
    expand.set_defaults(command=run_expand)

    vocab = commands.add_parser(
        "vocab",
        help="build a word vocabulary from a corpus",
        epilog="example: promptgen vocab corpus.txt --out vocab --size 9000",
    )
    vocab.add_argument("corpus", nargs="+", help="text files, folders or glob patterns; a document a line")
    vocab.add_argument("--out", type=Path, required=True, help="folder to write vocab.txt to")
    vocab.add_argument("--size", type=int, default=9000, help="tokens at most (default 9000)")
    vocab.set_defaults(command=_vocab)

    prepare = commands.add_parser(
        "prepare",
        help="encode a corpus for training",
        epilog="example: promptgen prepare corpus.txt --vocab vocab --out data.bin",
    )
    prepare.add_argument(
        "corpus",
        nargs="+",
        help="text files, folders or glob patterns; a document a line, or dialogues separated by blank lines",
    )
    prepare.add_argument("--vocab", type=Path, required=True, help="folder that holds vocab.txt")
    prepare.add_argument("--out", type=Path, required=True, help="folder to write to")
    held = prepare.add_mutually_exclusive_group()
    held.add_argument(
        "--valid", type=float, default=0.05, help="share of the documents held out for validation (default 0.05)"
    )
    held.add_argument("--valid-corpus", nargs="+", default=[], metavar="FILE", help="hold out these files instead")
    prepare.set_defaults(command=_prepare)

    train = commands.add_parser(
        "train",
        help="train a GPT-2 on prepared data",
        epilog="example: promptgen train data.bin --out model/mine --epochs 5",
    )
    train.add_argument("data", type=Path, help="folder that promptgen prepare wrote")
    train.add_argument("--out", type=Path, required=True, help="model folder to write")
    train.add_argument("--from", dest="start_from", type=Path, help="continue from this model folder (same vocabulary)")
    for name, default in TrainConfig.defaults().items():
        train.add_argument("--" + name.replace("_", "-"), type=type(default), default=None, help=f"default {default}")
    train.set_defaults(command=_train)

    validate = commands.add_parser(
        "validate",
        help="measure a model on the held-out part",
        epilog="example: promptgen validate model/mine data.bin",
    )
    validate.add_argument("model", type=Path)
    validate.add_argument("data", type=Path, help="folder that promptgen prepare wrote with the model's vocabulary")
    validate.set_defaults(command=_validate)
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    from promptgen.server.lifecycle import serve, start_logging

    settings = read_settings(ServeSettings, vars(arguments), os.environ)
    start_logging(as_json=settings.log_json)
    return asyncio.run(serve(settings))


def _generate(arguments: argparse.Namespace) -> int:
    settings = read_settings(GenerateSettings, vars(arguments), os.environ)
    if (settings.input is None) != (settings.output is None):
        raise UsageError("--input and --output go together")
    from promptgen import batch, repl
    from promptgen.generation.local import Generator

    generator = Generator(settings)
    if settings.input is not None and settings.output is not None:
        return batch.run(generator, settings, settings.input, settings.output)
    if settings.prompt is None:
        return repl.run(generator, settings)
    repl.show(generator, settings, settings.prompt)
    return 0


def _vocab(arguments: argparse.Namespace) -> int:
    from promptgen.training.lexicon import write_vocabulary

    vocabulary = write_vocabulary(arguments.corpus, arguments.out, arguments.size)
    print(f"{len(vocabulary)} tokens in {arguments.out / 'vocab.txt'}", file=sys.stderr)
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    from promptgen.training.dataset import prepare

    if not 0 <= arguments.valid < 1:
        raise UsageError(f"--valid is a share from 0 to 1, is {arguments.valid}")
    meta = prepare(
        arguments.corpus,
        arguments.vocab,
        arguments.out,
        valid_sources=arguments.valid_corpus,
        valid_share=arguments.valid,
    )
    print(json.dumps({"counts": meta["counts"], "dropped": meta["dropped"]}, indent=1), file=sys.stderr)
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from promptgen.training.train import train

    given = {name: value for name in TrainConfig.defaults() if (value := getattr(arguments, name)) is not None}
    report = train(arguments.data, arguments.out, TrainConfig(**given), arguments.start_from)
    print(json.dumps(report["held_out"]))
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    from promptgen.training.train import validate

    print(json.dumps(validate(arguments.model, arguments.data)["held_out"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
