"""What a training run shows: a progress bar at a terminal, else a line now and then; metrics.jsonl and curves.png in any case."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from promptgen.errors import UsageError
from promptgen.training.checkpoint import State
from promptgen.training.curves import METRICS_FILE, draw_curves, read_metrics
from promptgen.training.evaluate import Quality
from promptgen.training.model_folder import put

LOG_LINES = 200  # over the whole run
_ON_BOARD = {"loss", "valid_loss", "valid_top_1", "lr", "tokens_per_s"}


class Progress:
    """Used as a context around the loop; `note` is called once a step. A process that is not `shown` shows and writes nothing."""

    def __init__(
        self, out: Path, num_steps: int, state: State, *, shown: bool = True, tensorboard: bool = False
    ) -> None:
        self._out = out
        self._num_steps = num_steps
        self._begun_at = state.step
        self._shown = shown
        self._every = max(1, num_steps // LOG_LINES)
        self._board = _open_board(out / "tensorboard") if tensorboard and shown else None

    def __enter__(self) -> Progress:
        self._bar = tqdm(
            total=self._num_steps,
            initial=self._begun_at,
            desc="train",
            unit=" steps",
            disable=None if self._shown else True,
        )
        if self._shown:
            self._out.mkdir(parents=True, exist_ok=True)
            kept = read_metrics(self._out, until_step=self._begun_at)
            put(self._out / METRICS_FILE, "".join(json.dumps(record) + "\n" for record in kept).encode())
            self._file = (self._out / METRICS_FILE).open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._shown:
            self._file.close()
            draw_curves(self._out)
        if self._board is not None:
            self._board.close()

    def note(self, state: State, rate: float) -> None:
        """Takes where the run stands after a step, and the learning rate of the step."""
        self._bar.update()
        if self._shown and (state.step % self._every == 0 or state.step == self._num_steps):
            self._write(self._record(state) | {"lr": rate})

    def note_validation(self, state: State, quality: Quality) -> None:
        """Takes what the held-out part said."""
        if not self._shown or not quality.num_tokens:
            return
        figures = {"valid_loss": quality.loss, "valid_top_1": quality.top_1, "valid_top_5": quality.top_5}
        self._write(self._record(state) | {name: round(value, 4) for name, value in figures.items()})
        draw_curves(self._out)

    def _record(self, state: State) -> dict[str, Any]:
        speed = state.num_tokens / state.seconds if state.seconds else 0.0
        return {
            "step": state.step,
            "of": self._num_steps,
            "loss": round(state.smooth_loss or 0.0, 4),
            "tokens": state.num_tokens,
            "tokens_per_s": round(speed),
            "seconds": round(state.seconds, 1),
        }

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._board is not None:
            for name in _ON_BOARD & record.keys():
                self._board.add_scalar(name, record[name], record["step"])
        shown = {name: record[name] for name in ("loss", "valid_loss") if name in record}
        self._bar.set_postfix(shown)
        if self._bar.disable:
            print(json.dumps(record), file=sys.stderr, flush=True)


def _open_board(folder: Path) -> Any:
    """A TensorBoard writer. Raises UsageError where the extra is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as fault:
        raise UsageError("--tensorboard needs its extra: pip install 'promptgen[tensorboard]'") from fault
    return SummaryWriter(str(folder))
