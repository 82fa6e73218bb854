"""The smallest GPT: two tokens, a context of three, and all that it knows drawn on one page.

    python examples/two_token_gpt.py --out DIR [--steps 50]

Vocabulary. A language model knows a fixed list of tokens and nothing else. This one knows two, written 0 and 1.

Context. A GPT looks at the last few tokens and answers one question: how likely is each token to come next? This one looks
at three. Three places with two choices each are 2 x 2 x 2 = 8 things it can see, 000 to 111: its states. Say it sees 110
and we write down a 1. Then it sees 101: the oldest token has dropped out. So two arrows lead from every state to others,
one for a 0 and one for a 1, and each has the probability that the model gives to that token. A large GPT is such a graph
too, only that nobody can draw it: 9000 tokens and 256 places make 9000**256 states.

Training. We have one text, 111101111011110. We cut it into windows of four tokens and ask the model for each: after the
first token, after two, after three, what came next? The loss says how much the truth surprised it, on average. One step of
training moves every weight a little, in the direction that lowers the loss. The graph is drawn before the first step, after
50 steps, and when the loss can hardly fall any further. What takes the step is promptgen.training.step, which also trains
the models of `promptgen train`. examples/README.md says what the pictures show.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from promptgen.training.forward import hidden_states
from promptgen.training.optimizer import Optimizers
from promptgen.training.packing import Batch
from promptgen.training.shape import TrainConfig
from promptgen.training.step import training_step

TEXT = "111101111011110"
CONTEXT = 3
STATES = [f"{number:0{CONTEXT}b}" for number in range(2**CONTEXT)]  # 000, 001, ... 111
CLOSE_ENOUGH = 0.001  # nats of loss above the lowest possible: then we call it converged
MAX_STEPS = 3000  # it takes a few hundred


# ---- The text: what there is to learn from ----


def windows(text: str) -> list[str]:
    """Every run of CONTEXT + 1 tokens: three to look at, and the one that followed."""
    return [text[begin : begin + CONTEXT + 1] for begin in range(len(text) - CONTEXT)]


def training_batch(text: str) -> Batch:
    """All windows as one batch, a window a row. `labels[t]` is the token that follows `tokens[t]`, so a row teaches three things."""
    ids = np.array([[int(token) for token in window] for window in windows(text)], np.int64)
    shape = (len(ids), CONTEXT)
    # Each row is a text of its own: segment 1 throughout, positions 0 1 2.
    segments, positions = np.ones(shape, np.int64), np.broadcast_to(np.arange(CONTEXT), shape).copy()
    return Batch(tokens=ids[:, :-1].copy(), labels=ids[:, 1:].copy(), segments=segments, positions=positions)


def counted(text: str) -> dict[str, tuple[int, int]]:
    """What the windows say: how often a 0 and how often a 1 followed each state. States that never occur are left out."""
    seen = Counter((window[:CONTEXT], window[CONTEXT]) for window in windows(text))
    return {s: (seen[s, "0"], seen[s, "1"]) for s in STATES if seen[s, "0"] + seen[s, "1"]}


def lowest_loss(text: str) -> float:
    """The loss (nats per token) of a model that gives every token exactly its share in the windows. None can do better.

    This is the conditional entropy: the average of -log(share) over all that the windows teach.
    """
    lessons = Counter((window[:n], window[n]) for window in windows(text) for n in range(1, CONTEXT + 1))
    before: Counter[str] = Counter()
    for (context, _), times in lessons.items():
        before[context] += times
    surprise = sum(-times * math.log(times / before[context]) for (context, _), times in lessons.items())
    return surprise / lessons.total()


# ---- The model and its training ----

# AdamW at the rate 0.001: a weight moves by about that much a step. Weight decay would also draw every weight towards 0.
RUN = TrainConfig(
    layers=2,
    width=16,
    heads=4,
    window=CONTEXT,
    row_length=CONTEXT,
    optimizer="adamw",
    learning_rate=1e-3,
    matrix_rate=1e-3,
    weight_decay=0.0,
)


def make_model(seed: int = 0) -> GPT2LMHeadModel:
    """A GPT-2 with random weights: 6 672 numbers. With another seed they are others, and so is the first picture."""
    torch.manual_seed(seed)
    shape = GPT2Config(
        vocab_size=2,
        n_positions=RUN.window,
        n_embd=RUN.width,
        n_layer=RUN.layers,
        n_head=RUN.heads,
        bos_token_id=None,  # no token marks where a text begins or ends
        eos_token_id=None,
    )
    return GPT2LMHeadModel(shape)


def chances_of_one(model: GPT2LMHeadModel) -> dict[str, float]:
    """For each state, the model's probability that a 1 comes next. That of a 0 is what is missing to 1."""
    tokens = torch.tensor([[int(token) for token in state] for state in STATES])
    positions = torch.arange(CONTEXT).expand_as(tokens)
    with torch.no_grad():
        hidden = hidden_states(model, tokens, positions, torch.ones_like(tokens), dtype=torch.float32)
        last = hidden.view(len(STATES), CONTEXT, -1)[:, -1]  # what the model made of all three tokens
        # One score a token; softmax makes of them probabilities, which add up to 1.
        chances = (last @ model.lm_head.weight.T).softmax(-1)[:, 1]
    return dict(zip(STATES, chances.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Moment:
    """What the model, or the text, says at one moment of the lesson. A state that `chance_of_one` lacks was never seen."""

    title: str
    chance_of_one: dict[str, float]


def lesson(steps: int) -> list[Moment]:
    """The model before training, after `steps` steps and when it has converged; and beside it what the text says."""
    model, batch = make_model(), training_batch(TEXT)
    optimizers, goal = Optimizers(model, RUN), lowest_loss(TEXT) + CLOSE_ENOUGH
    moments = [Moment("before training", chances_of_one(model))]
    loss = math.inf
    for _ in range(steps):
        # Measure the loss, find out how each weight moved it, move each weight a little. The loss is that before the move.
        loss = training_step(model, optimizers, batch, 1.0, RUN)
    moments.append(Moment(f"after {steps} steps", chances_of_one(model)))
    while loss > goal and steps < MAX_STEPS:
        loss = training_step(model, optimizers, batch, 1.0, RUN)
        steps += 1
    reached = "converged" if loss <= goal else "not converged"
    moments.append(Moment(f"{reached}: {steps} steps", chances_of_one(model)))
    moments.append(
        Moment("counted in the text", {s: ones / (zeros + ones) for s, (zeros, ones) in counted(TEXT).items()})
    )
    return moments


# ---- At a terminal ----


def text_graph(moment: Moment) -> str:
    """Two arrows a state, as long as they are likely. Plain ASCII, for any terminal."""
    lines = [f"--- {moment.title} ---"]
    for state, one in moment.chance_of_one.items():
        for token, chance in (("0", 1 - one), ("1", one)):
            arrow = "=" * round(20 * chance) + ">"
            lines.append(f"{state if token == '0' else '   '} +{token} {state[1:] + token} {chance:6.1%} {arrow}")
    return "\n".join(lines)


def text_table(moments: Sequence[Moment]) -> str:
    """How likely each state is to be followed by a 1, one column a moment, and the counts behind the last column."""
    counts = counted(TEXT)
    lines = ["state  " + "  ".join(f"{moment.title:>20}" for moment in moments)]
    for state in STATES:
        cells = [f"{m.chance_of_one[state]:.1%}" if state in m.chance_of_one else "unseen" for m in moments]
        zeros, ones = counts.get(state, (0, 0))
        note = f"  ({ones} of {zeros + ones})" if zeros + ones else ""
        lines.append(f"{state:5}  " + "  ".join(f"{cell:>20}" for cell in cells) + note)
    return "\n".join(lines)


# ---- The picture ----

Point = tuple[float, float]  # pixels, y grows downwards
PANEL_WIDTH, PANEL_HEIGHT, LEGEND_HEIGHT, RADIUS = 620, 400, 70, 25
WIDTH, HEIGHT = 2 * PANEL_WIDTH, 2 * PANEL_HEIGHT + LEGEND_HEIGHT
BLACK, GREY, WHITE = "#1a1a1a", "#8a8a8a", "#ffffff"
COLOURS = {"0": "#1f5fa8", "1": "#c2570c"}
# Laid out so that no two arrows cross; the right half is the left half turned by half a circle, with 0 and 1 exchanged.
PLACES = {"000": (105, 215), "001": (185, 95), "100": (185, 335), "010": (228, 215)}
PLACES |= {state.translate(str.maketrans("01", "10")): (PANEL_WIDTH - x, 430 - y) for state, (x, y) in PLACES.items()}


class Svg:
    """A picture as an SVG document, which any browser shows."""

    def __init__(self) -> None:
        self._lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">'
        ]
        self.area([(0, 0), (WIDTH, 0), (WIDTH, HEIGHT), (0, HEIGHT)], WHITE)

    def line(self, points: Sequence[Point], width: float, colour: str) -> None:
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._lines.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="{width:.1f}"/>')

    def area(self, points: Sequence[Point], colour: str) -> None:
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._lines.append(f'<polygon points="{corners}" fill="{colour}"/>')

    def circle(self, centre: Point, colour: str, *, dashed: bool) -> None:
        look = f'fill="{WHITE}" stroke="{colour}" stroke-width="2"' + (' stroke-dasharray="5 4"' if dashed else "")
        self._lines.append(f'<circle cx="{centre[0]:.1f}" cy="{centre[1]:.1f}" r="{RADIUS}" {look}/>')

    def words(self, middle: Point, text: str, size: float, colour: str = BLACK) -> None:
        place = f'x="{middle[0]:.1f}" y="{middle[1]:.1f}" text-anchor="middle" dominant-baseline="central"'
        self._lines.append(f'<text {place} font-size="{size}" fill="{colour}">{escape(text)}</text>')

    def save(self, path: Path) -> None:
        path.write_text("\n".join([*self._lines, "</svg>"]) + "\n", encoding="utf-8")


class Png:
    """The same through matplotlib, at one and a half times the size."""

    def __init__(self) -> None:
        from matplotlib.figure import Figure

        self._figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100))
        self._axes = self._figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(HEIGHT, 0))
        self._axes.set_axis_off()
        self._order = 0  # what is drawn later lies above

    def line(self, points: Sequence[Point], width: float, colour: str) -> None:
        x, y = zip(*points, strict=True)
        self._axes.plot(x, y, linewidth=0.72 * width, color=colour, solid_capstyle="butt", zorder=self._above())

    def area(self, points: Sequence[Point], colour: str) -> None:
        x, y = zip(*points, strict=True)
        self._axes.fill(x, y, color=colour, linewidth=0, zorder=self._above())

    def circle(self, centre: Point, colour: str, *, dashed: bool) -> None:
        from matplotlib.patches import Circle

        look = {"facecolor": WHITE, "edgecolor": colour, "linestyle": (0, (3.5, 2.8)) if dashed else "solid"}
        self._axes.add_patch(Circle(centre, RADIUS, linewidth=1.44, zorder=self._above(), **look))

    def words(self, middle: Point, text: str, size: float, colour: str = BLACK) -> None:
        style = {"color": colour, "horizontalalignment": "center", "verticalalignment": "center"}
        self._axes.text(*middle, text, fontdict=style | {"size": 0.72 * size}, zorder=self._above())

    def save(self, path: Path) -> None:
        self._figure.savefig(path, dpi=150)

    def _above(self) -> int:
        self._order += 1
        return self._order


