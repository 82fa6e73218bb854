"""What the tokens of a candidate are as text, and how likely: for callers who ask for log-probabilities.

A token's text is what it adds where it stands, a space before a word included, so the texts of all tokens are the candidate's. One that adds
nothing by itself goes by a name: a special token by its own, a part of a character by its bytes.
"""

from __future__ import annotations

from promptgen.generation.request import ScoredToken, TokenDetail
from promptgen.text.bytepair import BytePairTokenizer
from promptgen.text.tokenizer import Detokenizer, Tokenizer

Top = tuple[tuple[int, float], ...]


class TokenLog:
    """The tokens of one candidate as they come. `take` gives those whose text is shown."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[TokenDetail] = []
        self._num_taken = 0
        self._length = 0
        self._top: Top = ()

    def note_top(self, top: Top) -> None:
        """The likeliest tokens where the next one will stand."""
        self._top = top

    def push(self, token_id: int, logprob: float, piece: str, before: Detokenizer) -> None:
        """A token that added `piece`; `before` is the detokenizer as it was."""
        self._tokens.append(self._detail(token_id, logprob, piece, before, is_end=False))
        self._length += len(piece)

    def end(self, token_id: int, logprob: float, before: Detokenizer) -> None:
        """The token that ended the candidate."""
        self._tokens.append(self._detail(token_id, logprob, "", before, is_end=True))

    def take(self, shown: int) -> tuple[TokenDetail, ...]:
        """The next tokens that lie within the first `shown` characters."""
        begin = end = self._num_taken
        while end < len(self._tokens) and self._end_of(end) <= shown and not self._tokens[end].is_end:
            end += 1
        self._num_taken = end
        return tuple(self._tokens[begin:end])

    def all(self, shown: int) -> tuple[TokenDetail, ...]:
        """Every token of a candidate of which `shown` characters are shown: what a stop string cut off is left out."""
        return tuple(
            token for index, token in enumerate(self._tokens) if token.offset < shown or self._end_of(index) <= shown
        )

    def _end_of(self, index: int) -> int:
        return self._tokens[index + 1].offset if index + 1 < len(self._tokens) else self._length

    def _detail(self, token_id: int, logprob: float, piece: str, before: Detokenizer, *, is_end: bool) -> TokenDetail:
        top = tuple(self._scored(other, value, before.fork().push(other)) for other, value in self._top)
        self._top = ()
        return TokenDetail(self._scored(token_id, logprob, piece), top, self._length, is_end)

    def _scored(self, token_id: int, logprob: float, piece: str) -> ScoredToken:
        return scored_token(self._tokenizer, token_id, logprob, piece)


def scored_token(tokenizer: Tokenizer, token_id: int, logprob: float | None, piece: str) -> ScoredToken:
    """A token that adds `piece` to the text."""
    if isinstance(tokenizer, BytePairTokenizer):
        raw = tokenizer.bytes_of(token_id)
        name = "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw) if raw else tokenizer.convert([token_id])[0]
        return ScoredToken(token_id, piece or name, raw, logprob)
    text = piece or tokenizer.convert([token_id])[0]
    return ScoredToken(token_id, text, text.encode(), logprob)
