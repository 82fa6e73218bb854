"""Other engines beside ours, on equal work: `python -m bench.peers [--quick] [--save]`.

The work: a prompt of 6 token ids, n candidates of exactly 50 new tokens each, top_k 30, temperature 1, sampling included, on random-weight
GPT-2 models of three shapes. Times are milliseconds until all n candidates are complete. Every engine has processes of its own
(bench/peer/*.py), takes two threads, and all take turns; a process first warms up. Figures are the median of the processes' medians.

Where an engine can be asked in several ways (VARIANTS of ENGINES), a short trial of each decides which one is measured, cell by cell; what was
decided is kept in build/peers/choices.json (--tune decides anew). Environments, converted models and logs are made under build/peers at the first
run, which takes a quarter of an hour and a C++ compiler with cmake (for llama.cpp); --install does only that. What cannot be installed or fails is
listed with its reason. The last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.machine import report
from bench.peer.task import GREEDY_TOKENS

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "build" / "peers"
THREADS = 2
PROCESS_LIMIT_S, CONVERT_LIMIT_S, INSTALL_LIMIT_S = 400, 900, 3600

# What pip installs, by environment, in steps; versions that worked. torch comes first, so that a build for the CPU that is there already is not
# replaced by one for CUDA; optimum-intel comes alone, since it asks for torchvision, which the export of a text model never imports.
PACKAGES: dict[str, tuple[tuple[str, ...], ...]] = {
    "ctranslate2": (("ctranslate2==4.8.5", "numpy>=2"),),
    "openvino": (("openvino-genai==2026.4.1.0", "openvino==2026.4.1", "numpy>=2"),),
    "llama": (("llama-cpp-python==0.3.36", "gguf==0.19.0"),),
    "export": (
        ("torch==2.13.0",),
        ("transformers==5.5.4", "huggingface-hub==1.21.0", "optimum==2.3.0", "requests==2.34.2"),
        ("nncf==3.4.0", "openvino==2026.4.1", "openvino-tokenizers==2026.4.1.0"),
        ("--no-deps", "optimum-intel==2.2.0"),
    ),
}
BUILD_ENVIRON = {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"}


@dataclass(frozen=True, slots=True)
class Shape:
    layers: int
    width: int
    heads: int
    vocabulary: int
    window: int


SHAPES = {
    "tiny": Shape(4, 256, 4, 5000, 256),
    "small": Shape(6, 384, 6, 8192, 256),
    "base": Shape(12, 768, 12, 13317, 512),
}


@dataclass(frozen=True, slots=True)
class Conversion:
    """A model in another engine's format: what makes it, where, and of which type."""

    module: str
    environment: str
    type: str


CONVERSIONS = {
    "ct2-float32": Conversion("ct2_convert", "ctranslate2", "float32"),
    "ct2-int8": Conversion("ct2_convert", "ctranslate2", "int8"),
    "bf16.gguf": Conversion("gguf_convert", "llama", "BF16"),
    "f16.gguf": Conversion("gguf_convert", "llama", "F16"),
    "q8_0.gguf": Conversion("gguf_convert", "llama", "Q8_0"),
    "bf16-words.gguf": Conversion("gguf_convert", "llama", "BF16-words"),
    "q8_0-words.gguf": Conversion("gguf_convert", "llama", "Q8_0-words"),
    "openvino": Conversion("openvino_convert", "export", "float32"),
    "openvino-int8": Conversion("openvino_convert", "export", "int8_asym"),
    "openvino-int8-sym": Conversion("openvino_convert", "export", "int8_sym"),
}


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to run an engine: the model's format (a key of CONVERSIONS, empty for the folder itself), options, environment variables."""

    format: str = ""
    options: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Engine:
    """A row of the table. `environment` is a key of PACKAGES, or empty for promptgen's own."""

    module: str
    environment: str
    precision: str
    variants: Mapping[str, Variant]

    @property
    def is_ours(self) -> bool:
        return self.module == "ours"


def _ours(precision: str, compiler: str) -> Engine:
    options = f"--precision {precision} --compiler '{compiler}' --cache {{place}}/kernels"
    return Engine("ours", "", precision, {"": Variant(options=options)})


def _ct2(precision: str) -> Engine:
    ways = {
        f"{way}{', MKL' if mkl else ''}": Variant(
            f"ct2-{precision}", f"--type {precision} --way {way} --vocabulary {{folder}}", {"CT2_USE_MKL": str(mkl)}
        )
        for way in ("hypotheses", "batch")
        for mkl in (0, 1)
    }
    return Engine("ct2", "ctranslate2", precision, ways)


