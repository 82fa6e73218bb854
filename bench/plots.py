"""Draws the newest peer comparison: `python -m bench.plots` reads bench/results/peers-*.json and writes docs/peers.png.

One panel a cell (shape and number of candidates), one bar an engine: milliseconds until all candidates are complete; a whisker
spans the medians of the processes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bench.machine import RESULTS

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "peers.png"
OURS, THEIRS = "#1b7f5c", "#9aa5b1"


def main() -> None:
    newest = max(RESULTS.glob("peers-*.json"))
    document = json.loads(newest.read_text(encoding="utf-8"))
    engines: dict[str, dict[str, Any]] = document["engines"]
    titles = [key for key in next(iter(engines.values())) if key not in ("precision", "greedy_equal")]
    figure, panels = plt.subplots(
        len(titles) // 2, 2, figsize=(12, 3.1 * (len(titles) // 2)), sharey=True, squeeze=False
    )
    for panel, title in zip(panels.flat, titles, strict=True):
        draw_cell(panel, title, engines)
    machine = document["machine"]
    figure.suptitle(
        f"milliseconds for n candidates of 50 tokens, two threads ({machine['cpu']}, {machine['date'][:10]}, {machine['commit']})"
    )
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)
    print(PICTURE)


def draw_cell(panel: Any, title: str, engines: dict[str, dict[str, Any]]) -> None:
    names = list(reversed(engines))
    for place, name in enumerate(names):
        cell = engines[name].get(title)
        if cell is None:
            continue
        spread = [[cell["ms"] - cell["least"]], [cell["greatest"] - cell["ms"]]]
        panel.barh(place, cell["ms"], color=OURS if name.startswith("ours") else THEIRS, xerr=spread)
        panel.text(cell["greatest"] * 1.01, place, f"{cell['ms']:.0f}", va="center", fontsize=8)
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.set_title(title + " candidates", fontsize=10)
    panel.margins(x=0.12)


if __name__ == "__main__":
    main()
