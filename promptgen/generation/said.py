"""No sentence twice: what an answer may still say, sentence by sentence, while it comes."""

from __future__ import annotations

import re
from collections.abc import Iterable

_ENDS = "。！？!?…\n"
_WORD = re.compile(r"\w")
_SENTENCE_END = re.compile(rf"(?<=[{_ENDS}])|(?<=\.)(?=\s)")


def sentences(text: str) -> list[str]:
    """The sentences of a text as they are compared: without the marks and spaces around them, in small letters."""
    return [plain for sentence in _SENTENCE_END.split(text) if (plain := _plain(sentence))]


def _plain(sentence: str) -> str:
    first, last = _WORD.search(sentence), _WORD.search(sentence[::-1])
    return sentence[first.start() : len(sentence) - last.start()].casefold() if first and last else ""


class Said:
    """Takes a text in pieces and leaves out every sentence that was said before, in it or in `earlier` texts.

    A sentence is held back as long as it goes like one that was said, and shown when it parts from all of them. A text of nothing but what
    `earlier` texts said is shown at its end after all: it is an answer, and there is no other.
    """

    def __init__(self, earlier: Iterable[str] = ()) -> None:
        self._said = {sentence for text in earlier for sentence in sentences(text)}
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
        if plain and plain in self._said and not self._num_shown:
            self._left_out.setdefault(plain, rest)
            rest = ""
        self._said.add(plain)
        self._sentence, self._num_shown = "", 0
        self.has_shown |= bool(rest.strip())
        return rest

    def _go_on(self) -> str:
        """What may be shown of a sentence that goes on: all of it, once it is the beginning of none that was said."""
        plain = _plain(self._sentence)
        if not plain or (not self._num_shown and any(said.startswith(plain) for said in self._said)):
            return ""
        piece = self._sentence[self._num_shown :]
        self._num_shown = len(self._sentence)
        self.has_shown = True
        return piece


def without_repetition(text: str, earlier: Iterable[str] = ()) -> tuple[str, bool]:
    """A whole text without what was said before, and whether anything was left out."""
    said = Said(earlier)
    return said.push(text) + said.finish(), said.has_left_out
