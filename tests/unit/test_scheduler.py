"""The scheduler against a simulated cache: dense rows, right moves, nothing lost, first come, first served."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from promptgen.errors import Overloaded
from promptgen.generation.request import Event, FinishEvent, GenerationRequest, StartEvent, TokenEvent
from promptgen.generation.scheduler import MAX_PREFILL_TOKENS, Plan, Scheduler

END = 99
WORD = 7
MAX_ROWS = 7
MAX_QUEUE = 5
Key = tuple[int, int]


def request(num_samples: int, max_new_tokens: int, num_prompt: int = 3) -> GenerationRequest:
    return GenerationRequest((1,) * num_prompt, num_samples, max_new_tokens)


def step(scheduler: Scheduler, token_ids: list[int] | None = None) -> tuple[Plan, list[Event]]:
    plan = scheduler.schedule()
    assert plan is not None
    return plan, scheduler.update(plan, token_ids or [WORD] * plan.num_rows, [0.0] * plan.num_rows)


class SchedulerWalk(RuleBasedStateMachine):
    """`cells` is what a cache row would hold; `left` what each live sample may still get; `queue` who waits."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(max_rows=MAX_ROWS, max_queue=MAX_QUEUE, end_id=END)
        self.cells: list[Key | None] = [None] * MAX_ROWS
        self.queue: list[tuple[int, GenerationRequest]] = []
        self.left: dict[Key, int] = {}
        self.finished: set[Key] = set()
        self.next_id = 0

    @rule(
        num_samples=st.integers(1, MAX_ROWS),
        max_new_tokens=st.integers(1, 6),
        num_prompt=st.sampled_from([1, 3, 1500, 4096, 5000]),
    )
    def add(self, num_samples: int, max_new_tokens: int, num_prompt: int) -> None:
        asked = request(num_samples, max_new_tokens, num_prompt)
        if len(self.queue) == MAX_QUEUE:
            with pytest.raises(Overloaded):
                self.scheduler.add(self.next_id, asked)
            return
        self.scheduler.add(self.next_id, asked)
        self.queue.append((self.next_id, asked))
        self.next_id += 1

    @rule(data=st.data())
    def take_a_step(self, data: st.DataObject) -> None:
        plan = self.scheduler.schedule()
        if plan is None:
            assert not self.left
            assert not self.queue
            return
        for source, target in plan.moves:
            self.cells[target] = self.cells[source]
        self.admit(plan)
        keys = [(s.request_id, s.sample) for s in self.scheduler.rows]
        assert plan.num_rows == len(keys) <= MAX_ROWS
        assert self.cells[: plan.num_rows] == keys
        token_ids = data.draw(
            st.lists(st.sampled_from([WORD, WORD, WORD, END]), min_size=len(keys), max_size=len(keys))
        )
        events = self.scheduler.update(plan, token_ids, [-float(row) for row in range(len(keys))])
        assert events == self.expected_events(plan, keys, token_ids)

    def admit(self, plan: Plan) -> None:
        taken = self.queue[: len(plan.admissions)]
        assert [(a.request_id, a.request) for a in plan.admissions] == taken
        longest = max((len(asked.prompt_ids) for _, asked in taken), default=0)
        assert len(taken) <= 1 or longest * len(taken) <= MAX_PREFILL_TOKENS
        del self.queue[: len(taken)]
        first_row = len(self.left)
        assert plan.num_continuing == (first_row if plan.admissions else plan.num_rows)
        for admission, (request_id, asked) in zip(plan.admissions, taken, strict=True):
            assert admission.first_row == first_row
            for sample in range(asked.num_samples):
                self.cells[first_row + sample] = (request_id, sample)
                self.left[request_id, sample] = asked.max_new_tokens
            first_row += asked.num_samples
        if self.queue:
            head = self.queue[0][1]
            padded = max(longest, len(head.prompt_ids)) * (len(taken) + 1)
            assert first_row + head.num_samples > MAX_ROWS or padded > MAX_PREFILL_TOKENS

    def expected_events(self, plan: Plan, keys: list[Key], token_ids: list[int]) -> list[Event]:
        expected: list[Event] = [StartEvent(admission.request_id) for admission in plan.admissions]
        for row, (key, token_id) in enumerate(zip(keys, token_ids, strict=True)):
            if token_id != END:
                expected.append(TokenEvent(*key, token_id, -float(row)))
                self.left[key] -= 1
            if token_id == END or self.left[key] == 0:
                assert key not in self.finished
                self.finished.add(key)
                del self.left[key]
                expected.append(FinishEvent(*key, "stop" if token_id == END else "length"))
        return expected

    @precondition(lambda self: self.next_id)
    @rule(data=st.data())
    def cancel_request(self, data: st.DataObject) -> None:
        request_id = data.draw(st.integers(0, self.next_id))
        self.scheduler.cancel(request_id)
        self.queue = [entry for entry in self.queue if entry[0] != request_id]
        self.left = {key: left for key, left in self.left.items() if key[0] != request_id}

    @precondition(lambda self: self.left)
    @rule(data=st.data())
    def cancel_one_sample(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.left)))
        self.scheduler.cancel(*key)
        del self.left[key]

    @rule()
    def drop_what_runs(self) -> None:
        assert sorted(self.scheduler.drop_running()) == sorted({request_id for request_id, _ in self.left})
        self.left.clear()

    @invariant()
    def rows_are_the_live_samples(self) -> None:
        keys = [(s.request_id, s.sample) for s in self.scheduler.rows]
        assert len(keys) == len(set(keys)) <= MAX_ROWS
        assert set(keys) == set(self.left)
        assert list(self.scheduler.waiting) == self.queue
        assert self.scheduler.has_work == bool(keys or self.queue)

    def teardown(self) -> None:
        for _ in range(100):
            plan = self.scheduler.schedule()
            if plan is None:
                break
            for source, target in plan.moves:
                self.cells[target] = self.cells[source]
            self.admit(plan)
            keys = [(s.request_id, s.sample) for s in self.scheduler.rows]
            assert self.cells[: plan.num_rows] == keys
            self.expected_events(plan, keys, [WORD] * plan.num_rows)
            self.scheduler.update(plan, [WORD] * plan.num_rows, [0.0] * plan.num_rows)
        assert self.scheduler.rows == []
        assert not self.scheduler.has_work
        assert not self.left
        assert not self.queue


