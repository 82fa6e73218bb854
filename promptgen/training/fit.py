"""Corpus to model in one command: `promptgen fit CORPUS... --out MODEL`. Vocabulary, data, training and figures, each choice with its reason.

OUT/            the model folder
OUT/data/       vocabulary and prepared data, kept for `validate` and `train --from`
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from promptgen.errors import FileFault
from promptgen.training.choices import choose, valid_share_for
from promptgen.training.corpus import find_files, read_documents
from promptgen.training.lexicon import write_vocabulary
from promptgen.training.prepare import prepare
from promptgen.training.shape import TrainConfig
from promptgen.training.train import train

_COUNTED = 1000  # documents looked at to choose how many to hold out


def fit(
    sources: Sequence[str | Path],
    out: Path,
    *,
    kind: str = "word",
    size: int | None = None,
    budget_s: float | None = 1800.0,
    seed: int = 0,
    resume: bool = True,
) -> dict[str, Any]:
    """Makes a model from a corpus and returns the figures of eval.json. Goes on where an interrupted fit of the same corpus stopped.

    Raises FileFault for a corpus that cannot be read or holds nothing, and what `train` raises.
    """
    data = out / "data"
    share = valid_share_for(_count(sources))
    _say(share)
    vocabulary = write_vocabulary(sources, data / "vocab", size, kind)
    _say(f"vocabulary of {vocabulary} tokens, kind {kind}: what the corpus holds")
    meta = prepare(sources, data / "vocab", data / "prepared", valid_share=float(str(share.value)))
    counts = meta["counts"]
    _say(
        f"{counts.get('documents', 0):,} documents, {counts.get('dialogues', 0):,} dialogues, {counts['tokens']:,} tokens"
    )
    config, choices = choose(data / "prepared", TrainConfig(seed=seed))
    for choice in choices:
        _say(choice)
    return train(data / "prepared", out, config, resume=resume, budget_s=budget_s)


def _count(sources: Sequence[str | Path]) -> int:
    """How many documents there are, up to a thousand. Raises FileFault for none."""
    count = 0
    for _ in read_documents(find_files(sources)):
        count += 1
        if count == _COUNTED:
            break
    if not count:
        raise FileFault(", ".join(map(str, sources)), "holds no document; a corpus has a document on each line")
    return count


def _say(what: object) -> None:
    print(what, file=sys.stderr, flush=True)
