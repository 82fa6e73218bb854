"""Decides what each step computes. Plain Python, no torch.

A request goes through three lines: it *waits* for a slot, its prompt is *read* (long ones in stretches, so that running rows never wait for
more than one step's worth), and its candidates *join* the rows, as many as there is room for. Running candidates stand in rows 0..R-1
without gaps: when one leaves, the last row moves into its place.

    plan = scheduler.schedule()      what to copy, which stretches to read, which rows begin
    ...                              the runner computes a token for each row, or several where nobody waits
    events = scheduler.update(...)   tokens become events; finished rows leave

A request with branches (generation/healing.py) has its prompt read first, then each branch in a slot of its own; its candidates join with
their first token drawn among the branches. One that remembers keeps its finished candidates in slots, and a candidate that was
drawn before goes on where that one ended.

Fair: callers wait in turn, the requests of each in the order they came (generation/waiting.py); when several have candidates to place, each
gets TURN of them in turn, so sixty-four of one do not keep one of another waiting. No more prompts are read ahead than fill the rows once.

A fault stays with its request: one that cannot be admitted, whose prompt could not be read or one of whose draws gave NO_TOKEN, gets a
FailureEvent and leaves; the others do not notice.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Hashable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace

from promptgen.generation.beginning import beginning_of
from promptgen.generation.prompts import Drawn, Prompt, PromptCache
from promptgen.generation.request import (
    Event,
    FailureEvent,
    FinishEvent,
    GenerationRequest,
    StartEvent,
    TokenEvent,
    TopEvent,
)
from promptgen.generation.steps import NO_TOKEN, Copy, Pick
from promptgen.generation.waiting import WaitingLine

Tops = Mapping[int, tuple[tuple[int, float], ...]]  # (token id, log-probability), by row
NO_TOPS: Tops = {}
TURN = 8  # candidates placed of a request before the next one has its turn
MAX_READ = 512  # prompt tokens in a step when no row is running
MAX_PASS = 256  # tokens in a step when some are: what running rows leave of it is for reading,
MIN_READ = 64  # but no less than this
FAILED = "the engine failed on this request"
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Sequence:
    """One candidate being decoded. Its row is its index in Scheduler.rows. `drawn` is kept up when it is to be remembered. Any of `end_ids`
    ends it."""

    request_id: int
    sample: int
    num_left: int
    request: GenerationRequest
    drawn: Drawn | None = None
    end_ids: tuple[int, ...] = ()


@dataclass(slots=True)
class _Reading:
    """A request that has its prompt's slot, until its last candidate has joined. `branches` are the slots of its branches after the first.

    `resumed` is the one candidate of a request that goes on where an earlier draw ended.
    """

    request_id: int
    request: GenerationRequest
    prompt: Prompt
    branches: list[Prompt] = field(default_factory=list)
    num_joined: int = 0
    resumed: Sequence | None = None

    @property
    def num_branches_wanted(self) -> int:
        return max(0, len(self.request.branches) - 1) - len(self.branches)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Prompt tokens to read into a slot; `is_last` when the prompt ends with them. `beginning` (beginning.py) is then the whole prompt's, for a
    request that remembers."""

    slot: int
    start: int
    token_ids: tuple[int, ...]
    is_last: bool
    beginning: int = 0


@dataclass(frozen=True, slots=True)
class Join:
    """Candidates that begin in this step: samples of a request whose prompt is read, in rows first_row and on.

    With `branch_slots`, where the branches of the request stand, their first token is drawn from these.
    """

    request: GenerationRequest
    slot: int
    first_row: int
    samples: range
    branch_slots: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """One step, in this order: candidates to keep (source row, target slot), moves (source row, target row), copies, reading, joins, then a
    token for each of `num_rows` rows.

    The first `num_continuing` rows were running already; the last `num_picked` draw from branches. `has_tops` when a row wants to know the
    likeliest tokens. Where nobody waits, up to `most_steps` may be made before anybody is asked again.
    """

    keeps: tuple[Copy, ...]
    moves: tuple[tuple[int, int], ...]
    copies: tuple[Copy, ...]
    stretches: tuple[Stretch, ...]
    joins: tuple[Join, ...]
    started: tuple[int, ...]  # requests whose first candidates begin
    num_continuing: int
    num_rows: int
    num_reused: int = 0  # prompt tokens that were found in the cache
    num_picked: int = 0
    has_tops: bool = False
    most_steps: int = 1


