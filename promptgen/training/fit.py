"""Corpus to model in one command: `promptgen fit CORPUS... --out MODEL`. Vocabulary, data, training and figures, each choice with its reason.

OUT/            the model folder
OUT/data/       vocabulary and prepared data, kept for `validate` and `train --from`
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from promptgen.errors import FileFault, UsageError
from promptgen.training.checkpoint import locked, newest
from promptgen.training.choices import choose, valid_share_for
from promptgen.training.corpus import find_files, read_documents
from promptgen.training.lexicon import write_vocabulary
from promptgen.training.prepare import prepare
from promptgen.training.processes import Processes
from promptgen.training.run import check_unfinished
from promptgen.training.shape import TrainConfig
from promptgen.training.train import train
from promptgen.training.validate import TYPING_PROMPTS

_COUNTED = 1000  # different documents, from which on it does not matter how many more there are
_LOOKED_AT = 100_000  # documents, for these
_PLACES_SAID = 5  # numbers of lines of one file and reason; meta.json has more
_FILES_SAID = 3


def fit(
    sources: Sequence[str | Path],
    out: Path,
    *,
    kind: str = "word",
    size: int | None = None,
    budget_s: float | None = 1800.0,
    seed: int = 0,
    resume: bool = True,
    typing_prompts: int = TYPING_PROMPTS,
) -> dict[str, Any]:
    """Makes a model from a corpus and returns the figures of eval.json. Goes on where an interrupted fit of the same corpus stopped.

    Raises UsageError under torchrun, FileFault for a corpus that cannot be read or holds nothing, and what `train` raises.
    """
    if Processes().count > 1:
        raise UsageError("fit runs in one process; run vocab and prepare, then torchrun -m promptgen train")
    if resume and newest(out)[0] is None:
        check_unfinished(out)  # before its data are written over
    data = out / "data"
    files = _files_outside(sources, out)
    share = valid_share_for(_count_distinct(files))
    _say(share)
    with locked(data):
        vocabulary = write_vocabulary(files, data / "vocab", size, kind)
        _say(f"vocabulary {len(vocabulary)} tokens of kind {kind}: what the corpus holds")
        meta = prepare(files, data / "vocab", data / "prepared", valid_share=float(str(share.value)))
        for line in told_counts(meta):
            _say(line)
        config, choices = choose(data / "prepared", TrainConfig(seed=seed))
        for choice in choices:
            _say(choice)
        return train(data / "prepared", out, config, resume=resume, budget_s=budget_s, typing_prompts=typing_prompts)


def told_counts(meta: dict[str, Any]) -> list[str]:
    """What a prepared corpus holds, which files are not UTF-8, and what was left out, a line each."""
    counts, places = meta["counts"], meta.get("dropped_places", {})
    lines = [
        f"corpus {counts['documents']:,} documents, {counts['dialogues']:,} dialogues, {counts['tokens']:,} tokens, "
        f"{counts['unknown_tokens']:,} of them [UNK]; {counts['valid_documents']:,} held out"
    ]
    names_of: dict[str, list[str]] = {}
    for file in meta.get("files", []):
        if file["encoding"] != "utf-8":
            names_of.setdefault(file["encoding"], []).append(file["name"])
    for encoding, names in names_of.items():
        lines.append(f"read as {encoding}: {_first_files(names, ', ')}; if that is wrong, convert it to UTF-8")
    for reason, count in meta["dropped"].items():
        where = [
            f"{name}: {', '.join(map(str, numbers[:_PLACES_SAID]))}" + (" ..." if len(numbers) > _PLACES_SAID else "")
            for name, numbers in places.get(reason, {}).items()
        ]
        lines.append(f"left out {count:,} {reason} ({_first_files(where, '; ')})")
    return lines


def _first_files(files: Sequence[str], mark: str) -> str:
    return mark.join([*files[:_FILES_SAID], *(["..."] if len(files) > _FILES_SAID else [])])


def _files_outside(sources: Sequence[str | Path], out: Path) -> list[Path]:
    """The corpus's files, without those of `out`: `fit . --out mine`, run again, does not read what it wrote."""
    files = [path for path in find_files(sources) if out.resolve() not in path.resolve().parents]
    if not files:
        raise FileFault(out, "is the only folder with files to read; give a corpus outside --out")
    return files


def _count_distinct(files: Sequence[Path]) -> int:
    """How many different documents there are, up to a thousand. Raises FileFault for none."""
    seen: set[tuple[str, ...]] = set()
    for document in islice(read_documents(files), _LOOKED_AT):
        seen.add(document.turns)
        if len(seen) == _COUNTED:
            break
    if not seen:
        raise FileFault(", ".join(map(str, files[:3])), "no document to train on: a corpus has a document on each line")
    return len(seen)


def _say(what: object) -> None:
    print(what, file=sys.stderr, flush=True)
