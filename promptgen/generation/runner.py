"""Runs a plan: moves rows, copies what prompts share, reads prompts, starts rows, and draws a token for every row.

Between steps nothing is done row by row, and a running batch costs two calls.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from promptgen.generation.memory import Memory
from promptgen.generation.scheduler import Plan
from promptgen.generation.steps import NO_TOKENS, NOTHING_TO_READ, PromptTokens, Steps


@dataclass(frozen=True, slots=True)
class StepResult:
    """One token for each row of the plan; `logprobs` are 0.0 for rows that did not ask."""

    token_ids: list[int]
    logprobs: list[float]


class Runner:
    """`steps` may be replaced by another implementation over the same memory, between two runs."""

    def __init__(self, memory: Memory, steps: Steps) -> None:
        self.steps = steps
        self._memory = memory

    def run(self, plan: Plan) -> StepResult:
        for source, target in plan.moves:
            self._memory.move_row(source, target)
        for copy in plan.copies:
            self._memory.copy_prefix(copy.source, copy.target, copy.length)
        prompts = NOTHING_TO_READ
        if plan.stretches:
            prompts = PromptTokens.of([(s.slot, s.start, s.token_ids, s.is_last) for s in plan.stretches])
        if plan.num_continuing or plan.stretches:
            self.steps.forward(plan.num_continuing, prompts)
        prompt_slots = NO_TOKENS
        if plan.joins:
            for join in plan.joins:
                self._memory.start_rows(join.request, join.slot, join.first_row, join.samples)
            prompt_slots = np.repeat([join.slot for join in plan.joins], [len(join.samples) for join in plan.joins])
            prompt_slots = prompt_slots.astype(np.int32)
        if not plan.num_rows:
            return StepResult([], [])
        return StepResult(*self.steps.draw(plan.num_rows, plan.num_continuing, prompt_slots))
