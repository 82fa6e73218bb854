"""Draws the first token of candidates whose request says which ones may come: healed prompts, redraws, first words that must differ.

Of a healed prompt the branches are a tree of tokens that spell what was typed. A candidate goes down this tree token by token, as it will go on
afterwards: each token in proportion to the probability that what comes after it reaches the end of what was typed. Temperature, top-k and
top-p apply at each, and the noise is that of the token at its position (generation/noise.py), so a draw is the same however much of it was
typed. Redraws choose among the tokens of all their branches at once, with noise of their own; exact at temperature 1 without top-k and top-p.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, replace

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


def draw_first(
    request: GenerationRequest,
    samples: Many[int],
    lines: Many[NDArray[np.float32]],
    banned: NDArray[np.float32],
    end_id: int,
) -> list[Pick]:
    """One pick for each sample. lines[b] [V] are the logits after branch b's path, `banned` [V] is -inf for what is never drawn."""
    tree = _Tree(request, lines, banned, end_id)
    if (
        not tree.can_go_on
    ):  # biases forbid all that could spell what was typed: what stands there already is no word to forbid
        tree = _Tree(replace(request, bias=()), lines, banned, end_id)
    leaves, sampling = tree.leaves, request.sampling
    places = [sample - request.first_sample for sample in samples]
    if request.distinct_first:
        order = _best(leaves.scores, max(places) + 1)
        picked = [int(order[place % len(order)]) for place in places]
    elif request.different:
        order = _truncated(leaves.scores, sampling, at_least=request.num_samples)
        scores = leaves.scores[order] / max(sampling.temperature, GREEDY_BELOW)
        if not sampling.is_greedy:
            scores = scores + _own_noise(request, leaves.branches[order], leaves.token_ids[order])
        best = order[np.argsort(-scores, kind="stable")]
        picked = [int(best[place % len(best)]) for place in places]
    elif sampling.is_greedy:
        picked = [int(leaves.scores.argmax())] * len(samples)
    else:
        picked = tree.draw(samples)
    return [
        Pick(int(leaves.branches[i]), int(leaves.token_ids[i]), float(leaves.logprobs[i] - tree.total)) for i in picked
    ]


class _Tree:
    """The branches of a request with the probabilities of all that may come: `leaves`, and `total`, the log-probability of those that spell
    what was typed, excluded or not."""

    def __init__(
        self, request: GenerationRequest, lines: Many[NDArray[np.float32]], banned: NDArray[np.float32], end_id: int
    ) -> None:
        self._request = request
        self._tempered: list[Line] = []  # log-probabilities after each branch, at the request's temperature and penalty
        self._first: list[int] = []  # where the leaves of each branch begin
        bias = banned.astype(np.float64)
        for token_id, own in request.bias:
            bias[token_id] += own
        before: dict[tuple[int, ...], Line] = {}  # log-probabilities after each path
        reached: dict[tuple[int, ...], float] = {(): 0.0}  # log-probability of each path
        parts: list[_Leaves] = []
        typed: list[Line] = []
        temperature, penalty = max(request.sampling.temperature, GREEDY_BELOW), request.sampling.repetition_penalty
        for index, (branch, line) in enumerate(zip(request.branches, lines, strict=True)):
            path, cover = branch.path_ids, branch.cover_ids
            allowed = line[: len(bias)] + bias
            if request.ignore_end or request.min_new_tokens > branch.num_new:
                allowed[[i for i in (end_id, *request.end_ids) if i >= 0]] = -np.inf
            before[path] = _log_softmax(allowed)
            scored = before[path]
            if penalty != 1:
                scored = _log_softmax(_penalized(allowed, [*request.prompt_ids, *path], penalty))
            if path:
                given = (branch.path_logprobs or ())[1:]
                head = path[: len(path) - len(given)]  # spells what was typed, token by token from the other branches
                reached[path] = reached[head[:-1]] + before[head[:-1]][head[-1]] + sum(given)
            scores = reached[path] + scored[cover]
            scores[np.isin(cover, branch.excluded_ids)] = -np.inf
            self._tempered.append(scored if temperature == 1 else _log_softmax(scored / temperature))
            self._first.append(sum(len(part.scores) for part in parts))
            parts.append(_Leaves(np.full(len(cover), index), cover, scores, reached[path] + before[path][cover]))
            if branch.path_logprobs is None:
                typed.append(parts[-1].logprobs)
        columns = zip(*((part.branches, part.token_ids, part.scores, part.logprobs) for part in parts), strict=True)
        self.leaves = _Leaves(*map(np.concatenate, columns))
        self.can_go_on = bool(np.isfinite(self.leaves.logprobs).any())
        self.total = _log_sum(np.concatenate(typed)) if self.can_go_on else 0.0

    def draw(self, samples: Many[int]) -> list[int]:
        """A leaf for each sample, going down from the first branch."""
        paths = [branch.path_ids for branch in self._request.branches]
        children = [[b for b, path in enumerate(paths) if path and path[:-1] == own] for own in paths]
        masses = [0.0] * len(paths)
        for b in reversed(range(len(paths))):  # longer paths stand after shorter ones
            masses[b] = _log_sum(self._scores(b, children[b], masses))
        picked = dict.fromkeys(samples, -1)
        todo = [(0, list(samples))]
        for branch, here in todo:  # grows meanwhile
            own, longer = self._request.branches[branch], children[branch]
            token_ids = np.concatenate([own.cover_ids, [paths[b][-1] for b in longer]]).astype(np.int64)
            scores = self._scores(branch, longer, masses)
            order = _truncated(scores, self._request.sampling, tempered=True)
            position = len(self._request.prompt_ids) + len(own.path_ids)
            noise = _noise(self._request.sampling.seed, here, position, token_ids[order])
            chosen = order[(scores[order] + noise).argmax(axis=1)]
            for sample, at in zip(here, chosen.tolist(), strict=True):
                if at < len(own.cover_ids):
                    picked[sample] = self._first[branch] + at
            for n, b in enumerate(longer, len(own.cover_ids)):
                if going := [sample for sample, at in zip(here, chosen.tolist(), strict=True) if at == n]:
                    todo.append((b, going))
        return [picked[sample] for sample in samples]

    def _scores(self, branch: int, children: list[int], masses: list[float]) -> Line:
        """Of the tokens that may follow a branch: its own cover, then the first tokens of longer branches with all that is behind them."""
        line, branches = self._tempered[branch], self._request.branches
        behind = [line[branches[b].path_ids[-1]] + masses[b] for b in children]
        return np.concatenate([line[branches[branch].cover_ids], behind])


