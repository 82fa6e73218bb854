"""Draws the first token of candidates whose request says which ones may come: healed prompts, and first words that must differ.

The model's probability of a branch is that of its path times that of the token after it; among all branches of a request these are put in
proportion, and temperature, top-k and top-p apply to them as to any other choice. Noise is that of the token at its position
(generation/noise.py), so a draw does not depend on which other branches were looked at.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptgen.generation.noise import gumbel_lines, sequence_key
from promptgen.generation.request import GREEDY_BELOW, GenerationRequest, Sampling
from promptgen.generation.scheduler import Pick

Line = NDArray[np.float64]  # [V]
CHUNK = 64  # scores of which the best is looked at first


@dataclass(frozen=True, slots=True)
class _Leaves:
    """Every way to go on: branch, token, score (what is drawn from, -inf for what is excluded) and log-probability, each [N]."""

    branches: NDArray[np.int64]
    token_ids: NDArray[np.int64]
    scores: Line
    logprobs: Line

    def take(self, chosen: NDArray[np.int64]) -> _Leaves:
        return _Leaves(self.branches[chosen], self.token_ids[chosen], self.scores[chosen], self.logprobs[chosen])


def draw_first(
    request: GenerationRequest,
    samples: Many[int],
    lines: Many[NDArray[np.float32]],
    banned: NDArray[np.float32],
    end_id: int,
) -> list[Pick]:
    """One pick for each sample. lines[b] [V] are the logits after branch b's path, `banned` [V] is -inf for what is never drawn."""
    sampling = request.sampling
    number = max(samples) + 1 if request.distinct_first else max(len(samples), sampling.top_k or len(banned))
    leaves, total = _leaves(request, lines, banned, end_id, number)
    if request.distinct_first:
        picked = _in_turn(leaves, samples)
    elif request.different:
        kept = _truncated(leaves, sampling, at_least=len(samples))
        noisy = leaves.take(kept).scores if sampling.is_greedy else _noisy(request, leaves.take(kept), samples[:1])[0]
        best = kept[np.argsort(-noisy, kind="stable")]
        picked = [int(best[i % len(best)]) for i in range(len(samples))]
    elif sampling.is_greedy:
        picked = [int(leaves.scores.argmax())] * len(samples)
    else:
        kept = _truncated(leaves, sampling)
        picked = kept[_noisy(request, leaves.take(kept), samples).argmax(axis=1)].tolist()
    return [Pick(int(leaves.branches[i]), int(leaves.token_ids[i]), float(leaves.logprobs[i] - total)) for i in picked]


def _leaves(
    request: GenerationRequest,
    lines: Many[NDArray[np.float32]],
    banned: NDArray[np.float32],
    end_id: int,
    number: int,
) -> tuple[_Leaves, float]:
    """The leaves, and the log-probability of those that spell what was typed, excluded or not. Of each branch at least the best `number`."""
    bias = banned.astype(np.float64)
    for token_id, own in request.bias:
        bias[token_id] += own
    before: dict[tuple[int, ...], tuple[Line, float]] = {}  # logits after each path, and the logarithm of their sum
    reached: dict[tuple[int, ...], float] = {(): 0.0}  # log-probability of each path
    parts: list[_Leaves] = []
    typed: list[float] = []
    for index, (branch, line) in enumerate(zip(request.branches, lines, strict=True)):
        path, cover = branch.path_ids, branch.cover_ids
        allowed = line[: len(bias)] + bias
        if end_id >= 0 and (request.ignore_end or request.min_new_tokens > branch.num_new):
            allowed[end_id] = -np.inf
        whole = _log_sum(allowed)
        before[path] = allowed, whole
        if path:
            given = (branch.path_logprobs or ())[1:]
            head = path[: len(path) - len(given)]  # spells what was typed, token by token from the other branches
            above, sum_above = before[head[:-1]]
            reached[path] = reached[head[:-1]] + above[head[-1]] - sum_above + sum(given)
        if branch.path_logprobs is None:
            typed.append(reached[path] + _log_sum(allowed[cover]) - whole)
        scored, sum_scored = allowed, whole
        penalty = request.sampling.repetition_penalty
        if penalty != 1:
            scored = _penalized(allowed, [*request.prompt_ids, *path], penalty)
            sum_scored = _log_sum(scored)
        if branch.excluded_ids:
            scored = scored.copy()
            scored[list(branch.excluded_ids)] = -np.inf
        scores = scored[cover]
        likely = _likely(scores, number)
        token_ids = cover[likely]
        parts.append(
            _Leaves(
                np.full(len(token_ids), index),
                token_ids,
                reached[path] + (scores[likely] - sum_scored),
                reached[path] + (allowed[token_ids] - whole),
            )
        )
    columns = zip(*((part.branches, part.token_ids, part.scores, part.logprobs) for part in parts), strict=True)
    return _Leaves(*map(np.concatenate, columns)), _log_sum(np.array(typed))


