"""Encodes a corpus for training: `promptgen prepare CORPUS... --vocab DIR --out DIR`. The format is in dataset.py.

Memory does not grow with the corpus but for eight bytes a document (seen.py): documents are encoded by the chunk and written at once.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress, islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from promptgen.errors import FileFault
from promptgen.text.tokenizer import Tokenizer, load_tokenizer, vocabulary_files, vocabulary_sha256
from promptgen.training.corpus import Document, Dropped, FileReport, find_files, read_documents
from promptgen.training.dataset import FORMAT, MANIFEST, refuse_model
from promptgen.training.partfile import PartWriter
from promptgen.training.seen import Digests, SeenDigests
from promptgen.training.staging import Staging

_CHUNK_DOCUMENTS = 200_000  # encoded at a time, at most
_CHUNK_CHARACTERS = 4_000_000
_PARTS = ("train", "valid")

_Placed = tuple[Path, Document]  # a document and the file it is from


def encode_document(document: Document, encoded: Sequence[list[int]], tokenizer: Tokenizer) -> list[int]:
    """`[MASK] document [CLS]`, or `[CLS] question [SEP] answer [SEP] ...`."""
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

    The held-out part is `valid_sources` if given, else the documents whose digest falls in the first `valid_share`: a document's part
    does not change when the corpus grows. Duplicates are dropped and counted. Raises FileFault for files that cannot be used and if nothing is
    left to train on, UsageError if `out` holds a model of another vocabulary, DiskFault if it cannot be written; what stood there is then as
    it was.
    """
    tokenizer = load_tokenizer(vocabulary)
    files, valid_files = find_files(sources), find_files(valid_sources)
    copied = vocabulary_files(vocabulary)
    obsolete = _other_vocabulary(out, {path.name for path in copied})
    if obsolete or not all(_is_copy(out / path.name, path) for path in copied):
        refuse_model(out)
    with Staging(out, MANIFEST) as staging:
        work = _Preparation(staging, tokenizer)
        num_bytes = sum(path.stat().st_size for path in (*valid_files, *files))
        with tqdm(desc="prepare", total=num_bytes, unit="B", unit_scale=True, disable=None) as bar:
            work.read(valid_files, 1.0, bar)
            work.read(files, 0.0 if valid_files else valid_share, bar)
        work.refuse_nothing_to_train_on(files, valid_files)
        for path in copied:
            staging.write(path.name, path.read_bytes())
        meta = work.finish() | {"vocabulary_sha256": vocabulary_sha256(vocabulary)}
        staging.write(MANIFEST, (json.dumps(meta, ensure_ascii=False, indent=1) + "\n").encode())
        staging.commit(obsolete)
    return meta


