"""Builds a vocabulary from a corpus: `promptgen vocab CORPUS... --out DIR [--kind word|char|bpe] [--size N]`.

    word   characters, Chinese words and pieces of Latin ones: vocab.txt
    char   characters alone, as in bert-base-chinese: vocab.txt
    bpe    pieces of bytes, as in GPT-2 (training/bytepairs.py): vocab.json and merges.txt

Candidates for Chinese words come from a segmenter (rjieba), pieces of Latin words from merges (training/pieces.py); both are needed here
only. Then the corpus is split with the candidates by the very code that trains and answers, and the words
it really uses are kept, in order of frequency.
"""

from __future__ import annotations

import re
import string
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from promptgen.errors import DiskFault, FileFault, UsageError
from promptgen.text.tokenizer import BertWordTokenizer
from promptgen.text.vocabulary import VOCABULARY_FILE, Vocabulary
from promptgen.text.words import SPECIAL_TOKENS, Kind, clean, runs
from promptgen.training.bytepairs import WordSplitter, learn_byte_pairs
from promptgen.training.corpus import find_files, read_documents
from promptgen.training.dataset import refuse_model
from promptgen.training.pieces import learn_pieces

KINDS = ("word", "char", "bpe")
DEFAULT_WORD_SIZE = 9000
DEFAULT_BPE_SIZE = 5000
MAX_RUNS = 1_500_000  # different runs that one counter holds; with MAX_CHARACTERS this keeps counting under 1 GiB
MAX_CHARACTERS = 60_000_000  # of those runs together
_FILES_OF_KIND = {"word": (VOCABULARY_FILE,), "char": (VOCABULARY_FILE,), "bpe": ("vocab.json", "merges.txt")}
_MAX_LEARNED_WORDS = 300_000  # Latin words that pieces are learned from: about 300 MB
LATIN_SHARE = 0.27  # of the vocabulary, at most, for pieces of Latin words
_CANDIDATE_FACTOR = 3  # Chinese candidate words tried for each place
_MIN_WORD_COUNT = 3
_MAX_WORD_LENGTH = 6
_MARKS = "，。！？；：、“”‘’（）《》【】…—·～" + string.punctuation + "°℃×÷±→￥%‰"


def gb2312_level_1() -> list[str]:
    """The 3 755 commonest simplified characters: rows 16 to 55 of GB 2312-80."""
    cells = (bytes((0xA0 + row, 0xA0 + cell)) for row in range(16, 56) for cell in range(1, 95))
    return [cell.decode("gb2312") for cell in cells if not (cell[0] == 0xD7 and cell[1] > 0xF9)]


class RunCounts:
    """Counts runs of text within bounds of memory: when too many differ, the rarest are dropped and their characters remembered."""

    def __init__(self, max_runs: int = MAX_RUNS, max_characters: int = MAX_CHARACTERS) -> None:
        self.counts: Counter[str] = Counter()
        self._max_runs = max_runs
        self._max_characters = max_characters
        self._num_characters = 0  # of the different runs, at most
        self._dropped: set[str] = set()

    def add(self, runs: list[str]) -> None:
        num_known = len(self.counts)
        self.counts.update(runs)
        if len(self.counts) > num_known:
            self._num_characters += sum(map(len, runs))
            if len(self.counts) > self._max_runs or self._num_characters > self._max_characters:
                self._prune()

    def characters(self) -> list[str]:
        """Every character of every run that was added, sorted."""
        return sorted({c for run in self.counts for c in run} | self._dropped)

    def _prune(self) -> None:
        num_before, rarest = len(self.counts), 0
        self._num_characters = sum(map(len, self.counts))
        while len(self.counts) > self._max_runs // 2 or self._num_characters > self._max_characters // 2:
            rarest += 1
            rare = [run for run, count in self.counts.items() if count == rarest]
            self._dropped.update(*rare)
            self.counts = Counter({run: count for run, count in self.counts.items() if count > rarest})
            self._num_characters -= sum(map(len, rare))
        if rarest:
            told = f"vocab: of {num_before:,} different runs of text those seen at most {rarest} times are dropped"
            tqdm.write(told + " to save memory; their characters are kept", file=sys.stderr)


def build_vocabulary(texts: Iterable[str], size: int | None) -> Vocabulary:
    """A vocabulary of `size` tokens at most (fewer if the texts hold fewer words seen three times).

    It holds the special tokens, digits and letters (also as ## pieces), punctuation, GB 2312 level 1 and every character of
    the texts, whatever their number; the rest are words. Size None is DEFAULT_WORD_SIZE, or more if the characters need it. Raises
    UsageError if `size` cannot hold the characters.
    """
    dense, spaced, marks = _count_runs(texts)
    basics = _basics(dense, spaced, marks)
    size = max(DEFAULT_WORD_SIZE, _needed(basics)) if size is None else size
    room = _room(size, basics)
    latin = [t for t in _latin_pieces(spaced.counts, int(size * LATIN_SHARE)) if t not in basics][:room]
    chinese = _chinese_words(dense.counts, (room - len(latin)) * _CANDIDATE_FACTOR)
    used = _usage(dense.counts, chinese, basics)
    kept = [w for w in sorted(chinese, key=lambda w: (-used[w], w)) if used[w] >= _MIN_WORD_COUNT][: room - len(latin)]
    counts = _usage(dense.counts, kept, basics) + marks.counts + _latin_usage(spaced.counts, latin, basics)
    order = sorted({*basics, *latin, *kept}, key=lambda t: (-counts[t], t))
    return Vocabulary.of([*SPECIAL_TOKENS, *order])


