"""The model card: README.md of a model folder, written from its eval.json.

What stands below the marker line is a person's and is kept when the card is written anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

MARKER = "<!-- written by promptgen above this line, by people below it -->"
_HEAD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [gpt2, promptgen]
---

# {name}

A GPT-2 that continues prompts, trained by `promptgen train` on a word vocabulary. `promptgen serve --model` serves it;
`transformers.AutoModelForCausalLM` loads it. A document begins with `[MASK]` and ends with `[CLS]`; dialogue turns end with `[SEP]`.

| held-out part | |
|---|---|
"""


def write_card(folder: Path, report: dict[str, Any]) -> None:
    """Writes folder/README.md from the figures of eval.json, keeping what people wrote below the marker."""
    path = folder / "README.md"
    own = path.read_text(encoding="utf-8").partition(MARKER)[2] if path.exists() else "\n"
    path.write_text(_HEAD.format(name=folder.name) + _rows(report) + f"\n{MARKER}{own}", encoding="utf-8")


def _runs(training: dict[str, Any]) -> list[dict[str, Any]]:
    """The run that made the model, and before it those it continued."""
    runs = [training]
    while "before" in runs[-1]:
        runs.append(runs[-1]["before"])
    return runs


def _rows(report: dict[str, Any]) -> str:
    held_out, corpus, training = report["held_out"], report["corpus"], report.get("training") or {}
    rows = {
        "documents": held_out["documents"],
        "perplexity per token": held_out["perplexity_per_token"],
        "perplexity per character": held_out["perplexity_per_character"],
        "loss per token, per character (nats)": f"{held_out['loss_per_token']}, {held_out['loss_per_character']}",
        "share of [UNK]": report["unknown_token_share"],
    }
    made = {
        "parameters": f"{report['parameters']:,}",
        "size of the weights": f"{report['model_bytes'] / 1e6:.1f} MB (float16)",
        "vocabulary": f"{report['vocabulary']['tokens']:,} tokens",
        "corpus": f"{corpus.get('documents', 0):,} documents, {corpus.get('dialogues', 0):,} dialogues, {corpus['tokens']:,} tokens",
    }
    if training:
        shape = (
            f"{training['layers']} layers x {training['width']}, {training['heads']} heads, window {training['window']}"
        )
        made["shape"] = shape
        made["training"] = " after ".join(
            f"{run['steps']:,} steps, {run['tokens']:,} tokens, {run['seconds'] / 60:.0f} minutes"
            for run in _runs(training)
        )
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    return (
        "\n".join(
            [*lines, "", "| made from | |", "|---|---|", *(f"| {key} | {value} |" for key, value in made.items())]
        )
        + "\n"
    )
