"""An encoded corpus on disk, as training reads it.

`promptgen prepare` writes a folder:

    train.tokens.bin   ids of all documents, one after another, uint16 or uint32, little-endian
    train.offsets.bin  int64, where each document begins, and the end of the last
    valid.*            the held-out part, likewise
    vocab.txt          the vocabulary that the ids mean
    meta.json          format, counts, what was dropped, why and where, the files read, SHA-256 of all of these and of the vocabulary

A document is `[MASK] text [CLS]`, a dialogue `[CLS] question [SEP] answer [SEP] ...`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from promptgen.errors import FileFault, UsageError
from promptgen.text.tokenizer import Tokenizer, vocabulary_sha256

FORMAT = "promptgen-data-1"
MANIFEST = "meta.json"
WEIGHTS_FILE = "model.safetensors"  # of a model folder; here, where no torch is


@dataclass(frozen=True, slots=True)
class TokenFile:
    """One part of a prepared corpus, memory-mapped."""

    tokens: np.ndarray[Any, np.dtype[Any]]  # [num_tokens]
    offsets: np.ndarray[Any, np.dtype[np.int64]]  # [num_documents + 1]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def document(self, index: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]].astype(np.int64)


def refuse_model(out: Path) -> None:
    """Raises UsageError for a folder whose model would be left with another vocabulary than its own."""
    if (out / WEIGHTS_FILE).exists():
        raise UsageError(f"--out {out} holds a model, whose vocabulary would be replaced; give another folder")


def is_prompt(document: np.ndarray[Any, np.dtype[Any]], tokenizer: Tokenizer) -> bool:
    """Whether the ids of a document are no dialogue's. In byte-level BPE both begin alike; a dialogue ends with the separator, if there is one."""
    if not len(document) or document[0] != tokenizer.begin_id:
        return False
    return tokenizer.separator_id == tokenizer.end_id or bool(document[-1] == tokenizer.end_id)


def load_part(folder: Path, part: str) -> TokenFile:
    """Maps "train" or "valid" of a prepared folder. Raises FileFault if the folder is none, or a file was cut."""
    path = folder / f"{part}.tokens.bin"
    dtype = np.dtype(read_meta(folder)["dtype"])
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


def read_meta(folder: Path) -> dict[str, Any]:
    """meta.json of a prepared folder. Raises FileFault for one that promptgen prepare did not write."""
    path = folder / MANIFEST
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise FileFault(folder, f"is not a folder that promptgen prepare wrote: {fault}") from fault
    if not isinstance(meta, dict) or meta.get("format") != FORMAT or meta.get("dtype") not in ("uint16", "uint32"):
        raise FileFault(path, f"is not of the format {FORMAT}; make it anew with promptgen prepare")
    return meta


def check_data(folder: Path) -> None:
    """Raises FileFault if a file of a prepared folder is not the one that meta.json tells of."""
    meta = read_meta(folder)
    told, counts = meta.get("sha256"), meta.get("counts")
    if not isinstance(told, dict) or not isinstance(counts, dict) or not isinstance(counts.get("tokens"), int):
        raise FileFault(folder / MANIFEST, "lacks its counts or hashes; make it anew with promptgen prepare")
    for name, digest in told.items():
        path = folder / Path(str(name)).name
        if not path.is_file() or file_sha256(path) != digest:
            raise FileFault(path, "is not what promptgen prepare wrote; make it anew with promptgen prepare")
    if vocabulary_sha256(folder) != meta.get("vocabulary_sha256"):
        raise FileFault(
            folder, "holds another vocabulary than it was prepared with; make it anew with promptgen prepare"
        )


def data_sha256(folder: Path) -> str:
    """One digest of all that a training sees of a prepared folder."""
    meta = read_meta(folder)
    seen = json.dumps([meta["sha256"], meta["vocabulary_sha256"]], sort_keys=True)
    return hashlib.sha256(seen.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
