"""Draws the first token of candidates whose request says which ones may come: healed prompts, redraws, first words that must differ.

The branches of a request are a tree. Of a healed prompt they spell what was typed; of a redraw they lie along candidates that were found, and what
led to those alone is excluded. A candidate goes down this tree token by token, as it will go on afterwards: each token in proportion to its
probability times that of coming from there to something that may be given. Temperature, top-k and top-p apply at each, and the noise is that of
the token at its position (generation/noise.py): so a draw is the same however much of it was typed already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Many
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from promptgen.generation.memory import Memory, on_host
from promptgen.generation.noise import gumbel_lines, sequence_key
from promptgen.generation.request import GREEDY_BELOW, Branch, GenerationRequest, Sampling
from promptgen.generation.steps import NO_TOKEN, Pick

Line = NDArray[np.float32]  # [V]
CHUNK = 64  # scores of which the best is looked at first


class Place(NamedTuple):
    """Where a branch hangs: `parent` is the branch that it goes on from with `token_id`, `rest` the log-probability of the tokens after that
    one; `head_parent` and `head_id` are the last step of its way that spells what was typed, `given` the log-probability of all after it.
    -1 for the first."""

    parent: int = -1
    token_id: int = -1
    rest: float = 0.0
    head_parent: int = -1
    head_id: int = -1
    given: float = 0.0


def places_of(branches: Many[Branch]) -> list[Place]:
    """The tree of some branches; shorter ones stand before those that go on from them."""
    index_of: dict[tuple[int, ...], int] = {}
    lengths = sorted({len(branch.path_ids) for branch in branches}, reverse=True)
    places: list[Place] = []
    for index, branch in enumerate(branches):
        path = branch.path_ids
        index_of[path] = index
        if not path:
            places.append(Place())
            continue
        near = next(n for n in lengths if n < len(path) and path[:n] in index_of)
        given = branch.path_logprobs[1:] if branch.path_logprobs else ()
        head = len(path) - len(given) - 1
        rest = sum(given[near - head :]) if given else 0.0
        places.append(Place(index_of[path[:near]], path[near], rest, index_of[path[:head]], path[head], sum(given)))
    return places


def drawn_with(request: GenerationRequest, samples: Many[int]) -> Many[int]:
    """The samples to draw for these: those that must differ from earlier ones of their request are drawn after these, whenever they join."""
    return range(request.first_sample, samples[-1] + 1) if request.different else samples


def draw_among(memory: Memory, request: GenerationRequest, samples: Many[int], slots: Many[int]) -> list[Pick]:
    """Steps.draw_first, for steps that have nothing faster."""
    lines = [on_host(memory.logits[slot])[: memory.shape.vocabulary] for slot in slots]
    if not all(np.isfinite(line).all() for line in lines):
        return [Pick(0, NO_TOKEN, 0.0)] * len(samples)
    return draw_first(request, samples, lines, on_host(memory.bias), memory.end_id)


def draw_first(
    request: GenerationRequest,
    samples: Many[int],
    lines: Many[Line],
    banned: Line,
    end_id: int,
) -> list[Pick]:
    """One pick for each sample. lines[b] [V] are the logits after branch b's path, `banned` [V] is -inf for what is never drawn."""
    if (drawn := drawn_with(request, samples)) != samples:
        return draw_first(request, drawn, lines, banned, end_id)[-len(samples) :]
    tree = _Tree(request, lines, banned, end_id)
    if not np.isfinite(tree.total):
        # Biases forbid all that could spell what was typed: what stands there already is no word to forbid.
        tree = _Tree(replace(request, bias=()), lines, banned, end_id)
    if request.distinct_first or request.sampling.is_greedy:
        must_differ = request.distinct_first or request.different
        places = [(sample - request.first_sample) * must_differ for sample in samples]
        leaves = tree.best(max(places) + 1)
        return [tree.pick(*leaves[place % len(leaves)]) for place in places]
    return tree.draw(samples)


