"""Encoded corpus on disk, and rows packed from it.

`promptgen prepare` writes a folder:

    train.tokens.bin   ids of all documents, one after another, uint16 or uint32, little-endian
    train.offsets.bin  int64, where each document begins, and the end of the last
    valid.*            the held-out part, likewise
    vocab.txt          the vocabulary that the ids mean
    meta.json          format, counts, what was dropped and why, SHA-256 of the vocabulary

A document is `[MASK] text [CLS]`, a dialogue `[CLS] question [SEP] answer [SEP] ...`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from promptgen.errors import FileFault
from promptgen.text.tokenizer import BertWordTokenizer, load_tokenizer
from promptgen.text.vocabulary import VOCABULARY_FILE
from promptgen.training.corpus import Document, find_files, read_documents

FORMAT = "promptgen-data-1"
IGNORED = -100  # label of a position that carries no loss; torch's cross_entropy default
_CHUNK = 50_000  # documents encoded at a time
_OPEN_ROWS = 16  # rows kept open while packing


@dataclass(frozen=True, slots=True)
class TokenFile:
    """One part of a prepared corpus, memory-mapped."""

    tokens: np.ndarray[Any, np.dtype[Any]]  # [num_tokens]
    offsets: np.ndarray[Any, np.dtype[np.int64]]  # [num_documents + 1]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def document(self, index: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]].astype(np.int64)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of several documents each. All arrays are [rows, row_length], int64.

    `segments` numbers the documents of a row from 1, 0 is padding; attention stays within a segment. `positions`
    count from the document's start. `labels[t]` is the token that follows `tokens[t]`, or IGNORED.
    """

    tokens: np.ndarray[Any, np.dtype[np.int64]]
    labels: np.ndarray[Any, np.dtype[np.int64]]
    segments: np.ndarray[Any, np.dtype[np.int64]]
    positions: np.ndarray[Any, np.dtype[np.int64]]


def encode_document(document: Document, encoded: Sequence[list[int]], tokenizer: BertWordTokenizer) -> list[int]:
    if not document.is_dialogue:
        return [tokenizer.begin_id, *encoded[0], tokenizer.end_id]
    ids = [tokenizer.end_id]
    for turn in encoded:
        ids += [*turn, tokenizer.separator_id]
    return ids


def prepare(
    sources: Iterable[str | Path],
    vocabulary: Path,
    out: Path,
    *,
    valid_sources: Iterable[str | Path] = (),
    valid_share: float = 0.05,
) -> dict[str, Any]:
    """Encodes a corpus into `out` and returns its meta.json.

    The held-out part is `valid_sources` if given, else the documents whose hash falls in the first `valid_share`: a document's part
    does not change when the corpus grows. Duplicates are dropped and counted. Raises FileFault if nothing is left to train on.
    """
    tokenizer = load_tokenizer(vocabulary)
    if not isinstance(tokenizer, BertWordTokenizer):
        raise FileFault(vocabulary, "is not a vocab.txt; preparing for other vocabularies comes with a later version")
    out.mkdir(parents=True, exist_ok=True)
    (out / "meta.json").unlink(missing_ok=True)  # it comes last: a folder without it is not whole
    valid_files = find_files(valid_sources) if valid_sources else []
    dropped: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    seen: set[bytes] = set()
    with (
        _PartWriter(out, "train", len(tokenizer.vocabulary)) as train,
        _PartWriter(out, "valid", len(tokenizer.vocabulary)) as valid,
    ):
        for files, share in ((valid_files, 1.0), (find_files(sources), 0.0 if valid_files else valid_share)):
            for document, ids in _encoded(files, tokenizer, dropped):
                digest = hashlib.blake2b("\0".join(document.turns).encode("utf-8", "replace"), digest_size=16).digest()
                if digest in seen:
                    dropped["duplicate"] += 1
                    continue
                seen.add(digest)
                part = valid if int.from_bytes(digest[:4], "big") < share * 2**32 else train
                part.add(ids)
                counts["unknown_tokens"] += ids.count(tokenizer.unknown_id)
                counts["tokens"] += len(ids)
                counts["dialogues" if document.is_dialogue else "documents"] += 1
                counts[f"{part.name}_characters"] += sum(map(len, document.turns))
                counts[f"{part.name}_tokens"] += len(ids)
        counts["train_documents"], counts["valid_documents"] = len(train.offsets) - 1, len(valid.offsets) - 1
    if not counts["train_documents"]:
        raise FileFault(out, "no document to train on: the corpus is empty, or all of it was held out (see --valid)")
    tokenizer.vocabulary.save(out / VOCABULARY_FILE)
    meta = {
        "format": FORMAT,
        "vocabulary_sha256": file_sha256(out / VOCABULARY_FILE),
        "dtype": str(train.dtype),
        "counts": dict(counts),
        "dropped": dict(dropped),
    }
    (out / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    return meta


def load_part(folder: Path, part: str) -> TokenFile:
    """Maps "train" or "valid" of a prepared folder. Raises FileFault if the folder is none, or a file was cut."""
    path = folder / f"{part}.tokens.bin"
    dtype = _read_dtype(folder / "meta.json")
    try:
        offsets = np.fromfile(folder / f"{part}.offsets.bin", dtype=np.int64)
        tokens = np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)
    except (OSError, ValueError) as fault:
        raise FileFault(folder, f"is not a folder that promptgen prepare wrote: {fault}") from fault
    if not len(offsets) or offsets[-1] != len(tokens):
        raise FileFault(
            path,
            f"holds {len(tokens)} tokens, its offsets say {offsets[-1] if len(offsets) else 'nothing'}; make it anew",
        )
    return TokenFile(tokens, offsets)


