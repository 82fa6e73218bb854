"""Suggestions at the speed of typing: `python -m bench.typing [TEXT] [--quick] [--save]`.

TEXT has a held-out prompt a line (build/corpus/prompts.valid.txt after `make model`), or is a prepared folder. Three parts:

    typing    people type these prompts over one AsyncEngine (bench/traces.py); each keystroke asks for five candidates of 15 tokens and
              supersedes the one before. Once with pauses as people make them, and for one person without. Nothing kept from one
              keystroke for the next (`nothing`), what was computed for prompts (`prefix`), or for prompts and candidates (`session`)
    healing   prompts cut at every character: is the true next word among the five? Are all five different? (bench/healing.py)
    peers     other engines on the keystrokes of one person without pauses (bench/typing_peers.py)

Times run from when a key is due, so a late event loop counts. `first` is until the first piece of a suggestion, `all` until all five are complete, over
the keystrokes that were answered; `all95+` is the 95th percentile when those that were superseded count as never answered ("-" if that is where it
falls). What is counted: bench/counting.py; `of nothing` is the computed tokens beside those of calls from scratch. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal, get_args

import promptgen
from bench.counting import Meter
from bench.healing import measure_healing
from bench.machine import percentile, report
from bench.traces import Keystroke, counts, first_keystrokes, make_traces, read_prompts
from bench.typing_peers import install, measure_peers
from promptgen.config import DEFAULT_MODEL, EngineSettings
from promptgen.errors import Overloaded, Superseded
from promptgen.generation.async_engine import AsyncEngine
from promptgen.generation.candidates import Piece
from promptgen.generation.request import Answer, Sampling

TEXT = Path("build/corpus/prompts.valid.txt")
SAMPLES, TOKENS = 5, 15
WARM_UP = 20  # keystrokes
MOST_IDLE = 3000  # fiftieths of a second
COLUMNS = ("first50", "first95", "all50", "all95", "all99", "all95+", "superseded", "computed", "shared", "of nothing", "found",
           "recalled", "wasted", "step_ms")  # fmt: skip
Reuse = Literal["nothing", "prefix", "session"]
Row = dict[str, Any]


def main() -> None:
    args = _parser().parse_args()
    if args.install:
        print("\n".join(f"{name}: {reason}" for name, reason in install(args.model).items()) or "all peers are there")
        return
    prompts = read_prompts(args.text, args.seed)
    settings = EngineSettings(
        model=args.model, precision=args.precision, threads=args.threads, prompt_slots=args.prompt_slots
    )
    task = Task(prompts, args.seed, 5.0 if args.quick else args.seconds, 100 if args.quick else args.keystrokes)
    figures: Row = {"model": args.model.name, "samples": SAMPLES, "tokens": TOKENS, "seed": args.seed, "unit": "ms"}
    if "typing" in args.parts:
        figures |= asyncio.run(measure_typing(settings, task, args.people, args.reuse))
        print(table(figures["typing"]) + "\n")
    if "healing" in args.parts:
        figures["healing"] = measure_healing(settings, prompts[: 20 if args.quick else args.prompts], args.seed)
        for name, row in figures["healing"].items():
            print(f"{name:24} {row}")
    if "peers" in args.parts:
        trace = first_keystrokes(prompts, args.seed, task.keystrokes)
        figures["peers"] = measure_peers(args.model, trace, 1 if args.quick else args.processes, args.seed)
    report("typing", figures, save=args.save)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, nargs="?", default=TEXT)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--prompt-slots", type=int, default=EngineSettings().prompt_slots)
    parser.add_argument("--parts", nargs="+", choices=("typing", "healing", "peers"), default=["typing", "healing"])
    parser.add_argument("--people", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--reuse", nargs="+", choices=get_args(Reuse), default=list(get_args(Reuse)))
    parser.add_argument("--seconds", type=float, default=60, help="of each run with pauses (60)")
    parser.add_argument("--keystrokes", type=int, default=400, help="of each run without (400)")
    parser.add_argument("--prompts", type=int, default=300, help="that are cut at every character (300)")
    parser.add_argument("--processes", type=int, default=3, help="fresh processes of each peer (3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="5 seconds, 100 keystrokes, 20 prompts, one process")
    parser.add_argument("--install", action="store_true", help="make environments and models of the peers, no more")
    parser.add_argument("--save", action="store_true", help="keep the figures in bench/results/")
    return parser


@dataclass(frozen=True, slots=True)
class Task:
    """What is typed: for so many seconds with pauses, so many keystrokes without."""

    prompts: Sequence[str]
    seed: int
    seconds: float
    keystrokes: int


@dataclass(slots=True)
class Outcome:
    """Milliseconds from a keystroke to its first piece and to its answer; None for what never came."""

    first_ms: float | None = None
    all_ms: float | None = None


async def measure_typing(settings: EngineSettings, task: Task, people: Sequence[int], reuse: Sequence[Reuse]) -> Row:
    """Every cell of the table, by how many type, then by what is reused."""
    bench = await Bench.start(settings, task.seed)
    rows: dict[str, dict[str, Row]] = {}
    told: dict[str, Row] = {}
    for number, has_pauses in [(1, False)] * (1 in people) + [(number, True) for number in people]:
        title = f"{number} person{'s' * (number > 1)}" + ("" if has_pauses else ", no pauses")
        traces = make_traces(task.prompts, number, task.seed, seconds=task.seconds)
        traces = traces if has_pauses else [first_keystrokes(task.prompts, task.seed, task.keystrokes)]
        told[title] = counts([key for trace in traces for key in trace])
        rows[title] = {}
        for way in reuse:
            print(f"{title}, {way}", file=sys.stderr)
            rows[title][way] = await bench.run(traces, way, has_pauses=has_pauses)
        from_scratch = rows[title].get("nothing", {}).get("computed")
        for row in rows[title].values():
            row["of nothing"] = round(row["computed"] / from_scratch, 3) if from_scratch else None
    steps = bench.engine.stats.steps
    await bench.engine.stop()
    return {"step": steps, "prompt_slots": bench.num_slots, "traces": told, "typing": rows}


class Bench:
    """One engine, and the people who type over it."""

    def __init__(self, engine: AsyncEngine, seed: int) -> None:
        assert engine._model is not None
        self.engine = engine
        self._meter = Meter(engine._model.engine)
        self.num_slots = engine._model.engine.num_prompt_slots
        self._sampling = engine._model.info.sampling
        self._seed = seed
        self._numbers = count()

    @classmethod
    async def start(cls, settings: EngineSettings, seed: int) -> Bench:
        engine = AsyncEngine(settings)
        await engine.start()
        await engine.settled()
        return cls(engine, seed)

    async def run(self, traces: Sequence[Sequence[Keystroke]], reuse: Reuse, *, has_pauses: bool) -> Row:
        """Every person types a trace. Figures over all keystrokes."""
        for key in traces[0][:WARM_UP]:
            await self._ask(key.text, 0, reuse, f"warm {next(self._numbers)}", time.perf_counter(), Outcome())
        await self._idle()
        self._meter.restart()
        salt = f"run {next(self._numbers)}"
        begin = time.perf_counter()
        typing = self._type if has_pauses else self._type_at_once
        people = [typing(trace, person, reuse, salt, begin) for person, trace in enumerate(traces)]
        outcomes = [outcome for own in await asyncio.gather(*people) for outcome in own]
        await self._idle()
        return summarize(outcomes) | self._meter.counts.figures(len(outcomes))

    async def _type(
        self, trace: Sequence[Keystroke], person: int, reuse: Reuse, salt: str, begin: float
    ) -> list[Outcome]:
        """Each keystroke asks when it is due, whether or not the one before has its answer."""
        due = begin
        tasks: list[asyncio.Task[None]] = []
        outcomes: list[Outcome] = []
        for key in trace:
            due += key.gap_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if tasks and reuse != "session":
                tasks[-1].cancel()  # without a session the caller hangs up
            outcomes.append(Outcome())
            tasks.append(asyncio.create_task(self._ask(key.text, person, reuse, salt, due, outcomes[-1])))
        await asyncio.gather(*tasks, return_exceptions=True)
        faults = [task.exception() for task in tasks if not task.cancelled()]
        if fault := next((fault for fault in faults if fault is not None), None):
            raise fault
        return outcomes

    async def _type_at_once(
        self, trace: Sequence[Keystroke], person: int, reuse: Reuse, salt: str, begin: float
    ) -> list[Outcome]:
        """Each keystroke comes when the one before has its answer."""
        outcomes = [Outcome() for _ in trace]
        for key, outcome in zip(trace, outcomes, strict=True):
            await self._ask(key.text, person, reuse, salt, time.perf_counter(), outcome)
        return outcomes

    async def _ask(self, text: str, person: int, reuse: Reuse, salt: str, due: float, outcome: Outcome) -> None:
        request = promptgen.TextRequest(
            text,
            SAMPLES,
            TOKENS,
            _seeded(self._sampling, self._seed * 100_003 + person),
            salt=f"{salt} {next(self._numbers)}" if reuse == "nothing" else salt,
            session=f"person {person}" if reuse == "session" else "",
        )
        with contextlib.suppress(Superseded, Overloaded):
            async with contextlib.aclosing(self.engine.stream(request)) as deltas:
                async for delta in deltas:
                    if isinstance(delta, Piece) and outcome.first_ms is None:
                        outcome.first_ms = (time.perf_counter() - due) * 1000
                    elif isinstance(delta, Answer):
                        outcome.all_ms = (time.perf_counter() - due) * 1000

    async def _idle(self) -> None:
        """Until the engine has carried out every command and runs nothing."""
        quiet = 0
        for _ in range(MOST_IDLE):
            await asyncio.sleep(0.02)
            stats = self.engine.stats
            quiet = 0 if stats.num_rows or stats.num_waiting or self.engine.num_active else quiet + 1
            if quiet == 3:  # commands that were on their way have been carried out
                return
        raise RuntimeError("the engine is still at work long after the last keystroke")


def _seeded(sampling: Sampling, seed: int) -> Sampling:
    return sampling.with_(seed=seed)


def summarize(outcomes: Sequence[Outcome]) -> Row:
    """Percentiles and the share that was superseded. An answer of nothing but the end of a document has no first piece."""
    answered = [outcome for outcome in outcomes if outcome.all_ms is not None]
    firsts = [outcome.first_ms for outcome in answered if outcome.first_ms is not None]
    alls = [outcome.all_ms for outcome in answered if outcome.all_ms is not None]
    row: Row = {"keystrokes": len(outcomes)}
    for name, times in (("first", firsts), ("all", alls)):
        for share in (50, 95, 99):
            row[f"{name}{share}"] = round(percentile(times, share / 100), 2) if times else None
    late = percentile([*alls, *(math.inf for _ in range(len(outcomes) - len(alls)))], 0.95)
    row["all95+"] = round(late, 2) if math.isfinite(late) else None
    row["superseded"] = round(1 - len(answered) / len(outcomes), 4)
    return row


def table(rows: dict[str, dict[str, Row]]) -> str:
    lines = [f"{'':32}" + "".join(f"{column:>11}" for column in COLUMNS)]
    for title, by_way in rows.items():
        for way, row in by_way.items():
            cells = ("-" if row[column] is None else row[column] for column in COLUMNS)
            lines.append(f"{title + ', ' + way:32}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
