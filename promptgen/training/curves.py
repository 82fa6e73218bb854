"""curves.png beside metrics.jsonl: losses, learning rate and speed over the steps. Without matplotlib there is no picture."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"
PICTURE = "curves.png"
_SYSTEMS = (("model", "this model"), ("five_gram", "word 5-gram"), ("trie", "popularity trie"))


def draw_curves(out: Path) -> Path | None:
    """Draws out/curves.png from out/metrics.jsonl. Returns its path, or None where matplotlib or the records are missing.

    A disk that takes no picture does not end a training: that too is None.
    """
    records = read_metrics(out)
    if not records or importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    losses, rates, speeds = figure.subplots(3, 1, sharex=True, height_ratios=[3, 1, 1])
    _line(losses, records, "loss", "training loss (smoothed)", "#3b6ea8")
    _line(losses, records, "valid_loss", "held-out loss", "#c4532d", marker="o")
    losses.set_ylabel("nats per token")
    losses.legend(frameon=False)
    _line(rates, records, "lr", "learning rate", "#6a6a6a")
    rates.set_ylabel("learning rate")
    _line(speeds, records, "tokens_per_s", "speed", "#4a8f5a")
    speeds.set_ylabel("tokens/s")
    speeds.set_ylim(bottom=0)
    speeds.set_xlabel("step")
    for axes in (losses, rates, speeds):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, out / PICTURE)


def read_metrics(out: Path, until_step: int | None = None) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, without those past `until_step`; a line that a kill cut is none."""
    path = out / METRICS_FILE
    records: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        step = record.get("step") if isinstance(record, dict) else None
        if isinstance(step, int) and (until_step is None or step <= until_step):
            records.append(record)
    return records


def _line(axes: Any, records: list[dict[str, Any]], key: str, label: str, color: str, marker: str = "") -> None:
    points = [(record["step"], record[key]) for record in records if key in record]
    axes.plot(
        [step for step, _ in points], [value for _, value in points], label=label, color=color, marker=marker, ms=4
    )


def draw_typing(path: Path, typing: dict[str, Any] | None) -> Path | None:
    """Draws bars of keystrokes saved by the model and by the baselines. Returns `path`, or None without figures or matplotlib."""
    if not typing or importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    systems = [(key, name) for key, name in _SYSTEMS if key in typing]
    figure = Figure(figsize=(7, 2.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shares = [100 * (typing[key]["keystrokes_saved"] or 0.0) for key, _ in systems]
    bars = axes.barh([name for _, name in systems], shares, color=["#3b6ea8", "#b9b9b9", "#b9b9b9"])
    axes.bar_label(bars, labels=[f"{share:.1f} %" for share in shares], padding=4)
    axes.invert_yaxis()
    axes.set_xlabel("keystrokes saved on held-out prompts, %")
    axes.set_xlim(0, max([*shares, 1.0]) * 1.15)
    axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path | None:
    partial = path.with_name(f"{path.name}.partial")
    try:
        figure.savefig(partial, format="png", dpi=110)
        return partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        return None
