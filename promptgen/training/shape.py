"""What a training run is told: shape of the model, length and rates of the run. No torch here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from promptgen.errors import UsageError

# Said by `promptgen train --help`, for what --shape does not give.
MEANINGS = {
    "window": "tokens that the model can see",
    "dropout": "share of activations dropped while training",
    "epochs": "passes over the data",
    "steps": "length of the run in steps instead of epochs, 0 for none",
    "row_length": "tokens of a packed row",
    "rows_per_step": "rows in an optimizer step, over all processes",
    "rows_at_once": "rows computed at a time; fewer take less memory",
    "optimizer": "muon (matrices; AdamW for the rest) or adamw",
    "learning_rate": "peak rate of embeddings, norms and biases (AdamW)",
    "matrix_rate": "peak rate of the matrices of the blocks (Muon or AdamW)",
    "schedule": "linear or cosine, after the warm-up",
    "warmup_share": "share of the run in which the rates rise",
    "final_learning_rate_share": "share of the peak rates at the end",
    "weight_decay": "of matrices and embeddings",
    "clip_norm": "norm that gradients are clipped to",
    "shifted_share": "share of documents whose positions start anywhere in the window",
    "validations": "measurements of the held-out part over the run",
    "patience": "validations without a better loss that end the run, 0 for never",
    "seed": "of weights, order, positions and dropout",
}
BY_DATA = ("window", "dropout", "epochs", "row_length", "rows_per_step", "rows_at_once", "patience")  # see choices.py
_CHOICES = {"optimizer": ("muon", "adamw"), "schedule": ("linear", "cosine")}


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything a training run depends on beside its data. `layers`, `width`, `heads` and `window` shape the model.

    A row is `row_length` tokens of documents; a step sees `rows_per_step` rows, `rows_at_once` at a time (this changes memory and speed;
    the result by rounding only, unless there is dropout). `shifted_share` of the documents start at a random position, so that all of the window is learned
    from short documents. `steps`, if not 0, is the length of the run instead of `epochs`; `patience` is the number of validations
    without a better loss after which it ends early, 0 for never.
    """

    layers: int = 4
    width: int = 256
    heads: int = 4
    window: int = 256
    dropout: float = 0.0
    epochs: float = 3.1
    steps: int = 0
    row_length: int = 128
    rows_per_step: int = 24
    rows_at_once: int = 24
    optimizer: str = "muon"
    learning_rate: float = 8e-3
    matrix_rate: float = 4e-3
    schedule: str = "linear"
    warmup_share: float = 0.03
    final_learning_rate_share: float = 0.02
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    shifted_share: float = 0.1
    validations: int = 4  # over the whole run
    patience: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UsageError for numbers that no run could use."""
        for name in (
            "layers",
            "width",
            "heads",
            "window",
            "row_length",
            "rows_per_step",
            "rows_at_once",
            "validations",
        ):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be 1 or more, is {getattr(self, name)}")
        for name in ("epochs", "learning_rate", "matrix_rate", "clip_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"--{name.replace('_', '-')} must be a number over 0, is {getattr(self, name)}")
        for name in ("dropout", "shifted_share", "warmup_share", "final_learning_rate_share"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} is a share from 0 to 1, is {getattr(self, name)}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"--{name} is one of {', '.join(choices)}, is {getattr(self, name)!r}")
        if self.steps < 0 or self.patience < 0 or not 0 <= self.weight_decay < float("inf"):
            raise UsageError("--steps, --patience and --weight-decay cannot be negative")
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"--seed must be from 0 to 2**63 - 1, is {self.seed}")
        if self.width % self.heads:
            raise UsageError(f"--width {self.width} is not a multiple of --heads {self.heads}")
        if self.row_length > self.window:
            raise UsageError(f"--row-length {self.row_length} is longer than --window {self.window}")
        if self.row_length < 2:
            raise UsageError("--row-length must be 2 or more: a token and the one that follows it")

    @classmethod
    def defaults(cls) -> dict[str, int | float | str]:
        return {f.name: f.default for f in dataclasses.fields(cls) if isinstance(f.default, int | float | str)}
