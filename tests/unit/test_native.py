"""The compiled kernels: the same numbers as torch, the same bits in any company, and no harm from a compiler that is missing or broken."""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import shutil
import stat
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from promptgen.config import DEFAULT_CACHE, DEFAULT_MODEL, EngineSettings
from promptgen.errors import UsageError
from promptgen.generation import beginning
from promptgen.generation.beginning import beginning_of
from promptgen.generation.calibrate import Choice, choose, load_choice, save_choice
from promptgen.generation.engine import Engine
from promptgen.generation.gpt2 import EagerGpt2
from promptgen.generation.loader import open_model
from promptgen.generation.memory import Memory
from promptgen.generation.modelfile import Gpt2Shape, read_shape, read_weights
from promptgen.generation.native import compiler
from promptgen.generation.native.compiler import KernelsUnavailable, compile_library, find_library
from promptgen.generation.native.model import Kernels, NativeGpt2
from promptgen.generation.request import FinishEvent, GenerationRequest, Sampling
from promptgen.generation.steps import NO_TOKEN, NO_TOKENS, NOTHING_TO_READ, Copy, Precision, PromptTokens, Steps
from promptgen.generation.upgrade import Upgrade, usable_threads
from tests.conftest import new_memory, random_weights

SHAPES = {
    "one vector": Gpt2Shape(vocabulary=61, window=40, width=16, layers=1, heads=1, inner=16, epsilon=1e-5),
    "three heads of 48": Gpt2Shape(vocabulary=500, window=70, width=144, layers=2, heads=3, inner=80, epsilon=1e-5),
    "heads of 32": Gpt2Shape(vocabulary=128, window=40, width=64, layers=3, heads=2, inner=256, epsilon=1e-6),
    "heads of 64": Gpt2Shape(vocabulary=1009, window=40, width=128, layers=2, heads=2, inner=512, epsilon=1e-5),
    "heads of 128": Gpt2Shape(vocabulary=300, window=40, width=256, layers=1, heads=2, inner=64, epsilon=1e-5),
}
PRECISIONS: list[Precision] = ["float32", "bfloat16", "int8"]
ALLOWED = {"float32": 1e-5, "bfloat16": 0.02, "int8": 0.05}  # largest error over the largest logit


def steps_of(kernels: Kernels, memory: Memory, precision: Precision, num_threads: int = 1) -> NativeGpt2:
    if precision not in kernels.precisions:
        pytest.skip(f"this machine does not compute {precision}")
    return NativeGpt2(kernels, memory, random_weights(memory.shape, scale=0.1), precision, num_threads)


STEPS_BOTH_WAYS = 20  # a trial of all threads and one of a single thread, eight passes each


def walk(steps: Steps, memory: Memory, num_rows: int = 5, num_steps: int = 8, seed: int = 1) -> NDArray[np.float32]:
    """Logits [steps, rows, V] of rows that share a prompt and are then fed tokens of our choice."""
    rng = np.random.default_rng(seed)
    slot, size = len(memory.rows), memory.shape.vocabulary
    prompt = tuple(rng.integers(0, size, 6).tolist())
    steps.forward(0, PromptTokens.of([(slot, 0, prompt, True)]))
    steps.copy([memory.start_rows(GenerationRequest(prompt, num_rows, 9), slot, 0, range(num_rows))])
    seen = [np.repeat(memory.logits[slot : slot + 1, :size], num_rows, axis=0)]
    for _ in range(num_steps):
        memory.rows["position"][:num_rows] += 1
        memory.rows["token_id"][:num_rows] = rng.integers(0, size, num_rows)
        steps.forward(num_rows, NOTHING_TO_READ)
        seen.append(memory.logits[:num_rows, :size].copy())
    return np.stack(seen)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_torch(kernels: Kernels, name: str, precision: Precision) -> None:
    memory, exact = new_memory(SHAPES[name]), new_memory(SHAPES[name])
    given = walk(steps_of(kernels, memory, precision), memory)
    wanted = walk(EagerGpt2(exact, random_weights(exact.shape, scale=0.1)), exact)
    assert np.abs(given - wanted).max() <= ALLOWED[precision] * np.abs(wanted).max()


