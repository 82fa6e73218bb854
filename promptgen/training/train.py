"""Trains a GPT-2 on prepared data: `promptgen train DATA --out MODEL`.

The model is transformers' GPT2LMHeadModel and is saved in its layout. What lies in OUT is the best model by the held-out loss; what is
measured at the end is what was saved.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from promptgen.training import checkpoint as checkpoints
from promptgen.training.processes import Processes
from promptgen.training.progress import Progress
from promptgen.training.run import Run
from promptgen.training.shape import TrainConfig
from promptgen.training.stopping import stop_wish
from promptgen.training.validate import TYPING_PROMPTS, measure


def train(
    data: Path,
    out: Path,
    config: TrainConfig,
    start_from: Path | None = None,
    *,
    resume: bool = True,
    budget_s: float | None = None,
    typing_prompts: int = TYPING_PROMPTS,
    tensorboard: bool = False,
) -> dict[str, Any]:
    """Trains, measures what was saved, and returns the figures of eval.json. The model is in `out`.

    Goes on from a checkpoint in `out` unless `resume` is False. Raises FileFault for data or a start model that do not fit and for a folder in
    use, UsageError for a folder that holds another run or a model, NumericalFailure, DiskFault, and Stopped after a signal.
    """
    processes = Processes()
    with contextlib.ExitStack() as held:
        if processes.is_first:
            held.enter_context(checkpoints.locked(out))
        run = Run(data, out, config, start_from, budget_s, resume)
        run.resume()
        if processes.is_first and not resume:
            checkpoints.clear(out)  # only now: whatever is wrong with the arguments was refused above
        processes.wait()  # until all have looked at what is there
        progress = Progress(out, run.num_steps, run.state, shown=processes.is_first, tensorboard=tensorboard)
        with stop_wish() as wish, progress:
            run.go(wish, progress)
        processes.leave()
        if not processes.is_first:
            return {}
        report = measure(out, data, run.summary(), typing_prompts=typing_prompts)
        checkpoints.reached("measured")
        checkpoints.clear(out)
    return report
