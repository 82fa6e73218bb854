"""Settings: frozen dataclasses, one for each command, and the only reader of argv and environment.

A field made with `option` is at once a command line option (`--max-queue`), an environment variable (`PROMPTGEN_MAX_QUEUE`)
and a line of the settings printed at start. The command line goes over the environment, the environment over the default.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from promptgen.errors import UsageError

ENVIRONMENT_PREFIX = "PROMPTGEN_"
DEFAULT_MODEL = Path(__file__).resolve().parent.parent / "model" / "final_model"
DEFAULT_CACHE = Path("~/.cache/promptgen")

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
Settings = TypeVar("Settings")


def option(
    default: Any,
    help: str,
    *,
    secret: bool = False,
    positional: bool = False,
    ge: float | None = None,
    le: float | None = None,
) -> Any:
    """A settings field. A tuple default makes it repeatable; `secret` ones come from the environment alone and are masked.

    Numbers are kept within `ge` and `le`; one that is not finite is never taken.
    """
    return field(
        default=default, metadata={"help": help, "secret": secret, "positional": positional, "ge": ge, "le": le}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What an engine may use, whichever model it runs."""

    max_rows: int = option(128, "sequences decoded at once; the cache holds one slot for each", ge=1, le=4096)
    max_queue: int = option(256, "requests answered or waiting at once; more are refused with 503", ge=1)
    max_queued_tokens: int = option(
        262144, "characters to read and tokens to draw, accepted at once; more are refused with 503", ge=1
    )
    prompt_slots: int = option(
        0,
        "prompts and candidates kept in the cache for requests that begin alike; 0: what fits, 64 to 256",
        ge=0,
        le=4096,
    )
    threads: int = option(0, "threads of the model's step, 0: chosen for this machine", ge=0, le=1024)
    device: str = option("cpu", "cpu, or cuda with a torch that is built for it")
    precision: str = option("auto", "float32, bfloat16, int8, or auto: the fastest that keeps the model's quality")
    step_timeout_s: float = option(60.0, "a step that takes longer hangs: the process ends with 70; 0 is never", ge=0)
    compiler: str = option(
        "auto", "C++ compiler for the fast step; auto: c++, else that of the package ziglang; empty for none"
    )
    cache: Path = option(DEFAULT_CACHE, "folder for what is compiled and measured once for this machine")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings(EngineOptions):
    """One model, and what its engine may use."""

    model: Path = option(DEFAULT_MODEL, "model folder (config.json, model.safetensors, its vocabulary)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings(EngineOptions):
    """`promptgen serve` and web.py."""

    model: tuple[str, ...] = option(
        (str(DEFAULT_MODEL),), "model folder, or NAME=FOLDER; repeatable, the first answers requests that name none"
    )
    unload_after_s: float = option(0.0, "a model nobody asked for so long leaves memory until it is; 0 is never", ge=0)
    host: str = option("127.0.0.1", "address to bind")
    port: int = option(5005, "port to bind", ge=0, le=65535)
    cors_origin: tuple[str, ...] = option(
        (), "origin that may call, repeatable; without it any may, without credentials"
    )
    cors_credentials: bool = option(False, "allow credentials; only with listed origins")
    allowed_host: tuple[str, ...] = option((), "further Host header that is answered, repeatable")
    api_keys: str = option("", "keys that callers must send, separated by commas (environment only)", secret=True)
    api_key_file: Path | None = option(None, "file with one key a line")
    admin_keys: str = option(
        "", "keys that may load and unload models, separated by commas (environment only)", secret=True
    )
    admin_key_file: Path | None = option(None, "file with one such key a line")
    requests_per_minute: int = option(0, "POST requests of one key in any minute; 0 is no limit", ge=0, le=10**6)
    requests_at_once: int = option(0, "POST requests of one key at once; 0 is no limit", ge=0)
    body_timeout_s: float = option(10.0, "a request body must have arrived after this many seconds", ge=0)
    request_timeout_s: float = option(60.0, "no first token after this many seconds is a 504", ge=0)
    drain_timeout_s: float = option(30.0, "running work may go on for this long after SIGTERM", ge=0)
    log_json: bool = option(False, "one JSON object a line on stderr")
    otel: bool = option(False, "a trace of each request by OpenTelemetry, set up by the OTEL_* variables")

    def engines(self) -> dict[str, EngineSettings]:
        """The settings of each model's engine, by name. Raises UsageError for a name that stands twice."""
        shared = {f.name: getattr(self, f.name) for f in fields(EngineOptions)}
        engines: dict[str, EngineSettings] = {}
        for each in self.model:
            name, folder = _named_folder(each)
            if name in engines:
                raise UsageError(f"--model: {name} stands twice; give one of them another name with NAME=FOLDER")
            engines[name] = EngineSettings(model=folder, **shared)
        return engines


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateSettings(EngineSettings):
    """`promptgen generate`."""

    prompt: str | None = option(None, "the beginning of the prompt; without it a REPL", positional=True)
    samples: int = option(5, "candidates (-n)", ge=1)
    maxlength: int = option(50, "new tokens for each candidate", ge=1)
    temperature: float | None = option(None, "0 is greedy (this and the next three: as the model says)", ge=0, le=2)
    top_k: int | None = option(None, "draw from the k likeliest, 0 is off", ge=0)
    top_p: float | None = option(None, "draw from the smallest set with this probability, 0 is off", ge=0, le=1)
    repetition_penalty: float | None = option(
        None, "over 1: words that stand there already become less likely", ge=0.1, le=10
    )
    seed: int | None = option(None, "same seed, same text", ge=-(2**63), le=2**63 - 1)
    stop: tuple[str, ...] = option((), "cut before this text, repeatable")
    until: str = option("document", "where a candidate ends at the latest: sentence, line or document")
    min_length: int = option(0, "words before a candidate may end", ge=0)
    heal: bool = option(True, "a prompt that was cut within a word goes on with that word")
    distinct: bool = option(True, "no two candidates are equal")
    distinct_first: bool = option(False, "at most one candidate for each first word")
    rank: str = option("likelihood", "order: likelihood, or none for as drawn")
    input: Path | None = option(None, "file with one context a line")
    output: Path | None = option(None, "JSONL file for --input; continued where it stopped")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSettings(EngineSettings):
    """`promptgen chat`."""

    samples: int = option(4, "answers to choose the best from (-n); 1 is shown word by word", ge=1, le=64)
    max_new_tokens: int | None = option(
        None, "the longest answer, in tokens; without it 80, or half of a small window", ge=1
    )
    temperature: float | None = option(None, "0 always takes the likeliest word", ge=0, le=2)
    seed: int | None = option(None, "same seed, same answers", ge=-(2**63), le=2**63 - 1)
    transcript: Path | None = option(None, "file to which questions and answers are added as they come")


def _named_folder(text: str) -> tuple[str, Path]:
    """NAME=FOLDER, or a folder that is its own name."""
    name, _, folder = text.partition("=")
    if folder and _MODEL_NAME.fullmatch(name):
        return name, Path(folder)
    path = Path(text)
    name = path.resolve().name
    if not _MODEL_NAME.fullmatch(name):
        raise UsageError(f"--model {text!r}: this folder cannot be a model's name; give it one with NAME=FOLDER")
    return name, path


def add_options(parser: argparse.ArgumentParser, settings: type[Any]) -> None:
    """One option for each field of the settings class. Defaults stay out, so that the environment can stand in."""
    hints = get_type_hints(settings)
    for f in fields(settings):
        if f.metadata.get("secret"):
            continue
        text = f.metadata["help"] + (
            "" if f.default is None or f.default is False or f.default == () else f" (default {_shown(f.default)})"
        )
        name = "--" + f.name.replace("_", "-")
        names = [name] if f.name != "samples" else [name, "-n"]
        if f.metadata["positional"]:
            parser.add_argument(f.name, nargs="?", default=None, help=text)
        elif hints[f.name] is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction, default=None, help=text)
        elif get_origin(hints[f.name]) is tuple:
            parser.add_argument(name, action="append", default=None, metavar="VALUE", help=text)
        else:
            parser.add_argument(
                *names,
                default=None,
                metavar=_kind(hints[f.name]).__name__.upper(),
                help=text,
            )