def _llama(precision: str, formats: Iterable[str]) -> Engine:
    """Flash attention is always on: without it the small shape was slower in every way tried."""
    ways = {
        f"{name}, {'unified' if unified else 'split'}": Variant(f"{name}.gguf", f"--unified {unified} --flash 1")
        for name in formats
        for unified in (1, 0)
    }
    return Engine("llama", "llama", precision, ways)


def _openvino(precision: str, formats: Iterable[str], groups: Iterable[str]) -> Engine:
    ways = {}
    for name in formats:
        for hint in ("bf16",) if precision == "bfloat16" else ("bf16", "f32"):
            for group in groups:
                told = f"--property INFERENCE_PRECISION_HINT={hint}" + (
                    f" --property DYNAMIC_QUANTIZATION_GROUP_SIZE={group}" if group else ""
                )
                title = f"{name}, {hint}" + (f", groups of {group}" if group else "")
                ways[f"{title}, continuous"] = Variant(name, told)
                if not group:
                    ways[f"{title}, stateful"] = Variant(name, f"{told} --way stateful")
    return Engine("openvino_run", "openvino", precision, ways)


ENGINES: dict[str, Engine] = {
    "ours int8": _ours("int8", "auto"),
    "ours bfloat16": _ours("bfloat16", "auto"),
    "ours float32": _ours("float32", "auto"),
    "ours int8, no compiler": _ours("int8", ""),
    "ours float32, no compiler": _ours("float32", ""),
    "transformers float32": Engine(
        "hugging_face",
        "",
        "float32",
        {name: Variant(options=f"--attention {name}") for name in ("sdpa", "eager")},
    ),
    "ctranslate2 float32": _ct2("float32"),
    "ctranslate2 int8": _ct2("int8"),
    "openvino bfloat16": _openvino("bfloat16", ("openvino",), ("",)),
    "openvino int8": _openvino("int8", ("openvino-int8", "openvino-int8-sym"), ("", "0")),
    "llama.cpp bfloat16": _llama("bfloat16", ("bf16", "f16")),
    "llama.cpp q8_0": _llama("int8", ("q8_0",)),
}


class PeerFault(Exception):
    """An engine, a conversion or an installation that does not work; the message is the reason that is listed."""


@dataclass(frozen=True, slots=True)
class Runs:
    """How often each process asks."""

    warm_up: int
    runs: int
    limit_s: float


TRIAL = Runs(1, 3, 2.0)


def main() -> None:
    args = _parser().parse_args()
    runs = Runs(1, 3, 2.0) if args.quick else Runs(3, args.runs, 5.0)
    processes = 1 if args.quick else args.processes
    faults: dict[str, str] = {}
    engines = {name: ENGINES[name] for name in args.engines}
    make_models(args.shapes)
    prepare(engines, args.shapes, faults)
    if args.install:
        print("\n".join(f"{name}: {reason}" for name, reason in faults.items()) or "all engines are installed")
        return
    cells = [(shape, rows) for shape in args.shapes for rows in args.rows]
    usable = {name: engine for name, engine in engines.items() if name not in faults}
    chosen = choose_variants(usable, cells, faults, anew=args.tune)
    measured = measure(chosen, cells, processes, runs, args.minutes * 60, faults)
    figures = {"threads": THREADS, "processes": processes, "runs": runs.runs, "unit": "ms"}
    summary = summarize(measured, cells, chosen)
    print("\n" + table(summary, cells, faults) + "\n")
    figures |= {"engines": summary, "times_faster": ratios(summary, cells), "faults": faults}
    report("peers", figures | {"packages": PACKAGES}, save=args.save)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES), default=list(SHAPES))
    parser.add_argument("--rows", nargs="+", type=int, default=[5, 20], help="numbers of candidates (5 20)")
    parser.add_argument("--engines", nargs="+", choices=tuple(ENGINES), default=list(ENGINES), metavar="ENGINE")
    parser.add_argument("--processes", type=int, default=3, help="fresh processes of each engine and shape (3)")
    parser.add_argument("--runs", type=int, default=7, help="timed answers of each process; fewer of slow engines (7)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no process after so long (no limit)")
    parser.add_argument("--quick", action="store_true", help="one process, three answers")
    parser.add_argument("--tune", action="store_true", help="try all variants of the engines again")
    parser.add_argument("--install", action="store_true", help="make environments and models, measure nothing")
    parser.add_argument("--save", action="store_true", help="keep the figures in bench/results/")
    return parser


# ---- Environments and models ----


