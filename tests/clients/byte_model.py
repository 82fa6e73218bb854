"""A small GPT-2 with a byte-level vocabulary, its weights random, that transformers and this service read alike."""

from __future__ import annotations

from pathlib import Path

import tokenizers
import torch

from promptgen.training.bytepairs import learn_byte_pairs

WORDS = [
    "the",
    "a",
    "of",
    "and",
    "to",
    "in",
    "is",
    "it",
    "you",
    "that",
    "he",
    "was",
    "for",
    "on",
    "are",
    "with",
    "as",
    "his",
    "they",
    "be",
    "at",
    "one",
    "have",
    "this",
    "from",
]
END = "<|endoftext|>"
SEED = 7


def make_byte_model(folder: Path) -> Path:
    """The model's folder, made unless it is there."""
    if (folder / "model.safetensors").exists():
        return folder
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    counts = {f" {word}": 100 - place for place, word in enumerate(WORDS)} | {"高血压": 50, "要注意": 40}
    learn_byte_pairs(counts, 320, 1).save(folder)
    inner = tokenizers.Tokenizer(
        tokenizers.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_special_tokens([END])
    fast = GPT2TokenizerFast(tokenizer_object=inner, bos_token=END, eos_token=END, unk_token=END, model_max_length=256)
    fast.save_pretrained(folder)
    torch.manual_seed(SEED)
    end_id = inner.token_to_id(END)
    config = GPT2Config(
        vocab_size=inner.get_vocab_size(), n_positions=256, n_embd=64, n_layer=2, n_head=2,
        bos_token_id=end_id, eos_token_id=end_id, initializer_range=0.2,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder
