"""What a precision costs: `python -m bench.quality TEXT [--model DIR] [--save]`.

TEXT has a held-out document a line (build/corpus/prompts.valid.txt after `make model` or `promptgen expand data --out build/corpus`). For every precision of the
compiled step and for torch's: perplexity per token on the first documents, and the share of greedy tokens that equal the exact model's, prompt by
prompt until the first that differs. The last line is JSON.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.machine import report
from promptgen.config import DEFAULT_MODEL, EngineSettings
from promptgen.generation.calibrate import losses
from promptgen.generation.engine import Engine
from promptgen.generation.gpt2 import EagerGpt2
from promptgen.generation.memory import Memory
from promptgen.generation.modelfile import read_shape, read_weights
from promptgen.generation.native.compiler import compile_library, find_library
from promptgen.generation.native.model import Kernels, NativeGpt2
from promptgen.generation.request import GenerationRequest, Sampling, TokenEvent
from promptgen.generation.steps import Precision, Steps
from promptgen.text.tokenizer import Tokenizer, load_tokenizer

BATCH = 32
NUM_GREEDY, GREEDY_TOKENS, PROMPT_TOKENS = 200, 24, 4
Make = Callable[[Memory], Steps]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--save", action="store_true", help="keep the figures in bench/results/")
    args = parser.parse_args()
    tokenizer, shape = load_tokenizer(args.model), read_shape(args.model)
    weights = read_weights(args.model, shape)
    lines = args.text.read_text(encoding="utf-8").splitlines()[: args.documents]
    documents = [[*tokenizer.encode(line), tokenizer.end_id][: shape.window - 1] for line in lines if line.strip()]
    folder = EngineSettings().cache.expanduser()
    kernels = Kernels(find_library(folder) or compile_library(folder, EngineSettings().compiler))

    def compiled(precision: Precision) -> Make:
        return lambda memory: NativeGpt2(kernels, memory, weights, precision, 2)

    implementations: dict[str, Make] = {"torch float32": lambda memory: EagerGpt2(memory, weights)}
    implementations |= {f"compiled {precision}": compiled(precision) for precision in kernels.precisions}
    implementations["torch int8"] = lambda memory: EagerGpt2(memory, weights, "int8")

    def new_memory() -> Memory:
        return Memory(
            shape, max_rows=BATCH, num_prompt_slots=BATCH, banned_ids=tokenizer.banned_ids, end_id=tokenizer.end_id
        )

    exact: dict[int, list[int]] = {}
    rows = {}
    print(f"{'':20} {'perplexity':>11} {'rise':>8} {'equal greedy tokens':>20}")
    first = 0.0
    for name, make in implementations.items():
        memory = new_memory()
        perplexity = perplexity_of(memory, make(memory), documents, tokenizer)
        memory = new_memory()
        tokens = greedy(Engine(memory, make(memory)), documents, tokenizer)
        exact, first = exact or tokens, first or perplexity
        row = {
            "perplexity": round(perplexity, 4),
            "rise": round(perplexity / first - 1, 5),
            "equal": agreement(exact, tokens),
        }
        rows[name] = row
        print(f"{name:20} {row['perplexity']:11} {row['rise']:8.3%} {row['equal']:20.2%}")
    report("quality", {"model": args.model.name, "documents": len(documents), "by_step": rows}, save=args.save)


def perplexity_of(memory: Memory, steps: Steps, documents: list[list[int]], tokenizer: Tokenizer) -> float:
    total, count = 0.0, 0
    for start in range(0, len(documents), BATCH):
        batch = documents[start : start + BATCH]
        longest = max(map(len, batch))
        tokens = np.array([document + [tokenizer.end_id] * (longest - len(document)) for document in batch])
        of_document = np.arange(longest) < np.array([[len(document)] for document in batch])
        total += float((losses(memory, steps, tokens, tokenizer.begin_id) * of_document).sum())
        count += int(of_document.sum())
    return math.exp(total / count)


def greedy(engine: Engine, documents: list[list[int]], tokenizer: Tokenizer) -> dict[int, list[int]]:
    """What the model goes on with, at temperature 0, after the first tokens of some documents."""
    given: dict[int, list[int]] = {}
    for index, document in enumerate(documents[:NUM_GREEDY]):
        prompt = (tokenizer.begin_id, *document[:PROMPT_TOKENS])
        engine.add(index, GenerationRequest(prompt, 1, GREEDY_TOKENS, Sampling(temperature=0)))
        given[index] = []
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, TokenEvent):
                given[event.request_id].append(event.token_id)
    return given


def agreement(exact: dict[int, list[int]], given: dict[int, list[int]]) -> float:
    """Share of the exact tokens that are given too, before the first difference of each prompt."""
    total = sum(map(len, exact.values()))
    equal = 0
    for index, tokens in exact.items():
        for a, b in zip(tokens, given[index], strict=False):
            if a != b:
                break
            equal += 1
    return round(equal / total, 4)


if __name__ == "__main__":
    main()