def test_torch_in_int8_is_near_too() -> None:
    memory, exact = new_memory(SHAPES["heads of 64"]), new_memory(SHAPES["heads of 64"])
    given = walk(EagerGpt2(memory, random_weights(memory.shape, scale=0.1), "int8"), memory)
    wanted = walk(EagerGpt2(exact, random_weights(exact.shape, scale=0.1)), exact)
    assert 0 < np.abs(given - wanted).max() <= 0.1 * np.abs(wanted).max()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_a_row_has_the_same_bits_in_any_company_and_on_any_threads(
    kernels: Kernels, precision: Precision, num_threads: int
) -> None:
    shape = SHAPES["three heads of 48"]
    alone = new_memory(shape, max_rows=23)
    wanted = walk(steps_of(kernels, alone, precision), alone, num_rows=1, num_steps=STEPS_BOTH_WAYS, seed=3)[:, 0]
    for num_rows in (2, 5, 6, 7, 13, 23):
        memory = new_memory(shape, max_rows=23)
        steps = steps_of(kernels, memory, precision, num_threads)
        rng = np.random.default_rng(3)
        slot, size = 23, shape.vocabulary
        prompt = tuple(rng.integers(0, size, 6).tolist())
        company = [(slot + 1, 0, tuple(range(num_rows)), True)] if num_rows > 5 else []
        steps.forward(0, PromptTokens.of([*company, (slot, 0, prompt, True)]))
        steps.copy([memory.start_rows(GenerationRequest(prompt, num_rows, 9), slot, 0, range(num_rows))])
        own = num_rows // 2
        seen, threads_used = [memory.logits[slot, :size].copy()], set()
        for _ in range(STEPS_BOTH_WAYS):
            memory.rows["position"][:num_rows] += 1
            memory.rows["token_id"][:num_rows] = np.random.default_rng(num_rows).integers(0, size, num_rows)
            memory.rows["token_id"][own] = rng.integers(0, size, 1)[0]
            steps.forward(num_rows, PromptTokens.of([(slot + 2, 0, (1, 2, 3), False)]))
            seen.append(memory.logits[own, :size].copy())
            threads_used.add(steps.num_threads_used)
        assert np.array_equal(np.stack(seen), wanted)
        assert threads_used == {1, num_threads}  # both ways are tried


def test_threads_that_have_no_core_are_not_waited_for(kernels: Kernels) -> None:
    memory = new_memory(SHAPES["heads of 64"])
    steps = steps_of(kernels, memory, "float32", 4 * (os.cpu_count() or 1))
    used = []
    for _ in range(300):
        steps.forward(3, NOTHING_TO_READ)
        used.append(steps.num_threads_used)
    assert max(used) > 1
    assert used[-200:].count(1) > 150


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_prompt_has_the_same_bits_however_it_is_cut(kernels: Kernels, precision: Precision) -> None:
    memory = new_memory(SHAPES["heads of 64"])
    steps = steps_of(kernels, memory, precision, 2)
    prompt, slot, draw = tuple(range(5, 38)), 8, random.Random(2)
    steps.forward(0, PromptTokens.of([(slot, 0, prompt, True)]))
    whole = memory.logits[slot].copy()
    for _ in range(10):
        cuts = [0, *sorted(draw.sample(range(1, len(prompt)), 4)), len(prompt)]
        for start, end in itertools.pairwise(cuts):
            steps.forward(0, PromptTokens.of([(slot + 1, start, prompt[start:end], end == len(prompt))]))
        assert np.array_equal(memory.logits[slot + 1], whole)


def test_int8_of_zeros_is_zero(kernels: Kernels) -> None:
    shape = SHAPES["one vector"]
    memory = new_memory(shape)
    if "int8" not in kernels.precisions:
        pytest.skip("this machine does not compute int8")
    memory.logits[:] = 7
    weights = {name: tensor * 0 for name, tensor in random_weights(shape).items()}
    NativeGpt2(kernels, memory, weights, "int8", 1).forward(0, PromptTokens.of([(8, 0, (1, 2, 3), True)]))
    assert (memory.logits[8, : shape.vocabulary] == 0).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_what_is_no_number_within_the_model_is_none_at_its_end(
    kernels: Kernels, precision: Precision, odd: float
) -> None:
    shape = SHAPES["heads of 64"]
    memory, weights = new_memory(shape), random_weights(shape)
    weights["wpe.weight"] = weights["wpe.weight"].copy()
    weights["wpe.weight"][2, 5] = odd  # of the third position
    steps = NativeGpt2(kernels, memory, weights, precision, 1)
    steps.forward(0, PromptTokens.of([(8, 0, (1, 2), True), (9, 0, (1, 2, 3), True)]))
    assert np.isfinite(memory.logits[8, : shape.vocabulary]).all()
    assert not np.isfinite(memory.logits[9, : shape.vocabulary]).any()


