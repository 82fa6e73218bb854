"""A model folder in the Hugging Face layout: made, continued and saved."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from promptgen.errors import DiskFault, FileFault, NumericalFailure, UsageError
from promptgen.text.tokenizer import BertWordTokenizer, load_tokenizer, vocabulary_files, vocabulary_sha256
from promptgen.training.checkpoint import sync
from promptgen.training.dataset import WEIGHTS_FILE
from promptgen.training.forward import check_architecture
from promptgen.training.shape import TrainConfig

# A small model's own probabilities are best at the top: what it gives the tail is mostly noise. Read by `promptgen serve` and by transformers.
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_k": 30, "top_p": 0.85, "repetition_penalty": 1.1}


def make_model(config: TrainConfig, data: Path) -> GPT2LMHeadModel:
    """A GPT-2 with random weights (a function of config.seed) for the vocabulary of prepared data."""
    tokenizer = load_tokenizer(data)
    padding = tokenizer.vocabulary.ids["[PAD]"] if isinstance(tokenizer, BertWordTokenizer) else tokenizer.end_id
    torch.manual_seed(config.seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=tokenizer.size,
            n_positions=config.window,
            n_embd=config.width,
            n_layer=config.layers,
            n_head=config.heads,
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            bos_token_id=tokenizer.begin_id,
            eos_token_id=tokenizer.end_id,
            pad_token_id=padding,
        )
    )


def load_model(folder: Path, data: Path) -> GPT2LMHeadModel:
    """A GPT-2 folder's model in float32. Raises FileFault if the data were prepared with another vocabulary, UsageError for a variant."""
    check_vocabulary(folder, data)
    if not (folder / WEIGHTS_FILE).is_file():
        raise FileFault(folder, f"holds no {WEIGHTS_FILE}")
    settings: dict[str, Any] = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True}
    loaded: Any
    try:
        loaded = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True, **settings)
    except Exception as fault:  # whatever transformers raises for a damaged folder
        raise FileFault(folder, f"is not a GPT-2 folder: {(str(fault).splitlines() or [repr(fault)])[0]}") from fault
    model: GPT2LMHeadModel = loaded[0]
    info: dict[str, Any] = loaded[1]
    if missing := sorted(set(info["missing_keys"]) - {"lm_head.weight"}):
        raise FileFault(folder / WEIGHTS_FILE, f"lacks {len(missing)} tensors of a GPT-2, such as {missing[0]}")
    check_architecture(model.config)
    size = load_tokenizer(data).size
    if model.config.vocab_size != size:
        raise FileFault(folder, f"has room for {model.config.vocab_size} tokens, its vocabulary holds {size}")
    if not all(bool(torch.isfinite(weight).all()) for weight in model.state_dict().values()):
        raise FileFault(folder / WEIGHTS_FILE, "holds a weight that is no number")
    return model


def window_of(folder: Path) -> int:
    """The window of a GPT-2 folder. Raises FileFault if its config.json does not tell."""
    try:
        window = json.loads((folder / "config.json").read_text(encoding="utf-8"))["n_positions"]
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise FileFault(folder, "is not a GPT-2 folder: its config.json tells no n_positions") from fault
    if not isinstance(window, int) or window < 2:
        raise FileFault(folder, f"is not a GPT-2 folder: its config.json says n_positions {window!r}")
    return window


def check_vocabulary(folder: Path, data: Path) -> None:
    """Raises FileFault if a model's vocabulary is not the one that the data were prepared with."""
    if not folder.is_dir():
        raise FileFault(folder, "no such model folder")
    if vocabulary_sha256(folder) != vocabulary_sha256(data):
        raise FileFault(folder, f"has another vocabulary than {data}; prepare the data with --vocab {folder}")


def check_out(out: Path, data: Path) -> None:
    """Raises FileFault if a folder to train into holds what the model would not go with: another kind of vocabulary, or of model."""
    try:
        present = vocabulary_files(out) if out.is_dir() else []
    except FileFault:
        present = []
    if present and [file.name for file in present] != [file.name for file in vocabulary_files(data)]:
        raise FileFault(out, f"holds a vocabulary of another kind, {present[0].name}; give another --out")
    path = out / "config.json"
    if path.exists() and '"gpt2"' not in path.read_text(encoding="utf-8", errors="replace"):
        raise FileFault(path, "is not a GPT-2's; give another --out")


def check_row_length(row_length: int, window: int, source: Path) -> None:
    """Raises UsageError for a row longer than the window of the model that a run continues."""
    if row_length > window:
        raise UsageError(f"--row-length {row_length} is longer than the window of {source}, {window}")


def save_model(model: GPT2LMHeadModel, out: Path, data: Path) -> None:
    """Writes config.json, generation_config.json (its sampling only if there is none), the vocabulary's files and last, in one move, model.safetensors (float16, the tied head left out)."""
    weights = {name: tensor.to(torch.float16) for name, tensor in weights_of(model).items()}
    if not all(torch.isfinite(w).all() for w in weights.values()):
        raise NumericalFailure("a weight is not finite in float16; nothing was saved; try a lower --learning-rate")
    config = model.config.to_dict() | {"architectures": ["GPT2LMHeadModel"], "dtype": "float32"}
    partial = out / f"{WEIGHTS_FILE}.partial"
    try:
        out.mkdir(parents=True, exist_ok=True)
        put(out / "config.json", (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
        ids = {f"{name}_token_id": getattr(model.config, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        sampling = _sampling_in(out / "generation_config.json")
        put(out / "generation_config.json", (json.dumps(sampling | ids, indent=2) + "\n").encode())
        for file in vocabulary_files(data):
            put(out / file.name, file.read_bytes())
        save_file(weights, partial, metadata={"format": "pt"})
        sync(partial)
        partial.replace(out / WEIGHTS_FILE)
        sync(out)
    except (OSError, SafetensorError) as fault:
        partial.unlink(missing_ok=True)
        raise DiskFault(
            f"{out}: the model cannot be written: {fault}; make room and run the same command again"
        ) from fault


def _sampling_in(path: Path) -> dict[str, Any]:
    """What a generation_config.json says, for a person may have written it; SAMPLING where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return dict(SAMPLING)
    return found if isinstance(found, dict) else dict(SAMPLING)


def drop_model(folder: Path) -> None:
    """Takes a model's folder away, if it is there."""
    if folder.is_dir():
        shutil.rmtree(folder)


def put(path: Path, content: bytes) -> None:
    """Replaces a file in one move: whoever loads the folder meanwhile, or after a power cut, finds the old one or the new one, whole."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content)
        sync(partial)
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def weights_of(model: GPT2LMHeadModel) -> dict[str, Tensor]:
    """The weights by name, on the CPU, without the tied head and the constant masks."""
    left_out = (".attn.bias", ".attn.masked_bias")
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight" and not name.endswith(left_out)
    }


def put_weights(model: GPT2LMHeadModel, weights: dict[str, Tensor]) -> None:
    """The reverse of `weights_of`. Raises FileFault if they are another model's."""
    own = weights_of(model)
    if own.keys() != weights.keys() or any(own[name].shape != weights[name].shape for name in own):
        raise FileFault("checkpoint", "holds the weights of a model of another shape")
    model.load_state_dict(weights, strict=False)
