"""Draws one token for each row, all rows in one pass, each with its own parameters: the torch version.

Penalties, temperature, top-k, top-p, then the largest of (logit + Gumbel noise): an exact draw from what is left. Noise is made for
the survivors of top-k only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promptgen.generation.memory import MAX_COUNT, NOT_A_TOKEN, Memory
from promptgen.generation.steps import NO_TOKEN
from promptgen.generation.torch_noise import gumbel


@dataclass(frozen=True, slots=True)
class RowTensors:
    """The columns of ROW that a draw reads, as tensors [R] on the device of the logits."""

    keys: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    penalty: Tensor
    presence: Tensor
    frequency: Tensor
    is_greedy: Tensor  # bool
    end_from: Tensor

    @classmethod
    def of(cls, rows: NDArray[np.void], device: torch.device) -> RowTensors:
        def column(name: str) -> Tensor:
            return torch.from_numpy(rows[name]).to(device)

        return cls(
            column("key"),
            column("temperature"),
            column("top_k"),
            column("top_p"),
            column("penalty"),
            column("presence"),
            column("frequency"),
            column("is_greedy").bool(),
            column("end_from"),
        )


@torch.inference_mode()
def draw_rows(memory: Memory, logit_slots: NDArray[np.int64]) -> tuple[list[int], list[float]]:
    """Steps.draw for rows 0..R-1, row r from memory.logits[logit_slots[r]]."""
    rows = memory.rows[: len(logit_slots)]
    all_logits = torch.as_tensor(memory.logits)
    tensors = RowTensors.of(rows, all_logits.device)
    own_logits = all_logits[torch.from_numpy(logit_slots).to(all_logits.device), : memory.shape.vocabulary]
    rows["position"] += 1  # where the drawn tokens will stand
    positions = torch.from_numpy(rows["position"]).to(all_logits.device)
    logits = allowed_logits(own_logits, memory, tensors, positions)
    if rows["has_bias"].any():
        has_bias = torch.from_numpy(rows["has_bias"]).bool().to(logits.device)
        logits += torch.where(has_bias[:, None], torch.as_tensor(memory.row_bias)[: len(rows)], 0.0)
    early = (rows["end_ids"] >= 0) & (rows["position"] < rows["end_from"])[:, None]
    if early.any():
        early_rows, which = np.nonzero(early)
        logits[torch.from_numpy(early_rows), torch.from_numpy(rows["end_ids"][early_rows, which]).long()] = NOT_A_TOKEN
    seen = torch.as_tensor(memory.seen)
    penalized = np.flatnonzero(rows["keeps_seen"])
    scored = logits
    if len(penalized):
        own_seen = seen[: len(rows)] * torch.from_numpy(rows["keeps_seen"]).to(seen.device)[:, None]
        scored = penalize(logits, own_seen > 0, tensors.penalty)
        counts = own_seen & MAX_COUNT
        scored = scored - (counts * tensors.frequency[:, None] + (counts > 0) * tensors.presence[:, None])
    chosen = sample(scored, positions, tensors, int(rows["top_k"].max()), any_top_p=bool((rows["top_p"] < 1).any()))
    token_ids = chosen.cpu().numpy()
    forced = np.flatnonzero(rows["is_forced"])
    token_ids[forced] = memory.forced[forced, rows["position"][forced]]
    logprobs = [0.0] * len(rows)
    if rows["wants_logprob"].any():
        logits[forced] = own_logits[forced]  # among all tokens
        chosen = torch.from_numpy(token_ids).to(logits.device)
        wanted = np.where(rows["wants_logprob"] > 0, chosen_logprobs(logits, chosen).cpu().numpy(), 0.0)
        logprobs = wanted.tolist()
    # Last, so that a draw that raises has changed nothing but positions.
    rows["token_id"] = token_ids
    drawn = torch.from_numpy(penalized), torch.from_numpy(token_ids[penalized])
    seen[drawn] += ((seen[drawn] & MAX_COUNT) < MAX_COUNT).to(seen.dtype)
    return proven(torch.from_numpy(token_ids).to(logits.device), own_logits).tolist(), logprobs


def allowed_logits(logits: Tensor, memory: Memory, rows: RowTensors, positions: Tensor) -> Tensor:
    """logits [R, V] with -inf for what a row may not draw to stand at `positions` [R]."""
    logits = (logits + torch.as_tensor(memory.bias)).nan_to_num_(
        nan=NOT_A_TOKEN, posinf=-NOT_A_TOKEN, neginf=NOT_A_TOKEN
    )
    if memory.end_id >= 0:
        logits[:, memory.end_id].masked_fill_(positions < rows.end_from, NOT_A_TOKEN)
    return logits


def penalize(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """CTRL's repetition penalty on logits [R, V], where seen [R, V] marks the tokens already in the sequence."""
    by_row = penalty[:, None]
    return torch.where(seen, torch.where(logits > 0, logits / by_row, logits * by_row), logits)


def sample(logits: Tensor, positions: Tensor, rows: RowTensors, max_k: int, *, any_top_p: bool = True) -> Tensor:
    """Token ids [R] drawn from logits [R, V] (float32, none NaN) to stand at positions [R]; no row's top_k is over `max_k`."""
    values, token_ids = torch.topk(logits / rows.temperature[:, None], max_k)  # [R, K], falling
    rank = torch.arange(max_k, device=logits.device)
    values = values.masked_fill(rank >= rows.top_k[:, None], NOT_A_TOKEN)
    if any_top_p:
        probabilities = values.softmax(dim=1)
        before = probabilities.cumsum(dim=1) - probabilities
        is_beyond = (before >= rows.top_p[:, None]) & (rows.top_p < 1)[:, None] & (rank > 0)
        values = values.masked_fill(is_beyond, NOT_A_TOKEN)
    noise = gumbel(rows.keys, positions, token_ids).masked_fill(rows.is_greedy[:, None], 0.0)
    scores = values.to(torch.float64) + noise
    return token_ids.gather(1, scores.argmax(dim=1, keepdim=True))[:, 0]


def proven(token_ids: Tensor, logits: Tensor) -> Tensor:
    """Token ids [R], NO_TOKEN in place of those whose logit is no finite number: nothing better was there."""
    return torch.where(logits.gather(1, token_ids[:, None])[:, 0].isfinite(), token_ids, NO_TOKEN)


def chosen_logprobs(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Log-probability [R] of the chosen tokens [R] at temperature 1, without penalty or truncation, among the tokens that may be drawn."""
    return logits.gather(1, token_ids[:, None])[:, 0] - logits.logsumexp(dim=1)
