"""Other engines while someone types: `measure_peers`, a part of `python -m bench.typing --parts peers`.

One person's keystrokes without pauses; for each, five candidates of at most 15 tokens from the same model, drawn with the same settings, each engine with
whatever it keeps from one keystroke to the next. Ids go into the peers ready made; ours takes text, heals it, and gives out five different texts in
order. Every engine has processes of its own (bench/peer/typing_*.py) with two threads; they take turns. llama-server is built from the sources that
come with llama-cpp-python. Environments and converted models are those of bench.peers, under build/peers.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import statistics
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.machine import percentile
from bench.peers import (
    CONVERSIONS,
    INSTALL_LIMIT_S,
    PACKAGES,
    PLACE,
    PROCESS_LIMIT_S,
    THREADS,
    PeerFault,
    convert,
    converted,
    make_environments,
    module_command,
    run_logged,
)
from bench.traces import Keystroke
from promptgen.generation.modelfile import read_sampling
from promptgen.text.tokenizer import load_tokenizer

SAMPLES, TOKENS, WARM_UP = 5, 15, 20
SERVER = PLACE / "llama-server" / "bin" / "llama-server"
LLAMA = next(name for step in PACKAGES["llama"] for name in step if name.startswith("llama-cpp-python"))
SERVER_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF"
)
SERVER_OPTIONS += (
    " -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF"
)


@dataclass(frozen=True, slots=True)
class Peer:
    """A row of the table: script, environment ("" is promptgen's), the model's format ("" is the folder itself), options."""

    module: str
    environment: str = ""
    format: str = ""
    options: str = ""

    @property
    def is_ours(self) -> bool:
        return self.module == "typing_ours"


PEERS = {
    "ours": Peer("typing_ours"),
    "ours, prefix alone": Peer("typing_ours", options="--reuse prefix"),
    "ours, nothing kept": Peer("typing_ours", options="--reuse nothing"),
    "ours, HTTP": Peer("typing_ours", options="--way http"),
}
for _name, _format, _hint in (
    ("int8", "openvino-int8", "bf16"),
    ("int8, f32", "openvino-int8", "f32"),
    ("int8 symmetric", "openvino-int8-sym", "bf16"),
    ("bfloat16", "openvino", "bf16"),
):
    PEERS[f"openvino {_name}"] = Peer(
        "typing_openvino", "openvino", _format, f"--property INFERENCE_PRECISION_HINT={_hint}"
    )
for _format in ("q8_0", "bf16"):
    PEERS[f"llama.cpp {_format}"] = Peer("typing_llama", "llama", f"{_format}-words.gguf")
    for _way in ("together", "calls"):
        _options = f"--way {_way} --server {SERVER}"
        PEERS[f"llama-server {_format}, {_way}"] = Peer("typing_server", "", f"{_format}-words.gguf", _options)


def install(model: Path) -> dict[str, str]:
    """Makes whatever the engines need. Returns why not, for those that lack something."""
    broken = make_environments(sorted({e for p in PEERS.values() for e in _environments(p)}))
    shape, faults = _shape(model), {}
    for name, peer in PEERS.items():
        try:
            if reasons := [broken[e] for e in _environments(peer) if e in broken]:
                raise PeerFault(reasons[0])
            if peer.module == "typing_server":
                _make_server()
            if peer.format:
                convert(peer.format, shape)
        except PeerFault as fault:
            faults[name] = str(fault)
    return faults


def measure_peers(model: Path, trace: Sequence[Keystroke], processes: int, seed: int) -> dict[str, Any]:
    """Milliseconds a keystroke of each engine: median and 95th percentile, medians over its processes."""
    faults = install(model)
    task = PLACE / "typing.json"
    task.write_text(json.dumps(make_task(model, trace, seed), ensure_ascii=False), encoding="utf-8")
    names = [name for name in PEERS if name not in faults]
    lines: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    order = [name for n in range(processes) for name in _turned(names, n * len(names) // processes)]
    for name in tqdm(order, desc="peers", leave=False, disable=None):
        if name in faults:
            continue
        try:
            lines[name].append(_ask(name, model, task))
            print(f"{name}: {statistics.median(lines[name][-1]['ms']):.1f}", file=sys.stderr)
        except PeerFault as fault:
            faults[name] = str(fault)
    rows = {name: summarize(told) for name, told in lines.items() if told}
    figures = {"threads": THREADS, "processes": processes, "keystrokes": len(trace) - WARM_UP, "engines": rows}
    figures |= {"times_faster": best_ratio(rows), "faults": faults}
    print(table(rows, figures["times_faster"], faults) + "\n")
    return figures


def make_task(model: Path, trace: Sequence[Keystroke], seed: int) -> dict[str, Any]:
    """The file that the scripts read (bench/peer/typing_task.py). The first keystrokes are for warming up."""
    tokenizer, sampling = load_tokenizer(model), read_sampling(model)
    keys = [(key.text, [tokenizer.begin_id, *tokenizer.encode(key.text)]) for key in trace]
    return {
        "warm_up": keys[:WARM_UP],
        "keys": keys[WARM_UP:],
        "samples": SAMPLES,
        "tokens": TOKENS,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "end_id": tokenizer.end_id,
        "seed": seed + 1,
        "threads": THREADS,
    }


def summarize(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of an engine's processes."""
    medians = [statistics.median(line["ms"]) for line in told]
    candidates = sum(sum(line["candidates"]) for line in told)
    return {
        "p50": round(statistics.median(medians), 2),
        "least": round(min(medians), 2),
        "greatest": round(max(medians), 2),
        "p95": round(statistics.median(percentile(line["ms"], 0.95) for line in told), 2),
        "mean": round(statistics.median(statistics.mean(line["ms"]) for line in told), 2),
        "tokens": round(sum(sum(line["tokens"]) for line in told) / candidates, 2),
    }


def best_ratio(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """How many times fewer milliseconds ours takes than the best peer, by median and by mean; over HTTP against the best server."""
    found: dict[str, Any] = {}
    for label, ours, is_server in (("ours", "ours", False), ("ours, HTTP", "ours, HTTP", True)):
        peers = {
            name: row
            for name, row in rows.items()
            if not PEERS[name].is_ours and (PEERS[name].module == "typing_server" or not is_server)
        }
        if ours in rows and peers:
            for key in ("p50", "mean"):
                best = min(peers, key=lambda name: float(peers[name][key]))
                found[f"{label}, {key}"] = {"times": round(peers[best][key] / rows[ours][key], 2), "peer": best}
    return found


def table(rows: Mapping[str, Mapping[str, Any]], ratios: Mapping[str, Any], faults: Mapping[str, str]) -> str:
    columns = ("p50", "least", "greatest", "p95", "mean", "tokens")
    lines = [f"{'milliseconds a keystroke':32}" + "".join(f"{column:>10}" for column in columns)]
    lines += [f"{name:32}" + "".join(f"{row[column]:>10}" for column in columns) for name, row in rows.items()]
    lines += [f"best peer over {label}: {found['times']} ({found['peer']})" for label, found in ratios.items()]
    lines += [f"not measured: {name}: {reason}" for name, reason in faults.items()]
    return "\n".join(lines)


def _environments(peer: Peer) -> set[str]:
    return {peer.environment, CONVERSIONS[peer.format].environment if peer.format else ""} - {""}


def _ask(name: str, model: Path, task: Path) -> dict[str, Any]:
    """One process: its JSON line. Raises PeerFault."""
    peer = PEERS[name]
    file = converted(peer.format, _shape(model)) if peer.format else model.resolve()
    command = [*module_command(peer.module, peer.environment), "--engine", name, "--model", str(file)]
    log = "typing-" + "".join(c if c.isalnum() else "-" for c in name)
    environ = {"PROMPTGEN_THREADS": str(THREADS)}
    told = run_logged([*command, "--task", str(task), *shlex.split(peer.options)], log, PROCESS_LIMIT_S, environ)
    lines: list[dict[str, Any]] = [json.loads(line) for line in told.splitlines() if line[:1] == "{"]
    if len(lines) != 1:
        raise PeerFault(f"{log}: gave no figures")
    return lines[0]


def _shape(model: Path) -> str:
    """The model's name among those of bench.peers: a link to its folder, named by its weights."""
    digest = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()[:12]
    link = PLACE / "models" / digest
    if not link.exists():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(model.resolve(), target_is_directory=True)
    return digest


def _make_server() -> None:
    """Builds llama-server, unless it is there. Raises PeerFault."""
    if SERVER.exists():
        return
    sources = PLACE / "sources"
    name = LLAMA.replace("-", "_").replace("==", "-")
    archive = sources / f"{name}.tar.gz"
    if not archive.exists():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", LLAMA]
        run_logged([*command, "--dest", str(sources)], "fetch-llama-server", INSTALL_LIMIT_S)
    with tarfile.open(archive) as packed:
        packed.extractall(sources, filter="data")
    print("building llama-server", file=sys.stderr)
    folder = PLACE / "llama-server"
    source = sources / name / "vendor" / "llama.cpp"
    run_logged(["cmake", "-S", str(source), "-B", str(folder), *SERVER_OPTIONS.split()], "cmake", INSTALL_LIMIT_S)
    build = ["cmake", "--build", str(folder), "--target", "llama-server", "--parallel", str(THREADS)]
    run_logged(build, "build-llama-server", INSTALL_LIMIT_S)


def _turned(names: Sequence[str], by: int) -> list[str]:
    return [*names[by:], *names[:by]]
