"""The likeliest tokens where a row has just drawn, for the few callers who ask: numpy, row by row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from promptgen.generation.memory import NOT_A_TOKEN, Memory, on_host

Top = tuple[tuple[int, float], ...]  # (token id, log-probability), the best first


def top_logprobs(
    memory: Memory, slots: NDArray[np.int64], token_ids: list[int], logprobs: list[float]
) -> tuple[dict[int, Top], list[float]]:
    """Right after a draw of rows 0..R-1, row r from memory.logits[slots[r]]: the likeliest tokens of rows that want them, and `logprobs`
    where these rows have theirs from the same sums, so that the drawn token's is bit for bit what it is among the likeliest."""
    logprobs, tops = list(logprobs), {}
    for row in np.flatnonzero(memory.rows["num_top"][: len(slots)]).tolist():
        line = _logprobs(memory, row, int(slots[row]))
        logprobs[row] = float(line[token_ids[row]])
        tops[row] = _best(line, int(memory.rows["num_top"][row]))
    return tops, logprobs


def _logprobs(memory: Memory, row: int, slot: int) -> NDArray[np.float64]:
    """Log-probabilities [V] at temperature 1, before penalties: among the tokens that may be drawn, or all for a row that is forced."""
    state, size = memory.rows[row], memory.shape.vocabulary
    line = on_host(memory.logits[slot])[:size].astype(np.float64)
    if not state["is_forced"]:
        line += on_host(memory.bias)
        if state["has_bias"]:
            line += on_host(memory.row_bias[row])
        if state["position"] < state["end_from"]:
            ends = np.array([memory.end_id, *state["end_ids"]])
            line[ends[ends >= 0]] = NOT_A_TOKEN
    most = line.max()
    shifted: NDArray[np.float64] = line - (most + np.log(np.exp(line - most).sum()))
    return shifted


def _best(line: NDArray[np.float64], number: int) -> Top:
    number = min(number, len(line))
    some = np.argpartition(-line, number - 1)[:number]
    order = some[np.lexsort((some, -line[some]))]
    return tuple((int(i), float(line[i])) for i in order if np.isfinite(line[i]))
