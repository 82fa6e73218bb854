"""Rows hold every token once with its successor, any batch can be made again, and documents of a row do not see each other."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from promptgen.errors import UsageError
from promptgen.training import packing
from promptgen.training.dataset import TokenFile
from promptgen.training.forward import check_architecture, document_mask, hidden_states
from promptgen.training.packing import IGNORED, Shuffle, batches, count_rows, pack_rows, split_document

SMALL = GPT2Config(
    vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0, pad_token_id=0
)


def part_of(lengths: list[int]) -> TokenFile:
    """Documents of these lengths whose tokens are 0, 1, 2 ... throughout."""
    return TokenFile(np.arange(sum(lengths), dtype=np.uint16), np.cumsum([0, *lengths]).astype(np.int64))


@given(st.lists(st.integers(1, 16), min_size=1, max_size=80), st.integers(16, 40))
def test_packing_keeps_every_token_once(lengths: list[int], row_length: int) -> None:
    part = part_of(lengths)
    rows = list(pack_rows((part.document(n) for n in range(len(part))), row_length))
    assert all(sum(map(len, row)) <= row_length for row in rows)
    assert Counter(tuple(d.tolist()) for row in rows for d in row) == Counter(
        tuple(part.document(n).tolist()) for n in range(len(part))
    )


@given(st.integers(1, 200), st.integers(2, 40))
def test_a_long_document_is_split_so_that_each_successor_is_learned_once(length: int, most: int) -> None:
    pieces = [piece.tolist() for piece in split_document(np.arange(length), most)]
    assert all(len(piece) <= most for piece in pieces)
    assert [pair for piece in pieces for pair in pairwise(piece)] == [(n, n + 1) for n in range(length - 1)]


def test_packing_fills_the_fullest_row_and_splits_what_is_longer() -> None:
    part = part_of([5, 7, 3, 12])
    rows = [[len(document) for document in row] for row in pack_rows((part.document(n) for n in range(4)), 10)]
    assert rows == [[5, 3], [7, 3], [10]]


@given(st.lists(st.integers(1, 60), max_size=80), st.integers(16, 40), st.integers(0, 5))
def test_rows_are_counted_as_they_are_packed(lengths: list[int], row_length: int, seed: int) -> None:
    part = part_of(lengths)
    for shuffle in (None, Shuffle(seed, 0)):
        packed = sum(len(batch.tokens) for batch in batches(part, row_length, 4, shuffle))
        assert count_rows(part, row_length, shuffle) == packed


def test_rows_of_a_large_part_are_estimated_from_some_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [*[60] * 2000, *[40] * 2000]  # a row each, so the first of the file would give too few
    part, shuffle = part_of(lengths), Shuffle(0, 0)
    exact = count_rows(part, 64, shuffle)
    seen: list[int] = []
    real = packing.pack_rows
    monkeypatch.setattr(packing, "_COUNTED_DOCUMENTS", 1000)
    monkeypatch.setattr(
        packing, "pack_rows", lambda documents, n: real((seen.append(len(d)) or d for d in documents), n)
    )
    assert count_rows(part, 64, shuffle) == pytest.approx(exact, rel=0.05)
    assert len(seen) == 1000


@given(st.lists(st.integers(1, 12), min_size=1, max_size=60), st.integers(0, 5), st.integers(0, 3))
def test_batches_hold_every_token_with_its_successor(lengths: list[int], seed: int, epoch: int) -> None:
    part = part_of(lengths)
    ends = set((part.offsets[1:] - 1).tolist())
    seen: list[int] = []
    for batch in batches(part, 12, 4, Shuffle(seed, epoch, window=64)):
        real = batch.segments > 0
        seen += batch.tokens[real].tolist()
        last = np.isin(batch.tokens, list(ends)) & real
        assert (batch.labels[last | ~real] == IGNORED).all()
        assert (batch.labels[real & ~last] == batch.tokens[real & ~last] + 1).all()
        assert batch.num_labels == int((real & ~last).sum())
    assert sorted(seen) == list(range(sum(lengths)))


def test_a_batch_in_full() -> None:
    (batch,) = batches(part_of([3, 2, 4]), 6, 8)
    assert batch.tokens.tolist() == [[0, 1, 2, 3, 4, 0], [5, 6, 7, 8, 0, 0]]
    assert batch.labels.tolist() == [[1, 2, IGNORED, 4, IGNORED, IGNORED], [6, 7, 8, IGNORED, IGNORED, IGNORED]]
    assert batch.segments.tolist() == [[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0]]


def test_shifted_documents_stay_within_the_window() -> None:
    starts = set()
    for batch in batches(part_of([8] * 200), 16, 8, Shuffle(0, 0, window=20, shifted_share=1 - 1e-9)):
        for row in range(len(batch.tokens)):
            for segment in set(batch.segments[row].tolist()) - {0}:
                positions = batch.positions[row][batch.segments[row] == segment]
                assert (np.diff(positions) == 1).all()
                starts.add(int(positions[0]))
    assert starts == set(range(13))


def same(a: Any, b: Any) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("tokens", "labels", "segments", "positions")
    )


@pytest.mark.parametrize("first", [1, 3, 7])
def test_batches_from_a_number_on_are_the_later_ones_of_the_epoch(first: int) -> None:
    part, shuffle = part_of([3, 9, 4, 7] * 40), Shuffle(5, 2, window=64, shifted_share=0.5)
    whole = list(batches(part, 16, 4, shuffle))
    rest = list(batches(part, 16, 4, shuffle, first))
    assert len(rest) == len(whole) - first > 0
    assert all(same(a, b) for a, b in zip(whole[first:], rest, strict=True))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def tokens(shuffle: Shuffle | None) -> list[Any]:
        return [batch.tokens.tolist() for batch in batches(part_of([4] * 40), 8, 4, shuffle)]

    assert tokens(Shuffle(1, 0)) == tokens(Shuffle(1, 0))
    assert tokens(Shuffle(1, 0)) != tokens(Shuffle(2, 0))
    assert tokens(Shuffle(1, 0)) != tokens(Shuffle(1, 1))
    assert tokens(None) == tokens(None)


def test_the_mask_keeps_documents_apart() -> None:
    mask = document_mask(torch.tensor([[1, 1, 2, 2, 0]]), torch.float32)
    assert mask.shape == (1, 1, 5, 5)
    assert (mask[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]


@torch.no_grad()
def test_a_packed_document_gets_the_logits_that_transformers_gives_it_alone() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(SMALL).eval()
    part = part_of([5, 9, 4, 7, 16, 3])
    num_compared = 0
    for batch in batches(part, 16, 8):
        tokens, positions, segments = (
            torch.from_numpy(array) for array in (batch.tokens, batch.positions, batch.segments)
        )
        packed = model.lm_head(hidden_states(model, tokens, positions, segments, dtype=torch.float32))
        packed = packed.view(*batch.tokens.shape, -1)
        for row in range(len(batch.tokens)):
            for segment in set(batch.segments[row].tolist()) - {0}:
                here = torch.from_numpy(batch.segments[row] == segment)
                alone = model(input_ids=tokens[row][None, here]).logits[0]
                torch.testing.assert_close(packed[row, here], alone, atol=1e-5, rtol=1e-4)
                num_compared += 1
    assert num_compared == 6


def test_gradients_are_those_of_transformers() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(SMALL).eval()
    tokens = torch.arange(12)[None]
    ones = torch.ones_like(tokens)
    hidden_states(model, tokens, tokens, ones, dtype=torch.float32).pow(2).sum().backward()
    mine = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    model.transformer(input_ids=tokens).last_hidden_state.pow(2).sum().backward()
    assert len(mine) == 2 + 12 * 2 + 2
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(mine[name], parameter.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"scale_attn_by_inverse_layer_idx": True}, "a GPT-2 with scale_attn_by_inverse_layer_idx = True cannot be"),
        ({"activation_function": "relu"}, "activation_function 'relu' cannot be trained here; it must be gelu_new"),
    ],
)
def test_a_variant_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        check_architecture(GPT2Config(**change))
