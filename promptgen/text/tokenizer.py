"""Text becomes ids: `load_tokenizer(folder)` gives the tokenizer a model folder holds.

    vocab.txt                            BertWordTokenizer: word vocabularies and bert-base-chinese style character ones
    tokenizer.json, or
    vocab.json + merges.txt              BytePairTokenizer: GPT-2's byte-level BPE

Counting, training and answering share these, so they cannot disagree on where a word ends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from math import log
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path
from typing import Protocol

from promptgen.errors import FileFault
from promptgen.text.bytepair import BytePairTokenizer
from promptgen.text.detokenize import TextJoiner
from promptgen.text.vocabulary import VOCABULARY_FILE, Vocabulary
from promptgen.text.words import SPECIAL_TOKENS, Kind, clean, runs

VOCABULARY_FILES = (VOCABULARY_FILE, "tokenizer.json", "vocab.json")  # in the order they are looked for
MAX_SPACED_RUN = 100  # a longer run of letters (not language, base64 say) is one [UNK], as in BERT
_UNKNOWN_COST = 40.0  # of one character that the vocabulary lacks; dearer than any word
_BULK_CHUNK = 2000  # texts a worker takes at a time


class Detokenizer(Protocol):
    """Turns the ids of one candidate into text as they come. `push` and `finish` return what can be shown now.

    `fork` gives another one in the same state: the candidates of a prompt begin alike.
    """

    def fork(self) -> Detokenizer: ...
    def push(self, token_id: int) -> str: ...
    def finish(self) -> str: ...


class Tokenizer(Protocol):
    """What generation and training ask of a vocabulary."""

    @property
    def size(self) -> int: ...
    @property
    def begin_id(self) -> int: ...
    @property
    def end_id(self) -> int: ...
    @property
    def separator_id(self) -> int: ...
    @property
    def unknown_id(self) -> int | None: ...
    @property
    def banned_ids(self) -> tuple[int, ...]: ...
    @property
    def special_tokens(self) -> tuple[str, ...]: ...
    def id_of(self, token: str) -> int | None: ...
    def encode(self, text: str) -> list[int]: ...
    def encode_many(self, texts: Sequence[str]) -> Iterator[list[int]]: ...
    def convert(self, ids: Sequence[int]) -> list[str]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def detokenizer(self, prompt: str) -> Detokenizer: ...


class BertWordTokenizer:
    """Words of a vocabulary, BERT's clean-up, WordPiece for letters, the likeliest split for Chinese.

    `begin_id` starts a document ([MASK]), `end_id` ends one ([CLS]), `separator_id` ends a line or a turn ([SEP]).
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        ids = vocabulary.ids
        self.begin_id, self.end_id, self.separator_id = ids["[MASK]"], ids["[CLS]"], ids["[SEP]"]
        self.unknown_id, self.pad_id = ids["[UNK]"], ids["[PAD]"]
        self.banned_ids: tuple[int, ...] = (self.unknown_id, self.pad_id, self.begin_id)
        self.glue_digits = "##0" not in ids
        # Zipf: the word of rank r has probability ~ 1/r, so -log p ~ log r.
        self._cost = {token: log(rank + 2) for token, rank in ids.items() if not token.startswith("##")}
        self._max_word = max(map(len, self._cost))

    @property
    def size(self) -> int:
        return len(self.vocabulary)

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """What is no text where it stands in one."""
        return SPECIAL_TOKENS

    def id_of(self, token: str) -> int | None:
        return self.vocabulary.ids.get(token)

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, after clean-up. Special tokens standing in it are kept whole."""
        tokens: list[str] = []
        for kind, run in runs(clean(text)):
            if kind is Kind.DENSE:
                tokens += self._split_dense(run)
            elif kind is Kind.SPACED:
                tokens += self._split_spaced(run)
            else:
                tokens.append(run if run in self.vocabulary.ids else "[UNK]")
        return tokens

    def encode(self, text: str) -> list[int]:
        ids = self.vocabulary.ids
        return [ids[token] for token in self.tokenize(text)]

    def encode_many(self, texts: Sequence[str], processes: int | None = None) -> Iterator[list[int]]:
        """`encode` of each text, in order, on all cores when there are enough of them to pay for the processes."""
        processes = processes or cpu_count() or 1
        if processes == 1 or len(texts) < 2 * _BULK_CHUNK:
            yield from map(self.encode, texts)
            return
        context = get_context("spawn")
        with ProcessPoolExecutor(
            processes, context, initializer=_start_worker, initargs=(self.vocabulary.tokens,)
        ) as pool:
            yield from pool.map(_encode_in_worker, texts, chunksize=_BULK_CHUNK)

    def convert(self, ids: Sequence[int]) -> list[str]:
        return [self.vocabulary.tokens[i] for i in ids]

    def decode(self, ids: Sequence[int]) -> str:
        joiner = TextJoiner(glue_digits=self.glue_digits)
        return "".join(map(joiner.push, self.convert(ids)))

    def detokenizer(self, prompt: str) -> Detokenizer:
        return _WordDetokenizer(self, prompt)

    def _split_dense(self, run: str) -> list[str]:
        """The split of the least cost (Viterbi over the vocabulary's words), one [UNK] for each character it lacks."""
        best: list[float] = [0.0]
        start: list[int] = [0]
        cost = self._cost
        for end in range(1, len(run) + 1):
            least, least_start = best[end - 1] + _UNKNOWN_COST, end - 1
            for begin in range(max(0, end - self._max_word), end):
                word_cost = cost.get(run[begin:end])
                if word_cost is not None and best[begin] + word_cost < least:
                    least, least_start = best[begin] + word_cost, begin
            best.append(least)
            start.append(least_start)
        words: list[str] = []
        end = len(run)
        while end:
            word = run[start[end] : end]
            words.append(word if word in cost else "[UNK]")
            end = start[end]
        return words[::-1]

    def _split_spaced(self, run: str) -> list[str]:
        """WordPiece, greedy longest match; digits and inner marks one by one."""
        if len(run) > MAX_SPACED_RUN:
            return ["[UNK]"]
        if run in self._cost and run.isalpha():
            return [run]
        pieces: list[str] = []
        begin = 0
        glued = False
        while begin < len(run):
            end, piece = self._longest_piece(run, begin, glued)
            pieces.append(piece)
            # A vocabulary without "##." has "web.py" as three words: nothing is glued to a bare mark.
            glued = piece.startswith("##") or run[end - 1].isalnum()
            begin = end
        return pieces

    def _longest_piece(self, run: str, begin: int, glued: bool) -> tuple[int, str]:
        ids = self.vocabulary.ids
        char = run[begin]
        limit = begin + 1
        if char.isalpha():
            while limit < len(run) and run[limit].isalpha():
                limit += 1
        for end in range(limit, begin, -1):
            piece = "##" + run[begin:end] if glued else run[begin:end]
            if piece in ids:
                return end, piece
        return begin + 1, char if char in ids else "[UNK]"


class _WordDetokenizer:
    def __init__(self, tokenizer: BertWordTokenizer, prompt: str) -> None:
        self._tokens = tokenizer.vocabulary.tokens
        self._joiner = TextJoiner(
            after=_last_word(tokenizer, prompt),
            ends_with_space=prompt[-1:].isspace(),
            glue_digits=tokenizer.glue_digits,
        )

    def fork(self) -> _WordDetokenizer:
        other = _WordDetokenizer.__new__(_WordDetokenizer)
        other._tokens, other._joiner = self._tokens, self._joiner.fork()
        return other

    def push(self, token_id: int) -> str:
        return self._joiner.push(self._tokens[token_id])

    def finish(self) -> str:
        return ""


def _last_word(tokenizer: BertWordTokenizer, prompt: str) -> list[str]:
    """The token that decides whether a space follows the prompt. What the vocabulary lacks stands in the text all the same."""
    *_, run = ("", *(run for _, run in runs(clean(prompt[-MAX_SPACED_RUN - 1 :]))))
    last = tokenizer.tokenize(run)[-1:]
    return [prompt.rstrip()[-1]] if last and last[0] in SPECIAL_TOKENS else last


def load_tokenizer(folder: Path | str) -> BertWordTokenizer | BytePairTokenizer:
    """The tokenizer of a model or vocabulary folder. Raises FileFault naming the file at fault."""
    first = vocabulary_files(Path(folder))[0]
    if first.name == VOCABULARY_FILE:
        return BertWordTokenizer(Vocabulary.load(first))
    return BytePairTokenizer(first.parent)


def vocabulary_files(folder: Path) -> list[Path]:
    """The files that `load_tokenizer` reads: vocab.txt; else tokenizer.json; else vocab.json and merges.txt. Raises FileFault if none."""
    for names in ((VOCABULARY_FILE,), ("tokenizer.json",), ("vocab.json", "merges.txt")):
        if all((folder / name).exists() for name in names):
            return [folder / name for name in names]
    raise FileFault(folder, "holds no vocabulary: vocab.txt, tokenizer.json, or vocab.json with merges.txt")


def vocabulary_sha256(folder: Path) -> str:
    """A folder's vocabulary in 64 hexadecimal digits.

    Of a single file it is the file's SHA-256; of several, the SHA-256 of lines "NAME DIGEST". Raises FileFault if there is none.
    """
    lines: list[tuple[str, str]] = []
    for path in vocabulary_files(folder):
        try:
            lines.append((path.name, hashlib.sha256(path.read_bytes()).hexdigest()))
        except OSError as fault:
            raise FileFault(path, f"cannot be read: {fault.strerror}") from fault
    if len(lines) == 1:
        return lines[0][1]
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in lines).encode()).hexdigest()


_worker: BertWordTokenizer | None = None  # one per worker process of encode_many, set by its initializer


def _start_worker(tokens: tuple[str, ...]) -> None:
    global _worker
    _worker = BertWordTokenizer(Vocabulary.of(tokens))


def _encode_in_worker(text: str) -> list[int]:
    assert _worker is not None
    return _worker.encode(text)