def prepare(engines: Mapping[str, Engine], shapes: Sequence[str], faults: dict[str, str]) -> None:
    """Environments and converted models for the engines. What fails stands in `faults` under the engine's name."""
    formats = {name: {v.format for v in engine.variants.values() if v.format} for name, engine in engines.items()}
    needed = {engine.environment for engine in engines.values() if engine.environment}
    needed |= {CONVERSIONS[name].environment for names in formats.values() for name in names}
    broken = make_environments(sorted(needed))
    for name, engine in engines.items():
        reasons = [broken[e] for e in (engine.environment, *_converters(formats[name])) if e in broken]
        try:
            if reasons:
                raise PeerFault(reasons[0])
            for format_name in sorted(formats[name]):
                for shape in shapes:
                    convert(format_name, shape)
        except PeerFault as fault:
            faults[name] = str(fault)


def _converters(formats: Iterable[str]) -> list[str]:
    return [CONVERSIONS[name].environment for name in sorted(formats)]


def make_environments(names: Sequence[str]) -> dict[str, str]:
    """Makes the virtual environments that are not there yet. Returns why, for each that cannot be made."""
    broken: dict[str, str] = {}
    for name in names:
        try:
            _make_environment(name)
        except PeerFault as fault:
            broken[name] = str(fault)
    return broken


def _make_environment(name: str) -> None:
    folder = PLACE / "environments" / name
    done = folder / ".packages"
    packages = PACKAGES[name]
    if done.exists() and done.read_text(encoding="utf-8") == repr(packages):
        return
    print(f"installing {name}", file=sys.stderr)
    run_logged([sys.executable, "-m", "venv", "--clear", str(folder)], f"environment-{name}", INSTALL_LIMIT_S)
    for step in packages:
        command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", *step]
        run_logged(command, f"install-{name}", INSTALL_LIMIT_S, BUILD_ENVIRON)
    done.write_text(repr(packages), encoding="utf-8")


def make_models(shapes: Iterable[str]) -> None:
    for name in shapes:
        folder, shape = PLACE / "models" / name, SHAPES[name]
        if (folder / "vocab.txt").exists():  # written last
            continue
        sizes = (shape.layers, shape.width, shape.heads, shape.vocabulary, shape.window)
        command = [*module_command("make_models", ""), "--out", str(folder), "--shape", *map(str, sizes)]
        run_logged(command, f"model-{name}", CONVERT_LIMIT_S)


def convert(format_name: str, shape: str) -> None:
    """The shape's model in another format, unless it is there. Raises PeerFault."""
    made = converted(format_name, shape)
    if made.exists():
        return
    conversion = CONVERSIONS[format_name]
    made.parent.mkdir(parents=True, exist_ok=True)
    draft = made.with_name(f"draft-{os.getpid()}-{made.name}")
    model = str(PLACE / "models" / shape)
    command = [*module_command(conversion.module, conversion.environment), "--model", model]
    run_logged(
        [*command, "--out", str(draft), "--type", conversion.type], f"convert-{shape}-{format_name}", CONVERT_LIMIT_S
    )
    draft.rename(made)


def converted(format_name: str, shape: str) -> Path:
    return PLACE / "converted" / shape / format_name


def module_command(name: str, environment: str) -> list[str]:
    python = PLACE / "environments" / environment / "bin" / "python" if environment else Path(sys.executable)
    return [str(python), "-m", f"bench.peer.{name}"]


def run_logged(command: Sequence[str], log: str, limit_s: float, environ: Mapping[str, str] | None = None) -> str:
    """What the command printed. Its errors go to a log file; raises PeerFault with their last line if it fails."""
    file = PLACE / "logs" / f"{log}.log"
    file.parent.mkdir(parents=True, exist_ok=True)
    settings = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(THREADS), **os.environ, **(environ or {})}
    with file.open("w", encoding="utf-8") as errors:
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=settings, stdout=subprocess.PIPE, stderr=errors, text=True, timeout=limit_s
            )
        except subprocess.TimeoutExpired as fault:
            raise PeerFault(f"{log}: took longer than {limit_s:.0f} s") from fault
    if done.returncode:
        with file.open("a", encoding="utf-8") as errors:
            errors.write(done.stdout)
        told = file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise PeerFault(f"{log}: ended with {done.returncode}: {_telling(told)}")
    return done.stdout


def _telling(lines: Sequence[str]) -> str:
    """The last line of an error that says what went wrong."""
    named = [line.strip() for line in lines if "error" in line.lower()]
    return (named or [*lines, "no message"])[-1].strip()[:300]


# ---- Measuring ----

Cell = tuple[str, int]  # shape, number of candidates
Chosen = dict[str, dict[Cell, str]]  # engine -> cell -> variant


