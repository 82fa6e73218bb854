"""A candidate that says what its tokens are: their texts joined are its text, and they come with the pieces that hold them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptgen.generation.candidates import CandidateSet, Finished, Piece
from promptgen.generation.request import Candidate, Event, FinishEvent, TextRequest, TokenDetail, TokenEvent, TopEvent
from promptgen.text.tokenizer import Tokenizer, load_tokenizer
from promptgen.training.bytepairs import learn_byte_pairs
from tests.unit.test_candidates import IDS, TOKENIZER, WORDS

NEW = [i for word, i in IDS.items() if word in WORDS]


def request(**fields: object) -> TextRequest:
    return TextRequest("高血压要", 1, 9, heal=False, distinct=False, rank="none", num_top=2, **fields)  # type: ignore[arg-type]


def followed(
    asked: TextRequest, events: list[Event], tokenizer: Tokenizer = TOKENIZER
) -> tuple[list[Piece], Candidate, CandidateSet]:
    candidates = CandidateSet(tokenizer, asked)
    shown = [delta for event in events for delta in candidates.take(event)]
    (finished,) = [delta for delta in shown if isinstance(delta, Finished)]
    return [delta for delta in shown if isinstance(delta, Piece)], finished.candidate, candidates


def text_of(tokens: tuple[TokenDetail, ...]) -> str:
    return "".join(detail.token.text for detail in tokens if not detail.is_end)


def test_tokens_with_alternatives_as_they_would_stand_there() -> None:
    events: list[Event] = [
        TopEvent(7, 0, ((IDS["hello"], -0.5), (IDS["。"], -1.5))),
        TokenEvent(7, 0, IDS["hello"], -0.5),
        TopEvent(7, 0, ((IDS["world"], -0.25), (IDS["##ing"], -2.0))),
        TokenEvent(7, 0, IDS["##ing"], -2.0),
        TopEvent(7, 0, ((IDS["[CLS]"], -0.125),)),
        FinishEvent(7, 0, "stop", -0.125, IDS["[CLS]"]),
    ]
    _, candidate, _ = followed(request(), events)
    assert candidate.completion == "helloing"
    assert [(d.token.text, d.token.logprob, d.offset, d.is_end) for d in candidate.tokens] == [
        ("hello", -0.5, 0, False),
        ("ing", -2.0, 5, False),
        ("[CLS]", -0.125, 8, True),
    ]
    tops = [[(token.text, token.logprob) for token in detail.top] for detail in candidate.tokens]
    assert tops == [[("hello", -0.5), ("。", -1.5)], [(" world", -0.25), ("ing", -2.0)], [("[CLS]", -0.125)]]
    assert candidate.logprob is None  # the sum is for those who ask for it


@given(st.lists(st.sampled_from(NEW), max_size=12), st.sampled_from([(), ("，要",), ("o w", "。。"), ("，",)]))
def test_joined_tokens_are_the_text_and_come_with_its_pieces(ids: list[int], stops: tuple[str, ...]) -> None:
    events: list[Event] = [TokenEvent(7, 0, token_id, -1.0) for token_id in ids]
    pieces, candidate, _ = followed(request(stop=stops), [*events, FinishEvent(7, 0, "stop", -0.5, IDS["[CLS]"])])
    whole = text_of(candidate.tokens)
    assert whole.startswith(candidate.completion)
    assert len(whole) < len(candidate.completion) + max(map(len, WORDS))  # no token after the one that a stop cut
    if not any(stop in TOKENIZER.decode(ids) for stop in stops):
        assert candidate.tokens[-1].is_end
    sent = tuple(token for piece in pieces for token in piece.tokens)
    assert sent == candidate.tokens[: len(sent)]
    shown = ""
    for piece in pieces:
        shown += piece.text
        assert all(d.offset + len(d.token.text) <= len(shown) for d in piece.tokens)
    for detail in candidate.tokens:
        assert whole[detail.offset :].startswith(detail.token.text) or detail.is_end


def test_bytes_of_a_character_in_parts(tmp_path: Path) -> None:
    learn_byte_pairs({"hello": 9, "world": 9}, 262, 2).save(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("高o")
    assert len(ids) == 4
    events: list[Event] = [TokenEvent(7, 0, token_id, -1.0) for token_id in ids]
    _, candidate, _ = followed(request(), [*events, FinishEvent(7, 0, "length")], tokenizer)
    assert [d.token.text for d in candidate.tokens] == [r"bytes:\xe9", r"bytes:\xab", "高", "o"]
    assert b"".join(d.token.raw for d in candidate.tokens).decode() == candidate.completion == "高o"
    assert [d.offset for d in candidate.tokens] == [0, 0, 0, 1]


def test_a_candidate_that_is_not_asked_says_nothing() -> None:
    asked = TextRequest("高血压要", 1, 9, heal=False, distinct=False, rank="none")
    pieces, candidate, _ = followed(asked, [TokenEvent(7, 0, IDS["要"], 0.0), FinishEvent(7, 0, "length")])
    assert candidate.tokens == ()
    assert [piece.tokens for piece in pieces] == [()]


def test_prompt_ids_are_read_as_they_are() -> None:
    asked = request(prompt_ids=(9, 3), end_ids=(3,), token_bias=((5, 1.5),), forced_ids=(4,) * 9)
    candidates = CandidateSet(TOKENIZER, asked)
    (part,) = candidates.requests
    assert (part.prompt_ids, part.end_ids, part.bias, part.forced_ids) == ((9, 3), (3,), ((5, 1.5),), (4,) * 9)
    assert (part.num_top, part.want_logprobs, candidates.num_prompt_tokens) == (2, True, 2)


@pytest.mark.parametrize("prompt", ["hello", "高血压"])
def test_a_space_follows_the_text_that_the_ids_end_with(prompt: str) -> None:
    asked = request(prompt_ids=tuple(TOKENIZER.encode(prompt)))
    asked = TextRequest(prompt, 1, 9, heal=False, distinct=False, rank="none", prompt_ids=asked.prompt_ids)
    _, candidate, _ = followed(asked, [TokenEvent(7, 0, IDS["world"], 0.0), FinishEvent(7, 0, "length")])
    assert candidate.completion == (" world" if prompt == "hello" else "world")
