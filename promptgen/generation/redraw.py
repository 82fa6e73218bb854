"""Candidates other than those that were found: where a new one may part from them, and how likely it does so.

The found candidates are paths in the tree of all continuations. A new one follows some of them and parts at a node, with a token that none of
them has there. The probability of parting at a node is that of reaching it, times that of its other tokens; about how large it is, is known
from what was drawn. The nodes where it is largest become branches, and a new candidate goes down these (generation/first_draw.py), so nothing is drawn twice:
sampling without replacement (Shi, Bieber and Sutton 2020). It is exact at any temperature without top-k and top-p, but for the nodes that are left out
and for what another one that is drawn at the same time began: all below that is left to it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from promptgen.generation.request import Branch

MAX_NODES = 6  # besides those where typing stopped, forks included


@dataclass(slots=True)
class Path:
    """The tokens of a candidate after its prompt, and their log-probabilities. The first `num_head` spell what was typed; `num_new` were new.

    `end_logprob` is that of the end of the document, or of the request's own end `end_id`, if it ended there.
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    num_head: int = 0
    num_new: int = 0
    end_logprob: float | None = None
    end_id: int | None = None

    @property
    def num_first(self) -> int:
        """Tokens until one is beyond what was typed."""
        return max(1, self.num_head)


@dataclass(slots=True)
class _Node:
    """A beginning that found candidates share: that of `path` before its token `at`. `children` are nodes by the token after it, and
    `probabilities` those of these tokens."""

    path: Path
    at: int
    reached: float  # log-probability
    parent: _Node | None = None
    children: dict[int, _Node] = field(default_factory=dict)
    probabilities: dict[int, float] = field(default_factory=dict)

    @property
    def parting(self) -> float:
        """Probability of getting here and on with another token."""
        return math.exp(min(0.0, self.reached)) * max(0.0, 1 - sum(self.probabilities.values()))


def other_ways(
    ways: Sequence[Branch], found: Sequence[Path], every_id: NDArray[np.int64], end_id: int, max_nodes: int = MAX_NODES
) -> tuple[Branch, ...]:
    """Branches for candidates that are none of `found`: `ways`, where all began, and the nodes where parting is likeliest."""
    taken: dict[tuple[int, ...], set[int]] = {way.path_ids: set() for way in ways}
    roots: dict[tuple[int, ...], _Node] = {}
    nodes: list[_Node] = []
    for path in {(*path.token_ids, path.end_id, path.end_logprob is None): path for path in found}.values():
        head = tuple(path.token_ids[: path.num_first])
        if len(head) < path.num_first:
            if not head and path.end_logprob is not None:  # it ended at once
                taken.setdefault((), set()).add(_end_of(path, end_id))
            continue
        taken.setdefault(head[:-1], set()).add(head[-1])
        if head not in roots:
            roots[head] = _Node(path, path.num_first, sum(path.logprobs[: path.num_first]))
            nodes.append(roots[head])
        nodes += _add(path, roots[head], end_id)
    # Where all that come end, for they were long enough, nobody parts.
    partings = [(node.parting, node) for node in nodes if node.probabilities]
    best = sorted(partings, key=itemgetter(0), reverse=True)[:max_nodes]
    likely = [node for parting, node in best if parting > 0]
    chosen = _with_forks(nodes, likely)
    while len(chosen) > max_nodes:
        likely.pop()
        chosen = _with_forks(nodes, likely)
    return (
        *(replace(way, excluded_ids=tuple(sorted(taken[way.path_ids]))) for way in ways),
        *(_branch(node, every_id) for node in sorted(chosen, key=lambda node: node.at)),
    )


def _with_forks(nodes: Sequence[_Node], likely: Sequence[_Node]) -> list[_Node]:
    """Those that are likely, and those where the ways to them part. `nodes` have parents before their children."""
    wanted = set(map(id, likely))
    num_below: Counter[int] = Counter()  # children that are chosen or lead to one, by node
    chosen: list[_Node] = []
    for node in reversed(nodes):
        if id(node) in wanted or num_below[id(node)] > 1:
            chosen.append(node)
        elif not num_below[id(node)]:
            continue
        num_below[id(node.parent)] += 1
    return chosen


def _add(path: Path, node: _Node, end_id: int) -> list[_Node]:
    """Puts a path into the tree below `node`. Returns the nodes that are new."""
    new: list[_Node] = []
    begin = path.num_first
    for at, (token_id, logprob) in enumerate(zip(path.token_ids[begin:], path.logprobs[begin:], strict=True), begin):
        child = node.children.get(token_id)
        if child is None:
            node.probabilities[token_id] = math.exp(min(0.0, logprob))
            child = node.children[token_id] = _Node(path, at + 1, node.reached + logprob, node)
            new.append(child)
        node = child
    if path.end_logprob is not None:
        node.probabilities[_end_of(path, end_id)] = math.exp(min(0.0, path.end_logprob))
    return new


def _end_of(path: Path, end_id: int) -> int:
    return end_id if path.end_id is None else path.end_id


def _branch(node: _Node, every_id: NDArray[np.int64]) -> Branch:
    path, at = node.path, node.at
    # Tokens of the path that were new: all but those of the head, whose last one may be.
    num_new = at - len(path.token_ids) + path.num_new
    return Branch(
        tuple(path.token_ids[:at]),
        every_id,
        excluded_ids=tuple(sorted(node.probabilities)),
        num_new=num_new,
        path_logprobs=tuple(path.logprobs[path.num_first - 1 : at]),
    )
