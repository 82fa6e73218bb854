"""The model card: README.md of a model folder, written from its eval.json, with the report of its training.

What stands below the marker line is a person's and is kept when the card is written anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from promptgen.training.model_folder import put

MARKER = "<!-- written by promptgen above this line, by people below it -->"
_HEAD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [gpt2, promptgen]
---

# {name}

A GPT-2 that continues prompts, trained by `promptgen train`. `promptgen serve --model` serves it;
`transformers.AutoModelForCausalLM` loads it. A document begins with token {begin} and ends with {end}.

"""
_SYSTEMS = {
    "model": "this model",
    "trie": "most popular among the training prompts",
    "five_gram": "word 5-gram, backed off",
}


def write_card(folder: Path, report: dict[str, Any]) -> None:
    """Writes folder/README.md from the figures of eval.json, keeping what people wrote below the marker."""
    path = folder / "README.md"
    before = path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else "\n"
    _, marker, below = before.partition(MARKER)
    own = below if marker else f"\n{before}"  # a README that is not ours is kept whole
    is_word_level = (folder / "vocab.txt").exists()
    begin, end = (
        ("`[MASK]`", "`[CLS]`; dialogue turns end with `[SEP]`") if is_word_level else ("`<|endoftext|>`", "it")
    )
    head = _HEAD.format(name=folder.name, begin=begin, end=end)
    pictures = [f"![{name}]({name}.png)\n" for name in ("curves", "typing") if (folder / f"{name}.png").exists()]
    text = head + report_text(report) + "".join(f"\n{p}" for p in pictures) + f"\n{MARKER}{own}"
    put(path, text.encode("utf-8", "surrogateescape"))


def report_text(report: dict[str, Any]) -> str:
    """The figures of eval.json as Markdown: quality, typing, what the model was made from, and samples."""
    parts = [_table("held-out part", "", _quality(report)), _table("made from", "", _origin(report))]
    if typing := report.get("typing"):
        parts.insert(1, _typing(typing))
    if samples := report.get("samples"):
        lines = [f"- {_inline(s['given'])} **{_inline(s['continuation']) or '(end)'}**" for s in samples]
        parts.append(
            "Held-out prompts cut short, and one continuation each, drawn at random and not selected:\n\n"
            + "\n".join(lines)
            + "\n"
        )
    return "\n".join(parts)


def _quality(report: dict[str, Any]) -> dict[str, Any]:
    held_out = report["held_out"]
    rows = {
        "documents": f"{held_out['documents']:,}",
        "perplexity per token": held_out["perplexity_per_token"],
        "perplexity per character": held_out["perplexity_per_character"],
        "loss per token, per character (nats)": f"{held_out['loss_per_token']}, {held_out['loss_per_character']}",
    }
    if held_out.get("top_1_accuracy") is not None:
        rows["next token is the first guess, among the first five"] = (
            f"{held_out['top_1_accuracy']:.1%}, {held_out['top_5_accuracy']:.1%}"
        )
    return rows | {"share of [UNK]": report["unknown_token_share"]}


def _typing(typing: dict[str, Any]) -> str:
    rows = [
        f"| {name} | {_share(typing[key]['keystrokes_saved'])} | {_figure(typing[key]['mrr_at_5'])} | {_share(typing[key]['hit_at_5'])} |"
        for key, name in _SYSTEMS.items()
        if key in typing
    ]
    head = f"| typing {typing['prompts']} held-out prompts, five words offered at each key | keystrokes saved | MRR at 5 | hit at 5 |"
    return "\n".join([head, "|---|---|---|---|", *rows]) + "\n"


def _origin(report: dict[str, Any]) -> dict[str, Any]:
    corpus, training = report["corpus"], report.get("training") or {}
    rows = {
        "parameters": f"{report['parameters']:,}",
        "size of the weights": f"{report['model_bytes'] / 1e6:.1f} MB (float16)",
        "vocabulary": f"{report['vocabulary']['tokens']:,} tokens",
        "corpus": f"{corpus.get('documents', 0):,} documents, {corpus.get('dialogues', 0):,} dialogues, {corpus['tokens']:,} tokens",
    }
    if training:
        rows["shape"] = (
            f"{training['layers']} layers x {training['width']}, {training['heads']} heads, window {training['window']}"
        )
        rows["training"] = " after ".join(
            f"{run['steps']:,} steps, {run['tokens']:,} tokens, {run['seconds'] / 60:.0f} minutes"
            for run in _runs(training)
        )
    return rows


def _runs(training: dict[str, Any]) -> list[dict[str, Any]]:
    """The run that made the model, and before it those it continued."""
    runs = [training]
    while "before" in runs[-1]:
        runs.append(runs[-1]["before"])
    return runs


def _table(left: str, right: str, rows: dict[str, Any]) -> str:
    return "\n".join(_lines(left, right, rows.items())) + "\n"


def _lines(left: str, right: str, rows: Iterable[tuple[str, Any]]) -> Iterable[str]:
    yield f"| {left} | {right} |"
    yield "|---|---|"
    yield from (f"| {key} | {value} |" for key, value in rows)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _inline(text: str) -> str:
    """One line that Markdown takes as it is."""
    return " ".join(text.split()).replace("*", r"\*").replace("<", "&lt;").replace("|", r"\|")
