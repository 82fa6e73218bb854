"""The readable oracle: one sample after another, over transformers' own model and its cache of keys and values.

Slow and obvious. The engine is tested against it, token for token: same model, same seed, same text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from promptgen.generation.noise import sequence_key
from promptgen.generation.request import GREEDY_BELOW
from promptgen.generation.torch_noise import gumbel


@torch.inference_mode()
def fast_sample_sequence(
    model: PreTrainedModel,
    context: Sequence[int],
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int = 30,
    top_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    sample: int = 0,
    banned_ids: Sequence[int] = (),
    end_id: int | None = None,
) -> list[int]:
    """Draws up to `length` new tokens after `context`, feeding one token a step and keeping the past.

    Returns the new ids, without `end_id`, which ends the text. The parameters mean what generation.request.Sampling says.
    """
    generated: list[int] = []
    past, fed = None, list(context)
    key = torch.tensor([sequence_key(seed, sample)])
    while len(generated) < length:
        output = model(torch.tensor([fed]), cache=past, use_cache=True)
        past = output.cache
        logits = output.logits[0, -1].float()
        logits[list(banned_ids)] = float("-inf")
        logits = filter_logits(logits, [*context, *generated], temperature, top_k, top_p, repetition_penalty)
        if temperature >= GREEDY_BELOW:
            position = torch.tensor([len(context) + len(generated)])
            logits = logits.double() + gumbel(key, position, torch.arange(len(logits))[None])[0]
        token_id = int(logits.argmax())
        if token_id == end_id:
            break
        generated.append(token_id)
        fed = [token_id]
    return generated


def filter_logits(
    logits: Tensor, seen: Sequence[int], temperature: float, top_k: int, top_p: float, penalty: float
) -> Tensor:
    """Logits [V] after penalty, temperature, top-k and top-p; what is filtered out is -inf."""
    logits = logits.clone()
    for token_id in set(seen):
        logits[token_id] = logits[token_id] / penalty if logits[token_id] > 0 else logits[token_id] * penalty
    if temperature >= GREEDY_BELOW:
        logits /= temperature
    if top_k > 0:
        kept = logits.topk(min(top_k, len(logits))).indices
        logits[~torch.isin(torch.arange(len(logits)), kept)] = float("-inf")
    if 0 < top_p < 1:
        values, order = logits.sort(descending=True, stable=True)
        before = values.softmax(0).cumsum(0) - values.softmax(0)
        dropped = before >= top_p
        dropped[0] = False
        logits[order[dropped]] = float("-inf")
    return logits
