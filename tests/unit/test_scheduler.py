"""The scheduler against a simulated cache: dense rows, right moves, nothing lost, and every candidate starts from its own whole prompt.

The simulation keeps for each position of each slot what its keys and values would depend on: all tokens up to there. A candidate that began from
a slot holding anything but exactly its prompt would be seen at once, whatever was copied, extended or cut before.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from promptgen.generation.request import Branch, Event, FinishEvent, GenerationRequest, StartEvent, TokenEvent
from promptgen.generation.scheduler import MAX_PASS, MAX_READ, MIN_READ, TURN, Plan, Scheduler
from promptgen.generation.steps import Pick
from tests.amount import cases

END = 99
WORD = 7
MAX_ROWS = 11
MAX_QUEUE = 5
PROMPT_SLOTS = 3
Key = tuple[int, int]
Ids = tuple[int, ...]


def request(num_samples: int, max_new_tokens: int, num_prompt: int = 3) -> GenerationRequest:
    return GenerationRequest((1,) * num_prompt, num_samples, max_new_tokens)


def new_scheduler(max_rows: int = 8, num_prompt_slots: int = 8) -> Scheduler:
    return Scheduler(max_rows=max_rows, num_prompt_slots=num_prompt_slots, end_id=END)


def step(scheduler: Scheduler, token_ids: list[int] | None = None) -> tuple[Plan, list[Event]]:
    plan = scheduler.schedule()
    assert plan is not None
    return plan, scheduler.update(plan, token_ids or [WORD] * plan.num_rows, [0.0] * plan.num_rows)


class Slots:
    """What a cache would hold: for each slot the beginnings its positions depend on, and whose logits are there."""

    def __init__(self) -> None:
        self.beginnings: dict[int, list[Ids]] = {slot: [] for slot in range(MAX_ROWS, MAX_ROWS + PROMPT_SLOTS)}
        self.logits: dict[int, Ids] = {}

    def run(self, plan: Plan) -> None:
        for copy in plan.copies:
            source = self.beginnings[copy.source]
            assert len(source) >= copy.length > 0
            self.beginnings[copy.target] = source[: copy.length]
            self.logits.pop(copy.target, None)
        for stretch in plan.stretches:
            held = self.beginnings[stretch.slot]
            assert len(held) >= stretch.start
            assert stretch.token_ids
            del held[stretch.start :]
            self.logits.pop(stretch.slot, None)
            for token_id in stretch.token_ids:
                held.append((*(held[-1] if held else ()), token_id))
            if stretch.is_last:
                self.logits[stretch.slot] = held[-1]
        for join in plan.joins:
            assert self.beginnings[join.slot][len(join.request.prompt_ids) - 1] == join.request.prompt_ids
            assert self.logits[join.slot] == join.request.prompt_ids


class SchedulerWalk(RuleBasedStateMachine):
    """`cells` is what a cache row would hold; `left` what each sample that is not finished may still get; `queue` who waits."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = new_scheduler(MAX_ROWS, PROMPT_SLOTS)
        self.cells: list[Key | None] = [None] * MAX_ROWS
        self.slots = Slots()
        self.asked: dict[int, GenerationRequest] = {}
        self.queue: list[int] = []
        self.left: dict[Key, int] = {}
        self.joined: set[Key] = set()
        self.finished: set[Key] = set()

    @rule(
        num_samples=st.integers(1, 2 * MAX_ROWS),
        max_new_tokens=st.integers(1, 6),
        prompt=st.one_of(
            st.lists(st.sampled_from([1, 2]), min_size=1, max_size=7),
            st.integers(1, 3).map(lambda n: [1, 2, 1] * (n * MAX_PASS // 4)),
            st.just([2] * (MAX_READ + 5)),
        ),
        salt=st.sampled_from(["", "", "", "other"]),
    )
    def add(self, num_samples: int, max_new_tokens: int, prompt: list[int], salt: str) -> None:
        asked = GenerationRequest(tuple(prompt), num_samples, max_new_tokens, salt=salt)
        request_id = len(self.asked)
        if len(self.queue) == MAX_QUEUE:
            return
        self.scheduler.add(request_id, asked)
        self.asked[request_id] = asked
        self.queue.append(request_id)
        self.left |= {(request_id, sample): max_new_tokens for sample in range(num_samples)}

    def waiting(self) -> list[int]:
        return sorted(request_id for request_id, _ in self.scheduler.waiting)

    @rule(data=st.data())
    def take_a_step(self, data: st.DataObject) -> None:
        was_running = bool(self.scheduler.rows)
        plan = self.scheduler.schedule()
        if plan is None:
            assert not self.left
            return
        self.run(plan, was_running)
        keys = [(s.request_id, s.sample) for s in self.scheduler.rows]
        token_ids = data.draw(
            st.lists(st.sampled_from([WORD, WORD, WORD, END]), min_size=len(keys), max_size=len(keys))
        )
        events = self.scheduler.update(plan, token_ids, [-float(row) for row in range(len(keys))])
        assert events == self.expected_events(plan, keys, token_ids)

    def run(self, plan: Plan, was_running: bool) -> None:
        for source, target in plan.moves:
            self.cells[target] = self.cells[source]
        still_waiting = self.waiting()
        for salt in {request.salt for request in self.asked.values()}:  # of each caller, first come, first served
            before, after = ([i for i in ids if self.asked[i].salt == salt] for ids in (self.queue, still_waiting))
            assert after == before[len(before) - len(after) :]
        self.queue = still_waiting
        self.slots.run(plan)
        most = max(MIN_READ, MAX_PASS - plan.num_continuing) if was_running else MAX_READ
        assert sum(len(s.token_ids) for s in plan.stretches) <= most
        new = [self.scheduler.rows[join.first_row].request_id for join in plan.joins if join.samples.start == 0]
        assert list(plan.started) == new
        first_row = plan.num_continuing
        for join in plan.joins:
            assert join.first_row == first_row
            request_id = self.scheduler.rows[first_row].request_id
            assert self.asked[request_id] == join.request
            for sample in join.samples:
                assert (request_id, sample) not in self.joined
                self.joined.add((request_id, sample))
                self.cells[first_row] = (request_id, sample)
                first_row += 1
        assert first_row == plan.num_rows <= MAX_ROWS
        assert self.cells[: plan.num_rows] == [(s.request_id, s.sample) for s in self.scheduler.rows]

    def expected_events(self, plan: Plan, keys: list[Key], token_ids: list[int]) -> list[Event]:
        expected: list[Event] = [StartEvent(request_id) for request_id in plan.started]
        for row, (key, token_id) in enumerate(zip(keys, token_ids, strict=True)):
            if token_id != END:
                expected.append(TokenEvent(*key, token_id, -float(row)))
                self.left[key] -= 1
            if token_id == END or self.left[key] == 0:
                assert key not in self.finished
                self.finished.add(key)
                del self.left[key]
                expected.append(
                    FinishEvent(*key, "stop", -float(row), END) if token_id == END else FinishEvent(*key, "length")
                )
        return expected

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel_request(self, data: st.DataObject) -> None:
        request_id = data.draw(st.integers(0, len(self.asked)))
        self.scheduler.cancel(request_id)
        self.queue = [waiting for waiting in self.queue if waiting != request_id]
        self.left = {key: left for key, left in self.left.items() if key[0] != request_id}

    @precondition(lambda self: self.scheduler.rows)
    @rule(data=st.data())
    def cancel_one_sample(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted((s.request_id, s.sample) for s in self.scheduler.rows)))
        self.scheduler.cancel(*key)
        del self.left[key]

    @rule()
    def a_step_fails(self) -> None:
        """As the engine does it: a plan is made, is not carried out, and everything that had a slot is dropped."""
        self.scheduler.schedule()
        self.queue = self.waiting()
        self.joined |= {(s.request_id, s.sample) for s in self.scheduler.rows}
        self.drop_what_runs()

    @rule()
    def drop_what_runs(self) -> None:
        started = {request_id for request_id, _ in self.left if request_id not in self.queue}
        assert set(self.scheduler.drop_running()) == started
        self.left = {key: left for key, left in self.left.items() if key[0] in self.queue}

    @invariant()
    def rows_are_live_samples_and_users_are_counted(self) -> None:
        keys = [(s.request_id, s.sample) for s in self.scheduler.rows]
        assert len(keys) == len(set(keys)) <= MAX_ROWS
        assert set(keys) == set(self.left) & self.joined
        assert self.waiting() == self.queue
        assert self.scheduler.has_work == bool(self.left)
        unplaced = {request_id for request_id, _ in set(self.left) - self.joined} - set(self.queue)
        assert sum(prompt.num_users for prompt in self.scheduler.prompts) == len(unplaced)

    def teardown(self) -> None:
        for _ in range(1000):
            was_running = bool(self.scheduler.rows)
            plan = self.scheduler.schedule()
            if plan is None:
                break
            self.run(plan, was_running)
            keys = [(s.request_id, s.sample) for s in self.scheduler.rows]
            self.expected_events(plan, keys, [WORD] * plan.num_rows)
            self.scheduler.update(plan, [WORD] * plan.num_rows, [0.0] * plan.num_rows)
        assert self.scheduler.rows == []
        assert not self.scheduler.has_work
        assert not self.left
        assert not self.queue
        assert not any(prompt.num_users for prompt in self.scheduler.prompts)


SchedulerWalk.TestCase.settings = settings(max_examples=cases(100, 5000), stateful_step_count=40)
test_random_walks_of_add_step_and_cancel = SchedulerWalk.TestCase


def test_last_row_moves_into_the_gap() -> None:
    scheduler = new_scheduler()
    scheduler.add(0, request(5, 9))
    step(scheduler, [WORD, END, WORD, WORD, WORD])
    assert [s.sample for s in scheduler.rows] == [0, 4, 2, 3]
    assert step(scheduler)[0].moves == ((4, 1),)
    assert step(scheduler)[0].moves == ()


def test_more_samples_than_rows_come_one_after_another() -> None:
    scheduler = new_scheduler(max_rows=4)
    scheduler.add(0, request(10, 1))
    joined = []
    while scheduler.has_work:
        plan, _ = step(scheduler)
        joined += [sample for join in plan.joins for sample in join.samples]
    assert joined == list(range(10))


def test_many_samples_of_one_do_not_keep_one_of_another_waiting() -> None:
    scheduler = new_scheduler(max_rows=16, num_prompt_slots=4)
    scheduler.add(0, request(64, 5))
    scheduler.add(1, GenerationRequest((2, 2), 1, 5))
    plan, _ = step(scheduler)
    assert [(join.request.num_samples, len(join.samples)) for join in plan.joins] == [(64, TURN), (1, 1), (64, 7)]


def test_a_long_prompt_is_read_in_stretches_beside_running_rows() -> None:
    scheduler = new_scheduler()
    scheduler.add(0, GenerationRequest((2, 3), 1, 9))
    step(scheduler)
    scheduler.add(1, request(1, 3, 2 * MAX_PASS))
    plans = [step(scheduler)[0] for _ in range(3)]
    assert [[len(s.token_ids) for s in plan.stretches] for plan in plans] == [[MAX_PASS - 1]] * 2 + [[2]]
    assert [plan.num_rows for plan in plans] == [1, 1, 2]
    assert [plan.started for plan in plans] == [(), (), (1,)]


def test_a_prompt_that_was_read_before_is_not_read_again() -> None:
    scheduler = new_scheduler()
    for request_id in range(2):
        scheduler.add(request_id, GenerationRequest((4, 5, 6), 2, 1))
        plan, _ = step(scheduler)
    assert plan.stretches == ()
    assert plan.num_reused == 3
    assert plan.num_rows == 2


def test_one_more_word_costs_one_token_and_one_less_costs_the_last() -> None:
    scheduler = new_scheduler()
    read = []
    for request_id, prompt in enumerate([(4, 5, 6), (4, 5, 6, 7), (4, 5, 6, 7, 8), (4, 5, 6), (4, 5, 9)]):
        scheduler.add(request_id, GenerationRequest(prompt, 1, 1))
        read.append([(s.start, s.token_ids) for s in step(scheduler)[0].stretches])
    assert read == [[(0, (4, 5, 6))], [(3, (7,))], [(4, (8,))], [(2, (6,))], [(2, (9,))]]


def test_a_prompt_whose_extension_was_given_up_costs_its_last_token() -> None:
    scheduler = new_scheduler()
    scheduler.add(0, GenerationRequest((4, 5, 6), 1, 1))
    step(scheduler)
    scheduler.add(1, GenerationRequest((4, 5, 6, *[7] * (MAX_READ + 5)), 1, 1))
    step(scheduler)
    scheduler.cancel(1)
    scheduler.add(2, GenerationRequest((4, 5, 6), 1, 1))
    plan, _ = step(scheduler)
    assert [(s.start, s.token_ids) for s in plan.stretches] == [(2, (6,))]


def test_prompts_of_another_salt_are_read_anew() -> None:
    scheduler = new_scheduler()
    for request_id, salt in enumerate(["a", "b", "a"]):
        scheduler.add(request_id, GenerationRequest((4, 5, 6), 1, 1, salt=salt))
        plan, _ = step(scheduler)
        assert plan.num_reused == (3 if request_id == 2 else 0)


def test_the_least_recently_used_prompt_gives_up_its_slot() -> None:
    scheduler = new_scheduler(num_prompt_slots=2)
    reused = []
    for request_id, first in enumerate([1, 2, 1, 3, 1, 2]):
        scheduler.add(request_id, GenerationRequest((first, 8, 8), 1, 1))
        reused.append(step(scheduler)[0].num_reused)
    assert reused == [0, 0, 3, 0, 3, 0]


def test_idle_scheduler_plans_nothing() -> None:
    scheduler = new_scheduler()
    assert scheduler.schedule() is None
    scheduler.cancel(5)
    scheduler.cancel(5, 1)
    assert scheduler.drop_running() == []
    assert not scheduler.has_work


def test_dropping_what_runs_names_each_request_once_and_keeps_the_queue() -> None:
    scheduler = new_scheduler(max_rows=3, num_prompt_slots=1)
    scheduler.add(4, request(5, 5))
    scheduler.add(5, request(1, 1))
    step(scheduler, [WORD, END, WORD])
    assert scheduler.drop_running() == [4]
    plan, _ = step(scheduler)
    assert plan.started == (5,)
    assert [len(stretch.token_ids) for stretch in plan.stretches] == [3]
    assert plan.num_reused == 0  # nothing that stood in the cache is trusted any more
    assert plan.moves == ()
    assert not scheduler.has_work


def test_a_hold_lets_what_was_started_end_and_starts_nothing() -> None:
    scheduler = new_scheduler(max_rows=2)
    scheduler.add(0, request(3, 2))
    step(scheduler)
    scheduler.add(1, request(1, 1))
    scheduler.is_held = True
    started = []
    while scheduler.is_running:
        plan, _ = step(scheduler)
        started += plan.started
    assert started == []
    assert scheduler.schedule() is None
    assert scheduler.has_work
    scheduler.is_held = False
    assert step(scheduler)[0].started == (1,)


def test_a_recalled_end_says_which_token_it_was() -> None:
    scheduler, stop = new_scheduler(), 9
    asked = replace(request(1, 5), branches=(Branch((), np.arange(20)),), remember=True, end_ids=(stop,))
    ends = []
    for request_id in range(2):
        scheduler.add(request_id, asked)
        for token_ids in ([], [WORD + 1], [stop]):
            plan = scheduler.schedule()
            if plan is None:
                break
            picks = [Pick(0, WORD, -0.5)] * plan.num_picked
            drawn = token_ids if plan.num_continuing else []
            events = scheduler.update(plan, drawn, [-1.0] * len(drawn), picks)
            ends += [event for event in events if isinstance(event, FinishEvent)]
    assert [(end.reason, end.token_id, end.logprob) for end in ends] == [("stop", stop, -1.0)] * 2
    assert scheduler.num_recalled == 1


def test_several_steps_may_be_made_where_nobody_waits_and_none_ends_before() -> None:
    scheduler = new_scheduler(max_rows=4)
    scheduler.add(1, request(2, 9))
    assert step(scheduler)[0].most_steps == 1  # it begins
    plan, _ = step(scheduler)
    assert plan.most_steps == 8
    scheduler.add(2, request(1, 5))
    assert step(scheduler)[0].most_steps == 1
    assert step(scheduler)[0].most_steps == 4  # so many tokens has the second one left
    scheduler.add(3, request(4, 2))
    assert step(scheduler)[0].most_steps == 1
    assert step(scheduler)[0].most_steps == 1  # of the third one three candidates wait
    scheduler.cancel(3)
    assert step(scheduler)[0].most_steps == 1
    scheduler.cancel(2)
    scheduler.add(4, replace(request(1, 5), num_top=2))
    assert step(scheduler)[0].most_steps == step(scheduler)[0].most_steps == 1
