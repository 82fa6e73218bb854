"""The loss equals torch's, a tiny model learns and is saved so that transformers loads it, and what cannot work is refused."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from promptgen.errors import FileFault, NumericalFailure, Stopped, UsageError
from promptgen.text.vocabulary import Vocabulary
from promptgen.text.words import SPECIAL_TOKENS
from promptgen.training import run as running
from promptgen.training.checkpoint import newest
from promptgen.training.curves import read_metrics
from promptgen.training.dataset import load_part
from promptgen.training.evaluate import Quality, evaluate, sample_of
from promptgen.training.loss import CHUNK_TOKENS, linear_cross_entropy
from promptgen.training.optimizer import Optimizers, learning_rate_scale
from promptgen.training.prepare import prepare
from promptgen.training.shape import TrainConfig
from promptgen.training.stopping import StopWish
from promptgen.training.train import train
from promptgen.training.validate import validate

TINY = TrainConfig(
    layers=1,
    width=32,
    heads=2,
    window=32,
    row_length=32,
    rows_per_step=4,
    rows_at_once=4,
    epochs=20,
    learning_rate=1e-2,
    matrix_rate=1e-2,
    validations=2,
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


def test_loss_in_bfloat16_is_close() -> None:
    hidden, weight, labels = random_problem(500)
    mine = linear_cross_entropy(hidden, weight, labels, torch.bfloat16)
    expected = cross_entropy(hidden @ weight.T, labels, reduction="sum")
    assert mine.item() != expected.item()
    assert mine.item() == pytest.approx(expected.item(), rel=0.01)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_learning_rate_warms_up_and_falls(schedule: str) -> None:
    config = TrainConfig(schedule=schedule, warmup_share=0.1, final_learning_rate_share=0.1)
    scales = [learning_rate_scale(step, 101, config) for step in range(101)]
    assert scales[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert scales[10:] == sorted(scales[10:], reverse=True)
    assert scales[10] == 1.0
    assert scales[55] == pytest.approx(0.55, abs=0.01)  # both pass the middle at half way
    assert scales[-1] == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_vectors_do_not_decay_and_every_weight_moves(optimizer: str, data: Path) -> None:
    model = running.make_model(TINY, data)
    optimizers = Optimizers(model, replace(TINY, optimizer=optimizer, weight_decay=0.1))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizers.step(1.0)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (p.dim() < 2 or not before[name].any()), name
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizers.step(1.0)
    assert not any(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_gradient_that_is_no_number_moves_nothing(data: Path) -> None:
    model = running.make_model(TINY, data)
    optimizers = Optimizers(model, TINY)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.full_like(p, math.nan)
    assert math.isnan(optimizers.step(1.0))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not optimizers.state()


def test_a_tiny_model_learns(trained: tuple[Path, dict[str, Any]]) -> None:
    out, report = trained
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert records[0]["step"] == 1
    assert records[0]["loss"] > 0.8 * math.log(report["vocabulary"]["tokens"])
    assert report["held_out"]["loss_per_token"] < 0.4 * records[0]["loss"]
    assert records[-1]["step"] == records[-1]["of"] == report["training"]["steps"]
    assert sum("valid_loss" in record for record in records) == 2
    assert 0 < report["held_out"]["top_1_accuracy"] <= report["held_out"]["top_5_accuracy"] <= 1
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not (out / "checkpoints").exists()


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


@torch.no_grad()
def test_accuracy_is_that_of_a_direct_computation(trained: tuple[Path, dict[str, Any]], data: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained[0], dtype=torch.float32).eval()
    part = load_part(data, "valid")
    first, five, count = 0, 0, 0
    for n in range(len(part)):
        ids = torch.from_numpy(part.document(n))
        order = model(ids[None]).logits[0, :-1].argsort(1, descending=True)
        first += int((order[:, 0] == ids[1:]).sum())
        five += int((order[:, :5] == ids[1:, None]).any(1).sum())
        count += len(ids) - 1
    quality = evaluate(model, part, 32)
    assert (quality.top_1, quality.top_5) == pytest.approx((first / count, five / count))


def test_a_sample_of_a_part_is_spread_over_it(data: Path) -> None:
    part = load_part(data, "valid")
    some = sample_of(part, 3)
    assert [some.document(n).tolist() for n in range(3)] == [part.document(n).tolist() for n in (0, 5, 11)]
    assert sample_of(part, 12) is part


def test_the_same_seed_gives_the_same_weights(data: Path, tmp_path: Path) -> None:
    config = replace(TINY, epochs=2, dropout=0.1)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(data, tmp_path / name, replace(config, seed=seed))
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_divergence_is_a_numerical_failure_and_leaves_no_model(data: Path, tmp_path: Path) -> None:
    with pytest.raises(NumericalFailure, match="lower --learning-rate"):
        train(data, tmp_path, replace(TINY, epochs=30, learning_rate=1e30, matrix_rate=1e30, validations=1))
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
    report = train(data, tmp_path, replace(TINY, epochs=1, learning_rate=1e-5, matrix_rate=1e-5), trained[0])
    assert report["training"]["before"]["epochs"] == TINY.epochs
    assert report["held_out"]["loss_per_token"] == pytest.approx(trained[1]["held_out"]["loss_per_token"], abs=0.05)


def test_a_start_model_with_another_vocabulary_is_refused(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("番茄怎么做\n", encoding="utf-8")
    prepare([tmp_path / "a.txt"], write_vocabulary(tmp_path / "vocab", "高血压"), tmp_path / "data", valid_share=0.0)
    with pytest.raises(FileFault, match="has another vocabulary than"):
        train(tmp_path / "data", tmp_path / "out", TINY, trained[0])


def test_a_start_model_with_a_smaller_window_is_refused(
    trained: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--row-length 64 is longer than the window of"):
        train(data, tmp_path, replace(TINY, window=256, row_length=64, epochs=1), trained[0])


def test_a_folder_that_is_no_model_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(FileFault, match="no such model folder"):
        train(data, tmp_path / "out", TINY, tmp_path / "nowhere")
    shutil.copytree(data, tmp_path / "half")
    with pytest.raises(FileFault, match=r"holds no model\.safetensors"):
        train(data, tmp_path / "out", TINY, tmp_path / "half")


def interrupted(data: Path, out: Path, config: TrainConfig, after_step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains until SIGTERM comes after a step."""
    real = running.Run._wants_stop

    def wants_stop(run: running.Run, wish: StopWish) -> bool:
        if run.state.step == after_step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run, wish)

    with monkeypatch.context() as patch:
        patch.setattr(running.Run, "_wants_stop", wants_stop)
        with pytest.raises(Stopped, match=f"stopped after step {after_step}; run the same command again") as caught:
            train(data, out, config)
    assert caught.value.exit_code == 143


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_stopped_run_goes_on_to_the_same_weights(
    data: Path, tmp_path: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY, epochs=3, dropout=0.1, optimizer=optimizer, shifted_share=0.5, rows_at_once=2)
    whole = train(data, tmp_path / "whole", config)
    for after_step in (2, 9):
        interrupted(data, tmp_path / "parts", config, after_step, monkeypatch)
    assert (found := newest(tmp_path / "parts")[0]) is not None
    assert found.state.step == 9
    assert found.state.epoch > 0
    report = train(data, tmp_path / "parts", config)
    whole_bytes, parts_bytes = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole_bytes == parts_bytes
    assert report["held_out"] == whole["held_out"]
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert set(steps) == set(range(1, report["training"]["steps"] + 1))


