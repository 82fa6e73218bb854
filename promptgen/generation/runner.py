"""Runs a plan: moves rows, steps the running ones, reads new prompts, draws a token for every row.

The runner owns everything made of tensors: model, cache, and the state of each row. Between steps nothing is done row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from promptgen.generation.gpt2 import Gpt2
from promptgen.generation.sampler import NOT_A_TOKEN, RowSampling, chosen_logprobs, penalize, sample
from promptgen.generation.scheduler import Admission, Plan


@dataclass(frozen=True, slots=True)
class StepResult:
    """One token for each row of the plan; `logprobs` are 0.0 for rows that did not ask."""

    token_ids: list[int]
    logprobs: list[float]


class Runner:
    def __init__(self, model: Gpt2, *, max_rows: int, banned_ids: Sequence[int], end_id: int) -> None:
        self._model = model
        self._cache = model.new_cache(max_rows)
        self._sampling = RowSampling.allocate(max_rows)
        self._token_ids = torch.zeros(max_rows, dtype=torch.int64)  # the token each row feeds next
        self._positions = torch.zeros(max_rows, dtype=torch.int64)  # and where it stands
        self._wants_logprob = torch.zeros(max_rows, dtype=torch.bool)
        self._ignores_end = torch.zeros(max_rows, dtype=torch.bool)
        self._end_id = end_id
        self._seen = torch.zeros(max_rows, model.shape.vocabulary, dtype=torch.bool)  # kept up for rows with a penalty
        self._banned = torch.zeros(model.shape.vocabulary)
        self._banned[list(banned_ids)] = NOT_A_TOKEN

    @torch.inference_mode()
    def run(self, plan: Plan) -> StepResult:
        for source, target in plan.moves:
            self._move_row(source, target)
        logits = [self._decode(plan.num_continuing)] if plan.num_continuing else []
        if plan.admissions:
            logits.append(self._prefill(plan.admissions))
        return self._draw(torch.cat(logits) if len(logits) > 1 else logits[0])

    def _decode(self, num_rows: int) -> Tensor:
        positions = self._positions[:num_rows]
        return self._model.decode(self._token_ids[:num_rows], positions, self._cache, int(positions.max()) + 1)

    def _prefill(self, admissions: Sequence[Admission]) -> Tensor:
        """Reads each prompt once and forks it to its rows; logits [number of new rows, V]."""
        logits, keys, values = self._model.prefill([admission.request.prompt_ids for admission in admissions])
        by_row: list[Tensor] = []
        for index, admission in enumerate(admissions):
            request, length = admission.request, len(admission.request.prompt_ids)
            rows = slice(admission.first_row, admission.first_row + request.num_samples)
            self._cache.fork(keys[:, index, :, :length], values[:, index, :, :length], rows.start, request.num_samples)
            self._sampling.set_rows(rows.start, request.num_samples, request.sampling, self._model.shape.vocabulary)
            self._positions[rows] = length - 1
            self._wants_logprob[rows] = request.want_logprobs
            self._ignores_end[rows] = request.ignore_end
            if request.sampling.repetition_penalty != 1:
                self._seen[rows] = False
                self._seen[rows, torch.tensor(request.prompt_ids)[:, None]] = True
            by_row.append(logits[index].expand(request.num_samples, -1))
        return torch.cat(by_row)

    def _draw(self, logits: Tensor) -> StepResult:
        num_rows = len(logits)
        logits = logits + self._banned
        if bool(self._ignores_end[:num_rows].any()):
            logits[self._ignores_end[:num_rows], self._end_id] = NOT_A_TOKEN
        rows = self._sampling.first(num_rows)
        positions = self._positions[:num_rows]
        positions += 1  # in place: where the drawn tokens will stand
        penalized = bool((rows.penalty != 1).any())
        scored = penalize(logits, self._seen[:num_rows], rows.penalty) if penalized else logits
        token_ids = sample(scored, positions, rows)
        self._token_ids[:num_rows] = token_ids
        if penalized:
            self._seen[torch.arange(num_rows), token_ids] = True
        logprobs = [0.0] * num_rows
        wanted = self._wants_logprob[:num_rows]
        if bool(wanted.any()):
            logprobs = chosen_logprobs(logits, token_ids).where(wanted, 0.0).tolist()
        return StepResult(token_ids.tolist(), logprobs)

    def _move_row(self, source: int, target: int) -> None:
        self._cache.move_row(source, target, int(self._positions[source]))
        self._sampling.move_row(source, target)
        for column in (self._token_ids, self._positions, self._wants_logprob, self._ignores_end, self._seen):
            column[target] = column[source]