def ask(name: str, variant: str, shape: str, rows: Sequence[int], runs: Runs) -> list[dict[str, Any]]:
    """One process of an engine: its JSON lines, one for each number of candidates. Raises PeerFault."""
    engine, way = ENGINES[name], ENGINES[name].variants[variant]
    folder = PLACE / "models" / shape
    model = converted(way.format, shape) if way.format else folder
    options = shlex.split(way.options.format(place=PLACE, folder=folder))
    command = [*module_command(engine.module, engine.environment), "--engine", name, "--model", str(model)]
    command += ["--rows", *map(str, rows), "--threads", str(THREADS), "--limit", str(runs.limit_s)]
    command += ["--warm-up", str(runs.warm_up), "--runs", str(runs.runs), *options]
    log = "run-" + "".join(c if c.isalnum() else "-" for c in f"{name} {variant} {shape}")
    told = [
        json.loads(line)
        for line in run_logged(command, log, PROCESS_LIMIT_S, way.environ).splitlines()
        if line[:1] == "{"
    ]
    if [line["rows"] for line in told] != list(rows):
        raise PeerFault(f"{log}: gave no figures")
    return told


def choose_variants(
    engines: Mapping[str, Engine], cells: Sequence[Cell], faults: dict[str, str], *, anew: bool
) -> Chosen:
    """The fastest variant of each engine for each cell, from an earlier trial or from one now."""
    file = PLACE / "choices.json"
    known: dict[str, str] = {}
    if file.exists() and not anew:
        known = json.loads(file.read_text(encoding="utf-8"))
    chosen: Chosen = {}
    for name, engine in tqdm(engines.items(), desc="choosing", leave=False, disable=None):
        try:
            chosen[name] = _choose(name, engine, cells, known)
        except PeerFault as fault:
            faults[name] = str(fault)
        file.write_text(json.dumps(known, indent=1), encoding="utf-8")
    return chosen


def _choose(name: str, engine: Engine, cells: Sequence[Cell], known: dict[str, str]) -> dict[Cell, str]:
    if len(engine.variants) == 1:
        return dict.fromkeys(cells, next(iter(engine.variants)))
    digest = hashlib.sha256(repr((engine, PACKAGES)).encode()).hexdigest()[:8]
    keys = {cell: f"{name} {digest} {cell[0]} {cell[1]}" for cell in cells}
    for shape in dict.fromkeys(shape for shape, _ in cells):
        missing = [rows for s, rows in cells if s == shape and keys[s, rows] not in known]
        if missing:
            known |= {keys[shape, rows]: best for rows, best in _trial(name, engine, shape, missing).items()}
    return {cell: known[key] for cell, key in keys.items()}


def _trial(name: str, engine: Engine, shape: str, rows: Sequence[int]) -> dict[int, str]:
    """The variant with the fastest answer for each number of candidates: of so few, the least is less noise than the median.

    Raises PeerFault if every variant fails.
    """
    times: dict[int, dict[str, float]] = {number: {} for number in rows}
    reasons: list[str] = []
    for variant in engine.variants:
        try:
            for line in ask(name, variant, shape, rows, TRIAL):
                times[line["rows"]][variant] = min(line["ms"])
        except PeerFault as fault:
            reasons.append(str(fault))
    if not all(times.values()):
        raise PeerFault(reasons[0])
    told = {number: {v: round(ms, 1) for v, ms in sorted(t.items(), key=lambda x: x[1])} for number, t in times.items()}
    print(f"trial of {name}, {shape}: {told} {' '.join(reasons)}", file=sys.stderr)
    return {number: min(by_variant, key=lambda v: by_variant[v]) for number, by_variant in times.items()}


