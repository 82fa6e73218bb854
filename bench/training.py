"""Ways to train the same GPT-2 on the same documents: `python -m bench.training [--tokens N] [--rounds N] [--save]`.

    ours             promptgen's training step over packed rows
    trainer          transformers.Trainer over documents, grouped by length, padded to the longest of a batch
    trainer_packed   transformers.Trainer over our packed rows
    padded           our loop over documents in random order, padded to the longest of a batch, through the model's own forward

All start from the same weights, learn each token of the same documents once in about the same number of steps, and move weights by AdamW with
the same rates, groups and clipping. Each run has a process of its own; the ways take turns, `--rounds` times. Counted are learned tokens, not
padding, over the seconds of the loop; the validation loss comes from one function. Where the model's own forward is used, a short trial decides
between bfloat16 and float32. The last line is JSON.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import importlib.util
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

import promptgen
from bench.machine import report
from promptgen.errors import PromptgenError, UsageError
from promptgen.training.dataset import TokenFile, load_part
from promptgen.training.evaluate import evaluate, sample_of
from promptgen.training.model_folder import make_model, weights_of
from promptgen.training.optimizer import Optimizers, learning_rate_scale
from promptgen.training.packing import IGNORED, Batch, batches, split_document
from promptgen.training.processes import best_dtype
from promptgen.training.shape import TrainConfig
from promptgen.training.step import training_step

VALIDATION_DOCUMENTS = 2000
NEEDS_ACCELERATE = ("trainer", "trainer_packed")
Documents = list[np.ndarray[Any, np.dtype[np.int64]]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a way did. A slot is a place in a batch, filled with a token to learn or not; `products` is the dtype multiplied in."""

    num_tokens: int
    num_slots: int
    num_steps: int
    seconds: float
    products: str


@dataclass(frozen=True, slots=True)
class Task:
    """What every way is given."""

    data: Path
    num_tokens: int
    threads: int
    config: TrainConfig


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    try:
        return _main(args)
    except PromptgenError as fault:
        print(fault, file=sys.stderr)
        return fault.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("build/prepared"), help="folder of promptgen prepare")
    parser.add_argument("--tokens", type=int, default=400_000, help="learned by each run (400000)")
    parser.add_argument("--rows", type=int, default=48, help="packed rows of 128 tokens a step")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way (3)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=list(WAYS), metavar="WAY")
    parser.add_argument("--save", action="store_true", help="keep the figures in bench/results/")
    return parser


def _main(args: argparse.Namespace) -> int:
    for name in ("tokens", "rows", "rounds", "threads"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} must be 1 or more, is {getattr(args, name)}")
    if importlib.util.find_spec("accelerate") is None and not set(args.ways).isdisjoint(NEEDS_ACCELERATE):
        raise UsageError("transformers.Trainer needs accelerate; pip install 'promptgen[bench]'")
    for part in ("train", "valid"):
        load_part(args.data, part)  # a folder that is not as it should be is refused here, not by each process
    promptgen.load_tokenizer(args.data)
    task = Task(args.data, args.tokens, args.threads, bench_config(args.rows))
    outcomes = run_all(task, args.ways, args.rounds)
    figures: dict[str, Any] = {"tokens": args.tokens, "threads": args.threads, "rounds": args.rounds}
    figures |= {"config": asdict(task.config), "ways": {way: summary(runs) for way, runs in outcomes.items()}}
    print(table(figures["ways"]) + "\n")
    report("training", figures, save=args.save)
    return 0


def bench_config(rows: int) -> TrainConfig:
    """The shape and rates of `promptgen train`; AdamW alone and unshifted positions, so that all ways can do the same."""
    default = TrainConfig()
    at_once = min(rows, default.rows_at_once)
    alike = replace(default, optimizer="adamw", learning_rate=2e-3, matrix_rate=2e-3, shifted_share=0.0)
    return replace(alike, rows_per_step=rows, rows_at_once=at_once)