def test_a_fork_is_told_that_it_has_no_threads(kernels: Kernels) -> None:
    code = (
        "import gc, os, sys\n"
        "from promptgen.generation.request import GenerationRequest\n"
        "from promptgen.generation.steps import PromptTokens\n"
        "from tests.unit.test_native import *\n"
        "k = Kernels(find_library(EngineSettings().cache.expanduser())); m = new_memory(SHAPES['heads of 64'])\n"
        "steps = steps_of(k, m, 'float32', 2)\n"
        "read = lambda: steps.forward(0, PromptTokens.of([(8, 0, tuple(range(30)), True)]))\n"
        "read()\n"
        "if child := os.fork(): sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "calls = [read, lambda: steps.draw(4, 0, np.full(4, 8, np.int32)),\n"
        "         lambda: steps.copy([m.start_rows(GenerationRequest((1, 2), 4, 9), 8, 0, range(4))])]\n"
        "for call in calls:\n"
        "    with pytest.raises(RuntimeError, match='do not survive a fork'): call()\n"
        "del steps, read, call, calls; gc.collect(); os._exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 7, done.stderr


def test_an_end_that_no_token_is_can_be_ignored(kernels: Kernels) -> None:
    memory = new_memory(SHAPES["one vector"])
    assert memory.end_id == -1
    memory.start_rows(GenerationRequest((1, 2), 4, 9, Sampling(seed=1), ignore_end=True), 8, 0, range(4))
    steps = steps_of(kernels, memory, "float32")
    assert len(steps.draw(4, 0, np.full(4, 8, np.int32))[0]) == 4


def test_what_is_no_number_is_not_drawn(kernels: Kernels) -> None:
    memory = new_memory(SHAPES["heads of 32"])
    for top_k in (0, 30):
        memory.start_rows(GenerationRequest((1, 2), 8, 9, Sampling(seed=1, top_k=top_k)), 8, 0, range(8))
        memory.logits[8, ::2] = np.nan
        token_ids, _ = steps_of(kernels, memory, "float32").draw(8, 0, np.full(8, 8, np.int32))
        assert all(token_id % 2 for token_id in token_ids)


def test_odd_widths_are_left_to_torch() -> None:
    assert all(Kernels.fits(shape) for shape in SHAPES.values())
    assert not Kernels.fits(Gpt2Shape(61, 40, 24, 1, 2, 96, 1e-5))


# -- the compiler -----------------------------------------------------------------------------------------------------


def fake_compiler(folder: Path, script: str) -> str:
    program = folder / "compiler"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


def test_a_library_that_was_compiled_is_found_again(
    tmp_path: Path, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "FLAGS", tuple("-O0" if flag == "-O3" else flag for flag in compiler.FLAGS))  # sooner
    assert find_library(tmp_path) is None
    stale, fresh = tmp_path / "making-old", tmp_path / "making-new"
    stale.mkdir()
    fresh.mkdir()
    os.utime(stale, (0, 0))
    made = compile_library(tmp_path, "auto")
    assert find_library(tmp_path) == made
    assert Kernels(made).precisions[0] == "float32"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["making-new"]
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.is_file()) == [".json", ".so"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no-such-compiler", "no C.* compiler 'no-such-compiler'"),
        ("echo 'x.cpp:1: error: out of luck' >&2; exit 3", "ended with 3 .*out of luck"),
        ("kill -9 $$", "ended with -9"),
        ("exit 0", "made nothing"),
    ],
)
def test_a_compiler_that_is_missing_fails_or_is_killed_is_told(tmp_path: Path, name: str, told: str) -> None:
    program = name if " " not in name else fake_compiler(tmp_path, name)
    with pytest.raises(KernelsUnavailable, match=told):
        compile_library(tmp_path / "cache", program)
    assert not list((tmp_path / "cache").glob("*")) if (tmp_path / "cache").exists() else True


@pytest.mark.skipif(shutil.which("c++") is None, reason="what stands for ziglang here hands on to c++")
def test_a_machine_without_a_compiler_takes_the_one_of_the_package_ziglang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = shutil.which("c++")
    assert found is not None
    assert compiler.compiler_command("auto") == [found]
    monkeypatch.setenv("PATH", str(tmp_path))  # nothing is in it
    monkeypatch.setattr(compiler, "find_spec", lambda _: None)
    with pytest.raises(KernelsUnavailable, match="pip install 'ziglang"):
        compile_library(tmp_path / "cache", "auto")
    monkeypatch.setattr(compiler, "find_spec", lambda _: object())
    package = tmp_path / "ziglang"  # stands for it: called the same way, it hands on to the compiler that there is
    package.mkdir()
    (package / "__main__.py").write_text(
        "import os, sys\nassert sys.argv[1] == 'c++' and os.environ['ZIG_GLOBAL_CACHE_DIR'] == os.environ['ZIG_LOCAL_CACHE_DIR']\n"
        f"os.environ['PATH'] = {os.environ['PATH'] + os.pathsep + os.path.dirname(found)!r}\n"
        f"os.execv({found!r}, [{found!r}, '-O0', *(flag for flag in sys.argv[2:] if flag != '-O3')])\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "float32" in Kernels(compile_library(tmp_path / "cache", "auto")).precisions
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


@pytest.mark.skipif(find_spec("ziglang") is None, reason="pip install ziglang")
def test_the_compiler_of_the_package_ziglang_makes_kernels_that_compute_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: Kernels
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    made = Kernels(compile_library(tmp_path / "cache", "auto"))
    assert made.precisions == kernels.precisions
    for precision in made.precisions:
        memory, exact = new_memory(SHAPES["heads of 64"]), new_memory(SHAPES["heads of 64"])
        given = walk(steps_of(made, memory, precision), memory)
        wanted = walk(EagerGpt2(exact, random_weights(exact.shape, scale=0.1)), exact)
        assert np.abs(given - wanted).max() <= ALLOWED[precision] * np.abs(wanted).max()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KernelsUnavailable, match="cannot be used"):
        compile_library(tmp_path / "file" / "cache", "auto")


