"""A damaged or foreign model folder is refused within seconds by a FileFault naming the file; nothing in it runs."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from promptgen.errors import FileFault
from promptgen.generation.loader import num_prompt_slots
from promptgen.generation.modelfile import Gpt2Shape, read_sampling, read_shape, read_weights
from promptgen.generation.request import Sampling

CONFIG, WEIGHTS = "config.json", "model.safetensors"
MAX_REFUSAL_S = 5.0
TENSORS = [
    "wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias",
    "h.0.ln_1.weight", "h.0.ln_1.bias", "h.0.ln_2.weight", "h.0.ln_2.bias",
    "h.0.attn.c_attn.weight", "h.0.attn.c_attn.bias", "h.0.attn.c_proj.weight", "h.0.attn.c_proj.bias",
    "h.0.mlp.c_fc.weight", "h.0.mlp.c_fc.bias", "h.0.mlp.c_proj.weight", "h.0.mlp.c_proj.bias",
]  # fmt: skip


@pytest.fixture
def folder(random_model: Any, tmp_path: Path) -> Path:
    """A sound model folder of one's own, to be damaged."""
    copy = tmp_path / "model"
    shutil.copytree(random_model(1, 8, 2, 11, 6), copy)
    return copy


class Mine:
    """Unpickled, it leaves a folder behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


def load(folder: Path) -> None:
    read_weights(folder, read_shape(folder))


def assert_refused(folder: Path, file: str, words: str = "") -> None:
    started = time.perf_counter()
    with pytest.raises(FileFault) as refusal:
        load(folder)
    assert time.perf_counter() - started < MAX_REFUSAL_S
    message = str(refusal.value)
    assert message.startswith(str(folder / file))
    assert words in message
    assert "\n" not in message
    assert refusal.value.exit_code == 3


def set_config(folder: Path, **changes: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensor(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["transformer." + name]
    if tensor is not None:
        tensors["transformer." + name] = tensor.contiguous()
    save_file(tensors, folder / WEIGHTS)


def stored(folder: Path, name: str) -> torch.Tensor:
    return load_file(folder / WEIGHTS)["transformer." + name]


def test_sound_folder_loads(folder: Path) -> None:
    shape = read_shape(folder)
    assert (shape.layers, shape.width, shape.heads, shape.vocabulary, shape.window, shape.inner, shape.head_dim) == (
        1,
        8,
        2,
        11,
        6,
        32,
        4,
    )
    weights = read_weights(folder, shape)
    assert sorted(weights) == sorted(TENSORS)
    assert all(tensor.dtype == np.float32 for tensor in weights.values())


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nothing", CONFIG)


def test_missing_config_is_refused(folder: Path) -> None:
    (folder / CONFIG).unlink()
    assert_refused(folder, CONFIG)


def test_folder_in_place_of_a_file_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()
    assert_refused(folder, WEIGHTS)
    (folder / CONFIG).unlink()
    (folder / CONFIG).mkdir()
    assert_refused(folder, CONFIG)


@pytest.mark.parametrize(
    "content",
    [
        b"", b" ", b"{", b"nonsense", b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}", b"null", b"[]", b"3", b'"gpt2"', b"{}",
        b"\x00" * 100,
        b"[" * 100_000, b'{"a":' * 100_000, b'{"vocab_size": ' + b"9" * 5000 + b"}",
        b'{"model_type": "gpt2"}', "{“model_type”: 1}".encode("gbk"),
    ],
    ids=lambda content: repr(content[:12]),
)  # fmt: skip
def test_config_that_is_no_config_is_refused(folder: Path, content: bytes) -> None:
    (folder / CONFIG).write_bytes(content)
    assert_refused(folder, CONFIG)


@pytest.mark.parametrize("model_type", ["bert", "GPT2", "gpt_neo", "", None, 2, ["gpt2"], {"gpt2": 1}, "gpt2\n"])
def test_foreign_model_type_is_refused(folder: Path, model_type: Any) -> None:
    set_config(folder, model_type=model_type)
    assert_refused(folder, CONFIG, "model_type")


@pytest.mark.parametrize(
    "value", [0, -1, True, False, 1e9, 10**9, 10**30, 8.0, "8", "", None, [8], float("nan"), float("inf")]
)
@pytest.mark.parametrize("key", ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head"])
def test_bad_number_is_refused(folder: Path, key: str, value: Any) -> None:
    set_config(folder, **{key: value})
    assert_refused(folder, CONFIG, key)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_head": 3},
        {"n_head": 16},
        {"n_inner": -1},
        {"n_inner": True},
        {"n_inner": "32"},
        {"n_inner": 10**9},
        {"layer_norm_epsilon": 0.0},
        {"layer_norm_epsilon": -1e-5},
        {"layer_norm_epsilon": float("nan")},
        {"layer_norm_epsilon": "1e-5"},
        {"layer_norm_epsilon": 1.0},
        {"activation_function": "relu"},
        {"activation_function": "gelu"},
        {"activation_function": None},
        {"activation_function": ["gelu_new"]},
        {"scale_attn_by_inverse_layer_idx": True},
        {"reorder_and_upcast_attn": True},
        {"add_cross_attention": True},
        {"scale_attn_weights": False},
        {"tie_word_embeddings": False},
    ],
    ids=str,
)
def test_unserved_setting_is_refused(folder: Path, changes: dict[str, Any]) -> None:
    set_config(folder, **changes)
    assert_refused(folder, CONFIG, next(iter(changes)))


@pytest.mark.parametrize(
    "changes", [{"vocab_size": 12}, {"n_positions": 5}, {"n_embd": 16}, {"n_layer": 2}, {"n_inner": 8}], ids=str
)
def test_config_that_disagrees_with_the_weights_is_refused(folder: Path, changes: dict[str, Any]) -> None:
    set_config(folder, **changes)
    assert_refused(folder, WEIGHTS)


def test_missing_weights_are_refused(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert_refused(folder, WEIGHTS, "is missing")


def test_pickled_weights_are_named_but_not_opened(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Mine(trace)))
    assert_refused(folder, WEIGHTS, "pytorch_model.bin")
    assert not trace.exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert trace.exists()


def test_pickle_under_the_name_of_the_weights_is_not_run(folder: Path, tmp_path: Path) -> None:
    torch.save(Mine(tmp_path / "saved"), folder / WEIGHTS)
    assert_refused(folder, WEIGHTS)
    (folder / WEIGHTS).write_bytes(pickle.dumps(Mine(tmp_path / "pickled")))
    assert_refused(folder, WEIGHTS)
    assert not (tmp_path / "saved").exists()
    assert not (tmp_path / "pickled").exists()


def test_code_that_the_config_names_is_not_run(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (folder / "mine.py").write_text(f"import os\nos.mkdir({str(trace)!r})\n")
    set_config(
        folder, auto_map={"AutoModelForCausalLM": "mine.Mine", "AutoConfig": "mine.Mine"}, trust_remote_code=True
    )
    load(folder)
    assert not trace.exists()


@pytest.mark.parametrize("part", [0, 1, 7, 8, 9, 100, 0.2, 0.3, 0.5, 0.7, 0.9, 0.99, -8, -4, -1])
def test_truncated_weights_are_refused(folder: Path, part: float) -> None:
    content = (folder / WEIGHTS).read_bytes()
    length = int(part * len(content)) if isinstance(part, float) else part
    (folder / WEIGHTS).write_bytes(content[:length])
    assert_refused(folder, WEIGHTS)


@pytest.mark.parametrize(
    "content", [b"\x00" * 8, b"\xff" * 64, b"{}" * 50, b"\x02\x00\x00\x00\x00\x00\x00\x00{}", b"PK\x03\x04" * 40]
)
def test_weights_of_another_kind_are_refused(folder: Path, content: bytes) -> None:
    (folder / WEIGHTS).write_bytes(content)
    assert_refused(folder, WEIGHTS)


def test_weights_with_something_behind_them_are_refused(folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"\x00" * 4)
    assert_refused(folder, WEIGHTS)


@pytest.mark.parametrize("name", TENSORS)
def test_missing_tensor_is_refused(folder: Path, name: str) -> None:
    change_tensor(folder, name, None)
    assert_refused(folder, WEIGHTS, name)


@pytest.mark.parametrize("name", TENSORS)
def test_reshaped_tensor_is_refused(folder: Path, name: str) -> None:
    tensor = stored(folder, name)
    change_tensor(folder, name, tensor.flatten()[None] if tensor.dim() == 1 else tensor.flatten())
    assert_refused(folder, WEIGHTS, name)


@pytest.mark.parametrize("name", ["wte.weight", "wpe.weight", "h.0.attn.c_attn.weight", "h.0.mlp.c_fc.weight"])
def test_transposed_tensor_is_refused(folder: Path, name: str) -> None:
    change_tensor(folder, name, stored(folder, name).t())
    assert_refused(folder, WEIGHTS, name)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.int8,
        torch.int32,
        torch.int64,
        torch.uint8,
        torch.bool,
        torch.float64,
        torch.complex64,
        torch.float8_e4m3fn,
    ],
)
def test_tensor_of_another_type_is_refused(folder: Path, dtype: torch.dtype) -> None:
    change_tensor(folder, "ln_f.bias", stored(folder, "ln_f.bias").to(dtype))
    assert_refused(folder, WEIGHTS, "ln_f.bias")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["wte.weight", "h.0.mlp.c_proj.bias"])
def test_number_that_is_not_finite_is_refused(folder: Path, name: str, number: float, dtype: torch.dtype) -> None:
    tensor = stored(folder, name).to(dtype)
    tensor.view(-1)[-1] = number
    change_tensor(folder, name, tensor)
    assert_refused(folder, WEIGHTS, name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_load_as_float32(folder: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)
    weights = read_weights(folder, read_shape(folder))
    for name, tensor in weights.items():
        assert tensor.dtype == np.float32
        assert np.array_equal(tensor, tensors["transformer." + name].float().numpy())
    load(folder)


def test_weights_outlive_their_file(folder: Path) -> None:
    """In a process of its own: who reads a mapped file that was cut is ended by SIGBUS."""
    code = f"""
