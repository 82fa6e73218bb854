"""Candidates other than those that were found, exactly: where a new one may part from them, and how likely it does so.

The found candidates are paths in the tree of all continuations. A new one follows some of them and parts at a node, with a token that none of
them has there. The probability of parting at a node is that of reaching it, times that of its other tokens; both are known from what was
drawn. So new candidates begin at nodes where parting is likeliest, and nothing is drawn twice (sampling without replacement as of
Shi, Bieber and Sutton 2020, but for nodes that are hardly reached).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from promptgen.generation.request import Branch

MAX_NODES = 6  # besides those where typing stopped


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

    def add(self, token_id: int, logprob: float, *, is_head: bool, is_new: bool) -> None:
        self.token_ids.append(token_id)
        self.logprobs.append(logprob)
        self.num_head += is_head
        self.num_new += is_new


@dataclass(slots=True)
class _Node:
    """A beginning that found candidates share, the tokens they have after it and the probability of these."""

    branch: Branch
    reached: float  # log-probability
    children: dict[int, float] = field(default_factory=dict)

    @property
    def parting(self) -> float:
        """Probability of getting here and on with another token."""
        return math.exp(min(0.0, self.reached)) * max(0.0, 1 - sum(self.children.values()))


def other_ways(
    ways: Sequence[Branch], found: Sequence[Path], every_id: NDArray[np.int64], end_id: int
) -> tuple[Branch, ...]:
    """Branches for candidates that are none of `found`: `ways`, where all began, and the nodes where parting is likeliest."""
    taken: dict[tuple[int, ...], set[int]] = {way.path_ids: set() for way in ways}
    nodes: dict[tuple[int, ...], _Node] = {}
    for path in found:
        _add(path, taken, nodes, every_id, end_id)
    likely = sorted(nodes.values(), key=lambda node: -node.parting)[:MAX_NODES]
    parting = [replace(node.branch, excluded_ids=tuple(sorted(node.children))) for node in likely if node.parting > 0]
    return (*(replace(way, excluded_ids=tuple(sorted(taken[way.path_ids]))) for way in ways), *parting)


def _add(
    path: Path,
    taken: dict[tuple[int, ...], set[int]],
    nodes: dict[tuple[int, ...], _Node],
    every_id: NDArray[np.int64],
    end_id: int,
) -> None:
    ids, logprobs = tuple(path.token_ids), path.logprobs
    if path.end_logprob is not None:
        ids = (*ids, end_id if path.end_id is None else path.end_id)
        logprobs = [*logprobs, path.end_logprob]
    first = max(1, path.num_head)  # tokens until one is beyond what was typed, which the ways cover
    if len(ids) < first:
        return
    taken.setdefault(ids[: first - 1], set()).add(ids[first - 1])
    reached = sum(logprobs[:first])
    for at in range(first, len(ids)):
        beginning = ids[:at]
        node = nodes.get(beginning)
        if node is None:
            # Tokens of the path that were new: all but those of the head, whose last one may be.
            num_new = at - len(path.token_ids) + path.num_new
            branch = Branch(beginning, every_id, num_new=num_new, path_logprobs=tuple(logprobs[first - 1 : at]))
            node = nodes[beginning] = _Node(branch, reached)
        node.children[ids[at]] = math.exp(min(0.0, logprobs[at]))
        reached += logprobs[at]