SchedulerWalk.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
test_random_walks_of_add_step_and_cancel = SchedulerWalk.TestCase


def test_last_row_moves_into_the_gap() -> None:
    scheduler = Scheduler(max_rows=8, max_queue=8, end_id=END)
    scheduler.add(0, request(5, 9))
    step(scheduler, [WORD, END, WORD, WORD, WORD])
    assert [s.sample for s in scheduler.rows] == [0, 4, 2, 3]
    assert step(scheduler)[0].moves == ((4, 1),)
    assert step(scheduler)[0].moves == ()


def test_full_queue_refuses_and_says_when_to_come_again() -> None:
    scheduler = Scheduler(max_rows=2, max_queue=3, end_id=END)
    for request_id in range(3):
        scheduler.add(request_id, request(2, 2))
    with pytest.raises(Overloaded) as refusal:
        scheduler.add(3, request(1, 1))
    assert refusal.value.retry_after_s >= 1
    step(scheduler)
    scheduler.add(3, request(1, 1))
    assert [request_id for request_id, _ in scheduler.waiting] == [1, 2, 3]


def test_a_small_request_does_not_overtake_a_large_one() -> None:
    scheduler = Scheduler(max_rows=4, max_queue=8, end_id=END)
    scheduler.add(0, request(3, 2))
    scheduler.add(1, request(4, 1))
    scheduler.add(2, request(1, 1))
    started = []
    while scheduler.has_work:
        _, events = step(scheduler)
        started.append([event.request_id for event in events if isinstance(event, StartEvent)])
    assert started == [[0], [], [1], [2]]


def test_prompts_read_in_one_step_are_bounded_with_their_padding() -> None:
    scheduler = Scheduler(max_rows=8, max_queue=8, end_id=END)
    half = MAX_PREFILL_TOKENS // 2
    for request_id, num_prompt in enumerate([half, 10, 1, half + 1, MAX_PREFILL_TOKENS + 1]):
        scheduler.add(request_id, request(1, 9, num_prompt))
    admitted = [[a.request_id for a in step(scheduler)[0].admissions] for _ in range(4)]
    assert admitted == [[0, 1], [2], [3], [4]]


def test_idle_scheduler_plans_nothing() -> None:
    scheduler = Scheduler(max_rows=2, max_queue=2, end_id=END)
    assert scheduler.schedule() is None
    scheduler.cancel(5)
    scheduler.cancel(5, 1)
    assert scheduler.drop_running() == []
    assert not scheduler.has_work


def test_dropping_what_runs_names_each_request_once_and_keeps_the_queue() -> None:
    scheduler = Scheduler(max_rows=3, max_queue=4, end_id=END)
    scheduler.add(4, request(3, 5))
    scheduler.add(5, request(1, 1))
    step(scheduler, [WORD, END, WORD])
    assert scheduler.drop_running() == [4]
    plan, _ = step(scheduler)
    assert [a.request_id for a in plan.admissions] == [5]
    assert plan.moves == ()
    assert not scheduler.has_work
