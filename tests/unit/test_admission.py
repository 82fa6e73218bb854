"""How much is accepted, and when the others are told to come back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptgen.errors import Overloaded
from promptgen.generation.admission import Admission


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_bounds_are_on_requests_and_on_tokens_and_an_empty_service_takes_anything() -> None:
    admission = Admission(2, 100, Clock())
    admission.enter(1, 1000)
    with pytest.raises(Overloaded):
        admission.enter(1, 1)
    admission.leave(1000)
    admission.enter(1, 60)
    with pytest.raises(Overloaded):
        admission.enter(1, 41)
    admission.enter(1, 40)
    with pytest.raises(Overloaded):
        admission.enter(1, 0)
    assert (admission.num_requests, admission.num_tokens, admission.num_refused) == (2, 100, 3)


def test_the_time_to_come_back_is_that_of_the_work_at_hand_at_the_pace_of_late() -> None:
    clock = Clock()
    admission = Admission(100, 100_000, clock)
    assert admission.retry_after_s == 1
    for _ in range(200):  # 100 tokens each, one every tenth of a second, while others wait
        admission.enter(1, 100)
        clock.now += 0.1
        admission.leave(100)
    for _ in range(50):
        admission.enter(1, 100)
    assert admission.retry_after_s == pytest.approx(5, abs=1)
    for _ in range(40):
        clock.now += 1
        admission.leave(100)
    for _ in range(50):
        admission.enter(1, 100)
    assert admission.retry_after_s == pytest.approx(52, abs=8)  # ten times slower now


def test_hours_without_work_do_not_make_it_look_slow() -> None:
    clock = Clock()
    admission = Admission(100, 100_000, clock)
    for _ in range(20):
        admission.enter(1, 100)
        clock.now += 1
        admission.leave(100)
        clock.now += 3600
    for _ in range(3):
        admission.enter(1, 100)
    assert admission.retry_after_s == pytest.approx(3, abs=1)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 500), st.floats(0, 100)), max_size=50), st.data())
def test_whatever_comes_and_goes_the_sums_are_right_and_the_time_is_in_bounds(
    arrivals: list[tuple[int, int, float]], data: st.DataObject
) -> None:
    clock = Clock()
    admission = Admission(8, 1000, clock)
    inside: list[int] = []
    for count, tokens, pause_s in arrivals:
        clock.now += pause_s
        is_full = len(inside) + count > 8 or sum(inside) + count * tokens > 1000
        if inside and is_full:
            with pytest.raises(Overloaded) as refused:
                admission.enter(count, count * tokens)
            assert 1 <= refused.value.retry_after_s <= 60
        else:
            admission.enter(count, count * tokens)
            inside += [tokens] * count
        while inside and data.draw(st.booleans()):
            admission.leave(inside.pop())
        assert (admission.num_requests, admission.num_tokens) == (len(inside), sum(inside))
