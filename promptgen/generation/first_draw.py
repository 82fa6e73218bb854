"""Draws the first token of candidates whose request says which ones may come: healed prompts, redraws, first words that must differ.

Of a healed prompt the branches are a tree of tokens that spell what was typed. A candidate goes down this tree token by token, as it will go on
afterwards: each token in proportion to the probability that what comes after it reaches the end of what was typed. Temperature, top-k and
top-p apply at each, and the noise is that of the token at its position (generation/noise.py), so a draw is the same however much of it was
typed. Redraws choose among the tokens of all their branches at once, with noise of their own; exact at temperature 1 without top-k and top-p.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from promptgen.generation.noise import gumbel_lines, sequence_key
from promptgen.generation.request import GREEDY_BELOW, Branch, GenerationRequest, Sampling
from promptgen.generation.scheduler import Pick

Line = NDArray[np.float32]  # [V]
CHUNK = 64  # scores of which the best is looked at first


@dataclass(frozen=True, slots=True)
class _Leaves:
    """Ways to go on: branch, token and score (what is drawn from, -inf for what is excluded), each [N]."""

    branches: NDArray[np.int64]
    token_ids: NDArray[np.int64]
    scores: NDArray[np.float64]


def draw_first(
    request: GenerationRequest,
    samples: Many[int],
    lines: Many[Line],
    banned: Line,
    end_id: int,
) -> list[Pick]:
    """One pick for each sample. lines[b] [V] are the logits after branch b's path, `banned` [V] is -inf for what is never drawn."""
    tree = _Tree(request, lines, banned, end_id)
    if not np.isfinite(tree.total):
        # Biases forbid all that could spell what was typed: what stands there already is no word to forbid.
        tree = _Tree(replace(request, bias=()), lines, banned, end_id)
    places = [sample - request.first_sample for sample in samples]
    if request.distinct_first:
        leaves = tree.best(max(places) + 1)
        picked = [place % len(leaves.scores) for place in places]
    elif request.different:
        leaves, picked = _draw_different(request, tree, places)
    elif request.sampling.is_greedy:
        leaves, picked = tree.best(1), [0] * len(samples)
    else:
        return tree.draw(samples)
    return [tree.pick(int(leaves.branches[i]), int(leaves.token_ids[i])) for i in picked]


def _draw_different(request: GenerationRequest, tree: _Tree, places: list[int]) -> tuple[_Leaves, list[int]]:
    """No leaf twice, unless there are fewer than places."""
    sampling = request.sampling
    leaves = tree.best(max(request.num_samples, sampling.top_k) if sampling.top_k else None)
    if not np.isfinite(leaves.scores[0]):
        return leaves, [0] * len(places)  # all have been found
    scores = leaves.scores / max(sampling.temperature, GREEDY_BELOW)
    if 0 < sampling.top_p < 1:
        kept = _nucleus(scores, sampling.top_p) | (np.arange(len(scores)) < request.num_samples)
        scores = np.where(kept, scores, -np.inf)
    if not sampling.is_greedy:
        scores = scores + _own_noise(request, leaves.branches, leaves.token_ids)
    order = np.argsort(-scores, kind="stable")[: np.isfinite(scores).sum()]
    return leaves, [int(order[place % len(order)]) for place in places]


