"""Runs a plan: moves rows, copies what prompts share, reads prompts, starts rows, and draws a token for every row.

Between steps nothing is done row by row, and a running batch costs a call, for one step or several. A step that raises is done again in its parts, each prompt and
each row alone, so that only the guilty fail.
"""

from __future__ import annotations

import logging
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from promptgen.generation.memory import Memory, on_host
from promptgen.generation.rescue import compute_apart
from promptgen.generation.scheduler import NO_TOPS, Join, Plan, StepResult, Tops
from promptgen.generation.steps import NO_TOKEN, NO_TOKENS, NOTHING_TO_READ, Copy, Pick, PromptTokens, Steps
from promptgen.generation.tops import top_logprobs

_PROOF = (0,) * 8  # any tokens do
_log = logging.getLogger(__name__)


class Runner:
    """`steps` may be replaced by another implementation over the same memory, between two runs."""

    def __init__(self, memory: Memory, steps: Steps) -> None:
        self.steps = steps
        self._memory = memory

    def run(self, plan: Plan) -> StepResult:
        """Raises what moving and copying raise: after that nothing in the rows can be trusted."""
        self._arrange(plan)
        rows = self._memory.row_bytes[: plan.num_continuing].copy()
        try:
            return self._compute(plan)
        except Exception:
            _log.exception("a step of %d rows failed; each of its parts is tried alone", plan.num_rows)
        self._memory.row_bytes[: plan.num_continuing] = rows  # a draw may have been half done
        self._memory.num_changes += 1
        return compute_apart(self._memory, self.steps, plan, self._pick)

    def prove(self, slot: int) -> None:
        """Raises if the model gives no numbers for a prompt that it has always given numbers for. The slot is overwritten."""
        length = min(len(_PROOF), self._memory.shape.window - 1)
        self.steps.forward(0, PromptTokens.of([(slot, 0, _PROOF[:length], True)]))
        if not np.isfinite(on_host(self._memory.logits[slot])[: self._memory.shape.vocabulary]).all():
            raise ArithmeticError("the model's logits are not finite")

    def wipe(self, slots: list[int]) -> None:
        """Numbers that are none would spread: a masked product of zero and NaN is NaN."""
        self.steps.forget()
        self._memory.keys[:, slots] = 0
        self._memory.values[:, slots] = 0

    def _arrange(self, plan: Plan) -> None:
        if plan.keeps or plan.moves or plan.copies:
            moves = (self._memory.move_row(source, target) for source, target in plan.moves)
            self.steps.copy([*plan.keeps, *moves, *plan.copies])

    def _compute(self, plan: Plan) -> StepResult:
        memory = self._memory
        if plan.most_steps > 1:
            *earlier, (token_ids, logprobs) = self.steps.advance(plan.num_rows, plan.most_steps)
            return StepResult(token_ids, logprobs, [], num_shared=self.steps.num_shared, earlier=earlier)
        prompts = NOTHING_TO_READ
        if plan.stretches:
            stretches = [(s.slot, s.start, s.token_ids, s.is_last) for s in plan.stretches]
            prompts = PromptTokens.of(stretches, [s.beginning for s in plan.stretches if s.is_last])
        num_shared = 0
        if plan.num_continuing or plan.stretches:
            self.steps.forward(plan.num_continuing, prompts)
            num_shared = self.steps.num_shared
        prompt_slots = NO_TOKENS
        plain = [join for join in plan.joins if not join.branch_slots]
        if plain:
            self.steps.copy(
                [memory.start_rows(join.request, join.slot, join.first_row, join.samples) for join in plain]
            )
            prompt_slots = np.repeat([join.slot for join in plain], [len(join.samples) for join in plain])
            prompt_slots = prompt_slots.astype(np.int32)
        picks = [pick for join in plan.joins if join.branch_slots for pick in self._pick(join)]
        num_drawn = plan.num_rows - plan.num_picked
        token_ids, logprobs = self.steps.draw(num_drawn, plan.num_continuing, prompt_slots) if num_drawn else ([], [])
        # Nothing may fail from here on: a draw is not repeated once it is made.
        tops = NO_TOPS
        if plan.has_tops:
            slots = np.concatenate([np.arange(plan.num_continuing), prompt_slots])
            tops, logprobs = self._tops(slots, token_ids, logprobs)
        return StepResult(token_ids, logprobs, picks, tops, num_shared=num_shared)

    def _tops(self, slots: NDArray[np.int64], token_ids: list[int], logprobs: list[float]) -> tuple[Tops, list[float]]:
        try:
            return top_logprobs(self._memory, slots, token_ids, logprobs)
        except Exception:
            _log.exception("the likeliest tokens of a step could not be told")
            return NO_TOPS, logprobs

    def _pick(self, join: Join) -> list[Pick]:
        """Draws the first tokens of candidates among branches, and starts their rows after them."""
        memory, request = self._memory, join.request
        picks = self.steps.draw_first(request, join.samples, join.branch_slots)
        if picks[0].token_id == NO_TOKEN:
            return picks
        row, copies = join.first_row, list[Copy]()
        for index, alike in groupby(zip(join.samples, picks, strict=True), key=lambda pair: pair[1].branch):
            drawn, branch = list(alike), request.branches[index]
            samples = range(drawn[0][0], drawn[0][0] + len(drawn))
            token_ids = [pick.token_id for _, pick in drawn]
            copies.append(memory.start_rows(request, join.branch_slots[index], row, samples, branch, token_ids))
            row += len(drawn)
        self.steps.copy(copies)
        return picks
