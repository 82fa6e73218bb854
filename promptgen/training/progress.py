"""What a training run shows: a progress bar at a terminal, else a JSON line now and then, and metrics.jsonl in any case."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

LOG_LINES = 200  # over the whole run
_SMOOTHING = 0.98


class Progress:
    """Used as a context around the loop; `note` is called once a step."""

    def __init__(self, metrics: Path, num_steps: int) -> None:
        self._path = metrics
        self._num_steps = num_steps
        self._step = 0
        self._smooth = math.nan
        self._started = time.perf_counter()
        self.num_tokens = 0

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._started

    def __enter__(self) -> Progress:
        self._file = self._path.open("w", encoding="utf-8")
        self._bar = tqdm(total=self._num_steps, desc="train", unit=" steps", disable=None)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._file.close()

    def note(self, loss: float, num_tokens: int, rate: float, valid_loss: float | None) -> None:
        """Takes the figures of one step; `valid_loss` when the held-out part was measured after it."""
        self._step += 1
        self.num_tokens += num_tokens
        self._smooth = loss if math.isnan(self._smooth) else _SMOOTHING * self._smooth + (1 - _SMOOTHING) * loss
        self._bar.update()
        is_due = self._step % max(1, self._num_steps // LOG_LINES) == 0 or self._step == self._num_steps
        if is_due or valid_loss is not None:
            self._write(rate, valid_loss)

    def _write(self, rate: float, valid_loss: float | None) -> None:
        record: dict[str, Any] = {"step": self._step, "of": self._num_steps, "loss": round(self._smooth, 4), "lr": rate}
        record |= {"tokens_per_s": round(self.num_tokens / self.elapsed_s), "elapsed_s": round(self.elapsed_s, 1)}
        if valid_loss is not None:
            record["valid_loss"] = round(valid_loss, 4)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self._bar.set_postfix(loss=f"{self._smooth:.3f}", valid=record.get("valid_loss", ""))
        if self._bar.disable:
            print(json.dumps(record), file=sys.stderr, flush=True)
