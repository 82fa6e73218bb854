"""Runs a plan: moves rows, copies what prompts share, reads prompts, starts rows, and draws a token for every row.

Between steps nothing is done row by row, and a running batch costs two calls.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from promptgen.generation.first_draw import draw_first
from promptgen.generation.memory import Memory
from promptgen.generation.scheduler import NO_TOPS, Join, Pick, Plan, Tops
from promptgen.generation.steps import NO_TOKENS, NOTHING_TO_READ, PromptTokens, Steps
from promptgen.generation.tops import top_logprobs


@dataclass(frozen=True, slots=True)
class StepResult:
    """One token for each row of the plan; `logprobs` are 0.0 for rows that did not ask. `picks` are those of the last rows, `tops` the
    likeliest tokens of rows that want to know."""

    token_ids: list[int]
    logprobs: list[float]
    picks: list[Pick]
    tops: Tops = field(default_factory=dict)


class Runner:
    """`steps` may be replaced by another implementation over the same memory, between two runs."""

    def __init__(self, memory: Memory, steps: Steps) -> None:
        self.steps = steps
        self._memory = memory

    def run(self, plan: Plan) -> StepResult:
        memory = self._memory
        for copy in plan.keeps:
            memory.copy_prefix(copy.source, copy.target, copy.length)
        for source, target in plan.moves:
            memory.move_row(source, target)
        for copy in plan.copies:
            memory.copy_prefix(copy.source, copy.target, copy.length)
        prompts = NOTHING_TO_READ
        if plan.stretches:
            prompts = PromptTokens.of([(s.slot, s.start, s.token_ids, s.is_last) for s in plan.stretches])
        if plan.num_continuing or plan.stretches:
            self.steps.forward(plan.num_continuing, prompts)
        prompt_slots = NO_TOKENS
        plain = [join for join in plan.joins if not join.branch_slots]
        if plain:
            for join in plain:
                memory.start_rows(join.request, join.slot, join.first_row, join.samples)
            prompt_slots = np.repeat([join.slot for join in plain], [len(join.samples) for join in plain])
            prompt_slots = prompt_slots.astype(np.int32)
        num_drawn = plan.num_rows - plan.num_picked
        token_ids, logprobs = self.steps.draw(num_drawn, plan.num_continuing, prompt_slots) if num_drawn else ([], [])
        tops = NO_TOPS
        if plan.has_tops:
            slots = np.concatenate([np.arange(plan.num_continuing), prompt_slots])
            tops, logprobs = top_logprobs(memory, slots, token_ids, logprobs)
        picks = [pick for join in plan.joins if join.branch_slots for pick in self._pick(join)]
        return StepResult(token_ids, logprobs, picks, tops)

    def _pick(self, join: Join) -> list[Pick]:
        """Draws the first tokens of candidates among branches, and starts their rows after them."""
        memory, request = self._memory, join.request
        vocabulary = memory.shape.vocabulary
        lines = [_host(memory.logits[slot])[:vocabulary] for slot in join.branch_slots]
        picks = draw_first(request, join.samples, lines, _host(memory.bias), memory.end_id)
        row = join.first_row
        for branch, alike in groupby(zip(join.samples, picks, strict=True), key=lambda pair: pair[1].branch):
            drawn = list(alike)
            samples = range(drawn[0][0], drawn[0][0] + len(drawn))
            way = request.branches[branch]
            after = replace(
                request,
                prompt_ids=(*request.prompt_ids, *way.path_ids),
                min_new_tokens=max(0, request.min_new_tokens - way.num_new),
            )
            memory.start_rows(after, join.branch_slots[branch], row, samples)
            for _, pick in drawn:
                memory.place_token(row, pick.token_id, is_new=pick.token_id not in way.spelled_ids)
                row += 1
        return picks


def _host(line: Any) -> NDArray[np.float32]:
    """An array of the memory, where numpy can see it."""
    return np.asarray(line.cpu() if isinstance(line, torch.Tensor) else line)
