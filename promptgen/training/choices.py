"""What `promptgen fit` and `--shape auto` choose from a corpus's size, each choice with its reason."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from promptgen.errors import UsageError
from promptgen.training.dataset import load_part
from promptgen.training.shape import TrainConfig

# Training tokens up to which a shape is the largest that still learned more than it memorized.
_SHAPES = ((30_000, (2, 64, 2)), (400_000, (3, 128, 4)), (40_000_000, (4, 256, 4)), (400_000_000, (6, 384, 6)))
_LARGEST = (8, 512, 8)
_PASSES = ((3_000, 100.0), (30_000, 40.0), (400_000, 15.0), (4_000_000, 5.0))  # epochs at most, by training tokens
_PASSES_OVER_MANY = 3.0
_FEW_TOKENS = 400_000  # under which dropout helps
_WINDOWS = (128, 256, 512, 1024)


@dataclass(frozen=True, slots=True)
class Choice:
    """A setting, by its name with spaces, and why it is so."""

    name: str
    value: object
    reason: str

    def __str__(self) -> str:
        return f"{self.name} {self.value}: {self.reason}"


def valid_share_for(num_documents: int) -> Choice:
    """How much of a corpus to hold out."""
    if num_documents < 20:
        return Choice("held out", 0.0, f"{num_documents} documents are too few to spare any; nothing will be measured")
    if num_documents < 1000:
        return Choice("held out", 0.1, f"one in ten of {num_documents} documents, enough to see overfitting")
    return Choice("held out", 0.05, f"one in twenty of {num_documents} documents")


def choose(
    data: Path, config: TrainConfig | None = None, given: Mapping[str, Any] | None = None
) -> tuple[TrainConfig, list[Choice]]:
    """A configuration for prepared data, and the reasons of what was chosen.

    What `config` sets beside shape, window, rows, epochs, dropout and patience stays; what is `given` stays in any case, the rest goes
    by it, and it is no choice. A window that is not given is as long as a given row at least.
    """
    given = given or {}
    part = load_part(data, "train")
    num_tokens, lengths = len(part.tokens), np.diff(part.offsets)
    layers, width, heads = next((shape for limit, shape in _SHAPES if num_tokens <= limit), _LARGEST)
    long = int(np.quantile(lengths, 0.99)) if len(lengths) else 0
    fitting = next((w for w in _WINDOWS if 2 * long <= w), _WINDOWS[-1])
    usual = min(_WINDOWS[0] if long <= _WINDOWS[0] else fitting, given.get("window", fitting))
    row_length: int = given.get("row_length", usual)
    window = max(fitting, row_length)
    epochs = next((passes for limit, passes in _PASSES if num_tokens <= limit), _PASSES_OVER_MANY)
    rows = min(TrainConfig().rows_per_step, max(4, num_tokens // row_length // 20))
    has_few = num_tokens <= _FEW_TOKENS
    by_data: dict[str, Any] = {
        "layers": layers,
        "width": width,
        "heads": heads,
        "window": window,
        "row_length": row_length,
        "rows_per_step": rows,
        "rows_at_once": min(24, given.get("rows_per_step", rows)),
        "epochs": epochs,
        "dropout": 0.1 if has_few else 0.0,
        "patience": 3,
    }
    chosen = replace(config or TrainConfig(), **(by_data | dict(given)))
    overridden = {*given, *(["epochs"] if chosen.steps else [])}
    choices = [
        Choice(
            "shape",
            f"{layers}x{width}x{heads}",
            f"{num_tokens:,} training tokens; a larger model would learn them by heart",
        ),
        Choice(
            "window",
            window,
            f"99 of 100 documents have {long} tokens or fewer, and prompts may be longer"
            if window == fitting
            else "a row fits in it",
        ),
        Choice(
            "rows per step",
            rows,
            f"rows of {row_length} tokens; as many that an epoch has some twenty steps, from 4 to {TrainConfig().rows_per_step}",
        ),
        Choice("epochs", epochs, f"passes over {num_tokens:,} training tokens, at most; more tokens need fewer"),
        Choice("patience", chosen.patience, "validations without a better loss that end the run earlier"),
        Choice("dropout", chosen.dropout, "few tokens are seen often" if has_few else "enough tokens to do without"),
    ]
    return chosen, [choice for choice in choices if choice.name.replace(" ", "_") not in overridden]


def parse_shape(text: str) -> tuple[int, int, int]:
    """Layers, width and heads of "4x256x4". Raises UsageError for anything else."""
    if not (found := re.fullmatch(r"(\d{1,4})[xX×](\d{1,5})[xX×](\d{1,4})", text.strip())):
        raise UsageError(f"--shape is auto, or layers x width x heads such as 4x256x4; it is {text!r}")
    layers, width, heads = (int(group) for group in found.groups())
    return layers, width, heads


def parse_duration(text: str) -> float:
    """Seconds of "90s", "30m", "1.5h". Raises UsageError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip().lower())
    seconds = float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0
    if not seconds:
        raise UsageError(f"--budget is a time such as 90s, 30m or 1.5h; it is {text!r}")
    return seconds
