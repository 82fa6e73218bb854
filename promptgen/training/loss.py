"""Cross-entropy over a vocabulary, without ever holding all logits.

For a small model the logits are the largest tensor by far (5 000 tokens x 9 000 words in fp32: 180 MB), and making, reading and
differentiating them costs more memory traffic than the model. Here the loss and its gradient are made together, a chunk of
tokens at a time in buffers that are used again, small enough for the cache (the idea of Liger Kernel's fused linear cross-entropy).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_TOKENS = 384


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        hidden_low, weight_low = hidden.to(dtype), weight.to(dtype)
        total = hidden.new_zeros((), dtype=torch.float64)
        hidden_grad = torch.empty_like(hidden_low)
        weight_grad = torch.zeros_like(weight, dtype=torch.float32)
        rows = min(CHUNK_TOKENS, len(labels))
        products = hidden_low.new_empty(rows, len(weight))
        logits_buffer = products.float() if dtype != torch.float32 else products
        for begin in range(0, len(labels), CHUNK_TOKENS):
            h, y = hidden_low[begin : begin + CHUNK_TOKENS], labels[begin : begin + CHUNK_TOKENS, None]
            product, logits = products[: len(h)], logits_buffer[: len(h)]  # [chunk, V]
            torch.mm(h, weight_low.T, out=product)
            logits.copy_(product)
            logits -= logits.amax(1, keepdim=True)
            chosen = logits.gather(1, y)
            normalizer = logits.exp_().sum(1, keepdim=True)
            total += (normalizer.log() - chosen).sum()
            logits /= normalizer  # now the probabilities, whose difference to the truth is the gradient
            logits.scatter_add_(1, y, torch.full_like(chosen, -1.0))
            gradient = product.copy_(logits)
            torch.mm(gradient, weight_low, out=hidden_grad[begin : begin + len(h)])
            weight_grad += gradient.T @ h
        ctx.save_for_backward(hidden_grad, weight_grad)
        return total.float()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        return hidden_grad * upstream[0], weight_grad * upstream[0], None, None


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Summed cross-entropy (nats) of labels [N] under logits `hidden [N, D] @ weight [V, D].T`. Products in `dtype`, hidden's own by default."""
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, labels, dtype or hidden.dtype)  # type: ignore[no-untyped-call]
    return loss
