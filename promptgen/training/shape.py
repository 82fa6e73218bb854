"""What a training run is told: shape of the model, length and rates of the run. No torch here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from promptgen.errors import UsageError


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything a training run depends on beside its data. `layers`, `width`, `heads` and `window` shape the model.

    A row is `row_length` tokens of whole documents; a step sees `rows_per_step` rows. `shifted_share` of the documents start at a
    random position, so that all of the window is learned from short documents.
    """

    layers: int = 4
    width: int = 256
    heads: int = 4
    window: int = 256
    dropout: float = 0.0
    epochs: float = 2.0
    row_length: int = 128
    rows_per_step: int = 48
    learning_rate: float = 2e-3
    warmup_share: float = 0.02
    final_learning_rate_share: float = 0.02
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    shifted_share: float = 0.1
    validations: int = 8  # over the whole run
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UsageError for numbers that no run could use."""
        for name in ("layers", "width", "heads", "window", "row_length", "rows_per_step", "validations"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be 1 or more, is {getattr(self, name)}")
        if self.epochs <= 0 or self.learning_rate <= 0:
            raise UsageError("--epochs and --learning-rate must be over 0")
        if self.width % self.heads:
            raise UsageError(f"--width {self.width} is not a multiple of --heads {self.heads}")
        if self.row_length > self.window:
            raise UsageError(f"--row-length {self.row_length} is longer than --window {self.window}")

    @classmethod
    def defaults(cls) -> dict[str, int | float]:
        return {f.name: f.default for f in dataclasses.fields(cls) if isinstance(f.default, int | float)}
