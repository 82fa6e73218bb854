"""Settings: command line over environment over default, wrong values named, secrets masked; errors carry their exit codes."""

from __future__ import annotations

import argparse
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from promptgen import errors
from promptgen.config import DEFAULT_MODEL, GenerateSettings, ServeSettings, add_options, describe, read_settings


def read(settings: Any, line: str = "", **environ: str) -> Any:
    parser = argparse.ArgumentParser()
    add_options(parser, settings)
    return read_settings(
        settings, vars(parser.parse_args(line.split())), {f"PROMPTGEN_{k.upper()}": v for k, v in environ.items()}
    )


def test_defaults_stand_when_nothing_is_given() -> None:
    serve = read(ServeSettings)
    assert (serve.host, serve.port, serve.max_queue) == ("127.0.0.1", 5005, 256)
    assert {name: each.model for name, each in serve.engines().items()} == {"final_model": DEFAULT_MODEL}
    assert (serve.cors_origin, serve.api_key_file, serve.log_json) == ((), None, False)
    generate = read(GenerateSettings)
    assert (generate.prompt, generate.samples, generate.maxlength, generate.seed) == (None, 5, 50, None)


def test_command_line_goes_over_environment_over_default() -> None:
    assert read(ServeSettings, port="81").port == 81
    assert read(ServeSettings, "--port 82", port="81").port == 82
    assert read(ServeSettings, "--no-log-json", log_json="1").log_json is False
    assert read(ServeSettings, "--cors-origin http://a", cors_origin="http://b").cors_origin == ("http://a",)


def test_values_get_the_types_of_their_fields() -> None:
    generate = read(GenerateSettings, "高血压 -n 7 --top-p 0.9 --seed 3 --input in.txt")
    assert (generate.prompt, generate.samples, generate.top_p, generate.seed, generate.input) == (
        "高血压",
        7,
        0.9,
        3,
        Path("in.txt"),
    )
    assert read(GenerateSettings, "--samples 9").samples == 9


def test_models_are_named_or_named_after_their_folders() -> None:
    def models(line: str, **environ: str) -> dict[str, str]:
        return {name: str(each.model) for name, each in read(ServeSettings, line, **environ).engines().items()}

    assert models("--model some/folder/") == {"folder": "some/folder"}
    assert models("--model small=a/b --model big=/c") == {"small": "a/b", "big": "/c"}
    assert models("", model="small=a/b, c") == {"small": "a/b", "c": "c"}
    assert models("--model ./odd=folder/x") == {"x": "odd=folder/x"}
    for line in ("--model a=x --model a=y", "--model x/a --model y/a", "--model /"):
        with pytest.raises(errors.UsageError, match="--model"):
            models(line)


def test_engines_share_the_options_of_the_service() -> None:
    serve = read(ServeSettings, "--model a=x --model b=y --max-rows 7 --threads 3")
    assert {(each.max_rows, each.threads) for each in serve.engines().values()} == {(7, 3)}


def test_repeatable_options_collect_and_environment_is_split_at_commas() -> None:
    assert read(ServeSettings, "--cors-origin http://a --cors-origin http://b").cors_origin == ("http://a", "http://b")
    assert read(ServeSettings, allowed_host="a.example, b.example,").allowed_host == ("a.example", "b.example")
    assert read(ServeSettings, allowed_host="").allowed_host == ()


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("1", True),
        ("true", True),
        ("YES", True),
        ("on", True),
        ("0", False),
        ("False", False),
        ("no", False),
        ("", False),
    ],
)
def test_words_for_true_and_false(word: str, value: bool) -> None:
    assert read(ServeSettings, log_json=word).log_json is value


@pytest.mark.parametrize(
    ("settings", "line", "environ", "told"),
    [
        (ServeSettings, "--port http", {}, "--port: 'http' is not a valid int"),
        (ServeSettings, "--max-queue 1.5", {}, "--max-queue: '1.5' is not a valid int"),
        (ServeSettings, "", {"port": "http"}, "PROMPTGEN_PORT: 'http' is not a valid int"),
        (ServeSettings, "", {"drain_timeout_s": "soon"}, "PROMPTGEN_DRAIN_TIMEOUT_S: 'soon' is not a valid float"),
        (ServeSettings, "", {"log_json": "maybe"}, "PROMPTGEN_LOG_JSON: 'maybe' is neither true nor false"),
        (GenerateSettings, "--seed x", {}, "--seed: 'x' is not a valid int"),
        (GenerateSettings, "--top-p half", {}, "--top-p: 'half' is not a valid float"),
    ],
)
def test_value_of_the_wrong_type_is_named(settings: Any, line: str, environ: dict[str, str], told: str) -> None:
    with pytest.raises(errors.UsageError) as caught:
        read(settings, line, **environ)
    assert str(caught.value) == told


def test_secrets_come_from_the_environment_alone_and_are_masked() -> None:
    serve = read(ServeSettings, api_keys="hunter2,hunter3")
    assert serve.api_keys == "hunter2,hunter3"
    shown = describe(serve)
    assert shown["api_keys"] == "***"
    assert "hunter" not in str(shown)
    assert describe(read(ServeSettings))["api_keys"] == ""
    with pytest.raises(SystemExit):
        read(ServeSettings, "--api-keys hunter2")


def test_all_settings_are_described() -> None:
    shown = describe(read(ServeSettings, "--port 82"))
    assert shown["port"] == "82"
    assert shown.keys() == ServeSettings.__dataclass_fields__.keys()


def test_settings_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        read(ServeSettings).port = 1


def test_unknown_environment_variables_are_left_alone() -> None:
    assert read(ServeSettings, colour="red") == ServeSettings()


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read(ServeSettings, "--help")
    text = capsys.readouterr().out
    assert {"--port", "--max-rows", "--cors-origin", "--log-json", "--no-log-json"} <= set(
        text.replace(",", " ").split()
    )
    assert "(default 5005)" in " ".join(text.split())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.PromptgenError("x"), 70),
        (errors.UsageError("x"), 2),
        (errors.FileFault("a.txt", "x"), 3),
        (errors.NumericalFailure("x"), 4),
        (errors.DiskFault("x"), 5),
    ],
)
def test_exit_codes(error: errors.PromptgenError, code: int) -> None:
    assert error.exit_code == code


def test_file_fault_names_file_and_fault() -> None:
    fault = errors.FileFault(Path("a/vocab.txt"), "is empty")
    assert (str(fault), fault.path, fault.fault) == ("a/vocab.txt: is empty", "a/vocab.txt", "is empty")


def test_request_errors_carry_code_and_field() -> None:
    too_long = errors.ContextLengthExceeded(200, 100, 256)
    assert isinstance(too_long, errors.InvalidRequest)
    assert (too_long.code, too_long.param) == ("context_length_exceeded", "context")
    assert all(number in str(too_long) for number in ("200", "100", "256"))
    assert errors.Overloaded("full", retry_after_s=3).retry_after_s == 3
    assert errors.InvalidRequest("bad", param="samples").param == "samples"
