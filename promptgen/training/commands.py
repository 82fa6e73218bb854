"""The training commands of the command line: vocab, prepare, train, validate, fit. Each is a few lines over the package."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from promptgen.errors import UsageError
from promptgen.training.shape import BY_DATA, MEANINGS, TrainConfig

_CORPUS_HELP = "files, folders or glob patterns: text, JSON or JSONL, gzipped or not; see docs/training.md"
_SHAPE_FIELDS = ("layers", "width", "heads")  # given by --shape
Commands = Any  # argparse's subparsers action, which has no public type


def add_commands(commands: Commands) -> None:
    """Adds the commands to a parser. Each sets `command`, a function from its arguments to an exit code."""
    _add_vocab(commands)
    _add_prepare(commands)
    _add_train(commands)
    _add_validate(commands)
    _add_fit(commands)


def _add_vocab(commands: Commands) -> None:
    vocab = _command(
        commands,
        "vocab",
        "build a vocabulary from a corpus",
        "promptgen vocab corpus.txt --out build/vocab --size 9000",
    )
    vocab.add_argument("corpus", nargs="+", help=_CORPUS_HELP)
    vocab.add_argument("--out", type=Path, required=True, help="folder to write to")
    _add_kind(vocab)
    vocab.set_defaults(command=_vocab)


def _add_prepare(commands: Commands) -> None:
    prepare = _command(
        commands,
        "prepare",
        "encode a corpus for training",
        "promptgen prepare corpus.txt --vocab build/vocab --out build/prepared",
    )
    prepare.add_argument("corpus", nargs="+", help=_CORPUS_HELP)
    prepare.add_argument("--vocab", type=Path, required=True, help="folder that holds a vocabulary, or a model folder")
    prepare.add_argument("--out", type=Path, required=True, help="folder to write to")
    held = prepare.add_mutually_exclusive_group()
    held.add_argument("--valid", type=float, default=0.05, help="share of the documents held out (default 0.05)")
    held.add_argument("--valid-corpus", nargs="+", default=[], metavar="FILE", help="hold out these files instead")
    prepare.set_defaults(command=_prepare)


def _add_train(commands: Commands) -> None:
    train = _command(
        commands,
        "train",
        "train a GPT-2 on prepared data",
        "promptgen train build/prepared --out model/mine --shape 4x256x4 --budget 30m",
    )
    train.add_argument("data", type=Path, help="folder that promptgen prepare wrote")
    train.add_argument("--out", type=Path, required=True, help="model folder to write")
    train.add_argument(
        "--shape", default="auto", help="layers x width x heads, such as 4x256x4; auto goes by the data (default auto)"
    )
    train.add_argument("--from", dest="start_from", type=Path, help="continue from this GPT-2 folder (same vocabulary)")
    train.add_argument(
        "--budget", help="time to train for at most, such as 90s, 30m or 1.5h; the final figures come on top"
    )
    _add_resume(train)
    _add_typing(train)
    train.add_argument("--tensorboard", action="store_true", help="also write OUT/tensorboard (extra: tensorboard)")
    train.add_argument("--lr", dest="learning_rate", type=float, help=argparse.SUPPRESS)
    for name, default in TrainConfig.defaults().items():
        if name not in _SHAPE_FIELDS:
            meaning = (
                f"{MEANINGS[name]} (default {default}{', with --shape auto by the data' if name in BY_DATA else ''})"
            )
            train.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=None, help=meaning)
    train.set_defaults(command=_train)


def _add_validate(commands: Commands) -> None:
    validate = _command(
        commands,
        "validate",
        "measure a model on the held-out part: perplexity, accuracy, keystrokes saved",
        "promptgen validate model/mine build/prepared --report build/report",
    )
    validate.add_argument("model", type=Path)
    validate.add_argument("data", type=Path, help="folder that promptgen prepare wrote with the model's vocabulary")
    validate.add_argument("--report", type=Path, help="folder for report.md and its pictures")
    _add_typing(validate)
    validate.set_defaults(command=_validate)


def _add_fit(commands: Commands) -> None:
    fit = _command(
        commands,
        "fit",
        "corpus to model in one command, with choices made from the corpus's size",
        "promptgen fit my-prompts.txt --out model/mine --budget 30m",
    )
    fit.add_argument("corpus", nargs="+", help=_CORPUS_HELP)
    fit.add_argument("--out", type=Path, required=True, help="model folder to write")
    fit.add_argument(
        "--budget", default="30m", help="time to train for at most (default 30m); the final figures come on top"
    )
    fit.add_argument("--seed", type=int, default=0, help="default 0")
    _add_kind(fit)
    _add_resume(fit)
    fit.set_defaults(command=_fit)


def _command(commands: Commands, name: str, help_text: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help_text, description=help_text, epilog=f"example: {example}"
    )
    return parser


def _add_kind(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kind", choices=["word", "char", "bpe"], default="word", help="of tokens (default word)")
    parser.add_argument("--size", type=int, help="tokens at most (default: by the corpus)")


def _add_resume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume",
        choices=["auto", "never"],
        default="auto",
        help="auto goes on from a checkpoint in OUT, never starts over (default auto)",
    )


def _add_typing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--typing-prompts",
        type=_count,
        default=300,
        help="held-out prompts typed key by key to see what is saved (default 300; 0 for none)",
    )


def _count(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError("cannot be negative")
    return number


def _vocab(arguments: argparse.Namespace) -> int:
    from promptgen.training.lexicon import write_vocabulary

    vocabulary = write_vocabulary(arguments.corpus, arguments.out, arguments.size, arguments.kind)
    print(f"{len(vocabulary)} tokens in {arguments.out}", file=sys.stderr)
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    from promptgen.training.fit import told_counts
    from promptgen.training.prepare import prepare

    if not 0 <= arguments.valid < 1:
        raise UsageError(f"--valid is a share from 0 to 1, is {arguments.valid}")
    meta = prepare(
        arguments.corpus,
        arguments.vocab,
        arguments.out,
        valid_sources=arguments.valid_corpus,
        valid_share=arguments.valid,
    )
    for line in told_counts(meta):
        print(line, file=sys.stderr)
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from promptgen.training.choices import parse_duration

    budget_s = parse_duration(arguments.budget) if arguments.budget else None
    config = _train_config(arguments)
    from promptgen.training.train import train  # brings torch: a wrong setting is refused before that

    report = train(
        arguments.data,
        arguments.out,
        config,
        arguments.start_from,
        resume=arguments.resume == "auto",
        budget_s=budget_s,
        typing_prompts=arguments.typing_prompts,
        tensorboard=arguments.tensorboard,
    )
    return _say_figures(report)


def _train_config(arguments: argparse.Namespace) -> TrainConfig:
    """What the options say; what they leave open goes by the data, unless a shape is given."""
    from promptgen.training.choices import choose, parse_shape

    given = {
        name: value
        for name in TrainConfig.defaults()
        if name not in _SHAPE_FIELDS and (value := getattr(arguments, name)) is not None
    }
    if arguments.start_from is not None and arguments.shape != "auto":
        raise UsageError("--from keeps that model's shape; leave --shape out")
    if arguments.start_from is not None and "window" in given:
        raise UsageError("--from keeps that model's window; leave --window out")
    if arguments.shape != "auto":
        layers, width, heads = parse_shape(arguments.shape)
        fitting = {"row_length": min(TrainConfig().row_length, given.get("window", TrainConfig().window))}
        return TrainConfig(layers=layers, width=width, heads=heads, **(fitting | given))
    room = max(TrainConfig().window, given.get("row_length", 0))
    TrainConfig(**({"row_length": 2, "window": room} | given))  # a bad number is refused before the data are read
    if arguments.start_from is not None:
        from promptgen.training.model_folder import check_row_length, window_of

        given["window"] = window_of(arguments.start_from)
        if "row_length" in given:
            check_row_length(given["row_length"], given["window"], arguments.start_from)
    config, choices = choose(arguments.data, given=given)
    for choice in choices:
        if arguments.start_from is None or choice.name != "shape":
            print(choice, file=sys.stderr)
    return config


def _validate(arguments: argparse.Namespace) -> int:
    from promptgen.training.validate import validate

    report = validate(arguments.model, arguments.data, arguments.report, typing_prompts=arguments.typing_prompts)
    return _say_figures(report)


def _fit(arguments: argparse.Namespace) -> int:
    from promptgen.training.choices import parse_duration

    budget_s = parse_duration(arguments.budget)
    from promptgen.training.fit import fit

    report = fit(
        arguments.corpus,
        arguments.out,
        kind=arguments.kind,
        size=arguments.size,
        budget_s=budget_s,
        seed=arguments.seed,
        resume=arguments.resume == "auto",
    )
    return _say_figures(report)


def _say_figures(report: dict[str, Any]) -> int:
    if report:  # another process of the run says it otherwise
        print(json.dumps({name: report[name] for name in ("held_out", "typing") if name in report}))
    return 0
