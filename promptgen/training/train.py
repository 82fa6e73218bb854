"""Trains a GPT-2 on a prepared corpus: `promptgen train DATA --out MODEL`.

The loop is here in full: packed rows, attention within documents, AdamW with decay on matrices only, warm-up then cosine, clipping, bf16 where
the machine multiplies in it. The model is transformers' own GPT2LMHeadModel and is saved in its layout, in
float16 to halve its size; what is evaluated is what was saved.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from promptgen.errors import FileFault, NumericalFailure, UsageError
from promptgen.text.vocabulary import VOCABULARY_FILE, Vocabulary
from promptgen.training.card import write_card
from promptgen.training.dataset import IGNORED, Batch, TokenFile, batches, file_sha256, load_part
from promptgen.training.loss import linear_cross_entropy
from promptgen.training.progress import Progress
from promptgen.training.shape import TrainConfig

VALIDATION_DOCUMENTS = 4000  # looked at during the run; eval.json is over all


def gpt2_config(config: TrainConfig, vocabulary: Vocabulary) -> GPT2Config:
    return GPT2Config(
        vocab_size=len(vocabulary),
        n_positions=config.window,
        n_embd=config.width,
        n_layer=config.layers,
        n_head=config.heads,
        resid_pdrop=config.dropout,
        embd_pdrop=config.dropout,
        attn_pdrop=config.dropout,
        bos_token_id=vocabulary.ids["[MASK]"],
        eos_token_id=vocabulary.ids["[CLS]"],
        pad_token_id=vocabulary.ids["[PAD]"],
    )


def attention_mask(segments: Tensor) -> Tensor:
    """[rows, 1, T, T] of bool from segments [rows, T]: causal, within one document; padding sees itself, so that no row is empty."""
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = segments[:, :, None] == segments[:, None, :]
    return (same & causal)[:, None]


def batch_loss(model: GPT2LMHeadModel, batch: Batch) -> tuple[Tensor, int]:
    """Summed cross-entropy of a batch (nats) and the number of tokens it is over."""
    hidden = model.transformer(
        input_ids=torch.from_numpy(batch.tokens),
        position_ids=torch.from_numpy(batch.positions),
        attention_mask=attention_mask(torch.from_numpy(batch.segments)),
        use_cache=False,
    ).last_hidden_state
    labels = torch.from_numpy(batch.labels)
    wanted = labels != IGNORED
    return linear_cross_entropy(hidden[wanted], model.lm_head.weight, labels[wanted]), int(wanted.sum())


@torch.no_grad()
def evaluate(
    model: GPT2LMHeadModel, part: TokenFile, row_length: int, max_documents: int | None = None
) -> tuple[float, int]:
    """Mean loss per token (nats) over a part, and the number of tokens."""
    if max_documents is not None and len(part) > max_documents:
        part = TokenFile(part.tokens, part.offsets[: max_documents + 1])
    total, count = 0.0, 0
    model.train(False)
    for batch in batches(part, row_length, 32):
        loss, num_tokens = batch_loss(model, batch)
        total, count = total + float(loss), count + num_tokens
    model.train()
    return (total / count if count else math.nan), count


def train(data: Path, out: Path, config: TrainConfig, start_from: Path | None = None) -> dict[str, Any]:
    """Trains and writes `out` (model, vocab.txt, eval.json, metrics.jsonl). Returns the figures of eval.json.

    Raises FileFault for data or a start model that do not fit, NumericalFailure when the loss is no longer a number.
    """
    train_part, valid_part = load_part(data, "train"), load_part(data, "valid")
    vocabulary = Vocabulary.load(data / VOCABULARY_FILE)
    model = _make_model(config, vocabulary, data, start_from)
    shape = model.config  # with --from, the shape is the start model's
    config = replace(config, layers=shape.n_layer, width=shape.n_embd, heads=shape.n_head, window=shape.n_positions)
    steps_per_epoch = math.ceil(len(train_part.tokens) / (config.row_length * config.rows_per_step))
    num_steps = max(1, round(config.epochs * steps_per_epoch))
    num_cut = int((np.diff(train_part.offsets) > config.row_length).sum())
    if num_cut:
        print(
            f"{num_cut} documents are longer than --row-length {config.row_length} and are cut there", file=sys.stderr
        )
    optimizer = _optimizer(model, config)
    bf16 = _multiplies_bf16()
    out.mkdir(parents=True, exist_ok=True)
    validate_every = max(1, num_steps // config.validations)
    model.train()
    with Progress(out / "metrics.jsonl", num_steps) as progress:
        for step, batch in enumerate(islice(_endless(train_part, config), num_steps)):
            rate = learning_rate(step, num_steps, config)
            loss, num_tokens = _train_step(model, optimizer, batch, rate, bf16, config)
            if not math.isfinite(loss):
                raise NumericalFailure(
                    f"the loss is {loss} at step {step}; try a lower --learning-rate (now {config.learning_rate:g})"
                )
            valid_loss = None
            if len(valid_part) and (step + 1) % validate_every == 0:
                valid_loss, _ = evaluate(model, valid_part, config.row_length, max_documents=VALIDATION_DOCUMENTS)
                save_model(model, out, vocabulary)
            progress.note(loss, num_tokens, rate, valid_loss)
    save_model(model, out, vocabulary)
    run = {"steps": num_steps, "documents_cut": num_cut, "bf16": bf16}
    run |= {"tokens": progress.num_tokens, "seconds": round(progress.elapsed_s)}
    figures: dict[str, Any] = {"training": asdict(config) | run}
    if start_from is not None and (before := _known_training(start_from)) is not None:
        figures["training"]["before"] = before
    return write_eval(out, data, figures)


def _train_step(
    model: GPT2LMHeadModel, optimizer: torch.optim.AdamW, batch: Batch, rate: float, bf16: bool, config: TrainConfig
) -> tuple[float, int]:
    """Loss per token (nats) of a batch and the number of its tokens. A loss that is not a number changes no weight."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        total, num_tokens = batch_loss(model, batch)
        loss = total / num_tokens
    value = float(loss.detach())
    if math.isfinite(value):
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
    return value, num_tokens