def build_character_vocabulary(texts: Iterable[str], size: int | None) -> Vocabulary:
    """The characters that `build_vocabulary` holds, and no words. Raises UsageError if they are more than `size`."""
    dense, spaced, marks = _count_runs(texts)
    basics = _basics(dense, spaced, marks)
    if size is not None:
        _room(size, basics)
    counts = _usage(dense.counts, [], basics) + marks.counts + _latin_usage(spaced.counts, [], basics)
    return Vocabulary.of([*SPECIAL_TOKENS, *sorted(basics, key=lambda t: (-counts[t], t))])


def _basics(dense: RunCounts, spaced: RunCounts, marks: RunCounts) -> dict[str, None]:
    letters = _letters_and_digits(spaced.characters())
    # Marks in the order of the text: ranks follow from it, and shipped models from those.
    seen = [*marks.counts, *marks.characters(), *dense.characters()]
    return dict.fromkeys([*_MARKS, *letters, *gb2312_level_1(), *seen])


def _needed(basics: dict[str, None]) -> int:
    return len(SPECIAL_TOKENS) + len(basics)


def _room(size: int, basics: dict[str, None]) -> int:
    """The places left for words. Raises UsageError if there is not even room for the characters."""
    if size < _needed(basics):
        raise UsageError(
            f"--size {size} cannot hold the {len(basics)} characters that the corpus and GB 2312 level 1 need; "
            f"give {_needed(basics)} or more"
        )
    return size - _needed(basics)


def _count_runs(texts: Iterable[str]) -> tuple[RunCounts, RunCounts, RunCounts]:
    dense, spaced, marks = RunCounts(), RunCounts(), RunCounts()
    for text in texts:
        found: dict[Kind, list[str]] = {kind: [] for kind in Kind}
        for kind, run in runs(clean(text)):
            found[kind].append(run)
        for kind, counts in ((Kind.DENSE, dense), (Kind.SPACED, spaced), (Kind.MARK, marks)):
            counts.add(found[kind])
    if not dense.counts and not spaced.counts:
        raise FileFault("corpus", "holds no text to count words in")
    return dense, spaced, marks


def _letters_and_digits(characters: list[str]) -> list[str]:
    letters = sorted({c for c in characters if c.isalnum()} | set(string.ascii_lowercase + string.digits))
    return letters + ["##" + c for c in letters] + ["##.", "##:"]


def _latin_pieces(spaced: Counter[str], size: int) -> list[str]:
    """Pieces of the words' letters; digits and inner marks stand alone."""
    words: Counter[str] = Counter()
    for run, count in spaced.items():
        for word in re.findall(r"[^\W\d_]+", run):
            words[word] += count
    if len(words) > _MAX_LEARNED_WORDS:
        told = f"vocab: pieces are learned from the commonest {_MAX_LEARNED_WORDS:,} of {len(words):,} words"
        print(told, file=sys.stderr)
        words = Counter(dict(sorted(words.items(), key=lambda item: (-item[1], item[0]))[:_MAX_LEARNED_WORDS]))
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


def write_vocabulary(sources: Iterable[str | Path], out: Path, size: int | None, kind: str = "word") -> Vocabulary:
    """Builds the vocabulary of a corpus, writes it to the folder `out`, and returns its tokens (of kind bpe with its own special tokens).

    Size None is chosen from the corpus: of kind char what the characters need, else DEFAULT_WORD_SIZE and DEFAULT_BPE_SIZE at most. Raises
    UsageError for an unknown kind, a size too small, or an `out` that holds another kind's files or a model; FileFault for a corpus
    without text; DiskFault if `out` cannot be written.
    """
    if kind not in KINDS:
        raise UsageError(f"--kind {kind} is not known; choose one of {', '.join(KINDS)}")
    refuse_model(out)
    _refuse_other_kinds(out, kind)
    own = {(out / name).resolve() for name in _FILES_OF_KIND[kind]}
    # `promptgen vocab . --out .` run again must not count what it wrote.
    texts = _texts([path for path in find_files(sources) if path.resolve() not in own])
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
    if kind == "bpe":
        pairs = learn_byte_pairs(_count_words(texts), DEFAULT_BPE_SIZE if size is None else size)
        with _writing(out):
            pairs.save(out)
        return Vocabulary(pairs.tokens, {token: i for i, token in enumerate(pairs.tokens)})
    vocabulary = build_vocabulary(texts, size) if kind == "word" else build_character_vocabulary(texts, size)
    with _writing(out):
        vocabulary.save(out / VOCABULARY_FILE)
    return vocabulary


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        raise DiskFault(f"{out}: cannot be written: {fault.strerror}; give another --out or make room there") from fault


def _refuse_other_kinds(out: Path, kind: str) -> None:
    for name in (VOCABULARY_FILE, "tokenizer.json", "vocab.json", "merges.txt"):
        if name not in _FILES_OF_KIND[kind] and (out / name).exists():
            raise UsageError(
                f"--out {out} already holds {name}, a vocabulary of another kind than {kind}; "
                "give another folder, or remove that vocabulary first"
            )


def _count_words(texts: Iterable[str]) -> Counter[str]:
    split = WordSplitter()
    words = RunCounts()
    for text in texts:
        words.add(list(split(text)))
    if not words.counts:
        raise FileFault("corpus", "holds no text to count words in")
    return words.counts


def _texts(files: list[Path]) -> Iterator[str]:
    num_bytes = sum(path.stat().st_size for path in files)
    with tqdm(desc="vocab", total=num_bytes, unit="B", unit_scale=True, disable=None) as bar:
        for document in read_documents(files, on_read=bar.update):
            yield from document.turns
