"""The waiting line: callers in turn, and of each the oldest request first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from promptgen.generation.request import GenerationRequest
from promptgen.generation.waiting import WaitingLine


def line_of(*entries: tuple[int, str]) -> WaitingLine:
    line = WaitingLine()
    for request_id, caller in entries:
        line.append(request_id, request_of(caller))
    return line


def request_of(caller: str) -> GenerationRequest:
    return GenerationRequest((1,), 1, 1, salt=caller)


def leave(line: WaitingLine, count: int) -> list[int]:
    return [line.pop()[0] for _ in range(count)]


def test_one_request_waits_for_one_of_each_other_caller_and_not_for_all_of_them() -> None:
    line = line_of(*((i, "crowd") for i in range(1000)), (1000, "single"), (1001, "pair"), (1002, "pair"))
    assert leave(line, 6) == [0, 1000, 1001, 1, 1002, 2]
    assert len(line) == 997


def test_one_caller_alone_is_first_come_first_served() -> None:
    assert leave(line_of((3, "a"), (5, "a"), (9, "a")), 3) == [3, 5, 9]


def test_a_later_part_of_an_older_request_stands_where_the_request_stood() -> None:
    line = line_of((4, "a"), (5, "a"), (6, "a"))
    line.append(2, request_of("a"))
    line.append(5, request_of("a"))
    assert leave(line, 5) == [2, 4, 5, 5, 6]


def test_who_comes_back_stands_behind_those_who_wait() -> None:
    line = line_of((0, "a"), (1, "b"), (2, "b"))
    assert leave(line, 1) == [0]
    line.append(3, request_of("a"))
    assert leave(line, 3) == [1, 3, 2]


callers = st.lists(st.tuples(st.sampled_from(["add", "pop", "remove"]), st.sampled_from("abcd")), max_size=60)


@given(callers)
def test_nothing_is_lost_and_nobody_is_passed_over(moves: list[tuple[str, str]]) -> None:
    line, inside, next_id = WaitingLine(), dict[int, str](), 0
    passed = dict.fromkeys("abcd", 0)  # requests of others that left since this caller was served or came
    for move, caller in moves:
        if move == "add":
            if caller not in inside.values():
                passed[caller] = 0
            line.append(next_id, request_of(caller))
            inside[next_id] = caller
            next_id += 1
        elif move == "pop" and inside:
            first = line.first()
            request_id, request = line.pop()
            assert first == (request_id, request)
            served = inside.pop(request_id)
            assert all(other > request_id for other, who in inside.items() if who == served)
            for who in set(inside.values()) - {served}:
                passed[who] += 1
                assert passed[who] <= 3
            passed[served] = 0
        elif move == "remove" and inside:
            victim = min(inside)
            line.remove(victim)
            del inside[victim]
        assert len(line) == len(inside)
        assert sorted(entry[0] for entry in line) == sorted(inside)
        assert bool(line) == bool(inside)
    assert [entry[0] for entry in line] == leave(line, len(line))
