"""Draws one token for each row, all rows in one pass, each with its own parameters.

Penalty, temperature, top-k, top-p, then the largest of (logit + Gumbel noise): an exact draw from what is left. Noise is made for
the survivors of top-k only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from promptgen.generation.noise import gumbel, sequence_key
from promptgen.generation.request import GREEDY_BELOW, Sampling

NOT_A_TOKEN = float("-inf")


@dataclass(slots=True)
class RowSampling:
    """Sampling parameters of all rows, tensors of [max_rows]. Greedy rows stand as top-k 1 without noise."""

    keys: Tensor  # int64
    temperature: Tensor  # float32, never 0
    top_k: Tensor  # int64, never 0: the size of the vocabulary when off
    top_p: Tensor  # float32, 1 when off
    penalty: Tensor  # float32
    noise: Tensor  # float64, 0 for greedy rows

    @classmethod
    def allocate(cls, max_rows: int) -> RowSampling:
        return cls(
            keys=torch.zeros(max_rows, dtype=torch.int64),
            temperature=torch.ones(max_rows),
            top_k=torch.ones(max_rows, dtype=torch.int64),
            top_p=torch.ones(max_rows),
            penalty=torch.ones(max_rows),
            noise=torch.zeros(max_rows, dtype=torch.float64),
        )

    def set_rows(self, first_row: int, num_rows: int, sampling: Sampling, vocabulary_size: int) -> None:
        """Rows first_row... become samples 0... of one request."""
        rows = slice(first_row, first_row + num_rows)
        greedy = sampling.temperature < GREEDY_BELOW
        self.keys[rows] = torch.tensor([sequence_key(sampling.seed, sample) for sample in range(num_rows)])
        self.temperature[rows] = 1.0 if greedy else sampling.temperature
        self.top_k[rows] = 1 if greedy else min(sampling.top_k or vocabulary_size, vocabulary_size)
        self.top_p[rows] = sampling.top_p if 0 < sampling.top_p < 1 else 1.0
        self.penalty[rows] = sampling.repetition_penalty
        self.noise[rows] = 0.0 if greedy else 1.0

    def move_row(self, source: int, target: int) -> None:
        for column in (self.keys, self.temperature, self.top_k, self.top_p, self.penalty, self.noise):
            column[target] = column[source]

    def first(self, num_rows: int) -> RowSampling:
        columns = (self.keys, self.temperature, self.top_k, self.top_p, self.penalty, self.noise)
        return RowSampling(*(column[:num_rows] for column in columns))


def penalize(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """CTRL's repetition penalty on logits [R, V], where seen [R, V] marks the tokens already in the sequence."""
    by_row = penalty[:, None]
    return torch.where(seen, torch.where(logits > 0, logits / by_row, logits * by_row), logits)


def sample(logits: Tensor, positions: Tensor, rows: RowSampling) -> Tensor:
    """Token ids [R] drawn from logits [R, V] (float32) for the tokens that will stand at positions [R]."""
    max_k = int(rows.top_k.max())
    values, token_ids = torch.topk(logits / rows.temperature[:, None], max_k)  # [R, K], falling
    rank = torch.arange(max_k)
    values = values.masked_fill(rank >= rows.top_k[:, None], NOT_A_TOKEN)
    if bool((rows.top_p < 1).any()):
        probabilities = values.softmax(dim=1)
        before = probabilities.cumsum(dim=1) - probabilities
        values = values.masked_fill((before >= rows.top_p[:, None]) & (rank > 0), NOT_A_TOKEN)
    scores = values.to(torch.float64) + gumbel(rows.keys, positions, token_ids) * rows.noise[:, None]
    return token_ids.gather(1, scores.argmax(dim=1, keepdim=True))[:, 0]


def chosen_logprobs(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Log-probability [R] of the chosen tokens [R] at temperature 1, without penalty or truncation, among the tokens that may be drawn."""
    return logits.gather(1, token_ids[:, None])[:, 0] - logits.logsumexp(dim=1)
