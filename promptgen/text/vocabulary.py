"""A vocabulary: vocab.txt, one token a line, the id is the line number counted from 0.

Lines stand in order of falling frequency, the special tokens first. That order is all the tokenizer knows of frequencies (Zipf's
law turns a rank into a probability), so a classic vocabulary file needs nothing beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from promptgen.errors import FileFault
from promptgen.text.words import SPECIAL_TOKENS

VOCABULARY_FILE = "vocab.txt"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens and their ids. `tokens[id]` and `ids[token]` are inverse; special tokens are looked up by name."""

    tokens: tuple[str, ...]
    ids: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def of(cls, tokens: Iterable[str], source: object = "vocabulary") -> Vocabulary:
        """Raises FileFault with the line number for a blank or duplicate token, and for a missing special token."""
        listed = tuple(tokens)
        ids: dict[str, int] = {}
        for number, token in enumerate(listed):
            if not token or token.isspace():
                raise FileFault(source, f"line {number + 1} is blank; one token a line")
            if token in ids:
                raise FileFault(source, f"line {number + 1} repeats {token!r} of line {ids[token] + 1}")
            ids[token] = number
        if missing := [token for token in SPECIAL_TOKENS if token not in ids]:
            raise FileFault(source, f"lacks the special tokens {' '.join(missing)}")
        return cls(listed, ids)

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as fault:
            raise FileFault(path, f"is not UTF-8 (byte {fault.start})") from fault
        except OSError as fault:
            raise FileFault(path, f"cannot be read: {fault.strerror}") from fault
        return cls.of(text.replace("\r\n", "\n").removesuffix("\n").split("\n"), path)

    def save(self, path: Path) -> None:
        path.write_text("".join(token + "\n" for token in self.tokens), encoding="utf-8", newline="\n")
