"""Where text becomes ids and ids become text: the candidates of one request, fed with the engine's events.

One path for whole answers and streams: `CandidateSet.take` turns an event into the piece of text that may be shown now, and the
joined pieces of a candidate are exactly its completion. A candidate that turns out equal to another, or holds a bad word, is withdrawn; of two
that are equal the one with the lower sample stays. When all are done, those that are wanting are drawn anew, as the model's own
continuations other than those that were found (generation/redraw.py), under further sample numbers. So a seed gives the same
candidates in whatever order they end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from promptgen.errors import ChoiceTooLong, ContextLengthExceeded, InvalidRequest
from promptgen.generation.healing import Healed, Healer
from promptgen.generation.redraw import MAX_NODES, Path, other_ways
from promptgen.generation.request import (
    Answer,
    Branch,
    Candidate,
    Event,
    FinishEvent,
    FinishReason,
    GenerationRequest,
    TextRequest,
    TokenDetail,
    TokenEvent,
    TopEvent,
    Until,
)
from promptgen.generation.token_log import TokenLog
from promptgen.text.tokenizer import Detokenizer, Tokenizer
from promptgen.text.words import clean

MAX_ROUNDS = 4  # a candidate is drawn at most so often
_SENTENCE_END = re.compile(r"(?:[。！？!?…]|\.(?=\s|$))[。！？!?….]*[\"'”’」』）)]*")


@dataclass(slots=True)
class Piece:
    """Text to append to candidate `sample`; `tokens` are those that end in it, for a candidate that says what they are."""

    sample: int
    text: str
    tokens: tuple[TokenDetail, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """Candidate `sample` is complete."""

    sample: int
    candidate: Candidate


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Candidate `sample` is not to be shown: its text is dropped. Another may come in its place."""

    sample: int


Shown = Piece | Finished | Withdrawn
Orders = tuple[Sequence[GenerationRequest], Sequence[int]]
NO_ORDERS: Orders = ((), ())


