"""A step that raised, done again in its parts: each prompt, each row and each draw alone. What raises once more fails its own request.

Slow, and rare. Reading is repeated without harm: the same keys and values are written to the same places. The rows must be as they were
before the draw.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from promptgen.generation.memory import Memory
from promptgen.generation.scheduler import Join, Plan, StepResult
from promptgen.generation.steps import NO_TOKEN, Pick, PromptTokens, Steps
from promptgen.generation.tops import Top, top_logprobs

Result = TypeVar("Result")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Drawn:
    token_id: int
    logprob: float
    top: Top | None = None


_FAILED = _Drawn(NO_TOKEN, 0.0)


def compute_apart(memory: Memory, steps: Steps, plan: Plan, pick: Callable[[Join], list[Pick]]) -> StepResult:
    """What the step would have given, with NO_TOKEN for the rows and `failed_slots` for the prompts whose parts raised. `pick` starts and draws
    the rows of a join with branches."""
    failed_slots = {s.slot for s in plan.stretches if not _read(steps, s.slot, s.start, s.token_ids, is_last=s.is_last)}
    drawn = [_continue(memory, steps, row) for row in range(plan.num_continuing)]
    picks: list[Pick] = []
    for join in plan.joins:
        is_read = failed_slots.isdisjoint((join.slot, *join.branch_slots))
        if join.branch_slots:
            picks += (_tried(partial(pick, join)) if is_read else None) or no_picks(join)
        else:
            drawn += _start(memory, steps, join) if is_read else [_FAILED] * len(join.samples)
    tops = {row: each.top for row, each in enumerate(drawn) if each.top is not None}
    return StepResult(
        [each.token_id for each in drawn], [each.logprob for each in drawn], picks, tops, frozenset(failed_slots)
    )


def no_picks(join: Join) -> list[Pick]:
    """For candidates whose first draw failed."""
    return [Pick(0, NO_TOKEN, 0.0)] * len(join.samples)


def _read(steps: Steps, slot: int, start: int, token_ids: tuple[int, ...], *, is_last: bool) -> bool:
    """Whether it could be read."""
    tokens = PromptTokens.of([(slot, start, token_ids, is_last)])
    return _tried(partial(_done, steps.forward, 0, tokens)) is not None


def _continue(memory: Memory, steps: Steps, row: int) -> _Drawn:
    """A running row is one more token of a prompt that stands in the row's own slot."""
    position, token_id = int(memory.rows[row]["position"]), int(memory.rows[row]["token_id"])
    memory.rows[row]["beginning"] = 0  # kept up for rows, not for prompts
    return _draw(memory, steps, row, row) if _read(steps, row, position, (token_id,), is_last=True) else _FAILED


def _start(memory: Memory, steps: Steps, join: Join) -> list[_Drawn]:
    def start() -> bool:
        steps.copy([memory.start_rows(join.request, join.slot, join.first_row, join.samples)])
        return True

    if _tried(start) is None:
        return [_FAILED] * len(join.samples)
    return [_draw(memory, steps, join.first_row + index, join.slot) for index in range(len(join.samples))]


def _draw(memory: Memory, steps: Steps, row: int, slot: int) -> _Drawn:
    """A draw is for the first rows; this one takes the place of row 0 for as long as it lasts."""
    memory.swap_rows(0, row)
    drawn = _tried(partial(_draw_first_row, memory, steps, slot))
    memory.swap_rows(0, row)
    return drawn or _FAILED


def _draw_first_row(memory: Memory, steps: Steps, slot: int) -> _Drawn:
    token_ids, logprobs = steps.draw(1, 0, np.array([slot], np.int32))
    if not memory.rows[0]["num_top"]:
        return _Drawn(token_ids[0], logprobs[0])
    tops, logprobs = top_logprobs(memory, np.array([slot]), token_ids, logprobs)
    return _Drawn(token_ids[0], logprobs[0], tops[0])


def _done(act: Callable[..., None], *args: object) -> bool:
    act(*args)
    return True


def _tried(act: Callable[[], Result]) -> Result | None:
    """None if it raised."""
    try:
        return act()
    except Exception as fault:
        _log.error("a part of the step failed alone as well: %s", type(fault).__name__)
        return None
