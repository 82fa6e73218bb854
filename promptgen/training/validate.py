"""Measures a saved model: `promptgen validate MODEL DATA`. What is measured is what was saved; eval.json and the model card say it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import GPT2LMHeadModel

from promptgen.training.card import report_text, write_card
from promptgen.training.curves import PICTURE, draw_typing
from promptgen.training.dataset import WEIGHTS_FILE, check_data, load_part, read_meta
from promptgen.training.evaluate import evaluate, sample_of
from promptgen.training.model_folder import load_model, put
from promptgen.training.samples import sample_continuations
from promptgen.training.typing_figures import measure_typing

EVAL_FILE = "eval.json"
TYPING_PICTURE = "typing.png"
TYPING_PROMPTS = 300
MEASURED_DOCUMENTS = 40_000  # of the held-out part, spread evenly over it


def validate(
    model_folder: Path, data: Path, report: Path | None = None, *, typing_prompts: int = TYPING_PROMPTS
) -> dict[str, Any]:
    """Measures a saved model anew, keeping what its eval.json says of training; writes a report into the folder `report` if given.

    The card tells of the corpus of `data`. Raises FileFault if the data were prepared with another vocabulary.
    """
    figures = measure(model_folder, data, known_training(model_folder), typing_prompts=typing_prompts)
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
        text = f"# {model_folder.name}\n\n{report_text(figures)}"
        for picture in (PICTURE, TYPING_PICTURE):
            if (model_folder / picture).exists():
                shutil.copyfile(model_folder / picture, report / picture)
                text += f"\n![{Path(picture).stem}]({picture})\n"
        (report / "report.md").write_text(text, encoding="utf-8")
    return figures


def measure(
    model_folder: Path, data: Path, training: dict[str, Any] | None = None, *, typing_prompts: int = TYPING_PROMPTS
) -> dict[str, Any]:
    """The figures of a saved model on the held-out part of `data`; written to its eval.json, its card and its pictures."""
    check_data(data)
    model = load_model(model_folder, data)
    meta = read_meta(data)
    counts = meta["counts"]
    report: dict[str, Any] = {
        "held_out": _held_out(model, data, counts),
        "unknown_token_share": round(counts.get("unknown_tokens", 0) / max(1, counts["tokens"]), 8),
        "parameters": sum(p.numel() for p in model.parameters()),
        "model_bytes": (model_folder / WEIGHTS_FILE).stat().st_size,
        "vocabulary": {"tokens": model.config.vocab_size, "sha256": meta["vocabulary_sha256"]},
        "corpus": counts,
        "dropped": meta.get("dropped", {}),
    }
    if typing_prompts and report["held_out"]["tokens"]:
        report["typing"] = measure_typing(model, data, num_prompts=typing_prompts)
        report["samples"] = sample_continuations(model, data)
    if training:
        report["training"] = training
    put(model_folder / EVAL_FILE, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    if draw_typing(model_folder / TYPING_PICTURE, report.get("typing")) is None:
        (model_folder / TYPING_PICTURE).unlink(missing_ok=True)
    write_card(model_folder, report)
    return report


def known_training(model_folder: Path) -> dict[str, Any] | None:
    """What a folder's eval.json says of how its model was trained; None if it was not written here."""
    try:
        report = json.loads((model_folder / EVAL_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    training = report.get("training") if isinstance(report, dict) else None
    is_own = isinstance(training, dict) and {"steps", "tokens", "seconds", "layers", "width", "heads", "window"} <= set(
        training
    )
    return training if is_own else None


def _held_out(model: GPT2LMHeadModel, data: Path, counts: dict[str, int]) -> dict[str, Any]:
    whole = load_part(data, "valid")
    valid = sample_of(whole, MEASURED_DOCUMENTS)
    window = model.config.n_positions
    with tqdm(desc="validate", total=len(valid.tokens), unit=" tokens", unit_scale=True, disable=None) as bar:
        quality = evaluate(model, valid, window, torch.float32, bar.update)
    is_whole = not bool((np.diff(whole.offsets) > window).any())  # else the context of some characters was cut
    measured = quality.num_tokens > 0  # with nothing held out there is nothing to say
    characters = counts.get("valid_characters", 0)
    # Every token but a document's first is predicted; where documents were left out, they are taken to be as long as the rest.
    per_character = quality.loss * (len(whole.tokens) - len(whole)) / max(1, characters)
    return {
        "documents": len(valid),
        "tokens": quality.num_tokens,
        "characters": characters,
        "loss_per_token": round(quality.loss, 4) if measured else None,
        "perplexity_per_token": round(math.exp(quality.loss), 3) if measured else None,
        "loss_per_character": round(per_character, 4) if measured and is_whole else None,
        "perplexity_per_character": round(math.exp(per_character), 3) if measured and is_whole else None,
        "top_1_accuracy": round(quality.top_1, 4) if measured else None,
        "top_5_accuracy": round(quality.top_5, 4) if measured else None,
    }
