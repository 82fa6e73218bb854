"""Builds a word vocabulary from a corpus: `promptgen vocab CORPUS... --out DIR`.

Candidates for Chinese words come from a segmenter (rjieba), pieces of Latin words from merges (training/pieces.py); both are needed here
only. Then the corpus is split with the candidates by the very code that trains and answers, and the words
it really uses are kept, in order of frequency.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from promptgen.errors import FileFault, UsageError
from promptgen.text.tokenizer import BertWordTokenizer
from promptgen.text.vocabulary import VOCABULARY_FILE, Vocabulary
from promptgen.text.words import SPECIAL_TOKENS, Kind, clean, runs
from promptgen.training.corpus import find_files, read_documents
from promptgen.training.pieces import learn_pieces

LATIN_SHARE = 0.22  # of the vocabulary, at most, for pieces of Latin words
_CANDIDATE_FACTOR = 3  # Chinese candidate words tried for each place
_MIN_WORD_COUNT = 3
_MAX_WORD_LENGTH = 6
_MARKS = "，。！？；：、“”‘’（）《》【】…—·～" + string.punctuation + "°℃×÷±→￥%‰"


def gb2312_level_1() -> list[str]:
    """The 3 755 commonest simplified characters: rows 16 to 55 of GB 2312-80."""
    cells = (bytes((0xA0 + row, 0xA0 + cell)) for row in range(16, 56) for cell in range(1, 95))
    return [cell.decode("gb2312") for cell in cells if not (cell[0] == 0xD7 and cell[1] > 0xF9)]


def build_vocabulary(texts: Iterable[str], size: int) -> Vocabulary:
    """A vocabulary of `size` tokens at most (fewer if the texts hold fewer words seen three times).

    It holds the special tokens, digits and letters (also as ## pieces), punctuation, GB 2312 level 1 and every character of
    the texts, whatever their number; the rest are words. Raises UsageError if `size` cannot hold the characters.
    """
    dense, spaced, marks = _count_runs(texts)
    basics = dict.fromkeys(
        [*_MARKS, *_letters_and_digits(spaced), *gb2312_level_1(), *marks, *sorted({c for run in dense for c in run})]
    )
    room = size - len(SPECIAL_TOKENS) - len(basics)
    if room < 0:
        raise UsageError(
            f"--size {size} cannot hold the {len(basics)} characters that the corpus and GB 2312 level 1 need"
        )
    latin = [t for t in _latin_pieces(spaced, int(size * LATIN_SHARE)) if t not in basics][:room]
    chinese = _chinese_words(dense, (room - len(latin)) * _CANDIDATE_FACTOR)
    used = _usage(dense, chinese, basics)
    kept = [w for w in sorted(chinese, key=lambda w: (-used[w], w)) if used[w] >= _MIN_WORD_COUNT][: room - len(latin)]
    counts = _usage(dense, kept, basics) + Counter(marks) + _latin_usage(spaced, latin, basics)
    order = sorted({*basics, *latin, *kept}, key=lambda t: (-counts[t], t))
    return Vocabulary.of([*SPECIAL_TOKENS, *order])


def _count_runs(texts: Iterable[str]) -> tuple[Counter[str], Counter[str], Counter[str]]:
    dense, spaced, marks = Counter[str](), Counter[str](), Counter[str]()
    into = {Kind.DENSE: dense, Kind.SPACED: spaced, Kind.MARK: marks}
    for text in texts:
        for kind, run in runs(clean(text)):
            if kind in into:
                into[kind][run] += 1
    if not dense and not spaced:
        raise FileFault("corpus", "holds no text to count words in")
    return dense, spaced, marks


def _letters_and_digits(spaced: Iterable[str]) -> list[str]:
    letters = sorted({c for run in spaced for c in run if c.isalnum()} | set(string.ascii_lowercase + string.digits))
    return letters + ["##" + c for c in letters] + ["##.", "##:"]


def _latin_pieces(spaced: Counter[str], size: int) -> list[str]:
    """Pieces of the words' letters; digits and inner marks stand alone."""
    words: Counter[str] = Counter()
    for run, count in spaced.items():
        for word in re.findall(r"[^\W\d_]+", run):
            words[word] += count
    return learn_pieces(words, size, _MIN_WORD_COUNT)


def _chinese_words(dense: Counter[str], num_candidates: int) -> list[str]:
    """The likeliest words of two to six characters, in order of frequency by the segmenter."""
    try:
        import rjieba
    except ImportError as fault:
        raise UsageError("building a word vocabulary needs rjieba: pip install 'promptgen[train]'") from fault
    counts: Counter[str] = Counter()
    for run, count in dense.items():
        for word in rjieba.cut(run):
            if 2 <= len(word) <= _MAX_WORD_LENGTH:
                counts[word] += count
    return [w for w, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if n >= _MIN_WORD_COUNT][
        :num_candidates
    ]


def _usage(dense: Counter[str], words: list[str], basics: Iterable[str]) -> Counter[str]:
    """How often the split that the tokenizer makes uses each word and character."""
    tokenizer = BertWordTokenizer(Vocabulary.of(dict.fromkeys([*SPECIAL_TOKENS, *words, *basics])))
    counts: Counter[str] = Counter()
    for run, count in dense.items():
        for token in tokenizer.tokenize(run):
            counts[token] += count
    return counts


def _latin_usage(spaced: Counter[str], latin: list[str], basics: Iterable[str]) -> Counter[str]:
    tokenizer = BertWordTokenizer(Vocabulary.of([*SPECIAL_TOKENS, *latin, *basics]))
    counts: Counter[str] = Counter()
    for run, count in spaced.items():
        for token in tokenizer.tokenize(run):
            counts[token] += count
    return counts


def write_vocabulary(sources: Iterable[str | Path], out: Path, size: int) -> Vocabulary:
    """Builds the vocabulary of a corpus, writes out/vocab.txt, and returns it."""
    vocabulary = build_vocabulary(_texts(sources), size)
    out.mkdir(parents=True, exist_ok=True)
    vocabulary.save(out / VOCABULARY_FILE)
    return vocabulary


def _texts(sources: Iterable[str | Path]) -> Iterator[str]:
    for document in read_documents(find_files(sources)):
        yield from document.turns
