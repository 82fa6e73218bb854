"""Decides what each step computes. Plain Python, no torch.

Running sequences stand in rows 0..R-1 without gaps, so that one batched step is one dense slice of the cache. When a sequence leaves,
the last row moves into its place. A request is admitted when all its candidates find a row; the queue is first come,
first served.

    plan = scheduler.schedule()      what to move, which prompts to read, how many rows to step
    ...                              the runner computes one token for each row
    events = scheduler.update(...)   tokens become events; finished rows leave
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Many
from dataclasses import dataclass

from promptgen.errors import Overloaded
from promptgen.generation.request import Event, FinishEvent, FinishReason, GenerationRequest, StartEvent, TokenEvent

MAX_PREFILL_TOKENS = 4096  # of all prompts admitted in one step


@dataclass(slots=True)
class Sequence:
    """One candidate being decoded. Its row is its index in Scheduler.rows."""

    request_id: int
    sample: int
    num_left: int


@dataclass(frozen=True, slots=True)
class Admission:
    """A prompt to read now; its candidates take rows first_row .. first_row + num_samples - 1."""

    request_id: int
    request: GenerationRequest
    first_row: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: first the moves (source row, target row) in order, then a token for each of `num_rows` rows.

    The last rows are those of the admissions; the ones before continue.
    """

    moves: tuple[tuple[int, int], ...]
    admissions: tuple[Admission, ...]
    num_rows: int

    @property
    def num_continuing(self) -> int:
        return self.admissions[0].first_row if self.admissions else self.num_rows


class Scheduler:
    def __init__(self, *, max_rows: int, max_queue: int, end_id: int) -> None:
        self.rows: list[Sequence] = []
        self.waiting: deque[tuple[int, GenerationRequest]] = deque()
        self._max_rows = max_rows
        self._max_queue = max_queue
        self._end_id = end_id
        self._moves: list[tuple[int, int]] = []

    @property
    def has_work(self) -> bool:
        return bool(self.rows or self.waiting)

    def add(self, request_id: int, request: GenerationRequest) -> None:
        """Queues a request. Raises Overloaded when the queue is full."""
        assert 1 <= request.num_samples <= self._max_rows
        if len(self.waiting) >= self._max_queue:
            raise Overloaded(f"{len(self.waiting)} requests are waiting already; try again in a moment")
        self.waiting.append((request_id, request))

    def schedule(self) -> Plan | None:
        admissions: list[Admission] = []
        longest = 0
        while self.waiting:
            request_id, request = self.waiting[0]
            longest = max(longest, len(request.prompt_ids))
            num_prefill = longest * (len(admissions) + 1)  # prompts are padded to the longest
            if len(self.rows) + request.num_samples > self._max_rows or (
                admissions and num_prefill > MAX_PREFILL_TOKENS
            ):
                break
            self.waiting.popleft()
            admissions.append(Admission(request_id, request, first_row=len(self.rows)))
            self.rows += (Sequence(request_id, sample, request.max_new_tokens) for sample in range(request.num_samples))
        if not self.rows:
            self._moves.clear()
            return None
        plan = Plan(tuple(self._moves), tuple(admissions), len(self.rows))
        self._moves.clear()
        return plan

    def update(self, plan: Plan, token_ids: Many[int], logprobs: Many[float]) -> list[Event]:
        """Takes one token for each row of the plan. The end-of-document token finishes a candidate and is not given out."""
        events: list[Event] = [StartEvent(admission.request_id) for admission in plan.admissions]
        finished: list[int] = []
        for row, sequence in enumerate(self.rows):
            token_id = token_ids[row]
            reason: FinishReason | None = None
            if token_id == self._end_id:
                reason = "stop"
            else:
                events.append(TokenEvent(sequence.request_id, sequence.sample, token_id, logprobs[row]))
                sequence.num_left -= 1
                if sequence.num_left == 0:
                    reason = "length"
            if reason is not None:
                events.append(FinishEvent(sequence.request_id, sequence.sample, reason))
                finished.append(row)
        self._remove(finished)
        return events

    def cancel(self, request_id: int, sample: int | None = None) -> None:
        """Frees the rows of a request, or of one of its candidates. Unknown ids are ignored: it may have just finished."""
        if sample is None:
            self.waiting = deque(entry for entry in self.waiting if entry[0] != request_id)
        self._remove([r for r, s in enumerate(self.rows) if s.request_id == request_id and sample in (None, s.sample)])

    def drop_running(self) -> list[int]:
        """Empties all rows and returns the ids of the requests that stood in them. Waiting ones stay."""
        dropped = dict.fromkeys(sequence.request_id for sequence in self.rows)
        self.rows.clear()
        self._moves.clear()
        return list(dropped)

    def _remove(self, rows: list[int]) -> None:
        # From the back, so that the last row is never itself one that leaves.
        for row in reversed(rows):
            last = self.rows.pop()
            if row < len(self.rows):
                self.rows[row] = last
                self._moves.append((len(self.rows), row))
