"""A few continuations of held-out prompts, for people to read in a report. transformers' own `generate` makes them: no engine is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import GPT2LMHeadModel

from promptgen.text.tokenizer import load_tokenizer
from promptgen.training.dataset import load_part
from promptgen.training.evaluate import sample_of

_SHARE_GIVEN = 0.3  # of a prompt's tokens
_MAX_NEW_TOKENS = 40
_TOP_K = 30


def sample_continuations(model: GPT2LMHeadModel, data: Path, *, count: int = 10, seed: int = 0) -> list[dict[str, str]]:
    """`count` held-out documents, spread over the part: their beginning, and what the model makes of it, unselected."""
    tokenizer = load_tokenizer(data)
    part = sample_of(load_part(data, "valid"), count)
    torch.manual_seed(seed)
    any_model: Any = model  # the types of `generate` fit no model
    written: list[dict[str, str]] = []
    for index in range(len(part)):
        document = part.document(index).tolist()
        given = document[: max(2, round(_SHARE_GIVEN * len(document)))]
        while len(given) > 1 and tokenizer.decode(given).endswith("\ufffd"):  # a token may end within a character
            given = given[:-1]
        settings: dict[str, Any] = {"do_sample": True, "top_k": _TOP_K, "eos_token_id": tokenizer.end_id}
        if banned := [i for i in tokenizer.banned_ids if i != tokenizer.end_id]:
            settings["suppress_tokens"] = banned
        ids = torch.tensor([given])
        room = min(_MAX_NEW_TOKENS, model.config.n_positions - len(given))
        if room < 1:
            continue
        whole = any_model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=room, pad_token_id=tokenizer.end_id, **settings
        )[0].tolist()
        begin, text = tokenizer.decode(given), tokenizer.decode(whole)
        written.append({"given": begin, "continuation": text.removeprefix(begin)})
    return written