def learning_rate(step: int, num_steps: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine down to a small share of the peak."""
    warmup = max(1, int(config.warmup_share * num_steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    low = config.final_learning_rate_share
    return config.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


def save_model(model: GPT2LMHeadModel, out: Path, vocabulary: Vocabulary) -> None:
    """Writes config.json, generation_config.json, model.safetensors (float16, the tied head left out) and vocab.txt."""
    names = [
        n for n in model.state_dict() if n != "lm_head.weight" and not n.endswith((".attn.bias", ".attn.masked_bias"))
    ]
    weights = {n: model.state_dict()[n].detach().to(torch.float16).contiguous() for n in names}
    if not all(torch.isfinite(w).all() for w in weights.values()):
        raise NumericalFailure("a weight is not finite in float16; nothing was saved")
    config = model.config.to_dict() | {"architectures": ["GPT2LMHeadModel"], "dtype": "float32"}
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial = out / "model.safetensors.partial"
    save_file(weights, partial, metadata={"format": "pt"})
    partial.replace(out / "model.safetensors")
    vocabulary.save(out / VOCABULARY_FILE)


def write_eval(model_folder: Path, data: Path, figures: dict[str, Any] | None = None) -> dict[str, Any]:
    """Measures the saved model on the held-out part and writes eval.json and the model card beside it."""
    model = GPT2LMHeadModel.from_pretrained(model_folder, dtype=torch.float32)
    meta = json.loads((data / "meta.json").read_text(encoding="utf-8"))
    valid = load_part(data, "valid")
    counts = meta["counts"]
    window = model.config.n_positions
    loss, num_tokens = evaluate(model, valid, window)
    is_whole = not bool((np.diff(valid.offsets) > window).any())  # else characters were cut off unmeasured
    unknown = counts.get("unknown_tokens", 0) / max(1, counts["tokens"])
    per_character = loss * num_tokens / max(1, counts.get("valid_characters", 0))
    measured = num_tokens > 0  # with nothing held out there is nothing to say
    report = {
        "held_out": {
            "documents": len(valid),
            "tokens": num_tokens,
            "characters": counts.get("valid_characters", 0),
            "loss_per_token": round(loss, 4) if measured else None,
            "perplexity_per_token": round(math.exp(loss), 3) if measured else None,
            "loss_per_character": round(per_character, 4) if measured and is_whole else None,
            "perplexity_per_character": round(math.exp(per_character), 3) if measured and is_whole else None,
        },
        "unknown_token_share": round(unknown, 8),
        "parameters": sum(p.numel() for p in model.parameters()),
        "model_bytes": (model_folder / "model.safetensors").stat().st_size,
        "vocabulary": {"tokens": model.config.vocab_size, "sha256": meta["vocabulary_sha256"]},
        "corpus": counts,
        **(figures or {}),
    }
    (model_folder / "eval.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    write_card(model_folder, report)
    return report


def validate(model_folder: Path, data: Path) -> dict[str, Any]:
    """Measures a saved model on the held-out part of `data` and writes its eval.json anew, keeping what it says of training.

    Raises FileFault if the data were prepared with another vocabulary.
    """
    _check_vocabulary(model_folder, data)
    training = _known_training(model_folder)
    return write_eval(model_folder, data, {"training": training} if training else None)


def _known_training(model_folder: Path) -> dict[str, Any] | None:
    """What a folder's eval.json says of how its model was trained."""
    path = model_folder / "eval.json"
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return report.get("training")


def _check_vocabulary(model_folder: Path, data: Path) -> None:
    own = model_folder / VOCABULARY_FILE
    if not own.exists() or file_sha256(own) != file_sha256(data / VOCABULARY_FILE):
        raise FileFault(own, f"is not the vocabulary of {data}; prepare the data with --vocab {model_folder}")


def _make_model(config: TrainConfig, vocabulary: Vocabulary, data: Path, start_from: Path | None) -> GPT2LMHeadModel:
    torch.manual_seed(config.seed)
    if start_from is None:
        return GPT2LMHeadModel(gpt2_config(config, vocabulary))
    _check_vocabulary(start_from, data)
    model: GPT2LMHeadModel = GPT2LMHeadModel.from_pretrained(start_from, dtype=torch.float32)
    if config.row_length > model.config.n_positions:
        raise UsageError(
            f"--row-length {config.row_length} is longer than the window of {start_from}, {model.config.n_positions}"
        )
    return model


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), eps=1e-8, fused=True)


def _endless(part: TokenFile, config: TrainConfig) -> Iterator[Batch]:
    epoch = 0
    while True:
        order = np.random.default_rng([config.seed, epoch])
        yield from batches(
            part,
            config.row_length,
            config.rows_per_step,
            order=order,
            window=config.window,
            shifted_share=config.shifted_share,
        )
        epoch += 1


def _multiplies_bf16() -> bool:
    """Whether this CPU has bf16 products; without them autocast only costs."""
    flags = Path("/proc/cpuinfo")
    text = flags.read_text(encoding="utf-8", errors="replace") if flags.exists() else ""
    return "avx512_bf16" in text or "amx_bf16" in text
