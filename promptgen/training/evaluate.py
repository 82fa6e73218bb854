"""How well a model predicts the held-out part: loss, and how often the token that came was its first or among its five first."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from promptgen.training.dataset import TokenFile
from promptgen.training.forward import hidden_states
from promptgen.training.packing import IGNORED, Batch, batches

_ROWS = 24
_CHUNK_TOKENS = 384


@dataclass(frozen=True, slots=True)
class Quality:
    """Mean loss per token (nats) over `num_tokens` tokens, nan if there are none, and shares of tokens predicted."""

    loss: float
    num_tokens: int
    top_1: float
    top_5: float


def sample_of(part: TokenFile, max_documents: int) -> TokenFile:
    """At most so many documents, spread evenly over the part, so that no field of a sorted corpus is missed."""
    if len(part) <= max_documents:
        return part
    chosen = np.linspace(0, len(part) - 1, max_documents).astype(np.int64)
    documents = [part.document(int(i)) for i in chosen]
    offsets = np.cumsum([0, *(len(document) for document in documents)])
    return TokenFile(np.concatenate(documents), offsets)


@torch.no_grad()
def evaluate(
    model: GPT2LMHeadModel,
    part: TokenFile,
    row_length: int,
    dtype: torch.dtype = torch.float32,
    on_tokens: Callable[[int], object] = lambda _: None,
) -> Quality:
    """Measures a part; products are computed in `dtype`, and `on_tokens` is told how many tokens were measured since it was last told."""
    weight = model.lm_head.weight.to(dtype)
    loss, first, five, count = 0.0, 0, 0, 0
    for batch in batches(part, row_length, _ROWS):
        hidden, labels = labelled_states(model, batch, dtype)
        for begin in range(0, len(labels), _CHUNK_TOKENS):
            chosen = labels[begin : begin + _CHUNK_TOKENS, None]
            logits = (hidden[begin : begin + _CHUNK_TOKENS].to(dtype) @ weight.T).float()
            own = logits.gather(1, chosen)
            loss += float((logits.logsumexp(1, keepdim=True) - own).sum())
            rank = (logits > own).sum(1)
            first, five = first + int((rank < 1).sum()), five + int((rank < 5).sum())
        count += len(labels)
        on_tokens(len(labels))
    if not count:
        return Quality(math.nan, 0, math.nan, math.nan)
    return Quality(loss / count, count, first / count, five / count)


def labelled_states(
    model: GPT2LMHeadModel, batch: Batch, dtype: torch.dtype, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Hidden states [N, width] of the positions that have a label, and the labels [N]."""
    device = model.lm_head.weight.device
    tokens, positions, segments, labels = (
        torch.from_numpy(array).to(device) for array in (batch.tokens, batch.positions, batch.segments, batch.labels)
    )
    hidden = hidden_states(model, tokens, positions, segments, dtype=dtype, dropout=dropout)
    flat = labels.reshape(-1)
    wanted = (flat != IGNORED).nonzero()[:, 0]
    return hidden.index_select(0, wanted), flat[wanted]