def measure(
    chosen: Chosen, cells: Sequence[Cell], processes: int, runs: Runs, limit_s: float, faults: dict[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """The lines of all processes, by engine. The engines take turns; each round begins with another.

    No process is started once `limit_s` seconds have gone by.
    """
    started = time.monotonic()
    lines: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    todo = list(_processes(chosen, cells, processes))
    for name, variant, shape, rows in tqdm(todo, desc="measuring", leave=False, disable=None):
        if time.monotonic() - started > limit_s:
            break
        if name in faults:
            continue
        try:
            told = ask(name, variant, shape, rows, runs)
        except PeerFault as fault:
            faults[name] = str(fault)
            continue
        lines[name] += [line | {"shape": shape} for line in told]
        figures = ", ".join(f"{line['rows']}: {statistics.median(line['ms']):.1f}" for line in told)
        print(f"{name}, {shape}: {figures}", file=sys.stderr)
    return lines


def _processes(chosen: Chosen, cells: Sequence[Cell], processes: int) -> Iterator[tuple[str, str, str, list[int]]]:
    """Engine, variant, shape and numbers of candidates of each process, in order."""
    names = list(chosen)
    for number in range(processes):
        for shape in dict.fromkeys(shape for shape, _ in cells):
            first = number * len(names) // processes
            for name in [*names[first:], *names[:first]]:
                by_variant: dict[str, list[int]] = {}
                for cell in cells:
                    if cell[0] == shape:
                        by_variant.setdefault(chosen[name][cell], []).append(cell[1])
                for variant, rows in by_variant.items():
                    yield name, variant, shape, rows


# ---- Figures ----


def summarize(
    measured: Mapping[str, Sequence[dict[str, Any]]], cells: Sequence[Cell], chosen: Chosen
) -> dict[str, dict[str, Any]]:
    """By engine and cell: the median of the processes' medians, the least and the greatest of them, and the variant."""
    exact = {line["shape"]: line["greedy"] for line in measured.get("transformers float32", ())}
    summary: dict[str, dict[str, Any]] = {}
    for name, lines in measured.items():
        summary[name] = {"precision": ENGINES[name].precision, "greedy_equal": _equal_tokens(lines, exact)}
        for shape, rows in cells:
            medians = [
                statistics.median(line["ms"]) for line in lines if (line["shape"], line["rows"]) == (shape, rows)
            ]
            if medians:
                summary[name][_title((shape, rows))] = {
                    "ms": round(statistics.median(medians), 2),
                    "least": round(min(medians), 2),
                    "greatest": round(max(medians), 2),
                    "processes": len(medians),
                    "variant": chosen[name][shape, rows],
                }
    return summary


def _equal_tokens(lines: Sequence[dict[str, Any]], exact: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """How many greedy tokens from the first on are transformers' own, by shape: a check of the conversion, not of quality."""
    equal: dict[str, str] = {}
    for line in lines:
        if line["shape"] in exact:
            pairs = list(zip(line["greedy"], exact[line["shape"]], strict=False))
            same = next((n for n, (a, b) in enumerate(pairs) if a != b), len(pairs))
            equal[line["shape"]] = f"{same} of {GREEDY_TOKENS}"
    return equal


def ratios(summary: Mapping[str, Mapping[str, Any]], cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """How many times faster than the best peer our best is, by cell and as geometric mean: over all precisions, then within each."""
    precisions = sorted({str(row["precision"]) for row in summary.values()})
    wanted = {"any precision": set(precisions)} | {precision: {precision} for precision in precisions}
    return {label: found for label, group in wanted.items() if (found := _ratios(summary, cells, group))}


def _ratios(summary: Mapping[str, Mapping[str, Any]], cells: Sequence[Cell], group: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for title in map(_title, cells):
        rows = {name: row[title]["ms"] for name, row in summary.items() if title in row and row["precision"] in group}
        ours = min((ms for name, ms in rows.items() if ENGINES[name].is_ours), default=None)
        peers = {ms: name for name, ms in rows.items() if not ENGINES[name].is_ours}
        if ours and peers:
            found[title] = {"times": round(min(peers) / ours, 2), "peer": peers[min(peers)]}
    if found:
        found["geometric_mean"] = round(math.prod(cell["times"] for cell in found.values()) ** (1 / len(found)), 2)
    return found


def table(summary: Mapping[str, Mapping[str, Any]], cells: Sequence[Cell], faults: Mapping[str, str]) -> str:
    """Milliseconds for all candidates, half the range of the processes' medians behind them, then the ratios, then what failed."""
    titles = list(map(_title, cells))
    lines = [f"{'':30}" + "".join(f"{title:>16}" for title in titles)]
    for name, row in summary.items():
        lines.append(f"{name:30}" + "".join(f"{_shown(row.get(title)):>16}" for title in titles))
    for label, found in ratios(summary, cells).items():
        times = "".join(f"{found[title]['times'] if title in found else '-':>16}" for title in titles)
        lines.append(f"{'best peer/ours, ' + label:30}{times}   geometric mean {found['geometric_mean']}")
    lines += [f"not measured: {name}: {reason}" for name, reason in faults.items()]
    return "\n".join(lines)


def _shown(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "-"
    return f"{cell['ms']:.1f} ±{(cell['greatest'] - cell['least']) / 2 / cell['ms']:.0%}"


def _title(cell: Cell) -> str:
    return f"{cell[0]} {cell[1]}"


if __name__ == "__main__":
    main()
