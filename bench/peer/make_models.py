"""Random GPT-2 models in the Hugging Face layout: `python -m bench.peer.make_models --out FOLDER --shape LAYERS WIDTH HEADS VOCABULARY WINDOW`.

Seeded, std 0.08, float32, with a vocab.txt of made-up words that promptgen opens. Runs in promptgen's own environment.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from string import ascii_lowercase

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from bench.peer.task import BEGIN, END, SPECIAL_TOKENS

SEED, STD = 7, 0.08


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", type=int, nargs=5, metavar=("LAYERS", "WIDTH", "HEADS", "VOCABULARY", "WINDOW"))
    args = parser.parse_args()
    layers, width, heads, vocabulary, window = args.shape
    torch.manual_seed(SEED)
    config = GPT2Config(
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        vocab_size=vocabulary,
        n_positions=window,
        initializer_range=STD,
        bos_token_id=SPECIAL_TOKENS.index(BEGIN),
        eos_token_id=SPECIAL_TOKENS.index(END),
        dtype="float32",
    )
    GPT2LMHeadModel(config).save_pretrained(args.out)
    (args.out / "vocab.txt").write_text("".join(f"{token}\n" for token in make_words(vocabulary)), encoding="utf-8")


def make_words(count: int) -> list[str]:
    """The special tokens and words of four letters, `count` in all."""
    letters = map("".join, product(ascii_lowercase, repeat=4))
    return [*SPECIAL_TOKENS, *(word for word, _ in zip(letters, range(count - len(SPECIAL_TOKENS)), strict=False))]


if __name__ == "__main__":
    main()