class _Node:
    """What may follow one branch.

    logits [V] are the model's with biases and bans, scores [V] the same after the repetition penalty; `reached` is the log-probability of the
    branch's path, `norm` and `score_norm` turn logits and scores into log-probabilities.
    """

    def __init__(self, branch: Branch, logits: Line, penalized: Line | None) -> None:
        self.branch, self.logits = branch, logits
        self.norm = self.score_norm = _log_sum(logits)
        self.scores = logits
        if penalized is not None:
            self.scores, self.score_norm = penalized, _log_sum(penalized)
        self.reached = 0.0

    @cached_property
    def mass(self) -> float:
        """Log-probability of the path and any of the tokens that cover what was typed."""
        if not math.isfinite(self.norm):
            return -math.inf
        cover = self.branch.cover_ids
        is_all = len(cover) == len(self.logits)
        return self.reached + (0.0 if is_all else _log_sum(self.logits[cover]) - self.norm)

    def logprob(self, token_id: int) -> float:
        """Of the path and this token after it."""
        return self.reached + float(self.logits[token_id]) - self.norm

    def best(self, number: int | None) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The `number` tokens of its cover with the best scores, or all of them, and what they score with the path."""
        cover = self.branch.cover_ids
        scores = self.scores.copy()
        scores[list(self.branch.excluded_ids)] = -np.inf
        scores = scores if len(cover) == len(scores) else scores[cover]
        some = _likely(scores, number or len(scores))
        return cover[some], self.reached - self.score_norm + scores[some].astype(np.float64)


class _Tree:
    """The branches of a request and what may follow each. `total` is the log-probability of all that spells what was typed, excluded or not."""

    def __init__(self, request: GenerationRequest, lines: Many[Line], banned: Line, end_id: int) -> None:
        self._request = request
        self._temperature = max(request.sampling.temperature, GREEDY_BELOW)
        penalty = request.sampling.repetition_penalty
        self._nodes: list[_Node] = []
        by_path: dict[tuple[int, ...], _Node] = {}
        for branch, line in zip(request.branches, lines, strict=True):
            path = branch.path_ids
            logits = line[: len(banned)] + banned
            for token_id, own in request.bias:
                logits[token_id] += own
            if request.ignore_end or request.min_new_tokens > branch.num_new:
                logits[[i for i in (end_id, *request.end_ids) if i >= 0]] = -np.inf
            seen = [*request.prompt_ids, *path]
            node = _Node(branch, logits, None if penalty == 1 else _penalized(logits, seen, penalty))
            by_path[path] = node
            if path:
                given = (branch.path_logprobs or ())[1:]
                head = path[: len(path) - len(given)]  # spells what was typed, token by token from the other branches
                node.reached = by_path[head[:-1]].logprob(head[-1]) + sum(given)
            self._nodes.append(node)
        self.total = _log_sum(np.array([node.mass for node in self._nodes if node.branch.path_logprobs is None]))

    def best(self, number: int | None) -> _Leaves:
        """The `number` leaves with the best scores, or all; best first, equal ones in order, and one at least."""
        found = [(index, *node.best(number)) for index, node in enumerate(self._nodes)]
        branches = np.concatenate([np.full(len(token_ids), index) for index, token_ids, _ in found])
        token_ids = np.concatenate([token_ids for _, token_ids, _ in found])
        scores = np.concatenate([scores for _, _, scores in found])
        order = np.argsort(-scores, kind="stable")[: number or len(scores)]
        order = order[: max(1, np.isfinite(scores[order]).sum())]
        return _Leaves(branches[order], token_ids[order], scores[order])

    def pick(self, branch: int, token_id: int) -> Pick:
        return Pick(branch, token_id, self._nodes[branch].logprob(token_id) - self.total)

    def draw(self, samples: Many[int]) -> list[Pick]:
        """A leaf for each sample, going down from the first branch."""
        paths = [node.branch.path_ids for node in self._nodes]
        children = [[b for b, path in enumerate(paths) if path and path[:-1] == own] for own in paths]
        masses = [0.0] * len(paths)
        for b in reversed(range(1, len(paths))):  # longer paths stand after shorter ones
            norm = _log_sum(self._nodes[b].scores / np.float32(self._temperature))
            masses[b] = _log_sum(self._scores(b, children[b], masses)) - norm
        picked: dict[int, Pick] = {}
        todo = [(0, list(samples))]
        for branch, here in todo:  # grows meanwhile
            node, longer = self._nodes[branch], children[branch]
            cover = node.branch.cover_ids
            scores = self._scores(branch, longer, masses)
            order = _truncated(scores, self._request.sampling)
            token_ids = np.concatenate([cover, [paths[b][-1] for b in longer]]).astype(np.int64)[order]
            position = len(self._request.prompt_ids) + len(node.branch.path_ids)
            noise = _noise(self._request.sampling.seed, here, position, token_ids)
            chosen = order[(scores[order] + noise).argmax(axis=1)]
            for sample, at in zip(here, chosen.tolist(), strict=True):
                if at < len(cover):
                    picked[sample] = self.pick(branch, int(cover[at]))
            for n, b in enumerate(longer, len(cover)):
                if going := [sample for sample, at in zip(here, chosen.tolist(), strict=True) if at == n]:
                    todo.append((b, going))
        return [picked[sample] for sample in samples]

    def _scores(self, branch: int, children: list[int], masses: list[float]) -> NDArray[np.float64]:
        """Of the tokens that may follow a branch, at the request's temperature: its own cover, then the first tokens of longer branches with all
        that is behind them."""
        node = self._nodes[branch]
        behind = [
            float(node.scores[self._nodes[b].branch.path_ids[-1]]) / self._temperature + masses[b] for b in children
        ]
        own = node.scores[node.branch.cover_ids].astype(np.float64) / self._temperature
        return np.concatenate([own, behind])


def _log_sum(line: NDArray[np.floating]) -> float:
    most = line.max(initial=-np.inf)
    return float(most) + math.log(float(np.exp(line - most).sum())) if np.isfinite(most) else -math.inf


def _penalized(line: Line, seen: list[int], penalty: float) -> Line:
    line = line.copy()
    seen = list(set(seen))
    line[seen] = np.where(line[seen] > 0, line[seen] / penalty, line[seen] * penalty)
    return line


def _truncated(scores: NDArray[np.float64], sampling: Sampling) -> NDArray[np.int64]:
    """Indices of what top-k and top-p leave of scores at the request's temperature, best first; one at least."""
    number = sampling.top_k or len(scores)
    some = _likely(scores, number)
    order: NDArray[np.int64] = some[np.argsort(-scores[some], kind="stable")][:number]
    order = order[: max(1, np.isfinite(scores[order]).sum())]
    return order[_nucleus(scores[order], sampling.top_p)] if 0 < sampling.top_p < 1 else order