def _read_dtype(path: Path) -> np.dtype[Any]:
    """What meta.json says of the ids' width. Raises FileFault for a file that promptgen prepare did not write."""
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise FileFault(path.parent, f"is not a folder that promptgen prepare wrote: {fault}") from fault
    if not isinstance(meta, dict) or meta.get("format") != FORMAT or meta.get("dtype") not in ("uint16", "uint32"):
        raise FileFault(path, f"is not of the format {FORMAT}; make it anew with promptgen prepare")
    return np.dtype(meta["dtype"])


def pack_rows(
    documents: Iterable[np.ndarray[Any, np.dtype[np.int64]]], row_length: int
) -> Iterator[list[np.ndarray[Any, np.dtype[np.int64]]]]:
    """Puts documents into rows of at most `row_length` tokens, each into the fullest open row it fits. Longer ones are cut."""
    open_rows: list[tuple[int, list[np.ndarray[Any, np.dtype[np.int64]]]]] = []
    for document in documents:
        document = document[:row_length]
        fitting = [i for i, (used, _) in enumerate(open_rows) if used + len(document) <= row_length]
        if fitting:
            at = max(fitting, key=lambda i: open_rows[i][0])
            used, row = open_rows[at]
            open_rows[at] = (used + len(document), [*row, document])
        else:
            if len(open_rows) == _OPEN_ROWS:
                fullest = max(range(_OPEN_ROWS), key=lambda i: open_rows[i][0])
                yield open_rows.pop(fullest)[1]
            open_rows.append((len(document), [document]))
    yield from (row for _, row in open_rows)


def batches(
    part: TokenFile,
    row_length: int,
    rows_per_batch: int,
    *,
    order: np.random.Generator | None = None,
    window: int = 0,
    shifted_share: float = 0.0,
) -> Iterator[Batch]:
    """All documents of a part in batches, in random order if `order` is given.

    A share of the documents starts at a random position instead of 0, so that positions beyond the usual length of a
    document are learned too; their last position stays under `window`.
    """
    indices = order.permutation(len(part)) if order is not None else np.arange(len(part))
    rows = pack_rows((part.document(int(i)) for i in indices), row_length)
    while chunk := list(islice(rows, rows_per_batch)):
        yield _batch(chunk, row_length, order, window, shifted_share)


def _batch(
    rows: list[list[np.ndarray[Any, np.dtype[np.int64]]]],
    row_length: int,
    order: np.random.Generator | None,
    window: int,
    shifted_share: float,
) -> Batch:
    shape = (len(rows), row_length)
    tokens, segments, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    labels = np.full(shape, IGNORED, np.int64)
    for r, row in enumerate(rows):
        begin = 0
        for number, document in enumerate(row, 1):
            end = begin + len(document)
            shift = 0
            if order is not None and order.random() < shifted_share:
                shift = int(order.integers(0, max(1, window - len(document) + 1)))
            tokens[r, begin:end] = document
            labels[r, begin : end - 1] = document[1:]
            segments[r, begin:end] = number
            positions[r, begin:end] = np.arange(shift, shift + len(document))
            begin = end
    return Batch(tokens, labels, segments, positions)


class _PartWriter:
    """Appends documents to the two files of a part."""

    def __init__(self, out: Path, name: str, vocabulary_size: int) -> None:
        self.name = name
        self.dtype = np.dtype(np.uint16 if vocabulary_size <= 1 << 16 else np.uint32)
        self.offsets = [0]
        self._out = out

    def __enter__(self) -> _PartWriter:
        self._file = (self._out / f"{self.name}.tokens.bin").open("wb")
        return self

    def add(self, ids: list[int]) -> None:
        self._file.write(np.asarray(ids, self.dtype).tobytes())
        self.offsets.append(self.offsets[-1] + len(ids))

    def __exit__(self, *_: object) -> None:
        self._file.close()
        np.asarray(self.offsets, np.int64).tofile(self._out / f"{self.name}.offsets.bin")


def _encoded(
    files: list[Path], tokenizer: BertWordTokenizer, dropped: Counter[str]
) -> Iterator[tuple[Document, list[int]]]:
    documents = iter(tqdm(read_documents(files, dropped), desc="prepare", unit=" documents", disable=None))
    while chunk := list(islice(documents, _CHUNK)):
        turns = tokenizer.encode_many([turn for document in chunk for turn in document.turns])
        for document in chunk:
            yield document, encode_document(document, list(islice(turns, len(document.turns))), tokenizer)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
