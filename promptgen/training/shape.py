"""What a training run is told: shape of the model, length and rates of the run. No torch here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


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
    epochs: float = 2.2
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

    @classmethod
    def defaults(cls) -> dict[str, int | float]:
        return {f.name: f.default for f in dataclasses.fields(cls) if isinstance(f.default, int | float)}