def _nucleus(scores: NDArray[np.float64], top_p: float) -> NDArray[np.bool_]:
    """Which of some scores, best first, top-p leaves: up to the one with which their share reaches it."""
    weights = np.exp(scores - scores[0])
    kept: NDArray[np.bool_] = np.cumsum(weights) - weights < top_p * weights.sum()
    return kept


def _likely(scores: NDArray[np.floating], number: int) -> NDArray[np.int64]:
    """Indices of the `number` best scores and of some others, those that equal one of them included."""
    num_chunks = len(scores) // CHUNK
    if num_chunks <= number:
        return np.arange(len(scores))
    # So many chunks have a score of at least `least` in them, so what lies below is not among the best.
    peaks = scores[: num_chunks * CHUNK].reshape(num_chunks, CHUNK).max(axis=1)
    least = np.partition(peaks, num_chunks - number)[num_chunks - number]
    return np.flatnonzero(scores >= least)


def _noise(seed: int, samples: Many[int], position: int, token_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Gumbel noise [samples, tokens] of tokens at a position."""
    keys = [sequence_key(seed, sample) for sample in samples]
    return gumbel_lines(keys, np.full(len(token_ids), position), token_ids)


def _own_noise(
    request: GenerationRequest, branches: NDArray[np.int64], token_ids: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Noise for redraws [tokens], of no position that a candidate draws at: each branch has its own."""
    noise = np.empty(len(token_ids))
    for branch in np.unique(branches):
        here = np.flatnonzero(branches == branch)
        noise[here] = _noise(request.sampling.seed, [request.first_sample], -2 - int(branch), token_ids[here])[0]
    return noise
