"""From the step that answers at once to the fastest one: finds or compiles the kernels, chooses precision and threads, makes the steps.

    Upgrade(...).ready()          the fast steps, at once, if an earlier start has prepared them
    Upgrade(...).prepare(offer)   else: compiles and measures in a thread of its own, and offers them
    python -m promptgen.generation.upgrade      prepares for the shipped model: what `make install` does

No request waits for a compiler, and without one nothing is lost but speed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from promptgen.config import EngineSettings, ServeSettings, read_settings
from promptgen.errors import PromptgenError, UsageError
from promptgen.generation.calibrate import Choice, choose, load_choice, save_choice
from promptgen.generation.memory import Memory
from promptgen.generation.modelfile import Weights, read_shape, read_weights
from promptgen.generation.native.compiler import KernelsUnavailable, compile_library, find_library
from promptgen.generation.native.model import Kernels, NativeGpt2
from promptgen.generation.steps import Precision, PromptTokens, Steps
from promptgen.text.tokenizer import load_tokenizer

SELF_TEST_TOKENS = 8
_log = logging.getLogger(__name__)


def check_precision(setting: str) -> None:
    """Raises UsageError for a precision that does not exist."""
    if setting not in ("auto", *get_args(Precision)):
        raise UsageError(f"--precision is auto, float32, bfloat16 or int8, is {setting!r}")


def usable_threads(wanted: int) -> int:
    """`wanted` threads, or as many as there are cores: the step's threads wait for each other, more would only get in the way."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if wanted > cores:
        _log.warning("--threads %d: there are %d cores for this process; that many are used", wanted, cores)
    return min(wanted or cores, cores)


@dataclass(frozen=True, slots=True)
class Upgrade:
    """Everything that making fast steps for one model and one memory needs."""

    settings: EngineSettings
    memory: Memory
    weights: Weights
    begin_id: int

    @property
    def is_wanted(self) -> bool:
        return bool(self.settings.compiler) and Kernels.fits(self.memory.shape)

    def ready(self) -> Steps | None:
        """The fast steps if an earlier start has compiled and measured, else None."""
        if not self.is_wanted:
            return None
        try:
            if (library := find_library(self._cache())) is None:
                return None
            kernels = Kernels.of(library)
            choice = load_choice(self._choice_file(library))
            if (
                choice is None
                or choice.precision not in self._precisions(kernels)
                or choice.threads not in self._threads()
            ):
                return None
            return NativeGpt2(kernels, self.memory, self.weights, choice.precision, choice.threads)
        except KernelsUnavailable as fault:
            _log.warning("the compiled step is not used: %s", fault)
            return None

    def prepare(self, offer: Callable[[Steps], None]) -> threading.Thread:
        """Makes the fast steps in a thread of its own and offers them; a fault is one warning."""

        def work() -> None:
            try:
                offer(self.make())
            except KernelsUnavailable as fault:
                _log.warning("the model's step stays the slower one of torch: %s", fault)
            except Exception:
                _log.exception("the model's step stays the slower one of torch")

        thread = threading.Thread(target=work, name="upgrade", daemon=True)
        thread.start()
        return thread

    def make(self) -> Steps:
        """Compiles, measures and keeps both. Raises KernelsUnavailable."""
        library = find_library(self._cache()) or compile_library(self._cache(), self.settings.compiler)
        kernels = Kernels.of(library)

        def make(memory: Memory, precision: Precision, num_threads: int) -> Steps:
            return NativeGpt2(kernels, memory, self.weights, precision, num_threads)

        choice = choose(self.memory.shape, make, self._precisions(kernels), self._threads(), self.begin_id)
        self._check(make, choice)
        save_choice(self._choice_file(library), choice)
        _log.info(
            "measured for this machine: %s with %d threads; perplexity rises by %s, milliseconds of a step %s",
            choice.precision,
            choice.threads,
            choice.perplexity_rise,
            choice.step_ms,
        )
        return make(self.memory, choice.precision, choice.threads)

    def _cache(self) -> Path:
        try:
            return self.settings.cache.expanduser()
        except RuntimeError as fault:
            raise KernelsUnavailable(
                f"there is no home for {self.settings.cache}; name a folder with --cache"
            ) from fault

    def _precisions(self, kernels: Kernels) -> list[Precision]:
        wanted = self.settings.precision
        precisions = [name for name in kernels.precisions if wanted in ("auto", name)]
        if not precisions:
            raise KernelsUnavailable(f"{wanted} is not fast on this machine; {', '.join(kernels.precisions)} are")
        return precisions

    def _threads(self) -> list[int]:
        """Numbers to choose from; one thread is always among what a step may take."""
        most = usable_threads(self.settings.threads)
        return [most] if self.settings.threads else sorted({min(most, max(2, (most + 1) // 2)), most})

    def _check(self, make: Callable[[Memory, Precision, int], Steps], choice: Choice) -> None:
        """Raises KernelsUnavailable if the kernels do not compute what torch does (float32), or not numbers."""
        from promptgen.generation.gpt2 import EagerGpt2  # torch takes seconds and memory, and this is done once

        length = min(SELF_TEST_TOKENS, self.memory.shape.window)
        prompt = PromptTokens.of([(1, 0, (self.begin_id,) * length, True)])
        memories = [
            Memory(self.memory.shape, max_rows=1, num_prompt_slots=1, banned_ids=[], end_id=0) for _ in range(3)
        ]
        made = [make(memories[0], choice.precision, choice.threads), make(memories[1], "float32", choice.threads)]
        for steps in (*made, EagerGpt2(memories[2], self.weights)):
            steps.forward(0, prompt)
        chosen, exact, torchs = (memory.logits[1, : self.memory.shape.vocabulary] for memory in memories)
        if not np.isfinite(chosen).all() or not np.allclose(exact, torchs, rtol=1e-3, atol=1e-3):
            raise KernelsUnavailable("the compiled kernels do not give the logits that torch gives")

    def _choice_file(self, library: Path) -> Path:
        model = self.settings.model / "model.safetensors"
        stat = model.stat()
        asked = (self.settings.precision, self.settings.threads, self._threads())
        told = (library.name, str(model.resolve()), stat.st_size, stat.st_mtime_ns, asked)
        return self._cache() / f"choice-{hashlib.sha256(repr(told).encode()).hexdigest()[:16]}.json"


def main() -> None:
    """Prepares for the settings that PROMPTGEN_* variables give, of several models for the first; says in a line if it cannot."""
    try:
        settings, *_ = read_settings(ServeSettings, {}, os.environ).engines().values()
        shape = read_shape(settings.model)
        memory = Memory(shape, max_rows=1, num_prompt_slots=1, banned_ids=[], end_id=0)
        begin_id = load_tokenizer(settings.model).begin_id
        upgrade = Upgrade(settings, memory, read_weights(settings.model, shape), begin_id)
        if upgrade.is_wanted and upgrade.ready() is None:
            print(f"the model's step: {upgrade.make().description}")
    except KernelsUnavailable as fault:
        print(f"the fast step is not compiled, torch is used: {fault}")
    except PromptgenError as fault:
        print(f"promptgen: {fault}", file=sys.stderr)
        sys.exit(fault.exit_code)


if __name__ == "__main__":
    main()
