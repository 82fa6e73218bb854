"""No sentence twice: what an answer may still say, sentence by sentence, while it comes."""

from __future__ import annotations

import re
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

_ENDS = "。！？!?…\n"
_WORD = re.compile(r"\w")
_SENTENCE_END = re.compile(rf"(?<=[{_ENDS}])|(?<=\.)(?=\s)")


def sentences(text: str) -> list[str]:
    """The sentences of a text as they are compared: without the marks and spaces around them, in small letters."""
    return [plain for sentence in _SENTENCE_END.split(text) if (plain := _plain(sentence))]


def _plain(sentence: str) -> str:
    first, last = _WORD.search(sentence), _WORD.search(sentence[::-1])
    return sentence[first.start() : len(sentence) - last.start()].casefold() if first and last else ""


def said_in(texts: Iterable[str]) -> tuple[str, ...]:
    """The sentences of some texts as `Said` wants them: each once, sorted."""
    return tuple(sorted({sentence for text in texts for sentence in sentences(text)}))


class Said:
    """Takes a text in pieces and leaves out every sentence that was said before, in it or among `earlier` (see `said_in`).

    A sentence is held back as long as it goes like one that was said, and shown when it parts from all of them. A text of nothing but what
    `earlier` ones is shown at its end after all: it is an answer, and there is no other.
    """

    def __init__(self, earlier: Sequence[str] = ()) -> None:
        self._said = list(earlier)  # sorted, so that those with one beginning stand together
        self._sentence = ""  # the one that is being said, of which the first `_num_shown` characters are shown
        self._num_shown = 0
        self._left_out: dict[str, str] = {}  # as it stood, by what it says
        self.has_shown = False

    @property
    def has_left_out(self) -> bool:
        return bool(self._left_out)

    def push(self, piece: str) -> str:
        """What may be shown now."""
        shown: list[str] = []
        for character in piece:
            if self._sentence.endswith(".") and character.isspace():
                shown.append(self._close())
            self._sentence += character
            if character in _ENDS:
                shown.append(self._close())
        shown.append(self._go_on())
        return "".join(shown)

    def finish(self) -> str:
        shown = self._close()
        if not self.has_shown and self._left_out:
            self.has_shown = True
            return "".join(self._left_out.values())
        return shown

    def _close(self) -> str:
        """The sentence is over: the rest of it, or nothing if it was said before."""
        plain = _plain(self._sentence)
        rest = self._sentence[self._num_shown :]
        if plain and self._next(plain) == plain and not self._num_shown:
            self._left_out.setdefault(plain, rest)
            rest = ""
        if plain and self._next(plain) != plain:
            insort(self._said, plain)
        self._sentence, self._num_shown = "", 0
        self.has_shown |= bool(rest.strip())
        return rest

    def _go_on(self) -> str:
        """What may be shown of a sentence that goes on: all of it, once it is the beginning of none that was said."""
        plain = _plain(self._sentence)
        if not plain or (not self._num_shown and self._next(plain).startswith(plain)):
            return ""
        piece = self._sentence[self._num_shown :]
        self._num_shown = len(self._sentence)
        self.has_shown = True
        return piece

    def _next(self, plain: str) -> str:
        """The first of those said that is this one or comes after it."""
        at = bisect_left(self._said, plain)
        return self._said[at] if at < len(self._said) else ""


def without_repetition(text: str, earlier: Sequence[str] = ()) -> tuple[str, bool]:
    """A whole text without what it or `earlier` (see `said_in`) said before, and whether anything was left out."""
    said = Said(earlier)
    return said.push(text) + said.finish(), said.has_left_out
