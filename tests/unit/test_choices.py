"""Shapes, times and choices by the corpus's size: each has a reason, and what cannot be read is refused with what to write."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from promptgen.errors import UsageError
from promptgen.training import commands
from promptgen.training.choices import choose, parse_duration, parse_shape, valid_share_for
from promptgen.training.dataset import FORMAT
from promptgen.training.shape import TrainConfig


def data_of(folder: Path, num_documents: int, length: int) -> Path:
    """A prepared folder of documents of one length."""
    (folder / "meta.json").write_text(json.dumps({"format": FORMAT, "dtype": "uint16"}), encoding="utf-8")
    np.zeros(num_documents * length, np.uint16).tofile(folder / "train.tokens.bin")
    np.arange(0, num_documents * length + 1, length, dtype=np.int64).tofile(folder / "train.offsets.bin")
    return folder


@pytest.mark.parametrize(
    ("num_documents", "length", "shape"),
    [(1, 10, (2, 64, 2)), (60, 20, (2, 64, 2)), (5000, 20, (3, 128, 4)), (100_000, 20, (4, 256, 4))],
)
def test_more_text_gets_a_larger_model(tmp_path: Path, num_documents: int, length: int, shape: tuple[int, ...]) -> None:
    config, choices = choose(data_of(tmp_path, num_documents, length))
    assert (config.layers, config.width, config.heads) == shape
    assert config.rows_at_once <= config.rows_per_step
    assert all(": " in str(choice) and choice.reason for choice in choices)


def test_the_window_holds_twice_a_long_document(tmp_path: Path) -> None:
    config, _ = choose(data_of(tmp_path, 100, 200))
    assert (config.window, config.row_length) == (512, 512)
    assert choose(data_of(tmp_path, 100, 20))[0].window == 128


def test_what_was_set_stays(tmp_path: Path) -> None:
    config, _ = choose(data_of(tmp_path, 60, 20), TrainConfig(seed=7, learning_rate=1e-3))
    assert (config.seed, config.learning_rate) == (7, 1e-3)


@pytest.mark.parametrize(("count", "share"), [(1, 0.0), (19, 0.0), (60, 0.1), (1000, 0.05)])
def test_few_documents_are_all_trained_on(count: int, share: float) -> None:
    assert valid_share_for(count).value == share


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), (" 2 M ", 120)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "-5m", "0m", "1d", "1e3s", "nan"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--budget is a time such as 90s, 30m or 1\.5h"):
        parse_duration(text)


def test_shapes() -> None:
    assert parse_shape("4x256x4") == parse_shape(" 4X256×4 ") == (4, 256, 4)
    for text in ("", "4x256", "axbxc", "4x256x4x1", "-4x256x4"):
        with pytest.raises(UsageError, match="such as 4x256x4"):
            parse_shape(text)


def train_config(data: Path, *options: str) -> TrainConfig:
    """What `promptgen train` makes of its options."""
    parser = argparse.ArgumentParser()
    commands.add_commands(parser.add_subparsers())
    return commands._train_config(parser.parse_args(["train", str(data), "--out", "nowhere", *options]))


def test_a_row_as_long_as_wanted_makes_the_window_longer(tmp_path: Path) -> None:
    data = data_of(tmp_path, 100, 20)
    assert train_config(data).window == 128
    for row_length, window in ((100, 128), (200, 200), (2000, 2000)):
        config = train_config(data, "--row-length", str(row_length))
        assert (config.row_length, config.window) == (row_length, window)
    with pytest.raises(UsageError, match="--row-length 200 is longer than --window 160"):
        train_config(data, "--row-length", "200", "--window", "160")


def test_a_row_may_be_as_long_as_the_window_of_the_start_model(tmp_path: Path) -> None:
    data, start = data_of(tmp_path, 100, 20), tmp_path / "start"
    start.mkdir()
    (start / "config.json").write_text('{"n_positions": 1024}', encoding="utf-8")
    assert train_config(data, "--from", str(start)).window == 1024
    assert train_config(data, "--from", str(start)).row_length == 128
    assert train_config(data, "--from", str(start), "--row-length", "1000").row_length == 1000
    with pytest.raises(UsageError, match=r"--row-length 1025 is longer than the window of .*start, 1024"):
        train_config(data, "--from", str(start), "--row-length", "1025")
    (start / "config.json").write_text('{"n_positions": 64}', encoding="utf-8")
    config = train_config(data, "--from", str(start))
    assert (config.window, config.row_length) == (64, 64)


ALL_CHOICES = ["shape", "window", "rows per step", "epochs", "patience", "dropout"]


@pytest.mark.parametrize(
    ("options", "overridden"),
    [
        ([], []),
        (["--window", "300", "--rows-per-step", "8"], ["window", "rows per step"]),
        (["--epochs", "2", "--patience", "0", "--dropout", "0"], ["epochs", "patience", "dropout"]),
        (["--steps", "9"], ["epochs"]),
        (["--from", "START"], ["shape", "window"]),
    ],
)
def test_only_choices_in_force_are_said(
    tmp_path: Path, options: list[str], overridden: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"n_positions": 256}', encoding="utf-8")
    config = train_config(data_of(tmp_path, 100, 20), *[str(tmp_path) if o == "START" else o for o in options])
    said = dict(line.split(": ", 1)[0].rsplit(" ", 1) for line in capsys.readouterr().err.splitlines())
    assert list(said) == [name for name in ALL_CHOICES if name not in overridden]
    fields = asdict(config) | {"shape": f"{config.layers}x{config.width}x{config.heads}"}
    assert said == {name: str(fields[name.replace(" ", "_")]) for name in said}


def test_rows_follow_from_the_row_length_that_was_given(tmp_path: Path) -> None:
    data = data_of(tmp_path, 1000, 20)
    assert choose(data)[0].rows_per_step == 20_000 // 128 // 20
    assert choose(data, given={"row_length": 64})[0].rows_per_step == 20_000 // 64 // 20
