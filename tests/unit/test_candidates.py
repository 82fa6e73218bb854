"""Ids become text piece by piece: the pieces joined are the completion, cut before the first stop string, spaced after the prompt."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from promptgen.errors import ContextLengthExceeded, InvalidRequest
from promptgen.generation.candidates import CandidateSet, CandidateText, Finished, Piece
from promptgen.generation.request import (
    Event,
    FailureEvent,
    FinishEvent,
    FinishReason,
    Sampling,
    StartEvent,
    TextRequest,
    TokenEvent,
)
from promptgen.text.tokenizer import BertWordTokenizer
from promptgen.text.vocabulary import Vocabulary

WORDS = ["高血压", "要", "注意", "，", "。", ",", "hello", "world", "play", "##ing", "2", "##0"]
TOKENIZER = BertWordTokenizer(Vocabulary.of(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
IDS = TOKENIZER.vocabulary.ids


class GivenPieces:
    """A detokenizer whose token i is the text pieces[i], with `rest` at the end."""

    def __init__(self, pieces: list[str], rest: str = "") -> None:
        self._pieces, self._rest = pieces, rest

    def push(self, token_id: int) -> str:
        return self._pieces[token_id]

    def finish(self) -> str:
        return self._rest


def shown_by(pieces: list[str], stops: tuple[str, ...], rest: str = "") -> tuple[list[str], CandidateText]:
    text = CandidateText(GivenPieces(pieces, rest), stops)
    shown = []
    for token_id in range(len(pieces)):
        shown.append(text.push(token_id, -1.0))
        if text.is_stopped:
            break
    shown.append(text.finish("stop" if text.is_stopped else "length"))
    return shown, text


def cut_before(text: str, stops: tuple[str, ...]) -> str:
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def completion_of(pieces: list[str], stops: tuple[str, ...], rest: str = "") -> str:
    _, text = shown_by(pieces, stops, rest)
    return said(text)


def said(text: CandidateText) -> str:
    return text.told(0, with_logprob=False, with_score=False).completion


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["abc", "def"], (), "abcdef"),
        (["abc", "def"], ("x",), "abcdef"),
        (["abc", "def"], ("c",), "ab"),
        (["abc", "def"], ("a",), ""),
        (["abc", "def"], ("cd",), "ab"),
        (["a", "b", "c", "d", "e"], ("bcd",), "a"),
        (["abab", "ac"], ("abac",), "ab"),
        (["aa", "ab"], ("ab",), "aa"),
        (["x。y\n"], ("\n", "。"), "x"),
        (["one", "two"], ("two", "one"), ""),
        (["ab", "x"], ("abc",), "abx"),
        (["ab"], ("abc", "b。"), "ab"),
        (["高血", "压，", "要"], ("压，要",), "高血"),
    ],
)
def test_the_text_is_cut_before_the_first_match(pieces: list[str], stops: tuple[str, ...], expected: str) -> None:
    assert completion_of(pieces, stops) == expected


def test_of_two_overlapping_stops_the_earlier_wins_however_the_text_is_cut_into_pieces() -> None:
    assert completion_of(["abc"], ("abc", "b")) == ""
    assert completion_of(["a", "b", "c"], ("abc", "b")) == ""
    assert completion_of(["a", "b", "x"], ("abc", "b")) == "a"


def test_what_may_begin_a_stop_is_held_back_until_that_is_decided() -> None:
    assert shown_by(["xa", "b", "b"], ("abc",))[0] == ["x", "", "abb", ""]
    assert shown_by(["xa", "b"], ("abc",))[0] == ["x", "", "ab"]
    assert shown_by(["x", "。"], ("。。",), rest="!")[0] == ["x", "", "。!"]


def test_a_stop_is_also_found_in_what_the_detokenizer_gives_at_its_end() -> None:
    assert completion_of(["ab"], ("bc",), rest="c") == "a"


TEXTS = st.text(alphabet="ab。", max_size=4)
STOPS = st.lists(st.text(alphabet="ab。", min_size=1, max_size=4), max_size=3).map(tuple)


@example(["ab", "ac"], ("abac",), "")
@example(["ab", "c"], ("abc", "b"), "")
@given(st.lists(TEXTS, max_size=12), STOPS, TEXTS)
def test_the_completion_is_the_whole_text_cut_before_its_first_match(
    pieces: list[str], stops: tuple[str, ...], rest: str
) -> None:
    assert completion_of(pieces, stops, rest) == cut_before("".join(pieces) + rest, stops)


@given(st.lists(TEXTS, max_size=12), STOPS, TEXTS)
def test_joined_pieces_are_the_completion_and_hold_no_stop(
    pieces: list[str], stops: tuple[str, ...], rest: str
) -> None:
    shown, text = shown_by(pieces, stops, rest)
    assert "".join(shown) == said(text)
    assert not any(stop in said(text) for stop in stops)


def tokens(sample: int, *words: str) -> list[Event]:
    return [TokenEvent(7, sample, IDS[word], -0.5) for word in words]


def finish(sample: int, reason: FinishReason) -> FinishEvent:
    return FinishEvent(7, sample, reason)


def taken(request: TextRequest, events: list[Event]) -> tuple[CandidateSet, list[Piece | Finished]]:
    candidates = CandidateSet(TOKENIZER, replace(request, heal=False, distinct=False, rank="none"))
    return candidates, [delta for event in events for delta in candidates.take(event)]


def test_the_engine_is_asked_for_the_prompt_behind_the_begin_token() -> None:
    asked = TextRequest("高血压要注意", 3, 9, want_logprobs=True, ignore_end=True, heal=False)
    (request,) = CandidateSet(TOKENIZER, asked).requests
    assert request.prompt_ids == tuple(IDS[word] for word in ("[MASK]", "高血压", "要", "注意"))
    assert (request.num_samples, request.max_new_tokens, request.want_logprobs, request.ignore_end) == (
        3,
        9,
        True,
        True,
    )


@pytest.mark.parametrize(
    ("prompt", "words", "completion"),
    [
        ("hello", ("world",), " world"),
        ("hello ", ("world",), "world"),
        ("hello\n", ("world",), "world"),
        ("hello,", ("world",), " world"),
        ("play", ("##ing", "hello"), "ing hello"),
        ("高血压", ("要", "注意"), "要注意"),
        ("高血压", ("hello", "world"), "hello world"),
        ("hello", ("高血压",), "高血压"),
        ("高血压要注意", ("，", "2", "##0"), "，20"),
        ("hello", (",", "world"), ", world"),
    ],
)
def test_text_after_the_prompt_starts_with_the_right_space(
    prompt: str, words: tuple[str, ...], completion: str
) -> None:
    candidates, _ = taken(TextRequest(prompt, 1), [*tokens(0, *words), finish(0, "length")])
    assert candidates.answer().candidates[0].completion == completion


def test_candidates_keep_their_order_reasons_counts_and_pieces() -> None:
    events = [StartEvent(7), *tokens(1, "要"), *tokens(0, "要", "注意"), finish(1, "stop"), finish(0, "length")]
    candidates, deltas = taken(TextRequest("高血压", 2), events)
    first, second = candidates.answer().candidates
    assert (first.completion, first.num_tokens, first.finish_reason, first.logprob) == ("要注意", 2, "length", None)
    assert (second.completion, second.num_tokens, second.finish_reason, second.logprob) == ("要", 1, "stop", None)
    assert deltas == [
        Piece(1, "要"),
        Piece(0, "要"),
        Piece(0, "注意"),
        Finished(1, second),
        Finished(0, first),
    ]


def test_logprobs_are_summed_when_asked_for() -> None:
    candidates, _ = taken(TextRequest("高血压", 1, want_logprobs=True), [*tokens(0, "要", "注意"), finish(0, "length")])
    assert candidates.answer().candidates[0].logprob == pytest.approx(-1.0)


@pytest.mark.parametrize("logprob", [0.0, -1e-9])
def test_an_end_that_was_certain_counts_as_a_token_of_the_score_too(logprob: float) -> None:
    events = [*tokens(0, "要", "注意"), FinishEvent(7, 0, "stop", logprob, IDS["[CLS]"])]
    candidates, _ = taken(TextRequest("高血压", 1, want_logprobs=True), events)
    assert candidates.answer().candidates[0].score == pytest.approx(-1 / 3)


def test_a_stop_string_finishes_a_candidate_and_later_events_are_ignored() -> None:
    events = [*tokens(0, "要", "。", "注意"), finish(0, "length")]
    candidates, deltas = taken(TextRequest("高血压", 1, stop=("。",)), events)
    assert candidates.is_complete
    (candidate,) = candidates.answer().candidates
    assert (candidate.completion, candidate.num_tokens, candidate.finish_reason) == ("要", 2, "stop")
    assert deltas == [Piece(0, "要"), Finished(0, candidate)]


def test_held_text_is_the_last_piece_before_the_candidate_finishes() -> None:
    candidates, deltas = taken(TextRequest("高血压", 1, stop=("。。",)), [*tokens(0, "要", "。"), finish(0, "length")])
    assert deltas == [Piece(0, "要"), Piece(0, "。"), Finished(0, candidates.answer().candidates[0])]


def test_a_request_is_complete_with_its_last_candidate() -> None:
    candidates = CandidateSet(TOKENIZER, TextRequest("高血压", 2, distinct=False))
    candidates.take(finish(1, "stop"))
    assert not candidates.is_complete
    assert candidates.take(FailureEvent(7, "x")) == []
    candidates.take(finish(0, "stop"))
    assert candidates.is_complete
    assert [candidate.completion for candidate in candidates.answer().candidates] == ["", ""]


def test_given_ids_are_read_as_they_are_and_candidates_start_after_the_given_text() -> None:
    ids, ends = (IDS["[CLS]"], IDS["hello"], IDS["[SEP]"]), (IDS["[SEP]"],)
    asked = TextRequest("", 1, 5, prompt_ids=ids, end_ids=ends)
    candidates, shown = taken(asked, [*tokens(0, "world", "，"), finish(0, "stop")])
    (part,) = candidates.requests
    assert (part.prompt_ids, part.end_ids, part.branches) == (ids, ends, ())
    assert candidates.num_prompt_tokens == len(ids)
    assert [delta.text for delta in shown if isinstance(delta, Piece)] == ["world", "，"]
    _, after_a_word = taken(replace(asked, prompt="hello"), [*tokens(0, "world"), finish(0, "stop")])
    assert [delta.text for delta in after_a_word if isinstance(delta, Piece)] == [" world"]


def test_given_ids_are_not_healed() -> None:
    asked = TextRequest("hello wor", prompt_ids=(IDS["[CLS]"], IDS["hello"]), rank="none")
    (part,) = CandidateSet(TOKENIZER, asked).requests
    assert part.branches == ()


def test_choices_are_scored_after_given_ids() -> None:
    ids = (IDS["[CLS]"], IDS["[SEP]"])
    asked = TextRequest("", choices=("高血压要注意", "hello"), prompt_ids=ids)
    parts = CandidateSet(TOKENIZER, asked).requests
    assert [part.prompt_ids for part in parts] == [ids, ids]
    assert [part.forced_ids for part in parts] == [(IDS["高血压"], IDS["要"], IDS["注意"]), (IDS["hello"],)]


def test_penalties_that_count_from_where_drawing_began_are_never_mixed_with_what_was_drawn_before() -> None:
    asked = TextRequest("高血压", 2, 5, Sampling().with_penalties(1, 0), session="one")
    with pytest.raises(InvalidRequest, match="without presence and frequency penalties"):
        CandidateSet(TOKENIZER, asked)
    for penalty, remembers in ((0, True), (1, False)):
        sampling = Sampling().with_penalties(0, penalty)
        (part,) = CandidateSet(TOKENIZER, replace(asked, sampling=sampling, distinct=False)).requests
        assert part.remember == remembers


def test_choices_after_a_context_far_over_the_window_are_not_even_encoded() -> None:
    asked = TextRequest("高血压" * 200, choices=("注意",) * 64)
    with pytest.raises(ContextLengthExceeded):
        CandidateSet(TOKENIZER, asked, window=64)
    assert len(CandidateSet(TOKENIZER, replace(asked, prompt="高血压" * 50), window=64).requests) == 64