@pytest.mark.parametrize("damage", ["cut", "rubbish", "foreign", "no manifest", "manifest is rubbish"])
def test_damaged_libraries_are_never_loaded(tmp_path: Path, kernels: Kernels, damage: str) -> None:
    library = _copy_of_library(tmp_path)
    manifest = library.with_suffix(".json")
    content = library.read_bytes()
    if damage == "cut":
        library.write_bytes(content[:1000])
    elif damage == "rubbish":
        library.write_bytes(b"\0" * 5000)
    elif damage == "foreign":
        library.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("[")
    assert find_library(tmp_path) is None


def _copy_of_library(folder: Path) -> Path:
    source = find_library(EngineSettings().cache.expanduser())
    assert source is not None
    for path in (source, source.with_suffix(".json")):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder / source.name


# -- from torch to the kernels ----------------------------------------------------------------------------------------


def upgrade_of(cache: Path, **settings: object) -> Upgrade:
    shape = read_shape(DEFAULT_MODEL)
    memory = new_memory(shape)
    return Upgrade(EngineSettings(cache=cache, **settings), memory, read_weights(DEFAULT_MODEL, shape), 2)  # type: ignore[arg-type]


def test_what_was_prepared_is_ready_and_rubbish_in_the_cache_is_made_anew(
    tmp_path: Path, kernels: Kernels, caplog: pytest.LogCaptureFixture
) -> None:
    library = _copy_of_library(tmp_path)
    upgrade = upgrade_of(tmp_path, precision="float32", threads=1)
    assert upgrade.ready() is None  # nothing was measured yet
    offered: list[Steps] = []
    upgrade.prepare(offered.append).join()
    again = upgrade.ready()
    assert again is not None
    assert [steps.description for steps in (*offered, again)] == ["compiled, float32, 1 threads"] * 2
    library.write_bytes(b"rubbish")
    assert upgrade.ready() is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    upgrade.prepare(offered.append).join()
    assert len(offered) == 2
    assert upgrade.ready() is not None


