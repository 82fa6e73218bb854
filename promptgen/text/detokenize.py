"""Tokens become text again: `join_text`, and `TextJoiner`, its twin for streams.

Both are one rule book. `TextJoiner.push` returns the piece of text that a token adds; a space or line break is held back until
the next visible piece, so the joined pieces of a stream are exactly `join_text` of all its tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from functools import lru_cache

from promptgen.text.words import is_spaced

_BREAKS = {"[MASK]": " ", "[UNK]": " ", "[SEP]": "\n", "[CLS]": "\n\n"}
_SPACE_AFTER = frozenset(",;!?.:")


class _Class(Enum):
    """What a piece of text ends or begins with, as far as spaces are concerned."""

    DENSE = 0  # Chinese, punctuation, the start of the text: no space on its account
    LETTERS = 1
    DIGITS = 2
    COMMA = 3  # a mark that wants a space before a word of letters


@lru_cache(maxsize=65536)
def _classify(token: str) -> _Class:
    if token in _SPACE_AFTER:
        return _Class.COMMA
    if token and all(map(is_spaced, token)):
        return _Class.DIGITS if token.isdigit() else _Class.LETTERS
    return _Class.DENSE


class TextJoiner:
    """Joins a stream of tokens.

    A space goes between two neighbouring words of letters or digits, and after `, ; ! ? . :` when a word of letters follows.
    `##` pieces are glued to what stands before them. [MASK] and [UNK] become a space, [CLS] two line breaks, [SEP] one,
    [PAD] nothing. Spaces at the ends of a line and breaks at the ends of the text are never given out.

    `after` are the tokens of a text that stands before the stream already; `ends_with_space` says that this text's last
    character is white space, so that none is added. `glue_digits` joins neighbouring single digits, for
    vocabularies without `##` digits.
    """

    def __init__(self, *, after: Iterable[str] = (), ends_with_space: bool = False, glue_digits: bool = False) -> None:
        self._glue_digits = glue_digits
        self._last = _Class.DENSE
        self._last_is_one_digit = False
        self._pending = ""  # white space to give out before the next visible piece
        self._blank = True  # nothing visible yet: leading white space is dropped
        for token in after:
            self.push(token)
        if ends_with_space:
            self._pending, self._blank, self._last = "", True, _Class.DENSE

    def fork(self) -> TextJoiner:
        """Another one in the same state."""
        other = TextJoiner.__new__(TextJoiner)
        other.__dict__.update(self.__dict__)
        return other

    def push(self, token: str) -> str:
        """Returns the text that `token` adds, "" while it only adds white space that may still vanish."""
        if token == "[PAD]":
            return ""
        if (gap := _BREAKS.get(token)) is not None:
            # Line breaks add up and swallow spaces, spaces become one.
            self._pending = (self._pending or " ") if gap == " " else self._pending.strip(" ") + gap
            self._last, self._last_is_one_digit = _Class.DENSE, False
            return ""
        is_glued = token.startswith("##") and len(token) > 2
        text = token[2:] if is_glued else token
        this = _classify(text)
        if not is_glued and this is not _Class.DENSE and self._wants_space(this, text):
            self._pending = self._pending or " "
        piece = text if self._blank else self._pending + text
        self._pending, self._blank, self._last = "", False, this
        self._last_is_one_digit = this is _Class.DIGITS and len(token) == 1
        return piece

    def _wants_space(self, this: _Class, text: str) -> bool:
        if this is _Class.LETTERS:
            return self._last is not _Class.DENSE
        if this is _Class.DIGITS:
            if self._glue_digits and len(text) == 1 and self._last_is_one_digit:
                return False
            return self._last in (_Class.LETTERS, _Class.DIGITS)
        return False


def join_text(tokens: Iterable[str], *, glue_digits: bool = False) -> str:
    """Turns tokens back into text. Linear in their number; does not change its argument.

    >>> join_text(["2", "##0", "##2", "##6", "年"]), join_text(["hello", ",", "world", "!"])
    ('2026年', 'hello, world!')
    """
    joiner = TextJoiner(glue_digits=glue_digits)
    return "".join(map(joiner.push, tokens))
