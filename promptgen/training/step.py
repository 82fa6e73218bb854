"""One optimizer step: loss and gradients of a batch, a few rows at a time, then the weights move."""

from __future__ import annotations

import math

import numpy as np
import torch
from transformers import GPT2LMHeadModel

from promptgen.training.evaluate import labelled_states
from promptgen.training.loss import linear_cross_entropy
from promptgen.training.optimizer import Optimizers
from promptgen.training.packing import Batch
from promptgen.training.processes import Processes
from promptgen.training.shape import TrainConfig


def training_step(
    model: GPT2LMHeadModel,
    optimizers: Optimizers,
    batch: Batch,
    scale: float,
    config: TrainConfig,
    *,
    number: int = 0,
    dtype: torch.dtype = torch.float32,
    processes: Processes | None = None,
) -> float:
    """Loss per token (nats) of the batch before the step. nan if it or a gradient is no number; then no weight changes.

    `scale` is the share of the peak rates; `number` the step's number, from which dropout is drawn.
    """
    rank, count = (processes.rank, processes.count) if processes else (0, 1)
    num_labels = batch.num_labels
    own = batch.rows(slice(rank, None, count))
    total = 0.0
    for begin in range(0, len(own.tokens), config.rows_at_once):
        if config.dropout:
            torch.manual_seed(int(np.random.SeedSequence([config.seed, number, rank, begin]).generate_state(1)[0]))
        part = own.rows(slice(begin, begin + config.rows_at_once))
        hidden, labels = labelled_states(model, part, dtype, config.dropout)
        loss = linear_cross_entropy(hidden, model.lm_head.weight, labels, dtype)
        (loss / num_labels).backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    if processes:
        processes.sum_gradients(model.parameters())
        total = processes.sum(total)
    norm = optimizers.step(scale if math.isfinite(total) else math.nan)
    return total / num_labels if math.isfinite(norm) else math.nan