def run_all(task: Task, ways: Sequence[str], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Outcomes of each way, one a round. The ways take turns, each round begins with another, each run is a fresh process."""
    outcomes: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for number in range(rounds):
        first = number % len(ways)
        for way in [*ways[first:], *ways[:first]]:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                outcomes[way].append(process.submit(measure, way, task).result())
            print(f"round {number + 1} {way}: {outcomes[way][-1]['tokens_per_s']} tokens/s", file=sys.stderr)
    starts = {run["start_sha256"] for runs in outcomes.values() for run in runs}
    assert len(starts) == 1, "the ways did not start from the same weights"
    return outcomes


def measure(way: str, task: Task) -> dict[str, Any]:
    """Trains once, in this process, and measures the model on the held-out part."""
    torch.set_num_threads(task.threads)
    documents = choose_documents(load_part(task.data, "train"), task.num_tokens, task.config)
    wanted = num_labels(documents)
    model = make_model(task.config, task.data).train()
    start = fingerprint(model)
    outcome: Outcome = WAYS[way](model, documents, task.config)
    assert outcome.num_tokens == wanted, f"{way} learned {outcome.num_tokens} tokens instead of {wanted}"
    valid = sample_of(load_part(task.data, "valid"), VALIDATION_DOCUMENTS)
    quality = evaluate(model, valid, task.config.row_length)
    figures = asdict(outcome) | {"tokens_per_s": round(outcome.num_tokens / outcome.seconds), "start_sha256": start}
    return figures | {"valid_loss": quality.loss, "valid_tokens": quality.num_tokens}


def choose_documents(part: TokenFile, num_tokens: int, config: TrainConfig) -> Documents:
    """Documents in random order (a function of config.seed), in pieces that fit a row, until they teach `num_tokens` tokens.

    A corpus that is too small is gone through again. Raises UsageError if it teaches nothing.
    """
    if np.diff(part.offsets, prepend=0).max() < 2:
        raise UsageError("the data hold no document of two tokens or more; prepare a corpus first")
    draw = np.random.default_rng(config.seed)
    chosen: Documents = []
    learned = 0
    while True:
        for index in draw.permutation(len(part)):
            for piece in split_document(part.document(int(index)), config.row_length):
                chosen.append(piece)
                learned += len(piece) - 1
            if learned >= num_tokens:
                return chosen


def num_labels(documents: Documents) -> int:
    """How many tokens the documents teach: all but the first of each."""
    return sum(len(document) - 1 for document in documents)


def fingerprint(model: GPT2LMHeadModel) -> str:
    """SHA-256 of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights_of(model).items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


# ---- The ways. Each gets a model in training mode, which it changes, and measures its loop alone: warmed up, data in memory. ----


def ours(model: GPT2LMHeadModel, documents: Documents, config: TrainConfig) -> Outcome:
    dtype = best_dtype(torch.device("cpu"))
    part, num_steps = as_part(documents), count_steps(documents, config)
    trial = copy.deepcopy(model)
    training_step(trial, Optimizers(trial, config), next(batches(part, *_rows(config))), 0.0, config, dtype=dtype)
    optimizers, num_tokens, num_slots = Optimizers(model, config), 0, 0
    started = time.perf_counter()
    for step, batch in enumerate(batches(part, *_rows(config))):
        scale = learning_rate_scale(step, num_steps, config)
        training_step(model, optimizers, batch, scale, config, number=step, dtype=dtype)
        num_tokens, num_slots = num_tokens + batch.num_labels, num_slots + batch.tokens.size
    return Outcome(num_tokens, num_slots, num_steps, time.perf_counter() - started, _name(dtype))


def padded(model: GPT2LMHeadModel, documents: Documents, config: TrainConfig) -> Outcome:
    groups = group_documents(documents, count_steps(documents, config))
    dtype = faster_products(model, pad(_parts(groups[0], config)[0]))
    optimizers, num_tokens, num_slots = Optimizers(model, config), 0, 0
    started = time.perf_counter()
    for step, group in enumerate(groups):
        for part in _parts(group, config):
            inputs = pad(part)
            forward_backward(model, inputs, dtype, num_labels(group))
            num_slots += inputs["input_ids"].numel()
        optimizers.step(learning_rate_scale(step, len(groups), config))
        num_tokens += num_labels(group)
    return Outcome(num_tokens, num_slots, len(groups), time.perf_counter() - started, _name(dtype))


def trainer(model: GPT2LMHeadModel, documents: Documents, config: TrainConfig) -> Outcome:
    """The Trainer over documents. Its batches are counted in documents: as many a step as `ours` has on average."""
    items = [{"input_ids": torch.from_numpy(document)} for document in documents]
    per_step = math.ceil(len(documents) / count_steps(documents, config))

    def collate(chosen: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return pad([item["input_ids"].numpy() for item in chosen])

    return run_trainer(model, items, collate, per_step, "group_by_length", config)


def trainer_packed(model: GPT2LMHeadModel, documents: Documents, config: TrainConfig) -> Outcome:
    """The Trainer over the rows that `ours` packs, in the same order."""
    items = [{"row": batch} for batch in batches(as_part(documents), config.row_length, 1)]

    def collate(chosen: list[dict[str, Batch]]) -> dict[str, Tensor]:
        return packed_inputs([item["row"] for item in chosen])

    return run_trainer(model, items, collate, config.rows_per_step, "sequential", config)


WAYS: dict[str, Callable[[GPT2LMHeadModel, Documents, TrainConfig], Outcome]] = {
    "ours": ours,
    "trainer": trainer,
    "trainer_packed": trainer_packed,
    "padded": padded,
}


def run_trainer(
    model: GPT2LMHeadModel,
    items: Sequence[dict[str, Any]],
    collate: Callable[[list[Any]], dict[str, Tensor]],
    per_step: int,
    sampling: str,
    config: TrainConfig,
) -> Outcome:
    """transformers.Trainer once over the items, timed from its first step to its last."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):
        started = ended = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.ended = time.perf_counter()

    counts = {"tokens": 0, "slots": 0}

    def counting(chosen: list[Any]) -> dict[str, Tensor]:
        inputs = collate(chosen)
        counts["tokens"] += int((inputs["labels"][:, 1:] != IGNORED).sum())
        counts["slots"] += inputs["labels"].numel()
        return inputs

    num_parts = math.ceil(config.rows_per_step / config.rows_at_once)
    at_once = math.ceil(per_step / num_parts)
    num_steps = math.ceil(math.ceil(len(items) / at_once) / num_parts)
    dtype = faster_products(model, collate(list(items[:at_once])))
    (optimizer,), clock = Optimizers(model, config).parts, Clock()  # AdamW alone
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_scale(step, num_steps, config))
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=num_parts,
            train_sampling_strategy=sampling,
            max_grad_norm=config.clip_norm,
            bf16=dtype == torch.bfloat16,
            use_cpu=True,
            seed=config.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        loop = Trainer(
            model=model,
            args=settings,
            data_collator=counting,
            train_dataset=items,
            optimizers=(optimizer, schedule),
            callbacks=[clock],
        )
        loop.remove_callback(PrinterCallback)
        loop.train()
    return Outcome(counts["tokens"], counts["slots"], loop.state.global_step, clock.ended - clock.started, _name(dtype))


def faster_products(model: GPT2LMHeadModel, inputs: dict[str, Tensor]) -> torch.dtype:
    """bfloat16 (by autocast) or float32, whichever takes the model's own forward and backward less time here. Warms both up."""
    model.config.use_cache = False  # nothing is generated: a cache would only cost
    trial = copy.deepcopy(model)
    seconds = {}
    for dtype in {torch.float32, best_dtype(torch.device("cpu"))}:
        times = []
        for _ in range(3):
            started = time.perf_counter()
            forward_backward(trial, inputs, dtype, 1)
            times.append(time.perf_counter() - started)
        seconds[dtype] = min(times)
    return min(seconds, key=lambda dtype: seconds[dtype])


def forward_backward(model: GPT2LMHeadModel, inputs: dict[str, Tensor], dtype: torch.dtype, num_tokens: int) -> None:
    """Adds the gradients of the inputs' summed loss, divided by `num_tokens`, through the model's own forward."""
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = model(**inputs, num_items_in_batch=num_tokens).loss
    loss.backward()


# ---- Batches ----


def as_part(documents: Documents) -> TokenFile:
    return TokenFile(np.concatenate(documents), np.cumsum([0, *map(len, documents)]))


def count_steps(documents: Documents, config: TrainConfig) -> int:
    """Steps of `ours`; the others take as many, or one more or less."""
    return sum(1 for _ in batches(as_part(documents), *_rows(config)))


def group_documents(documents: Documents, num_groups: int) -> list[Documents]:
    """The documents in order, in groups that teach about equally many tokens."""
    learned = np.cumsum([len(document) - 1 for document in documents])
    ends = [int(np.searchsorted(learned, learned[-1] * (n + 1) / num_groups)) + 1 for n in range(num_groups)]
    return [group for begin, end in zip([0, *ends], ends, strict=False) if (group := documents[begin:end])]


def pad(documents: Documents) -> dict[str, Tensor]:
    """Inputs [documents, longest]. No mask: attention is causal and padding comes last, so no token that counts sees it, and without
    a mask torch takes its faster way."""
    shape = (len(documents), max(map(len, documents)))
    tokens, labels = torch.zeros(shape, dtype=torch.int64), torch.full(shape, IGNORED)
    for n, document in enumerate(documents):
        tokens[n, : len(document)] = labels[n, : len(document)] = torch.from_numpy(document)
    return {"input_ids": tokens, "labels": labels}


def packed_inputs(rows: Sequence[Batch]) -> dict[str, Tensor]:
    """Packed rows as transformers' own forward takes them: labels stand at their tokens, the mask is [rows, 1, T, T]."""
    tokens, segments, positions = (
        torch.from_numpy(np.concatenate([getattr(row, name) for row in rows]))
        for name in ("tokens", "segments", "positions")
    )
    is_first = torch.nn.functional.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
    causal = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
    mask = (segments[:, :, None] == segments[:, None, :]) & causal
    labels = tokens.masked_fill(is_first | (segments == 0), IGNORED)
    return {"input_ids": tokens, "position_ids": positions, "attention_mask": mask[:, None], "labels": labels}


def _rows(config: TrainConfig) -> tuple[int, int]:
    return config.row_length, config.rows_per_step


def _parts(group: Documents, config: TrainConfig) -> list[Documents]:
    """A step's documents in as many parts as `ours` cuts its rows."""
    size = math.ceil(len(group) / math.ceil(config.rows_per_step / config.rows_at_once))
    return [group[begin : begin + size] for begin in range(0, len(group), size)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The medians of a way's runs, and the slowest and fastest."""
    speeds = [run["tokens_per_s"] for run in runs]
    figures = {"tokens_per_s": round(statistics.median(speeds)), "slowest": min(speeds), "fastest": max(speeds)}
    figures |= {key: runs[0][key] for key in ("num_tokens", "num_steps", "products", "valid_tokens")}
    share = runs[0]["num_tokens"] / runs[0]["num_slots"]
    loss = statistics.median(run["valid_loss"] for run in runs)
    return figures | {"useful_share": round(share, 3), "valid_loss": None if math.isnan(loss) else round(loss, 4)}


def table(ways: dict[str, dict[str, Any]]) -> str:
    columns = ("tokens_per_s", "slowest", "fastest", "useful_share", "valid_loss", "num_steps", "products")
    lines = [f"{'':15}" + "".join(f"{column:>14}" for column in columns)]
    lines += [f"{way:15}" + "".join(f"{row[column]!s:>14}" for column in columns) for way, row in ways.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
