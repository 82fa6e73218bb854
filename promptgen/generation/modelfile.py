"""Reads a model folder in the Hugging Face layout, and trusts nothing in it.

config.json is JSON, weights are safetensors: nothing is executed, nothing unpickled. Whatever is missing, cut, of another shape, not
finite or foreign ends in a FileFault that names the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from promptgen.errors import FileFault
from promptgen.generation.request import Sampling

_ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh")  # two names of one function
_SAMPLING_LIMITS: tuple[tuple[str, Any, float], ...] = (
    ("temperature", (int, float), 2),
    ("top_k", int, 1 << 20),
    ("top_p", (int, float), 1),
    ("repetition_penalty", (int, float), 10),
)
_STORED: dict[str, type[np.generic]] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,  # a float's upper half
}

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Gpt2Shape:
    """The shape of a GPT-2: `window` positions, `inner` units in the feed-forward layer."""

    vocabulary: int
    window: int
    width: int
    layers: int
    heads: int
    inner: int
    epsilon: float

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def slot_bytes(self) -> int:
        """Of the keys and values of a whole window in float32."""
        return 2 * 4 * self.layers * self.width * self.window

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of transformers' GPT2Model. Linear weights are [in, out] (its Conv1D)."""
        w = self.width
        expected: dict[str, tuple[int, ...]] = {
            "wte.weight": (self.vocabulary, w),
            "wpe.weight": (self.window, w),
            "ln_f.weight": (w,),
            "ln_f.bias": (w,),
        }
        layer = {
            "ln_1.weight": (w,), "ln_1.bias": (w,), "ln_2.weight": (w,), "ln_2.bias": (w,),
            "attn.c_attn.weight": (w, 3 * w), "attn.c_attn.bias": (3 * w,), "attn.c_proj.weight": (w, w), "attn.c_proj.bias": (w,),
            "mlp.c_fc.weight": (w, self.inner), "mlp.c_fc.bias": (self.inner,), "mlp.c_proj.weight": (self.inner, w), "mlp.c_proj.bias": (w,),
        }  # fmt: skip
        return expected | {f"h.{i}.{name}": shape for i in range(self.layers) for name, shape in layer.items()}


def read_shape(folder: Path) -> Gpt2Shape:
    """The shape that config.json gives. Raises FileFault for anything but a plain GPT-2."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise FileFault(path, f"cannot be read: {fault.strerror}; is {folder} a model folder?") from fault
    except (ValueError, RecursionError) as fault:
        raise FileFault(path, f"is not JSON: {fault}") from fault
    if not isinstance(config, dict) or config.get("model_type") != "gpt2":
        raise FileFault(
            path,
            f"model_type is {config.get('model_type') if isinstance(config, dict) else None!r}; only gpt2 is served so far",
        )
    if (activation := config.get("activation_function", "gelu_new")) not in _ACTIVATIONS:
        raise FileFault(path, f"activation_function {activation!r} is not served; known are {', '.join(_ACTIVATIONS)}")
    for flag in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"):
        if config.get(flag):
            raise FileFault(path, f"{flag} is not served")
    if config.get("scale_attn_weights", True) is not True or config.get("tie_word_embeddings", True) is not True:
        raise FileFault(path, "scale_attn_weights and tie_word_embeddings must be true")
    numbers = {}
    for key, most in (
        ("vocab_size", 1 << 20),
        ("n_positions", 1 << 16),
        ("n_embd", 1 << 14),
        ("n_layer", 256),
        ("n_head", 256),
    ):
        value = config.get(key)
        if type(value) is not int or not 1 <= value <= most:
            raise FileFault(path, f"{key} must be a whole number from 1 to {most}, is {value!r}")
        numbers[key] = value
    inner, epsilon = config.get("n_inner") or 4 * numbers["n_embd"], config.get("layer_norm_epsilon", 1e-5)
    if type(inner) is not int or not 1 <= inner <= 1 << 16 or not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise FileFault(path, f"n_inner {inner!r} or layer_norm_epsilon {epsilon!r} is out of range")
    if numbers["n_embd"] % numbers["n_head"]:
        raise FileFault(path, f"n_embd {numbers['n_embd']} is not a multiple of n_head {numbers['n_head']}")
    return Gpt2Shape(
        numbers["vocab_size"],
        numbers["n_positions"],
        numbers["n_embd"],
        numbers["n_layer"],
        numbers["n_head"],
        inner,
        epsilon,
    )


def read_sampling(folder: Path) -> Sampling:
    """How this model is best drawn from: what generation_config.json says, where there is one, else Sampling's own defaults.

    Raises FileFault for a file that is not JSON or a number that is out of range.
    """
    path = folder / "generation_config.json"
    if not path.exists():
        return Sampling()
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        raise FileFault(path, f"is not JSON: {fault}") from fault
    if not isinstance(config, dict):
        raise FileFault(path, "must be a JSON object")
    given: dict[str, Any] = {}
    for key, kind, most in _SAMPLING_LIMITS:
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, kind) or not 0 <= value <= most:
            raise FileFault(path, f"{key} must be a number from 0 to {most}, is {value!r}")
        given[key] = value
    if given.get("repetition_penalty", 1) < 0.1:
        raise FileFault(path, "repetition_penalty must be 0.1 or more")
    return Sampling().with_(seed=0, **given)


def read_weights(folder: Path, shape: Gpt2Shape) -> dict[str, NDArray[np.float32]]:
    """All tensors of `shape`, float32, from model.safetensors, names without the "transformer." prefix.

    The file is read, not mapped: whoever writes over a mapped file ends the process that reads it (SIGBUS).
    """
    path = folder / "model.safetensors"
    if not path.exists():
        hint = (
            "; pytorch_model.bin is a pickle and is not opened, save it anew with safetensors"
            if (folder / "pytorch_model.bin").exists()
            else ""
        )
        raise FileFault(path, f"is missing{hint}")
    try:
        stored = dict(deserialize(path.read_bytes()))  # type: ignore[no-untyped-call]
    except (SafetensorError, OSError, ValueError, RuntimeError) as fault:
        raise FileFault(path, f"is cut or not a safetensors file ({fault})") from fault
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    weights: dict[str, NDArray[np.float32]] = {}
    for name, expected in shape.tensors().items():
        tensor = tensors.get(name)
        if tensor is None:
            raise FileFault(path, f"lacks the tensor {name} that config.json asks for")
        if tuple(tensor["shape"]) != expected:
            raise FileFault(path, f"{name} has the shape {list(tensor['shape'])}, config.json says {list(expected)}")
        if tensor["dtype"] not in _STORED:
            raise FileFault(path, f"{name} has the type {tensor['dtype']}, not a float of 16 or 32 bits")
        values = np.frombuffer(tensor["data"], _STORED[tensor["dtype"]]).reshape(expected)
        if tensor["dtype"] == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        if not np.isfinite(values).all():
            raise FileFault(path, f"{name} holds numbers that are not finite")
        weights[name] = values.astype(np.float32, copy=False)
    return weights
