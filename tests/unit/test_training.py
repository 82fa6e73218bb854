"""The loss equals torch's, a tiny model learns and is saved so that transformers loads it, and what cannot work is refused."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from promptgen.errors import FileFault, NumericalFailure, UsageError
from promptgen.text.vocabulary import Vocabulary
from promptgen.text.words import SPECIAL_TOKENS
from promptgen.training.dataset import load_part, prepare
from promptgen.training.loss import CHUNK_TOKENS, linear_cross_entropy
from promptgen.training.shape import TrainConfig
from promptgen.training.train import evaluate, learning_rate, train, validate

TINY = TrainConfig(
    layers=1, width=32, heads=2, window=32, row_length=32, rows_per_step=4, epochs=12, learning_rate=1e-2, validations=2
)
DISHES = ["番茄", "鸡蛋", "豆腐", "土豆", "牛肉", "白菜"]


def write_vocabulary(folder: Path, *more: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    characters = sorted(set("怎么做才好吃请问有几种法番茄鸡蛋豆腐土牛肉白菜？第条0123456789"))
    Vocabulary.of([*SPECIAL_TOKENS, *characters, *("##" + d for d in "0123456789"), *more]).save(folder / "vocab.txt")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus of 60 lines and a dozen held out."""
    folder = tmp_path_factory.mktemp("data")
    lines = [f"{dish}怎么做才好吃？第{n}条" for n in range(12) for dish in DISHES]
    (folder / "train.txt").write_text("\n".join(lines[:60]), encoding="utf-8")
    (folder / "valid.txt").write_text("\n".join(lines[60:]), encoding="utf-8")
    prepare(
        [folder / "train.txt"], write_vocabulary(folder / "vocab"), folder / "out", valid_sources=[folder / "valid.txt"]
    )
    return folder / "out"


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("model")
    return out, train(data, out, TINY)


def random_problem(num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    hidden = torch.randn(num_tokens, 12, generator=generator, requires_grad=True)
    weight = torch.randn(50, 12, generator=generator, requires_grad=True)
    return hidden, weight, torch.randint(50, (num_tokens,), generator=generator)


@pytest.mark.parametrize("num_tokens", [1, 7, CHUNK_TOKENS, 2 * CHUNK_TOKENS + 5])
@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_loss_and_gradients_equal_those_of_torch(num_tokens: int, scale: float) -> None:
    hidden, weight, labels = random_problem(num_tokens)
    mine = linear_cross_entropy(hidden, weight, labels)
    gradients = torch.autograd.grad(mine * scale, (hidden, weight))
    expected = cross_entropy(hidden @ weight.T, labels, reduction="sum")
    expected_gradients = torch.autograd.grad(expected * scale, (hidden, weight))
    torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-4)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


def test_loss_of_huge_logits_is_finite() -> None:
    hidden, weight, labels = random_problem(20)
    expected = cross_entropy((hidden * 1e4) @ weight.T, labels, reduction="sum")
    torch.testing.assert_close(linear_cross_entropy(hidden * 1e4, weight, labels), expected, rtol=1e-5, atol=1e-2)


def test_loss_under_autocast_is_close() -> None:
    hidden, weight, labels = random_problem(500)
    with torch.autocast("cpu", torch.bfloat16):
        mine = linear_cross_entropy(hidden, weight, labels)
    expected = cross_entropy(hidden @ weight.T, labels, reduction="sum")
    assert mine.item() != expected.item()
    assert mine.item() == pytest.approx(expected.item(), rel=0.01)


def test_learning_rate_warms_up_and_falls() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_share=0.1, final_learning_rate_share=0.1)
    rates = [learning_rate(step, 101, config) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[10] == 1.0
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_a_tiny_model_learns(trained: tuple[Path, dict[str, Any]]) -> None:
    out, report = trained
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert records[0]["step"] == 1
    assert records[0]["loss"] > 0.8 * math.log(report["vocabulary"]["tokens"])
    assert report["held_out"]["loss_per_token"] < 0.4 * records[0]["loss"]
    assert records[-1]["step"] == records[-1]["of"] == report["training"]["steps"]
    assert sum("valid_loss" in record for record in records) == 2


def test_the_folder_loads_with_transformers(trained: tuple[Path, dict[str, Any]], data: Path) -> None:
    out, report = trained
    model, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert set(info["missing_keys"]) <= {"lm_head.weight"}
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()
    vocabulary = Vocabulary.load(out / "vocab.txt")
    assert vocabulary == Vocabulary.load(data / "vocab.txt")
    assert model.config.vocab_size == len(vocabulary)
    assert (model.config.bos_token_id, model.config.eos_token_id) == (vocabulary.ids["[MASK]"], vocabulary.ids["[CLS]"])
    assert report["parameters"] == sum(p.numel() for p in model.parameters())
    assert report["model_bytes"] == (out / "model.safetensors").stat().st_size


@torch.no_grad()
def test_figures_agree_with_a_direct_computation(trained: tuple[Path, dict[str, Any]], data: Path) -> None:
    out, report = trained
    assert json.loads((out / "eval.json").read_text(encoding="utf-8")) == report
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    part = load_part(data, "valid")
    total, num_tokens = 0.0, 0
    for n in range(len(part)):
        ids = torch.from_numpy(part.document(n))
        total += float(cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="sum"))
        num_tokens += len(ids) - 1
    held_out = report["held_out"]
    characters = len((data.parent / "valid.txt").read_text(encoding="utf-8").replace("\n", ""))
    assert (held_out["documents"], held_out["tokens"], held_out["characters"]) == (12, num_tokens, characters)
    assert held_out["loss_per_token"] == pytest.approx(total / num_tokens, abs=2e-4)
    assert held_out["perplexity_per_token"] == pytest.approx(math.exp(total / num_tokens), abs=2e-3)
    assert held_out["loss_per_character"] == pytest.approx(total / characters, abs=2e-4)
    assert held_out["perplexity_per_character"] == pytest.approx(math.exp(total / characters), abs=2e-3)