class _Preparation:
    """What is known of the corpus while it is read."""

    def __init__(self, staging: Staging, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._parts = {name: PartWriter(staging, name, tokenizer.size) for name in _PARTS}
        self._seen = SeenDigests()
        self._dropped = Dropped()
        self._reports: list[FileReport] = []
        names = [f"{part}_{what}" for part in _PARTS for what in ("documents", "tokens", "characters")]
        self._counts = Counter(dict.fromkeys(["documents", "dialogues", "tokens", "unknown_tokens", *names], 0))

    def read(self, files: list[Path], share: float, bar: Any) -> None:
        """Encodes all documents of the files; those whose digest lies in the first `share` are held out."""
        documents = read_documents(files, self._dropped, reports=self._reports, on_read=bar.update)
        for chunk in _chunks(documents, self._reports):
            self._add(chunk, share)

    def _add(self, chunk: list[_Placed], share: float) -> None:
        digests = _digests([document for _, document in chunk])
        is_new = self._seen.add(digests)
        is_held = digests < np.uint64(int(share * 2**64)) if share < 1 else np.ones(len(digests), np.bool_)
        for path, document in compress(chunk, ~is_new):
            self._dropped.add("duplicate", path, document.number)
        self._encode(list(compress(chunk, is_new)), is_held[is_new].tolist())
        for name, part in self._parts.items():
            tokens = part.flush()
            self._counts["tokens"] += len(tokens)
            self._counts[f"{name}_tokens"] += len(tokens)
            if self._tokenizer.unknown_id is not None:
                self._counts["unknown_tokens"] += int(np.count_nonzero(tokens == self._tokenizer.unknown_id))

    def _encode(self, placed: list[_Placed], is_held: list[bool]) -> None:
        encoded = self._tokenizer.encode_many([turn for _, document in placed for turn in document.turns])
        for (path, document), held in zip(placed, is_held, strict=True):
            turns = list(islice(encoded, len(document.turns)))
            if not all(turns):
                self._dropped.add("without tokens", path, document.number)
                continue
            name = "valid" if held else "train"
            self._parts[name].add(encode_document(document, turns, self._tokenizer))
            self._counts["dialogues" if document.is_dialogue else "documents"] += 1
            self._counts[f"{name}_documents"] += 1
            self._counts[f"{name}_characters"] += sum(map(len, document.turns))

    def refuse_nothing_to_train_on(self, files: list[Path], valid_files: list[Path]) -> None:
        if self._counts["train_documents"]:
            return
        name = f"{files[0]} and {len(files) - 1} more" if len(files) > 1 else str(*files)
        left_out = f"Left out: {self._dropped.summary()}"
        if valid_files:
            fault = "no document to train on beside those of --valid-corpus; add documents that are not among them"
        elif num_held := self._counts["valid_documents"]:
            fault = f"no document to train on: all {num_held} were held out; hold out none with --valid 0, or add more"
        else:
            fault = "no document to train on: the corpus holds no text"
        raise FileFault(name, f"{fault}. {left_out}")

    def finish(self) -> dict[str, Any]:
        """Everything of meta.json but the vocabulary."""
        by_name = sorted(self._reports, key=lambda report: report.path.as_posix())
        return {
            "format": FORMAT,
            "dtype": str(self._parts["train"].dtype),
            "counts": dict(self._counts),
            "dropped": dict(self._dropped.counts()),
            "dropped_places": self._dropped.examples(),
            "corpus_sha256": hashlib.sha256("".join(f"{report.sha256}\n" for report in by_name).encode()).hexdigest(),
            "files": [
                {
                    "name": report.path.as_posix(),
                    "bytes": report.num_bytes,
                    "sha256": report.sha256,
                    "encoding": report.encoding,
                    "kind": report.kind,
                    "documents": report.num_documents,
                }
                for report in self._reports
            ],
            "sha256": {name: digest for part in self._parts.values() for name, digest in part.sha256.items()},
        }


def _chunks(documents: Iterator[Document], reports: list[FileReport]) -> Iterator[list[_Placed]]:
    """Documents with the files they are from, in lists that are bounded in documents and in characters."""
    chunk: list[_Placed] = []
    num_characters = 0
    for document in documents:
        chunk.append((reports[-1].path, document))
        num_characters += sum(map(len, document.turns))
        if len(chunk) == _CHUNK_DOCUMENTS or num_characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, num_characters = [], 0
    if chunk:
        yield chunk


def _digests(documents: list[Document]) -> Digests:
    """BLAKE2b of each document's turns, 64 bits of it: [n] of uint64."""
    raw = b"".join(
        hashlib.blake2b("\0".join(document.turns).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for document in documents
    )
    return np.frombuffer(raw, ">u8").astype(np.uint64)


def _is_copy(path: Path, original: Path) -> bool:
    return path.is_file() and path.read_bytes() == original.read_bytes()


def _other_vocabulary(out: Path, names: set[str]) -> list[Path]:
    """What an earlier preparation with another kind of vocabulary left: load_tokenizer might take it for ours.

    Raises FileFault if it is not ours to take away.
    """
    try:
        others = [path for path in vocabulary_files(out) if path.name not in names]
    except FileFault:
        return []
    if others and not (out / MANIFEST).exists():
        raise FileFault(
            others[0],
            "is a vocabulary of another kind, which promptgen prepare did not write; name another folder with --out",
        )
    return others
