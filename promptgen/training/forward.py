"""The forward pass of training: transformers' GPT-2 weights, computed over packed rows.

Between attentions a batch is one flat list of tokens, attention is three batched products under a mask of documents, and GELU is
one kernel; on two cores this is half again as fast as the model's own forward, and equal to it up to rounding (tests hold it).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

from promptgen.errors import UsageError

_MASKED = -1e4  # far below any score, and finite, so that padding's softmax is a number


def check_architecture(config: GPT2Config) -> None:
    """Raises UsageError for a GPT-2 variant that this forward pass does not compute."""
    plain = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
    plain |= {"reorder_and_upcast_attn": False, "tie_word_embeddings": True}
    for name, value in plain.items():
        if getattr(config, name, value) != value:
            raise UsageError(
                f"a GPT-2 with {name} = {getattr(config, name)} cannot be trained here; it must be {value}"
            )
    if config.activation_function not in ("gelu_new", "gelu_pytorch_tanh"):
        raise UsageError(
            f"activation_function {config.activation_function!r} cannot be trained here; it must be gelu_new"
        )


def hidden_states(
    model: GPT2LMHeadModel,
    tokens: Tensor,
    positions: Tensor,
    segments: Tensor,
    *,
    dtype: torch.dtype,
    dropout: float = 0.0,
) -> Tensor:
    """Last hidden states [rows * T, width] (fp32) of packed rows; tokens, positions and segments are [rows, T].

    Attention is causal and stays within a segment. Products are computed in `dtype`, sums along the layers in fp32.
    """
    gpt2 = model.transformer
    rows, length = tokens.shape
    width, num_heads, epsilon = model.config.n_embd, model.config.n_head, model.config.layer_norm_epsilon
    head_width = width // num_heads
    bias = document_mask(segments, dtype)
    x = (functional.embedding(tokens, gpt2.wte.weight) + functional.embedding(positions, gpt2.wpe.weight)).view(
        -1, width
    )
    x = functional.dropout(x, dropout)
    blocks: Iterable[Any] = gpt2.h  # torch types the layers of a ModuleList too loosely to follow
    for block in blocks:
        normed = functional.layer_norm(x, (width,), block.ln_1.weight, block.ln_1.bias, epsilon).to(dtype)
        qkv = _linear(normed, block.attn.c_attn).view(rows, length, 3, num_heads, head_width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [rows, heads, T, head_width] each
        scores = (query / math.sqrt(head_width)) @ key.transpose(2, 3) + bias
        mixed = functional.dropout(scores.softmax(-1), dropout) @ value
        attended = _linear(mixed.transpose(1, 2).reshape(-1, width), block.attn.c_proj)
        x = x + functional.dropout(attended, dropout)
        normed = functional.layer_norm(x, (width,), block.ln_2.weight, block.ln_2.bias, epsilon).to(dtype)
        inner = functional.gelu(_linear(normed, block.mlp.c_fc), approximate="tanh")
        x = x + functional.dropout(_linear(inner, block.mlp.c_proj), dropout)
    return functional.layer_norm(x, (width,), gpt2.ln_f.weight, gpt2.ln_f.bias, epsilon)


def document_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores, [rows, 1, T, T]: 0 for an earlier token of the same segment, a large negative number elsewhere."""
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    visible = (segments[:, :, None] == segments[:, None, :]) & causal
    return torch.where(visible, 0.0, _MASKED).to(dtype)[:, None]


def _linear(x: Tensor, layer: Any) -> Tensor:
    """GPT-2's Conv1D, whose weight is [in, out], in the dtype of `x`."""
    return torch.addmm(layer.bias.to(x.dtype), x, layer.weight.to(x.dtype))