def _log_sum(line: Line) -> float:
    most = line.max(initial=-np.inf)
    return float(most + np.log(np.exp(line - most).sum())) if np.isfinite(most) else -np.inf


def _log_softmax(line: Line) -> Line:
    shifted: Line = line - _log_sum(line)
    return shifted


def _penalized(line: Line, seen: list[int], penalty: float) -> Line:
    line = line.copy()
    seen = list(set(seen))
    line[seen] = np.where(line[seen] > 0, line[seen] / penalty, line[seen] * penalty)
    return line


def _truncated(scores: Line, sampling: Sampling, *, at_least: int = 1, tempered: bool = False) -> NDArray[np.int64]:
    """Indices of what top-k and top-p leave of `scores`, but no fewer than `at_least`, best first."""
    order = _best(scores, max(at_least, sampling.top_k or len(scores)))
    if 0 < sampling.top_p < 1:
        best = scores[order] if tempered else scores[order] / max(sampling.temperature, GREEDY_BELOW)
        weights = np.exp(best - best[0])
        before = np.cumsum(weights) - weights
        order = order[(before < sampling.top_p * weights.sum()) | (np.arange(len(order)) < at_least)]
    return order


def _best(scores: Line, number: int) -> NDArray[np.int64]:
    """Indices of the `number` best scores that are not -inf, but one at least; best first, equal ones in order."""
    some = _likely(scores, number)
    some = some[np.isfinite(scores[some]) | (some == scores.argmax())]
    order: NDArray[np.int64] = some[np.argsort(-scores[some], kind="stable")][:number]
    return order


def _likely(scores: Line, number: int) -> NDArray[np.int64]:
    """Indices of the `number` best scores and of some others, those that equal one of them included."""
    num_chunks = len(scores) // CHUNK
    if num_chunks <= number:
        return np.arange(len(scores))
    # So many chunks have a score of at least `least` in them, so what lies below is not among the best.
    peaks = scores[: num_chunks * CHUNK].reshape(num_chunks, CHUNK).max(axis=1)
    least = np.partition(peaks, num_chunks - number)[num_chunks - number]
    return np.flatnonzero(scores >= least)


def _noise(seed: int, samples: Many[int], position: int, token_ids: NDArray[np.int64]) -> Line:
    """Gumbel noise [samples, tokens] of tokens at a position."""
    keys = [sequence_key(seed, sample) for sample in samples]
    return gumbel_lines(keys, np.full(len(token_ids), position), token_ids)


def _own_noise(request: GenerationRequest, branches: NDArray[np.int64], token_ids: NDArray[np.int64]) -> Line:
    """Noise for redraws [tokens], of no position that a candidate draws at: each branch has its own."""
    noise = np.empty(len(token_ids))
    for branch in np.unique(branches):
        here = np.flatnonzero(branches == branch)
        noise[here] = _noise(request.sampling.seed, [request.first_sample], -2 - int(branch), token_ids[here])[0]
    return noise
