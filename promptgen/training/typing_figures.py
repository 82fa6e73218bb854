"""What typing with suggestions would feel like: held-out prompts are typed character by character, five candidates before each key.

`measure_typing` runs the model and two simple baselines (baselines.py) through one simulation. A candidate is text that would be put in
at the cursor. Typing often stops within a word, so the last token is taken back: a longer word that begins with it competes with the
words that follow it, by probability (token healing).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from promptgen.errors import UsageError
from promptgen.text.bytepair import BytePairTokenizer
from promptgen.text.tokenizer import BertWordTokenizer, load_tokenizer
from promptgen.training.baselines import PopularityTrie, WittenBell
from promptgen.training.dataset import TokenFile, is_prompt, load_part
from promptgen.training.forward import hidden_states
from promptgen.training.healing import MAX_CANDIDATES, HealedCandidates, Probabilities
from promptgen.training.packing import Batch, Ids, batches

MIN_CHARACTERS = 4  # a shorter prompt is not worth a suggestion
MAX_CHARACTERS = 64  # of a prompt that are typed; the work grows with their square
_ROW_LENGTH = 128
_ROWS = 16  # packed rows in a forward pass
_CHUNK_DOCUMENTS = 256  # documents whose logits are held at a time


class CandidateSource(Protocol):
    """Shows for each typed prefix up to five different texts that could be put in after it, best first."""

    def candidates(self, prefixes: Sequence[str]) -> list[list[str]]: ...


def measure_typing(model: GPT2LMHeadModel, data: Path, *, num_prompts: int = 300, seed: int = 0) -> dict[str, Any]:
    """Typing figures of `model` and of the baselines over held-out prompts of a prepared folder, chosen by `seed`.

    Returns {"prompts": n, "characters": n, "model": figures, "trie": figures, "five_gram": figures}; see `typing_figures`. Raises
    FileFault for a folder that promptgen prepare did not write, UsageError if its vocabulary is not of the model's size.
    """
    tokenizer = load_tokenizer(data)
    if tokenizer.size != model.config.vocab_size:
        raise UsageError(
            f"the model has {model.config.vocab_size} tokens, the vocabulary of {data} {tokenizer.size}; "
            "prepare the data with the model's own vocabulary"
        )
    train = load_part(data, "train")
    prompts = held_out_prompts(load_part(data, "valid"), tokenizer, num_prompts, seed)
    sources: dict[str, CandidateSource] = {
        "model": HealedCandidates(tokenizer, ModelPredictor(model), max_tokens=model.config.n_positions),
        "trie": PopularityTrie(train, tokenizer),
        "five_gram": HealedCandidates(tokenizer, WittenBell(train, tokenizer.size, order=5)),
    }
    figures = {name: typing_figures(prompts, source) for name, source in sources.items()}
    return {"prompts": len(prompts), "characters": sum(map(len, prompts)), **figures}


def held_out_prompts(
    valid: TokenFile, tokenizer: BertWordTokenizer | BytePairTokenizer, num_prompts: int, seed: int
) -> list[str]:
    """The beginnings (MAX_CHARACTERS) of up to `num_prompts` documents drawn at random: no dialogues, none under four characters."""
    order = np.random.default_rng(seed).permutation(len(valid))
    documents = (valid.document(int(i)) for i in order)
    texts = (tokenizer.decode(ids.tolist())[:MAX_CHARACTERS] for ids in documents if is_prompt(ids, tokenizer))
    return list(islice((text for text in texts if len(text) >= MIN_CHARACTERS), num_prompts))


def typing_figures(prompts: Sequence[str], source: CandidateSource) -> dict[str, float | None]:
    """What `source` is worth to one who types `prompts`, rounded to four digits; None each if there is no prompt.

    keystrokes_saved is 1 - keys / characters for a user who takes the longest candidate that fits whenever that saves a key. mrr_at_5
    and hit_at_5 are means over every position of every prompt (reached by that user or not): 1 / rank of the first
    candidate that fits, and whether there is one.
    """
    positions = [(prompt, at) for prompt in prompts for at in range(len(prompt))]
    if not positions:
        return {"keystrokes_saved": None, "mrr_at_5": None, "hit_at_5": None}
    prefixes = list(dict.fromkeys(prompt[:at] for prompt, at in positions))
    shown = dict(zip(prefixes, source.candidates(prefixes), strict=True))
    ranks = [_rank(shown[prompt[:at]], prompt[at:]) for prompt, at in positions]
    keys = sum(count_keys(prompt, shown) for prompt in prompts)
    return {
        "keystrokes_saved": round(1 - keys / len(positions), 4),
        "mrr_at_5": round(sum(1 / rank for rank in ranks if rank) / len(ranks), 4),
        "hit_at_5": round(sum(rank > 0 for rank in ranks) / len(ranks), 4),
    }


def count_keys(prompt: str, shown: Mapping[str, Sequence[str]]) -> int:
    """Keys for a prompt: one takes the longest fitting candidate of `shown[typed so far]` if it has two characters, or types one."""
    at = keys = 0
    while at < len(prompt):
        fitting = (len(text) for text in shown[prompt[:at]][:MAX_CANDIDATES] if prompt.startswith(text, at))
        at += max(1, max(fitting, default=0))
        keys += 1
    return keys


def _rank(candidates: Sequence[str], rest: str) -> int:
    """The rank of the first candidate that `rest` begins with, from 1; 0 if there is none."""
    return next((rank for rank, text in enumerate(candidates[:MAX_CANDIDATES], 1) if text and rest.startswith(text)), 0)


class ModelPredictor:
    """The distributions of a GPT-2, computed over packed rows; only the last two positions of a document get logits."""

    def __init__(self, model: GPT2LMHeadModel) -> None:
        self._model = model
        self._device = model.lm_head.weight.device

    @torch.no_grad()
    def last_two(
        self, documents: Sequence[tuple[int, ...]]
    ) -> Iterator[tuple[int, Probabilities | None, Probabilities]]:
        """Documents of the model's window at most."""
        index_of = {document: index for index, document in enumerate(documents)}
        lengths = [len(document) for document in documents]
        flat = np.array([i for document in documents for i in document], np.int64)
        part = TokenFile(flat, np.cumsum([0, *lengths]).astype(np.int64))
        for batch in batches(part, max([_ROW_LENGTH, *lengths]), _ROWS):
            hidden = self._hidden(batch)
            rows, ends = _last_places(batch)
            for begin in range(0, len(rows), _CHUNK_DOCUMENTS):
                chunk = slice(begin, begin + _CHUNK_DOCUMENTS)
                places = torch.from_numpy(rows[chunk] * batch.tokens.shape[1] + ends[chunk])
                # The first document of the first row has no place before a single token; what is read there is not used.
                pairs = self._probabilities(hidden, torch.stack([(places - 1).clamp(min=0), places]))
                for row, end, before, after in zip(rows[chunk], ends[chunk], *pairs, strict=True):
                    ids = batch.tokens[row, end - batch.positions[row, end] : end + 1]
                    yield index_of[tuple(ids.tolist())], before if len(ids) > 1 else None, after

    def _hidden(self, batch: Batch) -> Tensor:
        tokens, positions, segments = (
            torch.from_numpy(array).to(self._device) for array in (batch.tokens, batch.positions, batch.segments)
        )
        return hidden_states(self._model, tokens, positions, segments, dtype=torch.float32)

    def _probabilities(self, hidden: Tensor, places: Tensor) -> Probabilities:
        """p(. | the tokens up to each place), [*places.shape, V]."""
        logits = hidden[places.to(self._device)] @ self._model.lm_head.weight.T
        p: Probabilities = logits.softmax(-1).cpu().numpy()
        return p


def _last_places(batch: Batch) -> tuple[Ids, Ids]:
    """Row and column of each document's last token."""
    following = np.pad(batch.segments[:, 1:], ((0, 0), (0, 1)))
    rows, ends = np.nonzero((batch.segments != 0) & (batch.segments != following))
    return rows, ends
