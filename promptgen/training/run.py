"""One training run: what it needs, where it stands, and its loop of steps, validations and checkpoints.

Order, positions and dropout are drawn from counters, so a run that was killed goes on from its newest checkpoint to the very weights
that it would have had.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import GPT2LMHeadModel

from promptgen.errors import FileFault, NumericalFailure, Stopped, UsageError
from promptgen.training import checkpoint as checkpoints
from promptgen.training.checkpoint import Checkpoint, State
from promptgen.training.dataset import MANIFEST, WEIGHTS_FILE, check_data, data_sha256, file_sha256, load_part
from promptgen.training.evaluate import Quality, evaluate, sample_of
from promptgen.training.model_folder import (
    check_out,
    check_row_length,
    drop_model,
    load_model,
    make_model,
    put_weights,
    save_model,
    weights_of,
)
from promptgen.training.optimizer import Optimizers, learning_rate_scale
from promptgen.training.packing import Batch, Shuffle, batches, count_rows
from promptgen.training.processes import Processes, best_dtype
from promptgen.training.progress import Progress
from promptgen.training.shape import TrainConfig
from promptgen.training.step import training_step
from promptgen.training.stopping import StopWish
from promptgen.training.validate import known_training

VALIDATION_DOCUMENTS = 4000  # looked at during the run; eval.json is over all
LAST = "last"  # folder in OUT of the newest model, when it is not the best
CHECKPOINT_S = 300.0  # at least so often, beside every validation
EPOCH_CHECKPOINT_S = 2.0  # an epoch's end leaves its checkpoint out if the last one is younger
_VALIDATION_SHARE = 0.25  # of a budget, for validations, at most
_TRIAL_S = 4.0  # of trial steps, to turn a budget into a number of steps


def check_unfinished(out: Path) -> None:
    """Raises UsageError for a folder that holds a model, which a new run would replace."""
    if (out / WEIGHTS_FILE).exists():
        raise UsageError(
            f"{out} holds a model already; give another --out, or --resume never to train a new one in its place"
        )


class Run:
    """One training run in one folder: what it needs, and where it stands."""

    def __init__(
        self, data: Path, out: Path, config: TrainConfig, start_from: Path | None, budget_s: float | None, resume: bool
    ) -> None:
        self.data, self.out, self.start_from = data, out, start_from
        self._found, faults = checkpoints.newest(out) if resume else (None, [])
        for fault in faults:
            print(f"passed over {fault}", file=sys.stderr)
        if resume and self._found is None:
            check_unfinished(out)
        if start_from is not None and start_from.resolve() == out.resolve():
            raise UsageError("--from and --out are the same folder; give another --out")
        if start_from is not None and start_from.resolve() == (out / LAST).resolve():
            raise UsageError(f"--from {start_from} lies in --out, and this run would replace it; give another --out")
        check_out(out, data)
        check_data(data)
        self.train_part = load_part(data, "train")
        self.valid_part = sample_of(load_part(data, "valid"), VALIDATION_DOCUMENTS)
        if not len(self.train_part.tokens):
            raise FileFault(data, "holds no document to train on; prepare a corpus first")
        self.processes = Processes()
        self.dtype = best_dtype(self.processes.device)
        self._meta = (data / MANIFEST).read_bytes()
        self._before = known_training(start_from) if start_from is not None else None
        self.model = self._new_model(config)
        shape = self.model.config  # with --from, the shape is the start model's
        self.config = replace(
            config, layers=shape.n_layer, width=shape.n_embd, heads=shape.n_head, window=shape.n_positions
        )
        self.num_steps = self._count_steps(budget_s)
        self.optimizers = Optimizers(self.model, self.config)
        self.state = State(0, 0, 0, 0, 0.0, None, None, 0, self._identity())
        self._saved_at = time.perf_counter()

    def _new_model(self, config: TrainConfig) -> GPT2LMHeadModel:
        if self.start_from is None:
            model = make_model(config, self.data)
        else:
            model = load_model(self.start_from, self.data)
            check_row_length(config.row_length, model.config.n_positions, self.start_from)
        cast(nn.Module, model).to(self.processes.device)
        return model

    def _count_steps(self, budget_s: float | None) -> int:
        """The run's length, from --budget by trial, else --steps, else --epochs."""
        config = self.config
        wanted = config.steps or max(1, round(config.epochs * self._steps_per_epoch()))
        if budget_s is None:
            if self._found is not None and not config.steps:  # epochs were turned into steps when the run began
                return int(self._found.state.identity.get("steps", wanted))
            return wanted
        if self._found is not None:  # the budget was turned into steps when the run began
            known = self._found.state.identity
            self.config = replace(config, validations=int(known.get("validations", config.validations)))
            return int(known.get("steps", wanted))
        step_s, validation_s = self._time_a_step(min(_TRIAL_S, budget_s / 10))
        spared = _VALIDATION_SHARE * budget_s  # a short run is measured less often
        self.config = replace(config, validations=max(1, min(config.validations, int(spared / validation_s))))
        affordable = (budget_s - self.config.validations * validation_s) / step_s
        num_steps = max(1, min(int(affordable), wanted))
        if self.processes.is_first:
            told = (
                f"{num_steps} of {wanted} steps in the budget"
                if num_steps < wanted
                else f"all {wanted} steps in the budget"
            )
            print(f"{step_s:.3g} s a step: {told} (the same run again: --steps {num_steps})", file=sys.stderr)
        return num_steps

    def _steps_per_epoch(self) -> int:
        """Of the first epoch: another order packs a little differently. An estimate where `count_rows` gives one."""
        rows = count_rows(self.train_part, self.config.row_length, self._shuffle(0))
        return math.ceil(rows / self.config.rows_per_step)

    def _time_a_step(self, trial_s: float) -> tuple[float, float]:
        """Seconds that a step and a validation take, from trial steps whose weights are thrown away. All processes take as many."""
        optimizers = Optimizers(self.model, self.config)
        taken, started = 0, time.perf_counter()
        while taken < 3 or self._agree(time.perf_counter() - started < trial_s):
            for batch in islice(self._batches(0, 0), 3):
                training_step(
                    self.model, optimizers, batch, 0.0, self.config, dtype=self.dtype, processes=self.processes
                )
                taken += 1
                if taken == 1:
                    started = time.perf_counter()  # the first one also warms up
        step_s = (time.perf_counter() - started) / max(1, taken - 1)
        started = time.perf_counter()
        self._quality()
        both = (self.processes.sum(t) / self.processes.count for t in (step_s, time.perf_counter() - started))
        self.model = self._new_model(self.config)
        step_s, validation_s = both
        return max(step_s, 1e-4), max(validation_s, 1e-4)

    def _agree(self, answer: bool) -> bool:
        """The first process's answer, in all of them."""
        return self.processes.sum(self.processes.is_first and answer) > 0

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be of this run."""
        start = None if self.start_from is None else file_sha256(self.start_from / WEIGHTS_FILE)
        source = {"start": start, "data": data_sha256(self.data), "processes": self.processes.count}
        return asdict(self.config) | {"steps": self.num_steps} | source

    def resume(self) -> None:
        """Goes to where the newest checkpoint stands, if there is one. Raises UsageError if it is another run's."""
        if (found := self._found) is None:
            return
        self._found = None
        if different := [k for k, v in self.state.identity.items() if found.state.identity.get(k) != v]:
            raise UsageError(
                f"{self.out} holds a checkpoint of another run (different: {', '.join(different)}); give another --out, "
                "or --resume never to start over"
            )
        put_weights(self.model, found.weights)
        self.optimizers.load_state(found.optimizer)
        self.state = found.state
        print(f"going on after step {found.state.step} of {self.num_steps}", file=sys.stderr)

    def save(self) -> None:
        """Writes a checkpoint, if this is the process that writes. Raises FileFault if the data changed under the run."""
        self._check_unchanged()
        if self.processes.is_first:
            checkpoints.save(self.out, Checkpoint(self.state, weights_of(self.model), self.optimizers.state()))
        self.processes.wait()
        self._saved_at = time.perf_counter()

    def _check_unchanged(self) -> None:
        try:
            is_same = (self.data / MANIFEST).read_bytes() == self._meta
        except OSError:
            is_same = False
        if not is_same:
            raise FileFault(self.data, "was prepared anew while this training ran; the run cannot go on: train again")

    def _batches(self, epoch: int, first: int) -> Iterator[Batch]:
        config = self.config
        return batches(self.train_part, config.row_length, config.rows_per_step, self._shuffle(epoch), first)

    def _shuffle(self, epoch: int) -> Shuffle:
        return Shuffle(self.config.seed, epoch, self.config.window, self.config.shifted_share)

    def go(self, wish: StopWish, progress: Progress) -> None:
        """Steps until the run is over. Raises NumericalFailure, or Stopped after a signal, each with a checkpoint on disk."""
        if self.state.step == 0:
            self.save()  # from here on the length of the run is settled
        while self.state.step < self.num_steps and not self._is_out_of_patience():
            for batch in self._batches(self.state.epoch, self.state.batch):
                self._step(batch, progress)
                is_stopped = self._wants_stop(wish)
                # Also when stopped: a run that goes on has this step behind it, and would not validate it any more.
                if is_validated := self._is_time_to_validate():
                    self._validate(progress)
                if is_stopped or is_validated or self._is_older(CHECKPOINT_S):
                    self.save()
                if is_stopped:
                    raise Stopped(wish.signum or signal.SIGTERM, f"stopped after step {self.state.step}")
                if self.state.step == self.num_steps or self._is_out_of_patience():
                    return
            self.state = replace(self.state, epoch=self.state.epoch + 1, batch=0)
            if self._is_older(EPOCH_CHECKPOINT_S):
                self.save()

    def _is_time_to_validate(self) -> bool:
        every = math.ceil(self.num_steps / self.config.validations)
        step = self.state.step
        return step == self.num_steps or (step % every == 0 and self.num_steps - step >= every // 2)

    def _step(self, batch: Batch, progress: Progress) -> None:
        state = self.state
        scale = learning_rate_scale(state.step, self.num_steps, self.config)
        started = time.perf_counter()
        loss = training_step(
            self.model,
            self.optimizers,
            batch,
            scale,
            self.config,
            number=state.step,
            dtype=self.dtype,
            processes=self.processes,
        )
        if not math.isfinite(loss):
            raise NumericalFailure(
                f"the loss is no number at step {state.step}; the last good checkpoint is in {self.out / checkpoints.FOLDER}; "
                f"train anew with a lower --learning-rate and --matrix-rate (now {self.config.learning_rate:g}, {self.config.matrix_rate:g}) and --resume never"
            )
        smooth = loss if state.smooth_loss is None else 0.98 * state.smooth_loss + 0.02 * loss
        self.state = replace(
            state,
            step=state.step + 1,
            batch=state.batch + 1,
            num_tokens=state.num_tokens + batch.num_labels,
            seconds=state.seconds + time.perf_counter() - started,
            smooth_loss=smooth,
        )
        progress.note(self.state, scale * self.config.learning_rate)

    def summary(self) -> dict[str, Any]:
        """What there is to say of the run, and of the run that made the model it began with."""
        told = asdict(self.config) | {
            "steps": self.state.step,
            "tokens": self.state.num_tokens,
            "seconds": round(self.state.seconds),
            "products": str(self.dtype).removeprefix("torch."),
            "best_validation_loss": self.state.best_loss,
            "processes": self.processes.count,
        }
        return told if self._before is None else told | {"before": self._before}

    def _validate(self, progress: Progress) -> None:
        self._check_unchanged()
        quality = self._quality()
        state = self.state
        if not len(self.valid_part) or state.best_loss is None or quality.loss < state.best_loss:
            if self.processes.is_first:
                save_model(self.model, self.out, self.data)
                drop_model(self.out / LAST)
                checkpoints.reached("model")
            best = quality.loss if len(self.valid_part) else None
            self.state = replace(state, best_loss=best, worse_validations=0)
        else:
            if self.processes.is_first:
                save_model(self.model, self.out / LAST, self.data)
            self.state = replace(state, worse_validations=state.worse_validations + 1)
        progress.note_validation(self.state, quality)

    def _quality(self) -> Quality:
        return evaluate(self.model, self.valid_part, self.config.row_length, self.dtype)

    def _is_out_of_patience(self) -> bool:
        return 0 < self.config.patience <= self.state.worse_validations

    def _wants_stop(self, wish: StopWish) -> bool:
        """Whether any process was signalled: they stop at the same step."""
        return self.processes.sum(wish.signum is not None) > 0

    def _is_older(self, seconds: float) -> bool:
        """Whether the last checkpoint, or the start of this process if there is none, is older; by the first process's clock, in all of them."""
        return self._agree(time.perf_counter() - self._saved_at > seconds)
