"""Decides what each step computes. Plain Python, no torch.

A request goes through three lines: it *waits* for a slot, its prompt is *read* (long ones in stretches, so that running rows never wait for
more than one step's worth), and its candidates *join* the rows, as many as there is room for. Running candidates stand in rows 0..R-1
without gaps: when one leaves, the last row moves into its place.

    plan = scheduler.schedule()      what to copy, which stretches to read, which rows begin
    ...                              the runner computes one token for each row
    events = scheduler.update(...)   tokens become events; finished rows leave

Fair: requests wait in the order they came; when several have candidates to place, each gets TURN of them in turn, so sixty-four of one
do not keep one of another waiting.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Many
from dataclasses import dataclass

from promptgen.errors import Overloaded
from promptgen.generation.prompts import Prompt, PromptCache
from promptgen.generation.request import Event, FinishEvent, FinishReason, GenerationRequest, StartEvent, TokenEvent

TURN = 8  # candidates placed of a request before the next one has its turn
MAX_READ = 512  # prompt tokens in a step when no row is running
MAX_PASS = 256  # tokens in a step when some are: what running rows leave of it is for reading,
MIN_READ = 64  # but no less than this


@dataclass(slots=True)
class Sequence:
    """One candidate being decoded. Its row is its index in Scheduler.rows."""

    request_id: int
    sample: int
    num_left: int


@dataclass(slots=True)
class _Reading:
    """A request that has its prompt's slot, until its last candidate has joined."""

    request_id: int
    request: GenerationRequest
    prompt: Prompt
    num_joined: int = 0


@dataclass(frozen=True, slots=True)
class Copy:
    """The first `length` positions of one slot over another."""

    source: int
    target: int
    length: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """Prompt tokens to read into a slot; `is_last` when the prompt ends with them."""

    slot: int
    start: int
    token_ids: tuple[int, ...]
    is_last: bool


@dataclass(frozen=True, slots=True)
class Join:
    """Candidates that begin in this step: samples of a request whose prompt is read, in rows first_row and on."""

    request: GenerationRequest
    slot: int
    first_row: int
    samples: range


@dataclass(frozen=True, slots=True)
class Plan:
    """One step, in this order: moves (source row, target row), copies, reading, joins, then a token for each of `num_rows` rows.

    The first `num_continuing` rows were running already.
    """

    moves: tuple[tuple[int, int], ...]
    copies: tuple[Copy, ...]
    stretches: tuple[Stretch, ...]
    joins: tuple[Join, ...]
    started: tuple[int, ...]  # requests whose first candidates begin
    num_continuing: int
    num_rows: int
    num_reused: int = 0  # prompt tokens that were found in the cache