class _Node:
    """What may follow one branch.

    logits [V] are the model's with biases and bans, scores [V] the same after the repetition penalty. `reached` is the log-probability of the
    branch's path, `norm` turns logits into log-probabilities. `children` are longer branches: index, first token of the way there, log-probability
    of the others.

    For a draw there are `line` [V], the scores at the request's temperature of what may come, and `mass`, the log-probability of any of it.
    """

    def __init__(self, branch: Branch, logits: Line, scores: Line) -> None:
        self.branch, self.logits, self.scores = branch, logits, scores
        self.norm = _log_sum(logits)
        self.reached = 0.0
        self.children: list[tuple[int, int, float]] = []
        self.taken: list[int] = []  # tokens that an earlier sample went on with
        self.line, self.mass = scores, 0.0

    @property
    def covered(self) -> float:
        """Log-probability of the path and any of the tokens that cover what was typed."""
        if not math.isfinite(self.norm):
            return -math.inf
        cover = self.branch.cover_ids
        is_all = len(cover) == len(self.logits)
        return self.reached + (0.0 if is_all else _log_sum(self.logits[cover]) - self.norm)

    def logprob(self, token_id: int) -> float:
        """Of the path and this token after it."""
        return self.reached + float(self.logits[token_id]) - self.norm

    def open(self, scores: Line) -> Line:
        """Those of the tokens of its cover that are not excluded, -inf for all others."""
        cover = self.branch.cover_ids
        if len(cover) == len(scores):
            line = scores.copy()
        else:
            line = np.full(len(scores), -np.inf, np.float32)
            line[cover] = scores[cover]
        line[[*self.branch.excluded_ids, *self.taken]] = -np.inf
        return line

    def settle(self, temperature: np.float32, nodes: Many[_Node]) -> None:
        """After its children."""
        scores = self.scores / temperature
        self.line = self.open(scores)
        for child, token_id, rest in self.children:
            self.line[token_id] = scores[token_id] + np.float32(rest + nodes[child].mass)
        norm = _log_sum(scores)
        self.mass = _log_sum(self.line) - norm if math.isfinite(norm) else -math.inf


