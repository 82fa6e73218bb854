"""Many callers at once, beside engines that batch: `python -m bench.throughput [--shape small] [--callers 1 8 32 128] [--save]`.

Each caller asks for 5 candidates of 15 new tokens and asks again as soon as it has them. Tokens per second of all callers together and milliseconds of
an answer (p50, p95), on one of bench.peers' models of random weights. Every engine has processes of its own (bench/peer/crowd_*.py) with two threads;
they take turns, and the figures are the medians of the processes. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.machine import percentile, report
from bench.peers import (
    CONVERSIONS,
    PLACE,
    SHAPES,
    THREADS,
    PeerFault,
    convert,
    converted,
    make_environments,
    make_models,
    module_command,
    run_logged,
)

CALLERS = (1, 8, 32, 128)
Row = dict[str, float]
Table = dict[str, dict[int, Row]]


@dataclass(frozen=True, slots=True)
class Engine:
    """A script, its environment ("" is promptgen's), the model's format ("" is the folder itself), options."""

    module: str
    environment: str = ""
    format: str = ""
    options: str = ""

    @property
    def is_ours(self) -> bool:
        return self.module == "crowd_ours"


OURS = f"--precision {{}} --cache {shlex.quote(str(PLACE / 'kernels'))}"
ENGINES = {
    "ours int8": Engine("crowd_ours", options=OURS.format("int8")),
    "ours bfloat16": Engine("crowd_ours", options=OURS.format("bfloat16")),
    **{
        f"openvino {name}": Engine("crowd_openvino", "openvino", form, f"--property INFERENCE_PRECISION_HINT={hint}")
        for name, form, hint in (
            ("int8", "openvino-int8", "bf16"),
            ("int8, f32", "openvino-int8", "f32"),
            ("int8 symmetric", "openvino-int8-sym", "bf16"),
            ("bfloat16", "openvino", "bf16"),
        )
    },
    "llama.cpp q8_0": Engine("crowd_llama", "llama", "q8_0.gguf"),
    "llama.cpp bfloat16": Engine("crowd_llama", "llama", "bf16.gguf"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="small")
    parser.add_argument("--callers", type=int, nargs="+", default=list(CALLERS))
    parser.add_argument("--seconds", type=float, default=6.0, help="of each number of callers (6)")
    parser.add_argument("--processes", type=int, default=2, help="fresh processes of each engine (2)")
    parser.add_argument("--engines", nargs="+", choices=tuple(ENGINES), default=list(ENGINES), metavar="ENGINE")
    parser.add_argument("--save", action="store_true", help="keep the figures in bench/results/")
    args = parser.parse_args()
    engines = {name: ENGINES[name] for name in args.engines}
    faults = prepare(engines, args.shape)
    told = measure(engines, args.shape, args.callers, args.seconds, args.processes, faults)
    rows = {name: summarize(lines, args.callers) for name, lines in told.items() if lines}
    ratios = times_faster(rows, args.callers)
    print("\n" + table(rows, ratios, args.callers, faults) + "\n")
    figures = {"shape": args.shape, "threads": THREADS, "processes": args.processes, "engines": rows}
    report("throughput", figures | {"times_faster": ratios, "faults": faults}, save=args.save)


def prepare(engines: Mapping[str, Engine], shape: str) -> dict[str, str]:
    """Model, environments and conversions. Gives the reasons of those that cannot be measured."""
    make_models([shape])
    wanted = {name: {engine.environment} | _converter(engine) for name, engine in engines.items()}
    broken = make_environments(sorted(set().union(*wanted.values()) - {""}))
    faults: dict[str, str] = {}
    for name, engine in engines.items():
        try:
            if reasons := [broken[e] for e in wanted[name] if e in broken]:
                raise PeerFault(reasons[0])
            if engine.format:
                convert(engine.format, shape)
        except PeerFault as fault:
            faults[name] = str(fault)
    return faults


def _converter(engine: Engine) -> set[str]:
    return {CONVERSIONS[engine.format].environment} if engine.format else set()


def measure(
    engines: Mapping[str, Engine],
    shape: str,
    callers: Sequence[int],
    seconds: float,
    processes: int,
    faults: dict[str, str],
) -> dict[str, list[dict[str, Any]]]:
    """The lines of each engine's processes. Engines take turns; whoever fails is not asked again."""
    told: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
    for _ in range(processes):
        for name, engine in engines.items():
            if name in faults:
                continue
            model = converted(engine.format, shape) if engine.format else PLACE / "models" / shape
            command = [*module_command(engine.module, engine.environment), "--engine", name, "--model", str(model)]
            command += ["--callers", *map(str, callers), "--seconds", str(seconds), "--threads", str(THREADS)]
            log = "crowd-" + "".join(c if c.isalnum() else "-" for c in f"{name} {shape}")
            limit_s = 60 + len(callers) * (seconds + 60)
            try:
                printed = run_logged([*command, *shlex.split(engine.options)], log, limit_s)
                lines = [json.loads(line) for line in printed.splitlines() if line[:1] == "{"]
                if [line["callers"] for line in lines] != list(callers):
                    raise PeerFault(f"{log}: gave no figures")
            except PeerFault as fault:
                faults[name] = str(fault)
                continue
            told[name] += lines
            print(name, *(f"{line['callers']}: {line['tokens_per_s']:.0f}" for line in lines), file=sys.stderr)
    return told


def summarize(lines: Sequence[Mapping[str, Any]], callers: Sequence[int]) -> dict[int, Row]:
    """By number of callers: medians over the processes."""
    rows = {}
    for number in callers:
        mine = [line for line in lines if line["callers"] == number and line["ms"]]
        if mine:
            rows[number] = {
                "tokens_per_s": round(statistics.median(line["tokens_per_s"] for line in mine)),
                "p50": round(statistics.median(percentile(line["ms"], 0.5) for line in mine), 1),
                "p95": round(statistics.median(percentile(line["ms"], 0.95) for line in mine), 1),
            }
    return rows


def times_faster(rows: Table, callers: Sequence[int]) -> dict[str, dict[str, Any]]:
    """By number of callers: our tokens per second over those of the best peer, and the lowest p95 of a peer over ours."""
    found = {}
    for number in callers:
        ours = {name: row[number] for name, row in rows.items() if ENGINES[name].is_ours and number in row}
        peers = {name: row[number] for name, row in rows.items() if not ENGINES[name].is_ours and number in row}
        if ours and peers:
            best = max(ours.values(), key=lambda row: row["tokens_per_s"])
            name = max(peers, key=lambda name: peers[name]["tokens_per_s"])
            quickest = min(row["p95"] for row in peers.values())
            found[str(number)] = {
                "tokens_per_s": round(best["tokens_per_s"] / peers[name]["tokens_per_s"], 2),
                "p95": round(quickest / best["p95"], 2),
                "peer": name,
            }
    return found


def table(rows: Table, ratios: Mapping[str, Any], callers: Sequence[int], faults: Mapping[str, str]) -> str:
    lines = [f"{'tokens/s (p50, p95 ms)':24}" + "".join(f"{f'{number} callers':>26}" for number in callers)]
    for name, row in rows.items():
        shown = [
            f"{row[n]['tokens_per_s']:.0f} ({row[n]['p50']:.0f}, {row[n]['p95']:.0f})" if n in row else "-"
            for n in callers
        ]
        lines.append(f"{name:24}" + "".join(f"{cell:>26}" for cell in shown))
    lines += [
        f"{number} callers: {found['tokens_per_s']} times the tokens of the best peer ({found['peer']}); lowest p95 of a peer over ours: {found['p95']}"
        for number, found in ratios.items()
    ]
    return "\n".join(lines + [f"not measured: {name}: {reason}" for name, reason in faults.items()])


if __name__ == "__main__":
    main()
