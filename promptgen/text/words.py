"""Clean-up of raw text and its division into runs: the steps before any vocabulary is asked.

A *run* is a maximal stretch of text of one kind:

    SPACED   letters and digits of scripts that put spaces between words: hello, gpt2, 3.14, 2026
    DENSE    letters of scripts that do not: Chinese, kana, Thai ...
    MARK     one punctuation mark or symbol
    SPECIAL  one of [SEP] [CLS] [MASK] [PAD] [UNK], standing in the text as such

Spaces only separate. A period or colon with letters or digits on both sides (3.14, web.py, 12:30) belongs to its run.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from enum import Enum

SPECIAL_TOKENS = ("[SEP]", "[CLS]", "[MASK]", "[PAD]", "[UNK]")

_DENSE = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Myanmar, Khmer
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b"  # radicals, iteration mark, Suzhou numerals
    "\u3040-\u30ff\u31f0-\u31ff"  # kana
    "\u3100-\u312f\u31a0-\u31bf"  # bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Han
    "\uff66-\uff9d"  # half-width kana
    "\U00020000-\U0003ffff"  # Han, supplementary planes
)
_LETTER = rf"(?:(?![{_DENSE}])[^\W_])"
_RUN = re.compile(
    r"(?P<special>\[(?:SEP|CLS|MASK|PAD|UNK)\])"
    rf"|(?P<spaced>{_LETTER}+(?:[.:]{_LETTER}+)*)"
    rf"|(?P<dense>(?:(?=[{_DENSE}])\w)+)"
    r"|(?P<mark>\S)"
)
_SPECIAL = re.compile(r"(\[(?:SEP|CLS|MASK|PAD|UNK)\])")
# Printable ASCII, Han and the marks of Chinese text: nothing of it is dropped or taken apart.
_PLAIN = re.compile("[ -~\u2014\u2018-\u201d\u2026\u3001\u3002\u3008-\u3011\u4e00-\u9fff\uff01-\uff5e]*")


class Kind(Enum):
    SPACED = "spaced"
    DENSE = "dense"
    MARK = "mark"
    SPECIAL = "special"


def clean(text: str) -> str:
    """Drops NUL, U+FFFD, surrogates and control characters, makes all white space a space, lower-cases, drops combining marks.

    As BERT's basic tokenizer does; what decomposition leaves apart (Hangul) is composed again. Special tokens keep
    their capitals.
    """
    if "[" not in text:
        return _clean_part(text)
    return "".join(part if part in SPECIAL_TOKENS else _clean_part(part) for part in _SPECIAL.split(text))


def _clean_part(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text.lower()
    kept = "".join(
        " " if c.isspace() else c
        for c in text
        if c.isspace() or (c != "\ufffd" and unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    )
    apart = unicodedata.normalize("NFD", kept.lower())
    return unicodedata.normalize("NFC", "".join(c for c in apart if unicodedata.category(c) != "Mn"))


def runs(cleaned: str) -> Iterator[tuple[Kind, str]]:
    """Divides text that `clean` returned into its runs, in order. Spaces are left out."""
    for match in _RUN.finditer(cleaned):
        assert match.lastgroup is not None
        yield Kind(match.lastgroup), match[0]


def is_spaced(char: str) -> bool:
    """Whether a character is a letter or digit of a script that puts spaces between words."""
    return re.fullmatch(_LETTER, char) is not None