def draw(canvas: Svg | Png, moments: Sequence[Moment]) -> None:
    """Four moments, two a row, over a legend."""
    for number, moment in enumerate(moments):
        draw_graph(canvas, moment, (number % 2 * PANEL_WIDTH, number // 2 * PANEL_HEIGHT))
    middle, y = WIDTH / 2, HEIGHT - LEGEND_HEIGHT + 15
    for token, x in (("0", middle - 330), ("1", middle - 150)):
        canvas.line([(x - 50, y), (x, y)], 5, COLOURS[token])
        canvas.words((x + 55, y), f"a {token} is added", 16)
    canvas.words((middle + 190, y), "the thicker the arrow, the likelier the token", 16)
    canvas.words((middle, y + 28), "dashed: the text never shows this state, so nothing was taught about it", 16)


def draw_graph(canvas: Svg | Png, moment: Moment, corner: Point) -> None:
    """The eight states and the arrows between them."""
    places = {state: (corner[0] + x, corner[1] + y) for state, (x, y) in PLACES.items()}
    canvas.words((corner[0] + PANEL_WIDTH / 2, corner[1] + 30), moment.title, 22)
    for state, one in moment.chance_of_one.items():
        for token, chance in (("0", 1 - one), ("1", one)):
            if chance > 0:
                draw_arrow(canvas, arrow_path(places[state], places[state[1:] + token]), chance, COLOURS[token])
    seen = counted(TEXT)
    for state, place in places.items():
        canvas.circle(place, BLACK if state in seen else GREY, dashed=state not in seen)
        canvas.words(place, state, 17)


def draw_arrow(canvas: Svg | Png, path: Sequence[Point], chance: float, colour: str) -> None:
    """An arrow along a path from circle to circle. Its width is the probability; its label says the same in percent."""
    width = max(0.7, 8 * chance)
    tip, head_length, half = path[-1], 8 + width, 3.5 + 0.75 * width
    shaft = [point for point in path if math.dist(point, tip) >= head_length]
    x, y = shaft[-1]
    along = ((tip[0] - x) / math.dist(tip, shaft[-1]), (tip[1] - y) / math.dist(tip, shaft[-1]))
    canvas.line(shaft, width, colour)
    canvas.area([tip, (x - half * along[1], y + half * along[0]), (x + half * along[1], y - half * along[0])], colour)
    label = percent(chance)
    x, y = shaft[len(shaft) // 2]
    across, down = 4.8 * len(label) + 4, 10
    canvas.area([(x - across, y - down), (x + across, y - down), (x + across, y + down), (x - across, y + down)], WHITE)
    canvas.words((x, y), label, 15, colour)


def percent(chance: float) -> str:
    """Whole percents; what is nearly never or nearly always is not called 0% or 100%."""
    if 0 < chance < 0.005:
        return "<1%"
    return ">99%" if 0.995 < chance < 1 else f"{chance:.0%}"


def arrow_path(start: Point, end: Point, num_points: int = 120) -> list[Point]:
    """Points from the rim of one circle to that of another, bent to the left; a loop on the outer side if both are one."""
    shares = [n / num_points for n in range(num_points + 1)]
    if start == end:
        side = -1 if start[0] % PANEL_WIDTH < PANEL_WIDTH / 2 else 1
        x, y = start[0] + side * (RADIUS + 16), start[1]
        points = [(x - side * 30 * math.cos(math.tau * t), y - 26 * math.sin(math.tau * t)) for t in shares]
    else:
        bend = 30 / math.dist(start, end)
        x, y = ((a + b) / 2 for a, b in zip(start, end, strict=True))
        via = (x + bend * (end[1] - start[1]), y - bend * (end[0] - start[0]))
        # A quadratic Bezier curve: the way from start to end, drawn towards `via`.
        weights = [((1 - t) ** 2, 2 * t * (1 - t), t**2) for t in shares]
        points = [
            (a * start[0] + b * via[0] + c * end[0], a * start[1] + b * via[1] + c * end[1]) for a, b, c in weights
        ]
    return [point for point in points if math.dist(point, start) >= RADIUS and math.dist(point, end) >= RADIUS]


# ---- All of it ----


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the pictures; it is made if it is not there"
    )
    parser.add_argument("--steps", type=int, default=50, help="training steps before the second picture (50)")
    args = parser.parse_args(arguments)
    if not 1 <= args.steps <= MAX_STEPS:
        parser.error(f"--steps must be from 1 to {MAX_STEPS}, is {args.steps}")
    torch.set_num_threads(1)  # for a model of this size a second thread is more work than it saves
    moments = lesson(args.steps)
    for moment in moments:
        print(text_graph(moment) + "\n")
    print("How likely a 1 comes next:\n\n" + text_table(moments) + "\n")
    try:
        save(args.out, moments)
    except OSError as fault:
        what = fault.filename or args.out
        print(f"{what} cannot be written: {fault.strerror}; name another folder with --out", file=sys.stderr)
        return 5
    return 0


def save(out: Path, moments: Sequence[Moment]) -> None:
    """Writes the picture as SVG, and as PNG where matplotlib is installed."""
    if set(STATES) != set(PLACES):
        print("no picture: it has places for the eight states of a context of three only")
        return
    out.mkdir(parents=True, exist_ok=True)
    canvases: dict[str, Svg | Png] = {"svg": Svg()}
    if importlib.util.find_spec("matplotlib") is not None:
        canvases["png"] = Png()
    for ending, canvas in canvases.items():
        draw(canvas, moments)
        canvas.save(out / f"two_token_gpt.{ending}")
        print(f"saved {out / f'two_token_gpt.{ending}'}")
    if "png" not in canvases:
        print("no PNG: matplotlib is not installed; pip install 'promptgen[train]' brings it")


if __name__ == "__main__":
    sys.exit(main())
