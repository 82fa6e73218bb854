"""Draws the first token of candidates whose request says which ones may come: healed prompts, and first words that must differ.

The model's probability of a branch is that of its path times that of the token after it; among all branches of a request these are put in
proportion, and temperature, top-k and top-p apply to them as to any other choice. Noise is that of the token at its position
(generation/noise.py), so a draw does not depend on which other branches were looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from promptgen.generation.noise import gumbel, sequence_key
from promptgen.generation.request import GenerationRequest, Sampling
from promptgen.generation.scheduler import Pick

Line = NDArray[np.float64]  # [V]


@dataclass(frozen=True, slots=True)
class _Leaves:
    """Every way to go on: branch, token, score (what is drawn from) and log-probability, each [N]."""

    branches: NDArray[np.int64]
    token_ids: NDArray[np.int64]
    scores: Line
    logprobs: Line

    def take(self, chosen: NDArray[np.int64]) -> _Leaves:
        return _Leaves(self.branches[chosen], self.token_ids[chosen], self.scores[chosen], self.logprobs[chosen])


def draw_first(
    request: GenerationRequest,
    samples: Sequence[int],
    lines: Sequence[NDArray[np.float32]],
    banned: NDArray[np.float32],
    end_id: int,
) -> list[Pick]:
    """One pick for each sample. lines[b] [V] are the logits after branch b's path, `banned` [V] is -inf for what is never drawn."""
    leaves = _leaves(request, lines, banned, end_id)
    most = leaves.logprobs.max()
    total = most + np.log(np.exp(leaves.logprobs - most).sum())
    greedy = request.sampling.is_greedy
    if request.distinct_first:
        picked = _in_turn(leaves, samples)
    elif greedy:
        picked = [int(leaves.scores.argmax())] * len(samples)
    else:
        kept = _truncated(leaves, request.sampling)
        picked = kept[_noisy(request, leaves.take(kept), samples).argmax(axis=1)].tolist()
    return [Pick(int(leaves.branches[i]), int(leaves.token_ids[i]), float(leaves.logprobs[i] - total)) for i in picked]


def _leaves(
    request: GenerationRequest, lines: Sequence[NDArray[np.float32]], banned: NDArray[np.float32], end_id: int
) -> _Leaves:
    bias = banned.astype(np.float64)
    for token_id, own in request.bias:
        bias[token_id] += own
    if end_id >= 0 and (request.ignore_end or request.min_new_tokens):
        bias[end_id] = -np.inf
    before: dict[tuple[int, ...], Line] = {}  # log-probabilities after each path
    reached: dict[tuple[int, ...], float] = {(): 0.0}  # log-probability of each path
    parts: list[_Leaves] = []
    for index, (branch, line) in enumerate(zip(request.branches, lines, strict=True)):
        path = branch.path_ids
        allowed = line[: len(bias)] + bias
        before[path] = _log_softmax(allowed)
        if path:
            reached[path] = reached[path[:-1]] + before[path[:-1]][path[-1]]
        cover = branch.cover_ids
        scored = before[path]
        if request.sampling.repetition_penalty != 1:
            scored = _log_softmax(
                _penalized(allowed, [*request.prompt_ids, *path], request.sampling.repetition_penalty)
            )
        parts.append(
            _Leaves(
                np.full(len(cover), index), cover, reached[path] + scored[cover], reached[path] + before[path][cover]
            )
        )
    return _Leaves(
        *(
            np.concatenate(columns)
            for columns in zip(*((p.branches, p.token_ids, p.scores, p.logprobs) for p in parts), strict=True)
        )
    )


def _log_softmax(line: Line) -> Line:
    most = line.max()
    shifted: Line = line - (most + np.log(np.exp(line - most).sum()))
    return shifted


def _penalized(line: Line, seen: list[int], penalty: float) -> Line:
    line = line.copy()
    seen = list(set(seen))
    line[seen] = np.where(line[seen] > 0, line[seen] / penalty, line[seen] * penalty)
    return line


def _truncated(leaves: _Leaves, sampling: Sampling) -> NDArray[np.int64]:
    """Indices of the leaves that top-k and top-p leave, best first."""
    order = _best(leaves.scores, sampling.top_k or len(leaves.scores))
    if 0 < sampling.top_p < 1:
        scores = leaves.scores[order] / sampling.temperature
        weights = np.exp(scores - scores[0])
        before = np.cumsum(weights) - weights
        order = order[(before < sampling.top_p * weights.sum()) | (np.arange(len(order)) == 0)]
    return order


def _best(scores: Line, number: int) -> NDArray[np.int64]:
    some = np.argpartition(-scores, number - 1)[:number] if number < len(scores) else np.arange(len(scores))
    some = some[np.isfinite(scores[some]) | (some == scores.argmax())]
    order: NDArray[np.int64] = some[np.lexsort((some, -scores[some]))]
    return order


def _in_turn(leaves: _Leaves, samples: Sequence[int]) -> list[int]:
    """The likeliest for sample 0, the next for sample 1, and so on; from the start again when there are no more."""
    order = _best(leaves.scores, max(samples) + 1)
    return [int(order[sample % len(order)]) for sample in samples]


def _noisy(request: GenerationRequest, leaves: _Leaves, samples: Sequence[int]) -> Line:
    """Scores [samples, leaves] with the noise of each sample."""
    keys = torch.tensor([sequence_key(request.sampling.seed, sample) for sample in samples])
    scores = np.repeat((leaves.scores / request.sampling.temperature)[None], len(samples), axis=0)
    lengths = np.array([len(branch.path_ids) for branch in request.branches])[leaves.branches]
    for length in np.unique(lengths):
        here = np.flatnonzero(lengths == length)
        position = torch.full((len(samples),), len(request.prompt_ids) + int(length), dtype=torch.int64)
        token_ids = torch.from_numpy(leaves.token_ids[here])[None].expand(len(samples), -1)
        scores[:, here] += gumbel(keys, position, token_ids).numpy()
    return scores