import os
from pathlib import Path
from promptgen.generation.modelfile import read_shape, read_weights

folder = Path({str(folder)!r})
weights = read_weights(folder, read_shape(folder))
before = {{name: tensor.sum().item() for name, tensor in weights.items()}}
os.truncate(folder / "model.safetensors", 10)
assert before == {{name: tensor.sum().item() for name, tensor in weights.items()}}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


def test_names_without_prefix_load_too(folder: Path) -> None:
    before = read_weights(folder, read_shape(folder))
    save_file(
        {name.removeprefix("transformer."): tensor for name, tensor in load_file(folder / WEIGHTS).items()},
        folder / WEIGHTS,
    )
    after = read_weights(folder, read_shape(folder))
    assert all(np.array_equal(after[name], before[name]) for name in TENSORS)


@pytest.mark.parametrize("seed", range(60))
def test_random_bytes_in_the_header_are_refused(folder: Path, seed: int) -> None:
    """The bytes that say what is where; free text, here only `__metadata__`, is left out: it changes nothing."""
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors, folder / WEIGHTS)
    content = bytearray((folder / WEIGHTS).read_bytes())
    header = bytes(content[8 : 8 + int.from_bytes(content[:8], "little")]).rstrip()
    draw = random.Random(seed)
    for _ in range(1 + seed % 3):
        place = draw.randrange(8 + len(header))
        content[place] = draw.choice([byte for byte in range(256) if byte != content[place]])
    (folder / WEIGHTS).write_bytes(content)
    assert_refused(folder, WEIGHTS)