@pytest.mark.parametrize("after_step", [4, 8])  # of eight, which are the two that are validated
def test_a_stop_on_a_step_that_is_validated_skips_no_validation(
    data: Path, tmp_path: Path, after_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY, steps=8)
    train(data, tmp_path / "whole", config, typing_prompts=0)
    interrupted(data, tmp_path / "parts", config, after_step, monkeypatch)
    assert (tmp_path / "parts" / "model.safetensors").exists()
    train(data, tmp_path / "parts", config, typing_prompts=0)
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
    measured = [
        [(record["step"], record["valid_loss"]) for record in read_metrics(tmp_path / name) if "valid_loss" in record]
        for name in ("whole", "parts")
    ]
    assert [step for step, _ in measured[0]] == [4, 8]
    assert measured[0] == measured[1]


def test_an_epoch_has_the_steps_that_its_rows_need(data: Path, tmp_path: Path) -> None:
    run = running.Run(data, tmp_path, replace(TINY, epochs=1), None, None, True)
    assert (
        run.num_steps == len(list(run._batches(0, 0))) == 8
    )  # two documents of 14 tokens a row of 32, four rows a step


@pytest.mark.parametrize(("seconds", "num_saved"), [(1e9, 1 + 2), (0.0, 1 + 2 + 4)])
def test_the_end_of_a_short_epoch_needs_no_checkpoint_of_its_own(
    data: Path, tmp_path: Path, seconds: float, num_saved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    monkeypatch.setattr(running.checkpoints, "save", lambda out, checkpoint: saved.append(checkpoint.state.step))
    monkeypatch.setattr(running, "EPOCH_CHECKPOINT_S", seconds)
    train(data, tmp_path, replace(TINY, epochs=5), typing_prompts=0)
    assert len(saved) == num_saved, saved


def test_a_checkpoint_of_another_run_is_refused_unless_told_to_start_over(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY, epochs=1)
    interrupted(data, tmp_path, config, 2, monkeypatch)
    told = r"holds a checkpoint of another run \(different: seed\); give another --out, or --resume never to start over"
    with pytest.raises(UsageError, match=told):
        train(data, tmp_path, replace(config, seed=3))
    train(data, tmp_path, replace(config, seed=3), resume=False)
    assert (tmp_path / "eval.json").exists()


def test_a_folder_that_holds_a_model_is_not_trained_into_unasked(
    trained: tuple[Path, dict[str, Any]], data: Path
) -> None:
    with pytest.raises(UsageError, match="holds a model already; give another --out, or --resume never"):
        train(data, trained[0], TINY)
    with pytest.raises(UsageError, match="--from and --out are the same folder"):
        train(data, trained[0], TINY, trained[0], resume=False)


def test_a_start_model_that_the_run_would_replace_is_refused(
    trained: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    last = shutil.copytree(trained[0], tmp_path / "last")
    with pytest.raises(UsageError, match="last lies in --out, and this run would replace it; give another --out"):
        train(data, tmp_path, TINY, last)
    assert (last / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json"])
def test_a_folder_of_another_kind_of_vocabulary_is_refused(data: Path, tmp_path: Path, name: str) -> None:
    for other in ("vocab.json", "merges.txt", name):
        (tmp_path / other).write_text("{}", encoding="utf-8")
    with pytest.raises(FileFault, match="holds a vocabulary of another kind"):
        train(data, tmp_path, TINY)


@pytest.mark.parametrize("name", ["train.tokens.bin", "train.offsets.bin", "valid.tokens.bin", "vocab.txt"])
def test_a_flipped_byte_of_the_data_is_refused(data: Path, tmp_path: Path, name: str) -> None:
    path = shutil.copytree(data, tmp_path / "data") / name
    content = bytearray(path.read_bytes())
    content[20] ^= 2
    path.write_bytes(content)
    with pytest.raises(FileFault):
        train(tmp_path / "data", tmp_path / "out", TINY)


def test_a_start_model_that_lacks_weights_or_holds_nan_is_refused(
    trained: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    weights = load_file(trained[0] / "model.safetensors")
    half = {name: tensor for name, tensor in weights.items() if "mlp" not in name}
    broken = weights | {"transformer.ln_f.weight": torch.full((32,), math.nan)}
    for number, (content, told) in enumerate(
        [(half, "lacks 4 tensors of a GPT-2"), (broken, "holds a weight that is no")]
    ):
        copy = shutil.copytree(trained[0], tmp_path / str(number))
        save_file(content, copy / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(FileFault, match=told):
            train(data, tmp_path / "out", TINY, copy)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"training": 3}', '{"training": {"steps": 1}}'])
def test_a_foreign_eval_json_beside_a_start_model_does_no_harm(
    trained: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path, content: str
) -> None:
    copy = shutil.copytree(trained[0], tmp_path / "start")
    (copy / "eval.json").write_text(content, encoding="utf-8")
    report = train(data, tmp_path / "out", replace(TINY, epochs=0.2), copy)
    assert "before" not in report["training"]


def test_data_prepared_anew_under_a_run_stop_it(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(data, tmp_path / "data")
    run = running.Run(tmp_path / "data", tmp_path / "out", TINY, None, None, True)
    run.save()
    meta = json.loads((tmp_path / "data" / "meta.json").read_text(encoding="utf-8"))
    (tmp_path / "data" / "meta.json").write_text(json.dumps(meta | {"counts": {}}), encoding="utf-8")
    with pytest.raises(FileFault, match="was prepared anew while this training ran"):
        run.save()


def test_divergence_later_keeps_the_checkpoint(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = running.training_step

    def step(*args: Any, **kwargs: Any) -> float:
        return math.nan if kwargs["number"] == 9 else real(*args, **kwargs)

    monkeypatch.setattr(running, "training_step", step)
    with pytest.raises(NumericalFailure, match="the last good checkpoint is in") as caught:
        train(data, tmp_path, replace(TINY, steps=10, validations=5))
    assert caught.value.exit_code == 4
    assert (found := newest(tmp_path)[0]) is not None
    assert found.state.step == 8


def test_a_run_with_a_budget_goes_on_with_the_steps_it_began_with(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY, epochs=3)
    monkeypatch.setattr(running.Run, "_time_a_step", lambda run, trial_s: (0.1, 0.5))
    monkeypatch.setattr(running, "training_step", lambda *args, **kwargs: math.nan)
    with pytest.raises(NumericalFailure):
        train(data, tmp_path, config, budget_s=2.0)
    assert (found := newest(tmp_path)[0]) is not None
    assert (found.state.identity["steps"], found.state.identity["validations"]) == (15, 1)
    monkeypatch.setattr(running.Run, "_time_a_step", lambda run, trial_s: pytest.fail("timed again"))
    run = running.Run(data, tmp_path, config, None, 2.0, True)
    run.resume()
    assert (run.num_steps, run.config.validations) == (15, 1)


def test_patience_ends_a_run_that_only_gets_worse(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.6, 2.7, 1.0])
    monkeypatch.setattr(running.Run, "_quality", lambda run: Quality(next(losses), 9, 0.1, 0.2))
    report = train(data, tmp_path, replace(TINY, steps=20, validations=10, patience=3))
    assert report["training"]["steps"] == 10
    assert report["training"]["best_validation_loss"] == 2.0
    best, last = ((tmp_path / name).read_bytes() for name in ("model.safetensors", "last/model.safetensors"))
    assert best != last


def test_a_budget_becomes_a_number_of_steps(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = train(data, tmp_path / "timed", replace(TINY, epochs=50), budget_s=0.3)
    steps = report["training"]["steps"]
    assert 1 <= steps < 50 * 8
    assert f"the same run again: --steps {steps})" in capsys.readouterr().err
    validations = report["training"]["validations"]
    train(data, tmp_path / "counted", replace(TINY, epochs=50, steps=steps, validations=validations))
    timed, counted = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("timed", "counted"))
    assert timed == counted


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
    with pytest.raises(FileFault, match="has another vocabulary than"):
        validate(copy, data)