@dataclass(frozen=True, slots=True)
class StepResult:
    """One token for each row of the plan; `logprobs` are 0.0 for rows that did not ask. `picks` are those of the last rows, `tops` the
    likeliest tokens of rows that want to know.

    NO_TOKEN stands where a row failed; prompts in `failed_slots` could not be read. `num_shared` tokens were not computed (Steps). Of several steps
    these are the tokens of the last one, and `earlier` those of the others, which ended no row.
    """

    token_ids: list[int]
    logprobs: list[float]
    picks: list[Pick]
    tops: Tops = field(default_factory=dict)
    failed_slots: frozenset[int] = frozenset()
    num_shared: int = 0
    earlier: list[tuple[list[int], list[float]]] = field(default_factory=list)

    @property
    def failed_rows(self) -> list[int]:
        if NO_TOKEN not in self.token_ids and all(pick.token_id != NO_TOKEN for pick in self.picks):
            return []
        drawn = (*self.token_ids, *(pick.token_id for pick in self.picks))
        return [row for row, token_id in enumerate(drawn) if token_id == NO_TOKEN]


class Scheduler:
    def __init__(self, *, max_rows: int, num_prompt_slots: int, end_id: int) -> None:
        self.rows: list[Sequence] = []
        self.waiting = WaitingLine()
        self.failures: list[Event] = []  # of requests that could not be admitted; whoever takes them empties the list
        self.prompts = PromptCache(range(max_rows, max_rows + num_prompt_slots))
        self._reading: deque[_Reading] = deque()
        self._joining: deque[_Reading] = deque()
        self._max_rows = max_rows
        self._end_id = end_id
        self._moves: list[tuple[int, int]] = []
        self._keeps: list[Copy] = []
        self.distrusted: list[int] = []  # slots whose content is to be wiped; whoever does it empties the list
        self._resuming: deque[Sequence] = deque()
        self._num_promised = 0  # slots for branches of prompts that are being read
        self.num_recalled = 0  # tokens that an earlier draw gave
        self._num_with_top = 0  # rows whose likeliest tokens are told
        self.is_held = False  # nothing new is started; what is being read or runs goes on

    @property
    def is_running(self) -> bool:
        return bool(self.rows or self._reading or self._joining or self._resuming)

    @property
    def has_work(self) -> bool:
        return self.is_running or bool(self.waiting)

    @property
    def num_waiting(self) -> int:
        """Parts of requests none of whose candidates runs yet. May be asked from another thread."""
        return len(self.waiting) + len(self._reading) + sum(not entry.num_joined for entry in tuple(self._joining))

    @property
    def begun(self) -> frozenset[int]:
        """Requests of which something is being computed. Those whose prompt is read, and who wait for a row, are not among them."""
        entries = [*self._reading, *(entry for entry in self._joining if entry.num_joined)]
        sequences = (*self._resuming, *self.rows)
        return frozenset([e.request_id for e in entries] + [s.request_id for s in sequences])

    def add(self, request_id: int, request: GenerationRequest) -> None:
        """Queues a request, or a further part of one."""
        assert request.num_samples >= 1
        assert request.prompt_ids
        self.waiting.append(request_id, request)

    def schedule(self) -> Plan | None:
        keeps, moves, num_continuing = tuple(self._keeps), tuple(self._moves), len(self.rows)
        self._keeps.clear()
        self._moves.clear()
        if not (self.waiting or self._reading or self._joining or self._resuming):
            if not self.rows:
                return Plan(keeps, (), (), (), (), (), 0, 0) if keeps else None
            most_steps = 1 if self._num_with_top else min(sequence.num_left for sequence in self.rows)
            has_tops = self._num_with_top > 0
            return Plan(
                keeps, moves, (), (), (), (), num_continuing, num_continuing, has_tops=has_tops, most_steps=most_steps
            )
        copies: list[Copy] = []
        num_reused = self._resume(copies) + (0 if self.is_held else self._start(copies)) + self._branch(copies)
        stretches = self._read(max(MIN_READ, MAX_PASS - num_continuing) if self.rows else MAX_READ)
        joins, started = self._join()
        if not (keeps or self.rows or copies or stretches):
            return None  # everybody waits for a hold to end
        return Plan(
            keeps,
            moves,
            tuple(copies),
            tuple(stretches),
            tuple(joins),
            tuple(started),
            num_continuing,
            len(self.rows),
            num_reused,
            sum(len(join.samples) for join in joins if join.branch_slots),
            self._num_with_top > 0,
        )

    def update(
        self,
        plan: Plan,
        token_ids: Many[int],
        logprobs: Many[float],
        picks: Many[Pick] = (),
        tops: Tops = NO_TOPS,
        failed_slots: Collection[int] = (),
    ) -> list[Event]:
        """Takes one token for each row of the plan: those of `picks` for the last rows. A token that ends a candidate is not given out.
        `tops` are the likeliest tokens by row, told before the token itself. NO_TOKEN fails the request of its row, as does a prompt slot that
        could not be read."""
        events: list[Event] = [StartEvent(request_id) for request_id in plan.started]
        events += (TopEvent(self.rows[row].request_id, self.rows[row].sample, top) for row, top in tops.items())
        finished: list[int] = []
        failed: dict[int, None] = {}
        for row, (sequence, token_id, logprob) in enumerate(zip(self.rows, token_ids, logprobs, strict=False)):
            if token_id == NO_TOKEN:
                failed[sequence.request_id] = None
            elif self._take(sequence, token_id, logprob, events):
                finished.append(row)
        for row, pick in enumerate(picks, len(self.rows) - len(picks)):
            if pick.token_id == NO_TOKEN:
                failed[self.rows[row].request_id] = None
            elif self._take_pick(self.rows[row], pick, events):
                finished.append(row)
        if finished:
            self._remove(finished)
        if failed_slots:
            failed |= dict.fromkeys(self._users(failed_slots))
        if failed:
            events += self._fail(failed)
        return events

    def _users(self, slots: Collection[int]) -> list[int]:
        """The requests that have a prompt in one of the slots."""
        return [
            entry.request_id
            for entry in (*self._reading, *self._joining)
            if any(prompt.slot in slots for prompt in (entry.prompt, *entry.branches))
        ]

    def _fail(self, request_ids: Collection[int]) -> list[Event]:
        """Ends requests. What they leave in the cache is not trusted, and who shared it cannot be known: idle slots are emptied."""
        for request_id in request_ids:
            self.cancel(request_id)
        self._keeps.clear()
        self.distrusted += self.prompts.forget_idle()
        return [FailureEvent(request_id, FAILED) for request_id in request_ids]

    def _take(self, sequence: Sequence, token_id: int, logprob: float, events: list[Event]) -> bool:
        """Whether the candidate is done with its row."""
        if sequence.drawn is not None:
            if token_id in sequence.end_ids:
                sequence.drawn.end_logprob, sequence.drawn.end_id = logprob, token_id
            else:
                sequence.drawn.token_ids.append(token_id)
                sequence.drawn.logprobs.append(logprob)
        if token_id in sequence.end_ids:
            events.append(FinishEvent(sequence.request_id, sequence.sample, "stop", logprob, token_id))
            return True
        events.append(TokenEvent(sequence.request_id, sequence.sample, token_id, logprob))
        sequence.num_left -= 1
        if sequence.num_left == 0:
            events.append(FinishEvent(sequence.request_id, sequence.sample, "length"))
            return True
        return False

    def _take_pick(self, sequence: Sequence, pick: Pick, events: list[Event]) -> bool:
        branch = sequence.request.branches[pick.branch]
        known = branch.path_logprobs or ()
        logprobs = (*(0.0 for _ in range(len(branch.path_ids) - len(known))), *known)
        for token_id, logprob in zip(branch.path_ids, logprobs, strict=True):
            events.append(TokenEvent(sequence.request_id, sequence.sample, token_id, logprob))
        # A token that ends where typing ended is none of the new ones.
        sequence.num_left += (pick.token_id in branch.spelled_ids) - branch.num_new
        if sequence.request.remember and pick.token_id not in sequence.end_ids:
            given = [*sequence.request.prompt_ids, *branch.path_ids]
            sequence.drawn = Drawn(_key_of(sequence.request, sequence.sample), given, len(given) + 1, [])
        if self._take(
            sequence, pick.token_id, pick.logprob - sum(known) if sequence.request.want_logprobs else 0.0, events
        ):
            return True
        return sequence.drawn is not None and self._recall(sequence, sequence.drawn, events)

    def _recall(self, sequence: Sequence, drawn: Drawn, events: list[Event]) -> bool:
        """Gives the tokens that an earlier draw of the same candidate gave; what is still to be drawn goes on after them, in another row."""
        known = self.prompts.recall(drawn.key, drawn.token_ids)
        if known is None:
            return False
        begin = len(drawn.token_ids)
        following = known.token_ids[begin : begin + sequence.num_left]
        if not following and known.end_logprob is None:
            return False
        logprobs = known.logprobs[begin - known.num_given + 1 :]
        for token_id, logprob in zip(following, logprobs, strict=False):
            self._take(sequence, token_id, logprob, events)
        self.num_recalled += len(following)
        if sequence.num_left and known.end_logprob is not None:
            end = FinishEvent(sequence.request_id, sequence.sample, "stop", known.end_logprob, known.end_id)
            events.append(end)
        elif sequence.num_left:
            self._resuming.append(replace(sequence))
        sequence.drawn = None  # what this row holds is no more than what is kept
        return True

    def cancel(self, request_id: int, sample: int | None = None) -> None:
        """Frees the rows of a request, or the row of one of its candidates. Unknown ids are ignored: it may have just finished."""
        if sample is None:
            self.waiting.remove(request_id)
            for line in (self._reading, self._joining):
                for entry in [entry for entry in line if entry.request_id == request_id]:
                    line.remove(entry)
                    self._release(entry)
        else:
            for line in (self._reading, self._joining):
                for entry in [e for e in line if e.request_id == request_id and e.resumed is not None]:
                    if entry.resumed is not None and entry.resumed.sample == sample:
                        line.remove(entry)
                        self._release(entry)
        self._resuming = deque(
            s for s in self._resuming if s.request_id != request_id or sample not in (None, s.sample)
        )
        self._remove([r for r, s in enumerate(self.rows) if s.request_id == request_id and sample in (None, s.sample)])

    def drop_running(self) -> list[int]:
        """Empties rows and slots and returns the ids of the requests that had any. Waiting ones stay."""
        dropped = dict.fromkeys([entry.request_id for entry in (*self._reading, *self._joining)])
        dropped |= dict.fromkeys([sequence.request_id for sequence in (*self._resuming, *self.rows)])
        self.rows.clear()
        self._moves.clear()
        self._keeps.clear()
        self._resuming.clear()
        self._num_promised = self._num_with_top = 0
        self._reading.clear()
        self._joining.clear()
        self.prompts.forget()
        return list(dropped)

    def _start(self, copies: list[Copy]) -> int:
        num_reused = 0
        while self.waiting and not self._is_far_ahead:
            request_id, request = self.waiting.first()
            num_branches = max(0, len(request.branches) - 1)
            if (num_branches or self._num_promised) and self.prompts.num_free - self._num_promised < 1 + num_branches:
                break
            try:
                prompt = self._acquire(request.prompt_ids, request.salt, copies)
            except Exception:
                _log.exception("a request could not be admitted")
                self.waiting.pop()
                self.failures.append(FailureEvent(request_id, FAILED))
                continue
            if prompt is None:
                break
            self.waiting.pop()
            num_reused += prompt.num_read
            self._num_promised += num_branches
            self._enter(_Reading(request_id, request, prompt))
        return num_reused

    @property
    def _is_far_ahead(self) -> bool:
        """Whether enough candidates have a prompt of their own to fill the rows once. Whoever comes next waits for no more than these."""
        if len(self._reading) + len(self._joining) < max(TURN, self._max_rows // TURN):
            return False
        ahead = sum(entry.request.num_samples - entry.num_joined for entry in (*self._reading, *self._joining))
        return ahead >= self._max_rows

    def _acquire(self, token_ids: tuple[int, ...], salt: str, copies: list[Copy]) -> Prompt | None:
        place = self.prompts.acquire(token_ids, salt)
        if place is None:
            return None
        if place.copy_from is not None:
            copies.append(Copy(place.copy_from, place.prompt.slot, place.num_copied))
        return place.prompt

    def _enter(self, entry: _Reading) -> None:
        """Into the line where it is to stand next."""
        is_read = all(prompt.has_logits for prompt in (entry.prompt, *entry.branches))
        (self._joining if is_read and not entry.num_branches_wanted else self._reading).append(entry)

    def _branch(self, copies: list[Copy]) -> int:
        """Places for the branches of prompts that are read: they begin with what now stands in the prompt's slot."""
        num_reused = 0
        for entry in [e for e in self._reading if e.num_branches_wanted and e.prompt.has_logits]:
            self._reading.remove(entry)
            for branch in entry.request.branches[1:]:
                prompt = self._acquire((*entry.request.prompt_ids, *branch.path_ids), entry.request.salt, copies)
                assert prompt is not None, "a slot was promised"
                num_reused += prompt.num_read
                entry.branches.append(prompt)
                self._num_promised -= 1
            self._enter(entry)
        return num_reused

    def _resume(self, copies: list[Copy]) -> int:
        num_reused = 0
        while self._resuming and self.prompts.num_free > self._num_promised:
            sequence = self._resuming[0]
            assert sequence.drawn is not None
            token_ids = tuple(sequence.drawn.token_ids)
            prompt = self._acquire(token_ids, sequence.request.salt, copies)
            if prompt is None:
                break
            self._resuming.popleft()
            num_reused += prompt.num_read
            request = replace(
                sequence.request, prompt_ids=token_ids, first_sample=sequence.sample, num_samples=1, branches=()
            )
            self._enter(_Reading(sequence.request_id, request, prompt, resumed=sequence))
        return num_reused

    def _read(self, budget: int) -> list[Stretch]:
        stretches: list[Stretch] = []
        for entry in tuple(self._reading):
            for prompt in (entry.prompt, *entry.branches):
                if budget and not prompt.has_logits:
                    stretches.append(_stretch(prompt, budget, remembers=entry.request.remember))
                    budget -= len(stretches[-1].token_ids)
            if all(prompt.has_logits for prompt in (entry.prompt, *entry.branches)) and not entry.num_branches_wanted:
                self._reading.remove(entry)
                self._joining.append(entry)
            if not budget:
                break
        return stretches

    def _join(self) -> tuple[list[Join], list[int]]:
        placed: list[tuple[_Reading, range]] = []
        started: list[int] = []
        num_rows = len(self.rows)
        while self._joining and num_rows < self._max_rows:
            entry = self._joining.popleft()
            if not entry.num_joined and entry.resumed is None:
                started.append(entry.request_id)
            num_left = entry.request.num_samples - entry.num_joined
            num_new = min(self._max_rows - num_rows, num_left, TURN if self._joining else num_left)
            first = entry.request.first_sample + entry.num_joined
            placed.append((entry, range(first, first + num_new)))
            num_rows += num_new
            entry.num_joined += num_new
            if entry.num_joined < entry.request.num_samples:
                self._joining.append(entry)
            else:
                self._release(entry)
        placed.sort(
            key=lambda place: bool(place[0].request.branches)
        )  # the last rows are those that draw from branches
        return [self._place(entry, samples) for entry, samples in placed], started

    def _place(self, entry: _Reading, samples: range) -> Join:
        request, first_row = entry.request, len(self.rows)
        if entry.resumed is not None:
            self.rows.append(entry.resumed)
        else:
            end_ids = () if request.forced_ids else (self._end_id, *request.end_ids)
            self.rows += (
                Sequence(entry.request_id, sample, request.max_new_tokens, request, None, end_ids) for sample in samples
            )
        self._num_with_top += len(samples) * (request.num_top > 0)
        slots = (entry.prompt.slot, *(prompt.slot for prompt in entry.branches)) if request.branches else ()
        return Join(request, entry.prompt.slot, first_row, samples, slots)

    def _release(self, entry: _Reading) -> None:
        self._num_promised -= entry.num_branches_wanted
        for prompt in (entry.prompt, *entry.branches):
            self.prompts.release(prompt)

    def _remove(self, rows: list[int]) -> None:
        # From the back, so that the last row is never itself one that leaves.
        for row in sorted(rows, reverse=True):
            drawn = self.rows[row].drawn
            if drawn is not None and (slot := self.prompts.keep(drawn, self.rows[row].request.salt)) is not None:
                self._keeps.append(Copy(self._stands_at(row), slot, len(drawn.token_ids) - 1))
            self._num_with_top -= self.rows[row].request.num_top > 0
            last = self.rows.pop()
            if row < len(self.rows):
                self.rows[row] = last
                self._moves.append((len(self.rows), row))

    def _stands_at(self, row: int) -> int:
        """Where the keys and values of a row are until the moves of the next plan are done."""
        for source, target in reversed(self._moves):
            if target == row:
                row = source
        return row


def _stretch(prompt: Prompt, budget: int, *, remembers: bool) -> Stretch:
    """The next `budget` tokens of a prompt, or those that are left."""
    start = prompt.num_read
    token_ids = prompt.token_ids[start : start + budget]
    prompt.num_read += len(token_ids)
    prompt.has_logits = prompt.num_read == len(prompt.token_ids)
    beginning = beginning_of(prompt.token_ids, prompt.salt) if remembers and prompt.has_logits else 0
    return Stretch(prompt.slot, start, token_ids, prompt.has_logits, beginning)


def _key_of(request: GenerationRequest, sample: int) -> Hashable:
    """All that a draw depends on, but for the tokens before it."""
    return (
        request.salt,
        request.sampling,
        request.bias,
        request.end_ids,
        request.ignore_end,
        request.want_logprobs,
        sample,
    )