@pytest.fixture(scope="module")
def sound_and_spoiled(random_model: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    sound = random_model(1, 8, 2, 11, 6)
    spoiled = tmp_path_factory.mktemp("spoiled")
    shutil.copytree(sound, spoiled, dirs_exist_ok=True)
    return sound, spoiled


@given(data=st.data())
def test_any_spoiled_file_is_refused_or_still_means_a_model(
    sound_and_spoiled: tuple[Path, Path], data: st.DataObject
) -> None:
    """No changed byte ends in another exception, or in weights that are not finite numbers of the right shape."""
    sound, spoiled = sound_and_spoiled
    for file in (CONFIG, WEIGHTS):
        content = bytearray((sound / file).read_bytes())
        for place in data.draw(st.lists(st.integers(0, min(len(content), 2500) - 1), max_size=2)):
            content[place] = data.draw(st.integers(0, 255))
        (spoiled / file).write_bytes(content)
    refusal = ""
    try:
        shape = read_shape(spoiled)
        weights = read_weights(spoiled, shape)
    except FileFault as fault:
        refusal = str(fault)
    if refusal:
        assert refusal.startswith((str(spoiled / CONFIG), str(spoiled / WEIGHTS)))
        assert "\n" not in refusal
    else:
        assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == shape.tensors()
        assert all(np.isfinite(tensor).all() for tensor in weights.values())


def test_a_model_without_a_generation_config_is_drawn_from_as_the_contract_says(folder: Path) -> None:
    assert read_sampling(folder) == Sampling(1.0, 30, 0.0, 1.0)


def test_a_generation_config_gives_the_defaults_it_names(folder: Path) -> None:
    (folder / "generation_config.json").write_text(
        '{"temperature": 0.7, "top_p": 0.9, "bos_token_id": 2, "top_k": null}'
    )
    assert read_sampling(folder) == Sampling(0.7, 30, 0.9, 1.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "must be a JSON object"),
        ('{"temperature": "hot"}', "temperature"),
        ('{"temperature": true}', "temperature"),
        ('{"temperature": 3}', "temperature"),
        ('{"temperature": NaN}', "temperature"),
        ('{"top_k": 1.5}', "top_k"),
        ('{"top_p": -0.1}', "top_p"),
        ('{"repetition_penalty": 0.05}', "repetition_penalty"),
    ],
)
def test_a_generation_config_that_makes_no_sense_is_refused(folder: Path, text: str, words: str) -> None:
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(FileFault, match=rf"generation_config\.json.*{words}"):
        read_sampling(folder)


@pytest.mark.parametrize(
    ("asked", "window", "slots"),
    [(0, 256, 256), (0, 512, 128), (0, 1024, 64), (0, 64, 256), (1, 256, 16), (700, 256, 700)],
)
def test_what_is_kept_is_bounded_by_its_size_unless_a_number_is_given(asked: int, window: int, slots: int) -> None:
    shape = Gpt2Shape(vocabulary=10000, window=window, width=256, layers=4, heads=4, inner=1024, epsilon=1e-5)
    assert num_prompt_slots(asked, shape) == slots