def _likely(scores: Line, number: int) -> NDArray[np.int64]:
    """Indices of the `number` best scores and of some others, those that equal one of them included."""
    num_chunks = len(scores) // CHUNK
    if num_chunks <= number:
        return np.arange(len(scores))
    # So many chunks have a score of at least `least` in them, so what lies below is not among the best.
    peaks = scores[: num_chunks * CHUNK].reshape(num_chunks, CHUNK).max(axis=1)
    least = np.partition(peaks, num_chunks - number)[num_chunks - number]
    return np.flatnonzero(scores >= least)


def _log_sum(line: Line) -> float:
    most = line.max(initial=-np.inf)
    if most == -np.inf:
        return -np.inf
    return float(most + np.log(np.exp(line - most).sum()))


def _penalized(line: Line, seen: list[int], penalty: float) -> Line:
    line = line.copy()
    seen = list(set(seen))
    line[seen] = np.where(line[seen] > 0, line[seen] / penalty, line[seen] * penalty)
    return line


def _truncated(leaves: _Leaves, sampling: Sampling, *, at_least: int = 1) -> NDArray[np.int64]:
    """Indices of the leaves that top-k and top-p leave, but no fewer than `at_least`, best first."""
    order = _best(leaves.scores, max(at_least, sampling.top_k or len(leaves.scores)))
    if 0 < sampling.top_p < 1:
        scores = leaves.scores[order] / max(sampling.temperature, GREEDY_BELOW)
        weights = np.exp(scores - scores[0])
        before = np.cumsum(weights) - weights
        order = order[(before < sampling.top_p * weights.sum()) | (np.arange(len(order)) < at_least)]
    return order


def _best(scores: Line, number: int) -> NDArray[np.int64]:
    some = np.argpartition(-scores, number - 1)[:number] if number < len(scores) else np.arange(len(scores))
    some = some[np.isfinite(scores[some]) | (some == scores.argmax())]
    order: NDArray[np.int64] = some[np.lexsort((some, -scores[some]))]
    return order


def _in_turn(leaves: _Leaves, samples: Many[int]) -> list[int]:
    """The likeliest for sample 0, the next for sample 1, and so on; from the start again when there are no more."""
    order = _best(leaves.scores, max(samples) + 1)
    return [int(order[sample % len(order)]) for sample in samples]


def _noisy(request: GenerationRequest, leaves: _Leaves, samples: Many[int]) -> Line:
    """Scores [samples, leaves] with the noise of each sample."""
    keys = [sequence_key(request.sampling.seed, sample) for sample in samples]
    lengths = np.array([len(branch.path_ids) for branch in request.branches])[leaves.branches]
    noise = gumbel_lines(keys, len(request.prompt_ids) + lengths, leaves.token_ids)
    return leaves.scores / request.sampling.temperature + noise