class Scheduler:
    def __init__(self, *, max_rows: int, num_prompt_slots: int, max_queue: int, end_id: int) -> None:
        self.rows: list[Sequence] = []
        self.waiting: deque[tuple[int, GenerationRequest]] = deque()
        self.prompts = PromptCache(range(max_rows, max_rows + num_prompt_slots))
        self._reading: deque[_Reading] = deque()
        self._joining: deque[_Reading] = deque()
        self._max_rows = max_rows
        self._max_queue = max_queue
        self._end_id = end_id
        self._moves: list[tuple[int, int]] = []
        self._steady: Plan | None = None
        self.is_held = False  # nothing new is started; what is being read or runs goes on

    @property
    def is_running(self) -> bool:
        return bool(self.rows or self._reading or self._joining)

    @property
    def has_work(self) -> bool:
        return self.is_running or bool(self.waiting)

    @property
    def num_waiting(self) -> int:
        """Requests none of whose candidates runs yet. May be asked from another thread."""
        return len(self.waiting) + len(self._reading) + sum(not entry.num_joined for entry in tuple(self._joining))

    def add(self, request_id: int, request: GenerationRequest) -> None:
        """Queues a request. Raises Overloaded when the queue is full."""
        assert request.num_samples >= 1
        assert request.prompt_ids
        if len(self.waiting) >= self._max_queue:
            raise Overloaded(f"{len(self.waiting)} requests are waiting already; try again in a moment")
        self.waiting.append((request_id, request))

    def schedule(self) -> Plan | None:
        moves, num_continuing = tuple(self._moves), len(self.rows)
        self._moves.clear()
        if not (self.waiting or self._reading or self._joining):
            if not self.rows:
                return None
            if not moves and self._steady is not None and self._steady.num_rows == num_continuing:
                return self._steady  # as most steps are
            plan = Plan(moves, (), (), (), (), num_continuing, num_continuing)
            self._steady = None if moves else plan
            return plan
        copies, num_reused = ([], 0) if self.is_held else self._start()
        stretches = self._read(max(MIN_READ, MAX_PASS - num_continuing) if self.rows else MAX_READ)
        joins, started = self._join()
        if not (self.rows or copies or stretches):
            return None  # everybody waits for a hold to end
        return Plan(
            moves,
            tuple(copies),
            tuple(stretches),
            tuple(joins),
            tuple(started),
            num_continuing,
            len(self.rows),
            num_reused,
        )

    def update(self, plan: Plan, token_ids: Many[int], logprobs: Many[float]) -> list[Event]:
        """Takes one token for each row of the plan. The end-of-document token finishes a candidate and is not given out."""
        events: list[Event] = [StartEvent(request_id) for request_id in plan.started]
        finished: list[int] = []
        for row, (sequence, token_id, logprob) in enumerate(zip(self.rows, token_ids, logprobs, strict=True)):
            reason: FinishReason | None = None
            if token_id == self._end_id:
                reason = "stop"
            else:
                events.append(TokenEvent(sequence.request_id, sequence.sample, token_id, logprob))
                sequence.num_left -= 1
                if sequence.num_left == 0:
                    reason = "length"
            if reason is not None:
                events.append(FinishEvent(sequence.request_id, sequence.sample, reason))
                finished.append(row)
        if finished:
            self._remove(finished)
        return events

    def cancel(self, request_id: int, sample: int | None = None) -> None:
        """Frees the rows of a request, or the row of one of its candidates. Unknown ids are ignored: it may have just finished."""
        if sample is None:
            self.waiting = deque(entry for entry in self.waiting if entry[0] != request_id)
            for line in (self._reading, self._joining):
                for entry in [entry for entry in line if entry.request_id == request_id]:
                    line.remove(entry)
                    self.prompts.release(entry.prompt)
        self._remove([r for r, s in enumerate(self.rows) if s.request_id == request_id and sample in (None, s.sample)])

    def drop_running(self) -> list[int]:
        """Empties rows and slots and returns the ids of the requests that had any. Waiting ones stay."""
        dropped = dict.fromkeys(
            [entry.request_id for entry in (*self._reading, *self._joining)] + [row.request_id for row in self.rows]
        )
        self.rows.clear()
        self._moves.clear()
        self._reading.clear()
        self._joining.clear()
        self.prompts.forget()
        return list(dropped)

    def _start(self) -> tuple[list[Copy], int]:
        copies: list[Copy] = []
        num_reused = 0
        while self.waiting:
            request_id, request = self.waiting[0]
            place = self.prompts.acquire(request.prompt_ids, request.salt)
            if place is None:
                break
            self.waiting.popleft()
            prompt = place.prompt
            num_reused += prompt.num_read
            if place.copy_from is not None:
                copies.append(Copy(place.copy_from, prompt.slot, place.num_copied))
            line = self._joining if prompt.has_logits else self._reading
            line.append(_Reading(request_id, request, prompt))
        return copies, num_reused

    def _read(self, budget: int) -> list[Stretch]:
        stretches: list[Stretch] = []
        while self._reading and budget:
            entry = self._reading[0]
            prompt = entry.prompt
            token_ids = prompt.token_ids[prompt.num_read : prompt.num_read + budget]
            budget -= len(token_ids)
            is_last = prompt.num_read + len(token_ids) == len(prompt.token_ids)
            stretches.append(Stretch(prompt.slot, prompt.num_read, token_ids, is_last))
            prompt.num_read += len(token_ids)
            if is_last:
                prompt.has_logits = True
                self._joining.append(self._reading.popleft())
        return stretches

    def _join(self) -> tuple[list[Join], list[int]]:
        joins: list[Join] = []
        started: list[int] = []
        while self._joining and len(self.rows) < self._max_rows:
            entry = self._joining.popleft()
            if not entry.num_joined:
                started.append(entry.request_id)
            room = self._max_rows - len(self.rows)
            num_left = entry.request.num_samples - entry.num_joined
            num_new = min(room, num_left, TURN if self._joining else num_left)
            samples = range(entry.num_joined, entry.num_joined + num_new)
            joins.append(Join(entry.request, entry.prompt.slot, len(self.rows), samples))
            self.rows += (Sequence(entry.request_id, sample, entry.request.max_new_tokens) for sample in samples)
            entry.num_joined += num_new
            if entry.num_joined < entry.request.num_samples:
                self._joining.append(entry)
            else:
                self.prompts.release(entry.prompt)
        return joins, started

    def _remove(self, rows: list[int]) -> None:
        # From the back, so that the last row is never itself one that leaves.
        for row in reversed(rows):
            last = self.rows.pop()
            if row < len(self.rows):
                self.rows[row] = last
                self._moves.append((len(self.rows), row))