class CandidateText:
    """The text of one candidate as it grows, cut before the first stop string and after the first sentence or line if that is wanted.

    Text that may be the beginning of a stop string, or after which a sentence may be over, is held back until that is decided. The first
    characters, `typed` by the caller already, are left out.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        stops: tuple[str, ...],
        *,
        typed: str = "",
        until: Until = "document",
        log: TokenLog | None = None,
    ) -> None:
        self._detokenizer = detokenizer
        self._stops = (*stops, "\n") if until == "line" else stops
        self._ends_with_sentence = until == "sentence"
        self._typed = typed
        self._held = ""
        self._log = log
        self._shown: list[str] = []
        self.num_tokens = 0
        self.logprob = 0.0
        self.path = Path()
        self.is_stopped = False
        self.reason: FinishReason = "length"
        self.candidate: Candidate | None = None

    def push(self, token_id: int, logprob: float) -> str:
        self.logprob += logprob
        is_head, before = bool(self._typed), None if self._log is None else self._detokenizer.fork()
        piece = self._detokenizer.push(token_id)
        if self._log is not None and before is not None:
            self._log.push(token_id, logprob, piece, before)
        if is_head:
            piece = self._leave_out(piece)
        is_new = bool(piece) or not is_head  # a token that only spells what was typed is none of the new ones
        self.num_tokens += is_new
        path = self.path
        path.token_ids.append(token_id)
        path.logprobs.append(logprob)
        path.num_head += is_head
        path.num_new += is_new
        if self._stops or self._ends_with_sentence:
            return self._show(piece)
        self._shown.append(piece)
        return piece

    def note_top(self, top: tuple[tuple[int, float], ...]) -> None:
        if self._log is not None:
            self._log.note_top(top)

    def take_tokens(self) -> tuple[TokenDetail, ...]:
        """The tokens whose text has been shown since the last time, for a candidate that says what they are."""
        return () if self._log is None else self._log.take(sum(map(len, self._shown)))

    def finish(self, reason: FinishReason, end_logprob: float | None = None, end_id: int | None = None) -> str:
        """Returns the last piece. `end_logprob` and `end_id` if a token ended it there."""
        if self._log is not None and end_id is not None:
            self._log.end(end_id, end_logprob or 0.0, self._detokenizer)
        piece = "" if self.is_stopped else self._show(self._detokenizer.finish())
        if not self.is_stopped:
            # No more will come, so no longer match has to be waited for.
            stop, over = self._find_stop(), self._find_sentence(is_all=True)
            cut = min((at for at in (stop, over) if at is not None), default=None)
            reason = reason if cut is None else "stop"
            piece += self._release(len(self._held) if cut is None else cut)
        if end_logprob is not None:  # 0.0 where nothing else could come
            self.path.end_logprob, self.path.end_id = end_logprob, end_id
        self.reason = reason
        return piece

    def told(self, index: int, *, with_logprob: bool, with_score: bool, completion: str | None = None) -> Candidate:
        """The candidate, once it is finished; its text is `completion` if that is given."""
        path, said = self.path, "".join(self._shown)
        num_scored = len(path.token_ids) - max(0, path.num_head - 1) + (path.end_logprob is not None)
        return Candidate(
            said if completion is None else completion,
            self.num_tokens,
            self.logprob if with_logprob else None,
            self.reason,
            (self.logprob + (path.end_logprob or 0.0)) / max(1, num_scored) if with_score else None,
            index,
            () if self._log is None else self._log.all(len(said)),
        )

    def _leave_out(self, piece: str) -> str:
        """The piece without what was typed already."""
        if not piece.startswith(self._typed[0]):
            piece = piece.lstrip(" ")  # a space between two words that the prompt has as well
        length = min(len(piece), len(self._typed))
        self._typed = self._typed[length:]
        return piece[length:]

    def _show(self, piece: str) -> str:
        """Takes a piece in and returns what may be shown: up to the first match, or to where one may be beginning."""
        self._held += piece
        beginning = self._find_beginning()
        cuts = [at for at in (self._find_stop(), self._find_sentence()) if at is not None and at <= beginning]
        if cuts:
            self.is_stopped = True
            return self._release(min(cuts))
        return self._release(beginning)

    def _find_stop(self) -> int | None:
        return min((at for stop in self._stops if (at := self._held.find(stop)) >= 0), default=None)

    def _find_sentence(self, *, is_all: bool = False) -> int | None:
        """Where the first sentence is over; None while quotes that belong to it may follow, unless this `is_all`."""
        if not self._ends_with_sentence:
            return None
        match = _SENTENCE_END.search(self._held)
        return match.end() if match and (is_all or match.end() < len(self._held)) else None

    def _find_beginning(self) -> int:
        """Where the held text ends in the beginning of a stop string or the end of a sentence; its length if in none."""
        longest = max(
            (
                n
                for stop in self._stops
                for n in range(1, min(len(stop), len(self._held) + 1))
                if self._held.endswith(stop[:n])
            ),
            default=0,
        )
        beginning = len(self._held) - longest
        if self._ends_with_sentence and (match := _SENTENCE_END.search(self._held)) and match.end() == len(self._held):
            beginning = min(beginning, match.start())
        return beginning

    def _release(self, length: int) -> str:
        piece, self._held = self._held[:length], self._held[length:]
        self._shown.append(piece)
        return piece


class CandidateSet:
    """All candidates of one request.

    `requests` are what the engine is asked first. After each `take`, `take_orders` says what to ask it next, and which samples need not go on.
    """

    def __init__(
        self, tokenizer: Tokenizer, text: TextRequest, healer: Healer | None = None, *, window: int | None = None
    ) -> None:
        """Raises InvalidRequest for a word of `logit_bias` that the vocabulary does not have, and for wishes that do not go together;
        ContextLengthExceeded for choices after a context that is far too long."""
        self._tokenizer, self._text = tokenizer, text
        self._healer = healer or Healer(tokenizer)
        whole = text.prompt_ids or (tokenizer.begin_id, *tokenizer.encode(text.prompt))
        self.num_prompt_tokens = len(whole)
        if text.choices and window is not None and len(whole) > 2 * window:  # before each choice is encoded with it
            raise ContextLengthExceeded(len(whole), 1, window)
        if text.distinct and text.sampling.counts_drawn:
            raise InvalidRequest(
                "distinct candidates are drawn without presence and frequency penalties; leave one out"
            )
        self._num_unknown = whole.count(tokenizer.unknown_id)
        self._with_logprobs = (
            text.want_logprobs
            or text.distinct
            or text.rank == "likelihood"
            or bool(text.choices)
            or text.num_top is not None
        )
        self._num = len(text.choices) or text.num_samples
        healed = self._healed(whole, window)
        self._start = tokenizer.detokenizer(healed.text if healed else text.prompt)
        self._typed = healed.rest if healed else ""
        self._basic = GenerationRequest(
            healed.prompt_ids if healed else whole,
            text.num_samples,
            text.max_new_tokens,
            text.sampling,
            self._with_logprobs,
            text.ignore_end,
            text.salt,
            min_new_tokens=text.min_new_tokens,
            bias=_bias(tokenizer, text),
            branches=healed.branches if healed else (),
            distinct_first=text.distinct_first,
            remember=bool(text.session)
            and not text.min_new_tokens
            and text.num_top is None
            and not text.sampling.counts_drawn,
            forced_ids=text.forced_ids,
            end_ids=text.end_ids,
            num_top=text.num_top or 0,
        )
        self.requests = self._scored(whole, window) if text.choices else [self._basic]
        self._bad_words = tuple(said for word in text.bad_words if (said := clean(word).strip()))
        self._texts = [self._new_text() for _ in range(self._num)]
        self._index_of = {sample: sample for sample in range(self._num)}  # of samples that are being drawn or kept
        self._sample_of = list(range(self._num))
        self._kept: dict[str, int] = {}  # candidates by what they say
        self._paths: list[Path] = []  # of all that ended, kept or not
        self._withdrawn: set[int] = set()
        self._num_open = self._num
        self._num_samples = self._num  # numbers given so far
        self._rounds = 1
        self._orders: list[GenerationRequest] = []
        self._needless: list[int] = []

    @property
    def is_complete(self) -> bool:
        return self._num_open == 0

    @property
    def num_open(self) -> int:
        """Candidates that are still being drawn."""
        return self._num_open

    def take(self, event: Event) -> list[Shown]:
        """What an event of this request adds. Events of a sample that is over already are ignored."""
        if not isinstance(event, (TokenEvent, FinishEvent, TopEvent)):
            return []
        index = self._index_of.get(event.sample, -1)
        if index < 0 or (text := self._texts[index]).candidate is not None:
            return []
        if isinstance(event, TokenEvent):
            piece = text.push(event.token_id, event.logprob)
            is_shown = piece and not self._text.choices  # a choice is shown as it was sent, when it has been scored
            shown: list[Shown] = [self._piece(index, piece)] if is_shown else []
            return shown + self._finish(index, "stop") if text.is_stopped else shown
        if isinstance(event, TopEvent):
            text.note_top(event.top)
            return []
        return self._finish(index, event.reason, event.logprob if event.reason == "stop" else None, event.token_id)

    def take_orders(self) -> Orders:
        """What to ask the engine further, and the samples that it may drop; each is told once."""
        if not self._orders and not self._needless:
            return NO_ORDERS
        orders = self._orders, self._needless
        self._orders, self._needless = [], []
        return orders

    def answer(self) -> Answer:
        """The candidates in the order that was asked for. Timing is left to who has the clock."""
        assert self.is_complete
        found = [text.candidate for text in self._texts if text.candidate is not None]
        if self._text.rank == "likelihood":
            found.sort(key=lambda candidate: -(candidate.score or 0.0))
        return Answer(
            tuple(found),
            self.num_prompt_tokens,
            num_redrawn=self._num_samples - self._num,
            num_missing=self._num - len(found),
            num_unknown_tokens=self._num_unknown,
        )

    def _healed(self, whole: tuple[int, ...], window: int | None) -> Healed | None:
        """How the prompt goes on; None for what needs no word about it."""
        text, healer = self._text, self._healer
        if text.choices or text.prompt_ids:
            return None
        healed = healer.heal(text.prompt, whole) if text.heal else None
        if healed is None:
            return healer.whole(text.prompt, whole) if text.distinct_first or text.session else None
        room = (window or len(whole) + text.max_new_tokens + 1) - text.max_new_tokens - len(healed.prompt_ids)
        fitting = tuple(branch for branch in healed.branches if len(branch.path_ids) + bool(healed.rest) <= room)
        if text.distinct_first and fitting and len(fitting[0].cover_ids):
            fitting = fitting[:1]  # where no two tokens are the same word
        return replace(healed, branches=fitting) if any(len(b.cover_ids) for b in fitting) else None

    def _scored(self, whole: tuple[int, ...], window: int | None) -> list[GenerationRequest]:
        """One request for each choice: its tokens are given, and the engine says how likely they are."""
        encode, requests = self._tokenizer.encode, []
        for index, choice in enumerate(self._text.choices):
            if not self._text.prompt_ids:
                ids = (whole[0], *encode(self._text.prompt + choice))
            else:
                ids = (*whole, *encode(choice))
            common = next((n for n, pair in enumerate(zip(whole, ids, strict=False)) if pair[0] != pair[1]), len(whole))
            forced = ids[min(common, len(ids)) :]
            if not forced:
                raise InvalidRequest(f"choice {index} adds nothing to the context", param="choices")
            if window is not None and len(ids) > window:
                raise ChoiceTooLong(index, len(ids), window)
            requests.append(
                GenerationRequest(
                    ids[: len(ids) - len(forced)],
                    1,
                    len(forced),
                    want_logprobs=True,
                    salt=self._text.salt,
                    first_sample=index,
                    forced_ids=forced,
                )
            )
        return requests

    def _new_text(self) -> CandidateText:
        log = None if self._text.num_top is None else TokenLog(self._tokenizer)
        if self._text.choices:
            return CandidateText(self._start.fork(), (), log=log)  # whole, whatever is in them
        return CandidateText(self._start.fork(), self._text.stop, typed=self._typed, until=self._text.until, log=log)

    def _finish(
        self, index: int, reason: FinishReason, end_logprob: float | None = None, end_id: int | None = None
    ) -> list[Shown]:
        text = self._texts[index]
        if text.is_stopped:
            self._needless.append(self._sample_of[index])
        piece = text.finish(reason, end_logprob, end_id)
        self._num_open -= 1
        self._paths.append(text.path)
        choice = self._text.choices[index] if self._text.choices else None
        piece = piece if choice is None else choice
        text.candidate = text.told(
            index,
            with_logprob=self._text.want_logprobs or choice is not None,
            with_score=self._with_logprobs,
            completion=choice,
        )
        shown: list[Shown] = [self._piece(index, piece)] if piece else []
        shown.append(Finished(index, text.candidate))
        loser = None if self._text.choices else self._loser(index, text.candidate)
        if loser == index:
            shown = []  # nobody need see how it ends
        if loser is not None:
            del self._index_of[self._sample_of[loser]]
            self._texts[loser] = self._new_text()
            self._withdrawn.add(loser)
            shown.append(Withdrawn(loser))
        if self._withdrawn and not self._num_open and self._rounds < MAX_ROUNDS:
            self._redraw()
        return shown

    def _loser(self, index: int, candidate: Candidate) -> int | None:
        """Which candidate has to go now that this one is done: itself, its equal, or none."""
        said = clean(candidate.completion).strip()
        if any(word in said for word in self._bad_words):
            return index
        if not self._text.distinct:
            return None
        other = self._kept.setdefault(said, index)
        if other == index:
            return None
        if self._sample_of[other] < self._sample_of[index]:
            return index
        self._kept[said] = index
        return other

    def _piece(self, index: int, piece: str) -> Piece:
        return (
            Piece(index, piece) if self._text.num_top is None else Piece(index, piece, self._texts[index].take_tokens())
        )

    def _redraw(self) -> None:
        """Asks for others in the place of all that were withdrawn."""
        first, indices = self._num_samples, sorted(self._withdrawn)
        for sample, index in enumerate(indices, first):
            self._index_of[sample], self._sample_of[index] = index, sample
        self._withdrawn.clear()
        self._num_samples += len(indices)
        self._num_open = len(indices)
        self._rounds += 1
        again = replace(self._basic, num_samples=len(indices), first_sample=first)
        if self._text.distinct or self._text.distinct_first:
            ways = self._basic.branches or (Branch((), self._healer.every_id),)
            most = 0 if self._text.distinct_first else MAX_NODES
            others = other_ways(ways, self._paths, self._healer.every_id, self._tokenizer.end_id, most)
            again = replace(again, branches=others, different=True)
        self._orders.append(again)


def _bias(tokenizer: Tokenizer, text: TextRequest) -> tuple[tuple[int, float], ...]:
    """Biases by token: those asked for, and never a token that is a bad word by itself."""
    biases: dict[int, float] = dict(text.token_bias)
    for word, bias in text.logit_bias:
        ids = tokenizer.encode(word)
        if len(ids) != 1 or ids[0] == tokenizer.unknown_id:
            raise InvalidRequest(
                "logit_bias: every key must be one word of the vocabulary; POST /tokenize shows how a text is split",
                param="logit_bias",
            )
        biases[ids[0]] = bias
    for word in text.bad_words:
        ids = tokenizer.encode(word)
        if len(ids) == 1 and ids[0] != tokenizer.unknown_id:
            biases[ids[0]] = float("-inf")
    return tuple(biases.items())