def test_a_start_with_a_prepared_step_does_not_load_torch(tmp_path: Path, kernels: Kernels) -> None:
    """Seconds and 200 MB of every later start. What the model answers then is shown in tests/service/test_kernels.py."""
    _copy_of_library(tmp_path)
    upgrade_of(tmp_path, precision="float32", threads=1).prepare(lambda _: None).join()
    code = f"""
import sys
from pathlib import Path
from promptgen.config import EngineSettings
from promptgen.generation.local import Generator
from promptgen.generation.request import Sampling, TextRequest

generator = Generator(EngineSettings(cache=Path({str(tmp_path)!r}), precision="float32", threads=1))
answer = generator.generate(TextRequest("高血压要注", 3, 8, Sampling(seed=1, repetition_penalty=1.1), want_logprobs=True))
assert len(answer.candidates) == 3
generator._model.embedder.embed((2, 20, 30))
sys.exit(", ".join({{"torch", "transformers"}} & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("num_threads", [1, 3])
def test_rows_after_the_same_tokens_are_computed_once_and_nothing_shows_it(
    kernels: Kernels, precision: Precision, num_threads: int
) -> None:
    """Twelve rows of two prompts, one of them asked for under two salts, are fed few different tokens and part one by one."""
    shape, num_rows, asked = SHAPES["heads of 64"], 12, {1: (5, 6, 7), 2: (5, 6, 8)}
    requests = [(asked[1], "a", 4), (asked[2], "a", 4), (asked[1], "b", 2), (asked[1], "a", 2)]

    def run(*, shares: bool) -> tuple[list[NDArray[np.float32]], int]:
        memory = new_memory(shape, max_rows=num_rows, num_prompt_slots=6)
        steps = steps_of(kernels, memory, precision, num_threads)
        rng, first, num_shared, seen = np.random.default_rng(2), 0, 0, list[NDArray[np.float32]]()
        for slot, (prompt, salt, number) in enumerate(requests, num_rows):
            steps.forward(0, PromptTokens.of([(slot, 0, prompt, True)]))
            request = GenerationRequest(prompt, number, 9, salt=salt)
            steps.copy([memory.start_rows(request, slot, first, range(number))])
            first += number
        tokens_of = [[*prompt, salt] for prompt, salt, number in requests for _ in range(number)]
        for step in range(10):
            memory.rows["position"] += 1
            memory.rows["token_id"] = rng.integers(0, 2 if step < 6 else 9, num_rows)
            for own, token_id in zip(tokens_of, memory.rows["token_id"].tolist(), strict=True):
                own.append(token_id)
            if not shares:
                memory.rows["beginning"] = 0
            steps.forward(num_rows, PromptTokens.of([(num_rows + 5, 0, (1, 2, 3), step % 2 == 0)]))
            assert steps.num_shared == (num_rows - len(set(map(tuple, tokens_of))) if shares else 0)
            num_shared += steps.num_shared
            seen += [memory.logits[: num_rows + 6].copy(), memory.keys[:, :num_rows].copy()]
            seen.append(memory.values[:, :num_rows].copy())
        return seen, num_shared

    shared, num_shared = run(shares=True)
    apart, _ = run(shares=False)
    assert num_shared >= 10
    assert all(np.array_equal(one, other) for one, other in zip(shared, apart, strict=True))


def test_the_same_library_is_loaded_once(tmp_path: Path, kernels: Kernels) -> None:
    library = find_library(DEFAULT_CACHE.expanduser())
    assert library is not None  # from which `kernels` are
    other = tmp_path / library.name
    shutil.copy(library, other)
    first = Kernels.of(library)
    num_open = len(list(Path("/proc/self/fd").iterdir()))
    assert all(Kernels.of(path) is first for path in (library, other) * 3)
    assert len(list(Path("/proc/self/fd").iterdir())) == num_open
    with pytest.raises(KernelsUnavailable, match="cannot be read"):
        Kernels.of(tmp_path / "none.so")


@pytest.mark.parametrize("choice", [Choice("int8", 999, {}, {}), Choice("bfloat16", 1, {}, {})])
def test_a_kept_choice_of_another_machine_is_not_taken(tmp_path: Path, kernels: Kernels, choice: Choice) -> None:
    library = _copy_of_library(tmp_path)
    upgrade = upgrade_of(tmp_path, precision="float32")
    save_choice(upgrade._choice_file(library), choice)
    assert upgrade.ready() is None


def test_without_a_compiler_there_is_one_warning_and_torch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    upgrade = upgrade_of(tmp_path, compiler="no-such-compiler")
    assert upgrade.ready() is None
    offered: list[Steps] = []
    upgrade.prepare(offered.append).join()
    assert offered == []
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert not upgrade_of(tmp_path, compiler="").is_wanted


@pytest.mark.parametrize("setting", ["float16", "int4", ""])
def test_an_unknown_precision_is_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="--precision"):
        open_model(EngineSettings(precision=setting, compiler=""))


def test_more_threads_than_cores_are_cut_and_said(caplog: pytest.LogCaptureFixture) -> None:
    most = usable_threads(0)
    assert usable_threads(1) == 1
    assert usable_threads(1000) == most
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_no_threads_is_told_and_the_process_lives(kernels: Kernels) -> None:
    code = (
        "import resource; from tests.unit.test_native import *; from promptgen.generation.native.model import Kernels\n"
        "k = Kernels(find_library(EngineSettings().cache.expanduser())); m = new_memory(SHAPES['one vector'])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 31, 1 << 31))\n"
        "try: NativeGpt2(k, m, random_weights(m.shape), 'float32', 2000)\n"
        "except KernelsUnavailable as fault: print('told:', fault)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("told: there is no memory"), done.stderr


@pytest.mark.parametrize("before", ["float32", "bfloat16"])  # torch keeps keys and values in float32 in both
def test_another_precision_or_cache_type_takes_over_when_nothing_runs_and_what_was_read_is_forgotten(
    kernels: Kernels, before: Precision
) -> None:
    shape = SHAPES["heads of 64"]
    memory = new_memory(shape)
    engine = Engine(memory, EagerGpt2(memory, random_weights(shape, scale=0.1), before))
    request = GenerationRequest((5, 6, 7), 2, 6, Sampling(seed=1))
    engine.add(0, request)
    engine.step()
    other = steps_of(kernels, memory, "bfloat16")
    engine.offer(other)
    engine.add(1, request)
    assert engine.step()
    assert engine.stats.steps.startswith("torch")
    finished = []
    while engine.has_work:
        finished += [event.request_id for event in engine.step() if isinstance(event, FinishEvent)]
    assert finished == [0, 0, 1, 1]
    assert engine.stats.steps == other.description
    assert engine.stats.num_reused_tokens == 0


# -- the choice -------------------------------------------------------------------------------------------------------


def test_a_precision_that_spoils_the_model_is_not_chosen() -> None:
    shape = SHAPES["heads of 32"]

    class Spoiled(EagerGpt2):
        def forward(self, num_rows: int, prompts: PromptTokens) -> None:
            super().forward(num_rows, prompts)
            self._memory.logits *= 0.5

    def make(memory: Memory, precision: Precision, num_threads: int) -> Steps:
        kind = Spoiled if precision == "int8" else EagerGpt2
        return kind(memory, random_weights(shape, scale=0.2))

    choice = choose(shape, make, ["float32", "int8"], [1], begin_id=2)
    assert choice.precision == "float32"
    assert choice.perplexity_rise["int8"] > 0.01
    assert choose(shape, make, ["int8"], [1], begin_id=2).precision == "int8"  # forced


def test_the_measured_rise_is_the_divergence_of_the_models() -> None:
    """A model that gives one half of all probability to token 7 beside what it should: the divergence is known to be near log 2."""
    shape = SHAPES["heads of 32"]

    class Half(EagerGpt2):
        def forward(self, num_rows: int, prompts: PromptTokens) -> None:
            super().forward(num_rows, prompts)
            logits = self._memory.logits
            logits[:, 7] = np.log(np.exp(logits[:, : shape.vocabulary]).sum(axis=1))

    def make(memory: Memory, precision: Precision, num_threads: int) -> Steps:
        kind = Half if precision == "int8" else EagerGpt2
        return kind(memory, random_weights(shape, scale=0.1))

    choice = choose(shape, make, ["float32", "bfloat16", "int8"], [1], begin_id=2)
    assert choice.perplexity_rise["bfloat16"] == pytest.approx(0, abs=1e-6)
    assert choice.perplexity_rise["int8"] == pytest.approx(1, abs=0.2)  # token 7 itself gains


@pytest.mark.parametrize(
    "text", ["", "[", "{}", '{"precision": "int3", "threads": 1, "perplexity_rise": {}, "step_ms": {}}']
)
def test_a_kept_choice_that_cannot_be_read_is_made_anew(tmp_path: Path, text: str) -> None:
    file = tmp_path / "choice.json"
    file.write_text(text)
    assert load_choice(file) is None
    choice = Choice("int8", 2, {"int8": 0.001}, {"int8 x 2": 0.1})
    save_choice(file, choice)
    assert load_choice(file) == choice
    assert json.loads(file.read_text())["threads"] == 2


def test_sampled_text_is_the_same_before_and_after_the_compiled_step_takes_over(kernels: Kernels) -> None:
    shape = read_shape(DEFAULT_MODEL)
    weights = read_weights(DEFAULT_MODEL, shape)
    texts = []
    for make in (EagerGpt2, lambda m, w: NativeGpt2(kernels, m, w, "float32", 2)):
        memory = new_memory(shape, max_rows=16)
        steps = make(memory, weights)
        steps.forward(0, PromptTokens.of([(16, 0, (2, 50, 60), True)]))
        steps.copy([memory.start_rows(GenerationRequest((2, 50, 60), 16, 9, Sampling(seed=7)), 16, 0, range(16))])
        token_ids = [steps.draw(16, 0, np.full(16, 16, np.int32))[0]]
        for _ in range(20):
            steps.forward(16, NOTHING_TO_READ)
            token_ids.append(steps.draw(16, 16, np.zeros(0, np.int32))[0])
        texts.append(token_ids)
    assert texts[0] == texts[1]


def kept(cache: NDArray[np.float32], precision: Precision) -> NDArray[Any]:
    """What the kernels keep, [layers, slots, heads, window, head_dim]: floats, or bfloat16 in the front half of each head's place."""
    if precision == "float32":
        return cache
    halves = cache.reshape(*cache.shape[:3], -1).view(np.uint16)
    return halves[..., : halves.shape[-1] // 2].reshape(cache.shape)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("num_threads", [1, 2])
def test_positions_are_copied_in_order(kernels: Kernels, precision: Precision, num_threads: int) -> None:
    """A later copy takes what an earlier one brought; few positions by one thread, many by all."""
    shape = Gpt2Shape(vocabulary=61, window=256, width=256, layers=4, heads=4, inner=16, epsilon=1e-5)
    rng = np.random.default_rng(5)
    many = [Copy(3, 4, 256, 5), Copy(4, 1, 7), Copy(1, 0, 3, 2), Copy(2, 2, 9), Copy(0, 11, 200)]
    for copies in ([Copy(3, 0, 1)], many, []):
        memory = new_memory(shape)
        steps = steps_of(kernels, memory, precision, num_threads)
        for _ in range(STEPS_BOTH_WAYS):
            steps.forward(1, NOTHING_TO_READ)  # a copy takes as many threads as the pass before it
        wanted = []
        for cache in (memory.keys, memory.values):
            given = kept(cache, precision)
            given[:] = rng.integers(0, 60_000, given.shape)
            wanted.append(given.copy())
        for positions in wanted:
            for source, target, length, num_targets in copies:
                for slot in range(target, target + num_targets):
                    positions[:, slot, :, :length] = positions[:, source, :, :length].copy()
        num_threads_used = steps.num_threads_used
        steps.copy(copies)
        assert steps.num_threads_used == num_threads_used  # and so will the draw after it
        assert np.array_equal(kept(memory.keys, precision), wanted[0])
        assert np.array_equal(kept(memory.values, precision), wanted[1])


def test_a_short_answer_costs_no_more_memory_than_its_positions() -> None:
    """Of a window of 4096 positions one page of each head is written, and not two megabytes."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs Linux to tell what is resident")

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    shape = Gpt2Shape(vocabulary=61, window=4096, width=256, layers=4, heads=4, inner=16, epsilon=1e-5)
    memory = new_memory(shape, max_rows=64)
    before = resident_bytes()
    memory.keys[:, :64, :, :4] = 1.0
    memory.values[:, :64, :, :4] = 1.0
    num_heads = 2 * shape.layers * 64 * shape.heads
    assert resident_bytes() - before < 2 * num_heads * os.sysconf("SC_PAGE_SIZE")
    assert not memory.keys[:, 64:].any()


def test_several_steps_in_a_call_draw_what_single_ones_do(kernels: Kernels) -> None:
    shape, num_rows, most = SHAPES["one vector"], 7, 12
    request = GenerationRequest(
        (2, 5), num_rows, 20, Sampling(1.3, 0, seed=4, repetition_penalty=1.2), True, end_ids=(9,)
    )

    def begin() -> tuple[Memory, NativeGpt2]:
        memory = Memory(shape, max_rows=8, num_prompt_slots=2, banned_ids=(1,), end_id=3)
        steps = steps_of(kernels, memory, "float32", 2)
        steps.forward(0, PromptTokens.of([(8, 0, request.prompt_ids, True)]))
        steps.copy([memory.start_rows(request, 8, 0, range(num_rows))])
        steps.draw(num_rows, 0, np.full(num_rows, 8, np.int32))
        return memory, steps

    one, single = begin()
    wanted, num_shared = [], 0
    for _ in range(36):  # past ends, which are for others to see
        single.forward(num_rows, NOTHING_TO_READ)
        num_shared += single.num_shared
        wanted.append(single.draw(num_rows, num_rows, NO_TOKENS))
    other, several = begin()
    several._advance.seconds = 60
    given, shared = [], 0
    while len(given) < len(wanted):
        left = len(wanted) - len(given)
        made = several.advance(num_rows, min(most, left))
        shared += several.num_shared
        ends = [bool({3, 9} & set(token_ids)) for token_ids, _ in made]
        assert not any(ends[:-1])
        assert ends[-1] or len(made) == min(most, left)
        given += made
    assert given == wanted
    assert shared == num_shared
    assert any({3, 9} & set(token_ids) for token_ids, _ in given)
    assert np.array_equal(one.row_bytes, other.row_bytes)
    assert np.array_equal(one.keys, other.keys)
    assert np.array_equal(one.seen, other.seen)
    several._advance.seconds = 0
    assert len(several.advance(num_rows, 2)) == 1


def test_a_row_that_draws_nothing_ends_a_call(kernels: Kernels) -> None:
    memory = Memory(SHAPES["one vector"], max_rows=4, num_prompt_slots=1, banned_ids=(), end_id=-1)
    steps = steps_of(kernels, memory, "float32")
    request = GenerationRequest((1, 2), 4, 9, Sampling(seed=1), ignore_end=True)
    steps.forward(0, PromptTokens.of([(4, 0, request.prompt_ids, True)]))
    steps.copy([memory.start_rows(request, 4, 0, range(4))])
    steps.draw(4, 0, np.full(4, 4, np.int32))
    steps._advance.seconds = 60
    assert len(steps.advance(4, 3)) == 3
    memory.keys[:, 2] = np.nan
    memory.rows["beginning"] = 0  # or another row would be computed for it
    ((token_ids, _),) = steps.advance(4, 3)
    assert token_ids[2] == NO_TOKEN
    assert NO_TOKEN not in (token_ids[0], token_ids[1], token_ids[3])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("num_threads", [1, 2])
def test_what_an_earlier_pass_gave_is_given_again_to_the_bit(
    kernels: Kernels, precision: Precision, num_threads: int
) -> None:
    """Rows that remember are fed the same few tokens again and again, in changing company; others compute all of it."""
    shape, prompt = SHAPES["heads of 64"], (5, 6, 7)

    def run(*, remember: bool) -> tuple[list[NDArray[np.float32]], int]:
        memory = new_memory(shape, max_rows=6, num_prompt_slots=4)
        steps = steps_of(kernels, memory, precision, num_threads)
        rng, seen, num_known = np.random.default_rng(5), list[NDArray[np.float32]](), 0
        for trial in range(12):
            memory.keys[:], memory.values[:] = 0, 0
            slot, salt = 6 + trial % 3, "ab"[trial % 4 == 3]
            beginning = beginning_of(prompt, salt) if remember else 0
            steps.forward(0, PromptTokens.of([(slot, 0, prompt[:2], False), (slot, 2, prompt[2:], True)], [beginning]))
            num_known += steps.num_shared
            seen += [memory.logits[slot].copy(), memory.keys[:, slot].copy()]
            request = GenerationRequest(prompt, 6, 9, salt=salt, remember=remember)
            steps.copy([memory.start_rows(request, slot, 0, range(6))])
            for _ in range(6):
                memory.rows["position"] += 1
                memory.rows["token_id"] = rng.integers(0, 2, 6)
                steps.forward(6, NOTHING_TO_READ)
                num_known += steps.num_shared
                seen += [memory.logits[:6].copy(), memory.keys[:, :6].copy(), memory.values[:, :6].copy()]
        return seen, num_known

    remembered, num_known = run(remember=True)
    computed, num_shared = run(remember=False)
    assert num_known > 1.5 * num_shared
    assert all(np.array_equal(one, other) for one, other in zip(remembered, computed, strict=True))


def test_nothing_is_known_of_another_salt_nor_after_a_fault_nor_without_numbers(kernels: Kernels) -> None:
    memory = new_memory(SHAPES["one vector"])
    steps = steps_of(kernels, memory, "float32")
    prompt = (1, 2, 3)

    def num_known(salt: str = "") -> int:
        steps.forward(0, PromptTokens.of([(8, 0, prompt, True)], [beginning_of(prompt, salt)]))
        return steps.num_shared

    assert [num_known(), num_known(), num_known("other"), num_known("other")] == [0, 1, 0, 1]
    steps.forget()
    assert [num_known(), num_known()] == [0, 1]
    memory.keys[:, 8, :, :2] = np.nan  # of the tokens before the last one
    last = [(8, 2, prompt[2:], True)]
    for _ in range(2):
        steps.forward(0, PromptTokens.of(last, [beginning_of(prompt, "third")]))
        assert steps.num_shared == 0
        assert np.isnan(memory.logits[8, 0])


def test_of_many_beginnings_the_oldest_are_forgotten(kernels: Kernels) -> None:
    memory = new_memory(SHAPES["heads of 64"], num_prompt_slots=4)
    steps = steps_of(kernels, memory, "float32")
    entry = 4 * (2 * 2 * 128 + 1009)  # bytes: keys and values of two layers, logits
    number = 2 * (48 << 20) // entry  # more than there is room for
    prompts = [(n // 1009, n % 1009, 5) for n in range(number)]

    def num_known(some: list[tuple[int, int, int]]) -> int:
        found = 0
        for begin in range(0, len(some), 4):
            four = some[begin : begin + 4]
            stretches = [(8 + n, 0, prompt, True) for n, prompt in enumerate(four)]
            steps.forward(0, PromptTokens.of(stretches, [beginning_of(prompt, "") for prompt in four]))
            found += steps.num_shared
        return found

    assert num_known(prompts) == 0
    assert num_known(prompts[-500:]) > 450
    assert num_known(prompts[:500]) < 50


def test_beginnings_grow_in_the_kernel_as_they_are_made_in_python(kernels: Kernels) -> None:
    memory = new_memory(SHAPES["one vector"])
    steps = steps_of(kernels, memory, "float32")
    prompt = (1, 2, 60)
    steps.forward(0, PromptTokens.of([(8, 0, prompt, True)]))
    steps.copy([memory.start_rows(GenerationRequest(prompt, 2, 9, salt="s"), 8, 0, range(2))])
    for at, pair in enumerate([(5, 6), (0, 60), (7, 7)], 1):
        memory.rows["position"][:2] += 1
        memory.rows["token_id"][:2] = pair
        steps.forward(2, NOTHING_TO_READ)
        said = [[*prompt, *(other[row] for other in [(5, 6), (0, 60), (7, 7)][:at])] for row in (0, 1)]
        assert memory.rows["beginning"][:2].tolist() == [beginning_of(ids, "s") for ids in said]
    assert len({beginning_of(ids, salt) for ids in ((1, 2), (2, 1), (1,), (1, 2, 0)) for salt in ("", "a")}) == 8


def test_long_prompts_have_the_beginnings_of_short_ones() -> None:
    ids = np.random.default_rng(0).integers(0, 50_000, 300).tolist()
    golden = {n: beginning_of(ids[:n], "s") for n in (1, 48, 49, 50, 300)}
    assert len(set(golden.values())) == 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beginning, "_FEW", 0)
        assert {n: beginning_of(ids[:n], "s") for n in golden} == golden
        patch.setattr(beginning, "_FEW", 1000)
        assert {n: beginning_of(ids[:n], "s") for n in golden} == golden
