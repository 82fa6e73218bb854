"""A model's files, read with numpy alone: what the converters of this folder start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Weights = dict[str, NDArray[np.float32]]
_DTYPES = {"F32": np.float32, "F16": np.float16}


def read_weights(folder: Path) -> Weights:
    """All tensors of model.safetensors, float32, names without the "transformer." prefix."""
    path = folder / "model.safetensors"
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    data = np.memmap(path, np.uint8, "r", offset=8 + length)
    weights: Weights = {}
    for name, told in header.items():
        if name == "__metadata__":
            continue
        assert told["dtype"] in _DTYPES, f"{name} is {told['dtype']}"
        begin, end = told["data_offsets"]
        tensor = np.array(data[begin:end]).view(_DTYPES[told["dtype"]]).astype(np.float32).reshape(told["shape"])
        weights[name.removeprefix("transformer.")] = tensor
    return weights


def read_config(folder: Path) -> dict[str, Any]:
    """config.json: n_layer, n_embd, n_head, n_positions, vocab_size."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def read_vocabulary(folder: Path) -> list[str]:
    return (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()


def by_column(weights: Weights, name: str) -> NDArray[np.float32]:
    """A linear layer's weight as [out, in]; GPT-2 stores [in, out]."""
    return np.ascontiguousarray(weights[f"{name}.weight"].T)