def read_settings(settings: type[Settings], arguments: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Builds the settings. Raises UsageError naming the option or variable whose value does not fit."""
    hints = get_type_hints(settings)
    values: dict[str, Any] = {}
    for f in fields(settings):  # type: ignore[arg-type]
        variable = ENVIRONMENT_PREFIX + f.name.upper()
        given = arguments.get(f.name)
        source = "--" + f.name.replace("_", "-")
        if given is None and variable in environ:
            given, source = environ[variable], variable
            if get_origin(hints[f.name]) is tuple:
                given = [part.strip() for part in environ[variable].split(",") if part.strip()]
        if given is not None:
            values[f.name] = _convert(given, hints[f.name], source)
            _check_range(values[f.name], f.metadata["ge"], f.metadata["le"], source)
    return settings(**values)


def describe(settings: Any) -> dict[str, str]:
    """All settings as text, secrets masked: what is printed at start."""
    return {
        f.name: "***" if f.metadata.get("secret") and getattr(settings, f.name) else _shown(getattr(settings, f.name))
        for f in fields(settings)
    }


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) and value else str(value)


def _kind(hint: Any) -> Callable[[str], Any]:
    """int of `int | None`, str of `tuple[str, ...]`, and so on."""
    if hint in (int, float, str, bool, Path):
        return hint  # type: ignore[no-any-return]
    return next(_kind(part) for part in get_args(hint) if part is not type(None))


def _convert(given: Any, hint: Any, source: str) -> Any:
    if get_origin(hint) is tuple:
        return tuple(map(_kind(hint), given))
    kind = _kind(hint)
    if kind is bool:
        if isinstance(given, bool):
            return given
        if given.lower() in ("1", "true", "yes", "on", "0", "false", "no", "off", ""):
            return given.lower() in ("1", "true", "yes", "on")
        raise UsageError(f"{source}: {given!r} is neither true nor false")
    try:
        return kind(given)
    except ValueError as fault:
        raise UsageError(f"{source}: {given!r} is not a valid {kind.__name__}") from fault


def _check_range(value: Any, ge: float | None, le: float | None, source: str) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    if not math.isfinite(value) or (ge is not None and value < ge) or (le is not None and value > le):
        bounds = " and ".join(
            text
            for text in (f"{ge} or more" if ge is not None else "", f"{le} or less" if le is not None else "")
            if text
        )
        raise UsageError(f"{source}: must be {bounds or 'a finite number'}, is {value}")
