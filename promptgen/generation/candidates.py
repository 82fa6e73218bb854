"""Where ids become text: the candidates of one request, fed with the engine's events.

One path for whole answers and streams: `CandidateSet.take` turns an event into the piece of text that may be shown now, and the
joined pieces of a candidate are exactly its completion.
"""

from __future__ import annotations

from dataclasses import dataclass

from promptgen.generation.request import (
    Candidate,
    Event,
    FinishEvent,
    FinishReason,
    GenerationRequest,
    TextRequest,
    TokenEvent,
)
from promptgen.text.tokenizer import Detokenizer, Tokenizer


@dataclass(slots=True)
class Piece:
    """Text to append to candidate `sample`."""

    sample: int
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """Candidate `sample` is complete."""

    sample: int
    candidate: Candidate


class CandidateText:
    """The text of one candidate as it grows, cut before the first stop string.

    Text that may be the beginning of a stop string is held back until that is decided.
    """

    def __init__(self, detokenizer: Detokenizer, stops: tuple[str, ...]) -> None:
        self._detokenizer = detokenizer
        self._stops = stops
        self._held = ""
        self._shown: list[str] = []
        self.num_tokens = 0
        self.logprob = 0.0
        self.is_stopped = False
        self.candidate: Candidate | None = None

    def push(self, token_id: int, logprob: float) -> str:
        self.num_tokens += 1
        self.logprob += logprob
        piece = self._detokenizer.push(token_id)
        if self._stops:
            return self._show(piece)
        self._shown.append(piece)
        return piece

    def finish(self, reason: FinishReason, *, with_logprob: bool) -> str:
        piece = "" if self.is_stopped else self._show(self._detokenizer.finish())
        if not self.is_stopped:
            # No more will come, so no longer match has to be waited for.
            cut = self._find_stop()
            reason = reason if cut is None else "stop"
            piece += self._release(len(self._held) if cut is None else cut)
        self.candidate = Candidate(
            "".join(self._shown), self.num_tokens, self.logprob if with_logprob else None, reason
        )
        return piece

    def _show(self, piece: str) -> str:
        """Takes a piece in and returns what may be shown: up to the first match, or to where one may be beginning."""
        self._held += piece
        cut, beginning = self._find_stop(), self._find_beginning()
        if cut is not None and cut <= beginning:
            self.is_stopped = True
            return self._release(cut)
        return self._release(beginning)

    def _find_stop(self) -> int | None:
        return min((at for stop in self._stops if (at := self._held.find(stop)) >= 0), default=None)

    def _find_beginning(self) -> int:
        """Where the held text ends in the beginning of a stop string; its length if it does not."""
        longest = max(
            (
                n
                for stop in self._stops
                for n in range(1, min(len(stop), len(self._held) + 1))
                if self._held.endswith(stop[:n])
            ),
            default=0,
        )
        return len(self._held) - longest

    def _release(self, length: int) -> str:
        piece, self._held = self._held[:length], self._held[length:]
        self._shown.append(piece)
        return piece


class CandidateSet:
    """All candidates of one request. `request` is what the engine is asked."""

    def __init__(self, tokenizer: Tokenizer, text: TextRequest) -> None:
        prompt_ids = (tokenizer.begin_id, *tokenizer.encode(text.prompt))
        self.request = GenerationRequest(
            prompt_ids,
            text.num_samples,
            text.max_new_tokens,
            text.sampling,
            text.want_logprobs,
            text.ignore_end,
            text.salt,
        )
        start = tokenizer.detokenizer(text.prompt)
        self._texts = [CandidateText(start.fork(), text.stop) for _ in range(text.num_samples)]
        self._num_open = text.num_samples

    @property
    def is_complete(self) -> bool:
        return self._num_open == 0

    def take(self, event: Event) -> list[Piece | Finished]:
        """What an event of this request adds. Events of a candidate that met a stop string already are ignored."""
        if isinstance(event, TokenEvent):
            text = self._texts[event.sample]
            if text.candidate is not None:
                return []
            piece = text.push(event.token_id, event.logprob)
            shown: list[Piece | Finished] = [Piece(event.sample, piece)] if piece else []
            return shown + self._finish(event.sample, "stop") if text.is_stopped else shown
        if isinstance(event, FinishEvent) and self._texts[event.sample].candidate is None:
            return self._finish(event.sample, event.reason)
        return []

    def candidates(self) -> tuple[Candidate, ...]:
        assert self.is_complete
        return tuple(text.candidate for text in self._texts if text.candidate is not None)

    def _finish(self, sample: int, reason: FinishReason) -> list[Piece | Finished]:
        text = self._texts[sample]
        piece = text.finish(reason, with_logprob=self.request.want_logprobs)
        assert text.candidate is not None
        self._num_open -= 1
        finished = Finished(sample, text.candidate)
        return [Piece(sample, piece), finished] if piece else [finished]
