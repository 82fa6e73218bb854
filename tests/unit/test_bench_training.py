"""The training benchmark gives every way the same weights and the same tokens to learn, and two of its ways run end to end."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from bench import training as bench
from bench.training import Documents, Task
from promptgen.errors import UsageError
from promptgen.text.vocabulary import Vocabulary
from promptgen.text.words import SPECIAL_TOKENS
from promptgen.training.dataset import FORMAT
from promptgen.training.model_folder import make_model
from promptgen.training.packing import IGNORED, batches

TOKENS = [*SPECIAL_TOKENS, *"怎么做才好吃番茄鸡蛋豆腐"]
TINY = replace(bench.bench_config(4), layers=1, width=16, heads=2, window=32, row_length=16, rows_at_once=2)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def some_documents(count: int, seed: int = 0) -> Documents:
    """Documents of 1 to 16 tokens in which each token is the one before plus one."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 17, count)
    return [(np.arange(n) + draw.integers(len(TOKENS))) % len(TOKENS) for n in lengths]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    for part, count in (("train", 60), ("valid", 20)):
        whole = bench.as_part(some_documents(count, seed=count))
        whole.tokens.astype(np.uint16).tofile(folder / f"{part}.tokens.bin")
        whole.offsets.tofile(folder / f"{part}.offsets.bin")
    Vocabulary.of(TOKENS).save(folder / "vocab.txt")
    (folder / "meta.json").write_text(json.dumps({"format": FORMAT, "dtype": "uint16"}), encoding="utf-8")
    return folder


def labels_in(inputs: dict[str, torch.Tensor]) -> int:
    return int((inputs["labels"][:, 1:] != IGNORED).sum())


def test_documents_are_drawn_until_they_teach_enough() -> None:
    part = bench.as_part(some_documents(50))
    chosen = bench.choose_documents(part, 200, TINY)
    assert 200 <= bench.num_labels(chosen) < 200 + TINY.row_length
    again, other = (bench.choose_documents(part, 200, replace(TINY, seed=seed)) for seed in (0, 1))
    assert [d.tolist() for d in chosen] == [d.tolist() for d in again]
    assert [d.tolist() for d in chosen] != [d.tolist() for d in other]


def test_a_small_corpus_is_gone_through_again_and_a_long_document_is_learned_once() -> None:
    chosen = bench.choose_documents(bench.as_part([np.arange(40)]), 50, TINY)
    assert [len(piece) for piece in chosen] == [16, 16, 10] * 2
    assert np.concatenate([piece[1:] for piece in chosen]).tolist() == [*range(1, 40)] * 2


def test_a_corpus_that_teaches_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="prepare a corpus"):
        bench.choose_documents(bench.as_part([np.zeros(1, np.int64)]), 10, TINY)


def test_groups_keep_all_documents_in_order_and_are_even() -> None:
    documents = [document for document in some_documents(200) if len(document) > 1]
    groups = bench.group_documents(documents, 7)
    assert [id(document) for group in groups for document in group] == [id(document) for document in documents]
    fair = bench.num_labels(documents) / 7
    assert [bench.num_labels(group) for group in groups] == pytest.approx([fair] * 7, abs=16)


def test_padded_and_packed_batches_teach_what_the_documents_hold() -> None:
    documents = some_documents(40)
    wanted = bench.num_labels(documents)
    groups = bench.group_documents(documents, bench.count_steps(documents, TINY))
    assert sum(labels_in(bench.pad(part)) for group in groups for part in bench._parts(group, TINY)) == wanted
    rows = list(batches(bench.as_part(documents), TINY.row_length, 1))
    inputs = bench.packed_inputs(rows)
    assert labels_in(inputs) == sum(row.num_labels for row in rows) == wanted
    expected = np.concatenate([row.labels for row in rows])[:, :-1]
    assert inputs["labels"][:, 1:].tolist() == expected.tolist()


@torch.no_grad()
def test_padded_and_packed_batches_have_the_same_loss() -> None:
    """A token that saw padding or another document would show here."""
    documents = some_documents(12)
    torch.manual_seed(3)
    shape = {"vocab_size": len(TOKENS), "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = GPT2Config(**shape, initializer_range=0.5, bos_token_id=None, eos_token_id=None)
    model = GPT2LMHeadModel(config).train(False)
    packed = bench.packed_inputs(list(batches(bench.as_part(documents), TINY.row_length, 1)))
    losses = [float(model(**inputs, num_items_in_batch=1).loss) for inputs in (bench.pad(documents), packed)]
    alone = sum(float(model(**bench.pad([d]), num_items_in_batch=1).loss) for d in documents if len(d) > 1)
    assert losses == pytest.approx([alone, alone], rel=1e-4)


def test_the_start_is_a_function_of_the_seed(data: Path) -> None:
    first, again, other = (bench.fingerprint(make_model(replace(TINY, seed=seed), data)) for seed in (0, 0, 1))
    assert first == again != other


def test_two_ways_start_equal_learn_the_same_tokens_and_learn(data: Path) -> None:
    task = Task(data, 600, 1, replace(TINY, learning_rate=0.02))
    runs = {way: bench.measure(way, task) for way in ("ours", "padded")}
    assert runs["ours"]["start_sha256"] == runs["padded"]["start_sha256"]
    assert runs["ours"]["num_tokens"] == runs["padded"]["num_tokens"] >= 600
    assert runs["ours"]["num_steps"] == runs["padded"]["num_steps"] > 5
    assert runs["ours"]["valid_tokens"] == runs["padded"]["valid_tokens"] > 0
    for run in runs.values():
        assert run["valid_loss"] < 0.9 * math.log(len(TOKENS))
        assert run["num_slots"] >= run["num_tokens"]
        assert run["tokens_per_s"] > 0
    assert bench.summary(list(runs.values()))["num_tokens"] == runs["ours"]["num_tokens"]


class _Inline:
    """Stands for a process pool: runs the call here."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> _Inline:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, call: Any, *arguments: Any) -> _Inline:
        self.value = call(*arguments)
        return self

    def result(self) -> Any:
        return self.value


def test_the_ways_take_turns_and_must_start_equal(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, ways = Task(data, 10, 1, TINY), ("ours", "trainer", "padded")
    ran: list[str] = []
    starts = dict.fromkeys(ways, "same")

    def measure(way: str, task: Task) -> dict[str, Any]:
        ran.append(way)
        return {"tokens_per_s": 1, "start_sha256": starts[way]}

    monkeypatch.setattr(bench, "ProcessPoolExecutor", _Inline)
    monkeypatch.setattr(bench, "measure", measure)
    assert {way: len(runs) for way, runs in bench.run_all(task, ways, 2).items()} == dict.fromkeys(ways, 2)
    assert ran == ["ours", "trainer", "padded", "trainer", "padded", "ours"]
    starts["padded"] = "other"
    with pytest.raises(AssertionError, match="same weights"):
        bench.run_all(task, ways, 1)


def test_without_accelerate_one_line_says_what_to_install(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    assert bench.main(["--data", str(data)]) == 2
    assert capsys.readouterr().err == "transformers.Trainer needs accelerate; pip install 'promptgen[bench]'\n"


@pytest.mark.parametrize(("arguments", "code"), [(["--tokens", "0"], 2), (["--data", "nowhere", "--ways", "ours"], 3)])
def test_what_cannot_be_is_refused(arguments: list[str], code: int) -> None:
    assert bench.main(arguments) == code
