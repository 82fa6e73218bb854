"""Samples in a report begin with whole characters, whatever tokens the beginning is cut after."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from promptgen.text.tokenizer import load_tokenizer
from promptgen.training.bytepairs import learn_byte_pairs
from promptgen.training.prepare import prepare
from promptgen.training.samples import sample_continuations


@pytest.mark.parametrize("length", range(3, 12))
def test_a_beginning_is_not_cut_within_a_character(tmp_path: Path, length: int) -> None:
    (tmp_path / "vocab").mkdir()
    learn_byte_pairs({"a": 1}, 258).save(tmp_path / "vocab")  # a token a byte, three a character
    text = "高血压患者每天要注意饮食"[:length]
    (tmp_path / "train.txt").write_text("a\n", encoding="utf-8")
    (tmp_path / "valid.txt").write_text(text, encoding="utf-8")
    data = tmp_path / "data"
    prepare([tmp_path / "train.txt"], tmp_path / "vocab", data, valid_sources=[tmp_path / "valid.txt"])
    tokenizer = load_tokenizer(data)
    torch.manual_seed(0)
    sizes = {"vocab_size": tokenizer.size, "n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2}
    ids = {"bos_token_id": tokenizer.begin_id, "eos_token_id": tokenizer.end_id, "pad_token_id": tokenizer.end_id}
    (sample,) = sample_continuations(GPT2LMHeadModel(GPT2Config(**sizes, **ids)).eval(), data)
    given = sample["given"]
    assert text.startswith(given)
    assert len(given) == max(0, round(0.3 * (3 * length + 2)) - 1) // 3