class _Tree:
    """The branches of a request and what may follow each. `total` is the log-probability of all that spells what was typed, excluded or not."""

    def __init__(self, request: GenerationRequest, lines: Many[Line], banned: Line, end_id: int) -> None:
        self._request = request
        penalty = request.sampling.repetition_penalty
        self._nodes: list[_Node] = []
        places = places_of(request.branches)
        for index, (branch, place, line) in enumerate(zip(request.branches, places, lines, strict=True)):
            logits = line[: len(banned)] + banned
            for token_id, own in request.bias:
                logits[token_id] += own
            if request.ignore_end or request.min_new_tokens > branch.num_new:
                logits[[i for i in (end_id, *request.end_ids) if i >= 0]] = -np.inf
            seen = [*request.prompt_ids, *branch.path_ids]
            node = _Node(branch, logits, logits if penalty == 1 else _penalized(logits, seen, penalty))
            if place.parent >= 0:
                node.reached = self._nodes[place.head_parent].logprob(place.head_id) + place.given
                self._nodes[place.parent].children.append((index, place.token_id, place.rest))
            self._nodes.append(node)
        self.total = _log_sum(np.array([node.covered for node in self._nodes if node.branch.path_logprobs is None]))

    def best(self, number: int) -> list[tuple[int, int]]:
        """The `number` likeliest leaves (branch, token), or all there are; best first, equal ones in order, and one at least."""
        found: list[tuple[float, int, int]] = []
        for index, node in enumerate(self._nodes):
            line, norm = node.open(node.scores), _log_sum(node.scores)
            some = _likely(line, number)
            some = some[np.argsort(-line[some], kind="stable")][:number]
            found += ((norm - node.reached - float(line[i]), index, int(i)) for i in some)
        found.sort()
        return [(index, token_id) for cost, index, token_id in found[:number] if cost < math.inf] or [found[0][1:]]

    def pick(self, branch: int, token_id: int) -> Pick:
        return Pick(branch, token_id, self._nodes[branch].logprob(token_id) - self.total)

    def draw(self, samples: Many[int]) -> list[Pick]:
        """A leaf for each sample, going down from the first branch. If they are to be different none twice, unless there are no more."""
        for node in reversed(self._nodes):  # longer paths stand after shorter ones
            self._settle(node)
        if not self._request.different and self._nodes[0].mass > -math.inf:
            return self._go_down(samples)
        picks: list[Pick] = []
        for sample in samples:
            if self._nodes[0].mass == -math.inf:
                self._give_back()
            if self._nodes[0].mass == -math.inf:
                return picks + [self._repeat()] * (len(samples) - len(picks))
            picks += self._go_down([sample])
            self._take(picks[-1])
        return picks

    def _repeat(self) -> Pick:
        """All have been found: the likeliest once more."""
        for index, node in enumerate(self._nodes):
            cover = node.branch.cover_ids
            if len(cover) and np.isfinite(node.scores[cover]).any():
                return self.pick(index, int(cover[node.scores[cover].argmax()]))
        return self.pick(0, 0)

    def _settle(self, node: _Node) -> None:
        node.settle(np.float32(max(self._request.sampling.temperature, GREEDY_BELOW)), self._nodes)

    def _take(self, pick: Pick) -> None:
        """Nobody else goes on so."""
        path = self._nodes[pick.branch].branch.path_ids
        self._nodes[pick.branch].taken.append(pick.token_id)
        for node in reversed(self._nodes):
            if node.branch.path_ids == path[: len(node.branch.path_ids)]:
                self._settle(node)

    def _give_back(self) -> None:
        for node in reversed(self._nodes):
            node.taken.clear()
            self._settle(node)

    def _go_down(self, samples: Many[int]) -> list[Pick]:
        picked: dict[int, Pick] = {}
        todo = [(0, list(samples))]
        for branch, here in todo:  # grows meanwhile
            node = self._nodes[branch]
            token_ids = _truncated(node.line, self._request.sampling)
            position = len(self._request.prompt_ids) + len(node.branch.path_ids)
            keys = [sequence_key(self._request.sampling.seed, sample) for sample in here]
            noise = gumbel_lines(keys, np.full(len(token_ids), position), token_ids)
            chosen = token_ids[(node.line[token_ids] + noise).argmax(axis=1)].tolist()
            longer = {token_id: child for child, token_id, _ in node.children}
            for sample, token_id in zip(here, chosen, strict=True):
                if token_id not in longer:
                    picked[sample] = self.pick(branch, token_id)
            for token_id, child in longer.items():
                if going := [sample for sample, chose in zip(here, chosen, strict=True) if chose == token_id]:
                    todo.append((child, going))
        return [picked[sample] for sample in samples]


def _log_sum(line: NDArray[np.floating]) -> float:
    most = line.max(initial=-np.inf)
    return float(most) + math.log(float(np.exp(line - most).sum())) if np.isfinite(most) else -math.inf


def _penalized(line: Line, seen: list[int], penalty: float) -> Line:
    line = line.copy()
    seen = list(set(seen))
    line[seen] = np.where(line[seen] > 0, line[seen] / penalty, line[seen] * penalty)
    return line


def _truncated(scores: Line, sampling: Sampling) -> NDArray[np.int64]:
    """Indices of what top-k and top-p leave of scores at the request's temperature, best first; one at least."""
    number = sampling.top_k or len(scores)
    some = _likely(scores, number)
    order: NDArray[np.int64] = some[np.argsort(-scores[some], kind="stable")][:number]
    order = order[: max(1, np.isfinite(scores[order]).sum())]
    return order[_nucleus(scores[order], sampling.top_p)] if 0 < sampling.top_p < 1 else order


def _nucleus(scores: Line, top_p: float) -> NDArray[np.bool_]:
    """Which of some scores, best first, top-p leaves: up to the one with which their share reaches it."""
    weights = np.exp(scores.astype(np.float64) - scores[0])
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