def test_evaluation_leaves_the_model_in_training_mode_and_may_be_cut(
    trained: tuple[Path, dict[str, Any]], data: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained[0], dtype=torch.float32)
    part = load_part(data, "valid")
    assert evaluate(model, part, 32, max_documents=3)[1] == sum(len(part.document(n)) - 1 for n in range(3))
    assert model.training


def test_the_same_seed_gives_the_same_weights(data: Path, tmp_path: Path) -> None:
    config = replace(TINY, epochs=2, dropout=0.1)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(data, tmp_path / name, replace(config, seed=seed))
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_divergence_is_a_numerical_failure_and_leaves_no_model(data: Path, tmp_path: Path) -> None:
    with pytest.raises(NumericalFailure, match=r"try a lower --learning-rate \(now 1e\+09\)"):
        train(data, tmp_path, replace(TINY, epochs=30, learning_rate=1e9, validations=1))
    assert not (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "eval.json").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"heads": 3}, "--width 32 is not a multiple of --heads 3"),
        ({"row_length": 64}, "--row-length 64 is longer than --window 32"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(data: Path, tmp_path: Path, change: dict[str, int], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        train(data, tmp_path / "out", replace(TINY, **change))
    assert str(caught.value) == told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [{"heads": 0}, {"rows_per_step": 0}, {"row_length": 0}])
def test_numbers_that_cannot_be_are_refused(data: Path, tmp_path: Path, change: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(change)).replace("_", "-")):
        train(data, tmp_path / "out", replace(TINY, **change))


def test_training_goes_on_from_a_model(trained: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path) -> None:
    report = train(data, tmp_path, replace(TINY, epochs=1, learning_rate=1e-5), start_from=trained[0])
    assert report["held_out"]["loss_per_token"] == pytest.approx(trained[1]["held_out"]["loss_per_token"], abs=0.05)


def test_a_start_model_with_another_vocabulary_is_refused(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("番茄怎么做\n", encoding="utf-8")
    prepare([tmp_path / "a.txt"], write_vocabulary(tmp_path / "vocab", "高血压"), tmp_path / "data", valid_share=0.0)
    with pytest.raises(FileFault, match=r"vocab\.txt: is not the vocabulary of"):
        train(tmp_path / "data", tmp_path / "out", TINY, start_from=trained[0])


def test_a_start_model_with_a_smaller_window_is_refused(
    trained: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    with pytest.raises((UsageError, FileFault), match="window"):
        train(
            data, tmp_path, replace(TINY, window=256, row_length=64, epochs=1, shifted_share=1.0), start_from=trained[0]
        )


def test_a_corpus_without_held_out_part_gives_a_report_that_is_json(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("番茄怎么做\n豆腐怎么做\n", encoding="utf-8")
    prepare([tmp_path / "a.txt"], write_vocabulary(tmp_path / "vocab"), tmp_path / "data", valid_share=0.0)
    train(tmp_path / "data", tmp_path / "out", replace(TINY, epochs=1))
    assert "NaN" not in (tmp_path / "out" / "eval.json").read_text(encoding="utf-8")


def test_validation_measures_again_and_keeps_what_was_said_of_training(
    trained: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(trained[0], tmp_path / "copy")
    figures = json.loads((copy / "eval.json").read_text(encoding="utf-8"))
    (copy / "eval.json").write_text(json.dumps({"training": figures["training"]}), encoding="utf-8")
    report = validate(copy, data)
    assert report["training"] == figures["training"]
    assert report["held_out"] == pytest.approx(figures["held_out"], abs=2e-3)
    assert json.loads((copy / "eval.json").read_text(encoding="utf-8")) == report
    write_vocabulary(copy, "高血压")
    with pytest.raises(FileFault, match=r"vocab\.txt: is not the vocabulary of"):
        validate(copy, data)
